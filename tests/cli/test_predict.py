"""``igniterd predict`` as it is used."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.perf.profile import builtin_profile

CASES = [
    {
        "tenants": [
            {"model": "alexnet", "batch": 3, "share": 0.2},
            {"model": "ssd", "batch": 3, "share": 0.8},
        ]
    }
]
run = CliRunner().invoke


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(CASES))
    return path


@pytest.mark.parametrize("model", ["igniterd", "igniter"])
def test_json_has_latency_and_throughput_of_every_tenant(cases: Path, model: str) -> None:
    result = run(
        app, ["predict", str(cases), "--gpu", "v100", "--model", model, "--format", "json"]
    )
    assert result.exit_code == 0
    (answer,) = json.loads(result.stdout)
    first, second = answer["tenants"]
    assert (first["model"], second["model"]) == ("alexnet", "ssd")
    assert 2.9 < first["latency_ms"] < 3.6 and 12 < second["latency_ms"] < 14.5
    assert first["throughput_per_s"] == pytest.approx(
        3000 / (first["latency_ms"] - 3 * 0.0602112), rel=1e-6
    )
    assert first["upper_ms"] >= first["latency_ms"] and first["inside"]


def test_the_table_shows_the_same(cases: Path) -> None:
    result = run(app, ["predict", str(cases)])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["case", "model", "batch", "share"]
    assert lines[1].split()[:4] == ["0", "alexnet", "3", "0.2"]


def test_cases_are_read_from_standard_input_and_a_profile_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    builtin_profile("v100").time_scaled(10).save(path)
    outside = json.dumps([{"tenants": [{"model": "ssd", "batch": 64, "share": 0.5}]}])
    result = run(app, ["predict", "-", "--gpu", str(path)], input=outside)
    assert result.exit_code == 0 and "outside profile" in result.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("{}", "must be a list of cases"),
        ('[{"tenants": []}]', "[0].tenants is an empty list; should be a list of tenants"),
        (
            '[{"tenants": [{"model": "ssd"}]}]',
            "[0].tenants[0].batch is missing; should be a number",
        ),
        (
            '[{"tenants": [{"model": "bert", "batch": 1, "share": 1}]}]',
            "'bert' is not in the profile (alexnet, resnet50, vgg19, ssd)",
        ),
        (
            '[{"tenants": [{"model": "ssd", "batch": 0, "share": 1}]}]',
            "batch is 0; should be a number from 1 to 4096",
        ),
        (
            '[{"tenants": [{"model": "ssd", "batch": true, "share": 1}]}]',
            "batch is True; should be",
        ),
        (
            '[{"tenants": [{"model": "ssd", "batch": 1, "share": 20}]}]',
            "share is 20; should be above 0 and at most 1",
        ),
        (
            '[{"tenants": [{"model": "ssd", "batch": 1, "share": 1, "duty": 2}]}]',
            "duty is 2; should be from 0 to 1",
        ),
        (
            '[{"tenants": [{"model": "ssd", "batch": 1, "share": 0.7}, {"model": "ssd", "batch": '
            '1, "share": 0.7}]}]',
            "those below 1 may add up to at most 1",
        ),
    ],
)
def test_wrong_cases_are_refused_with_a_reason(text: str, said: str) -> None:
    result = run(app, ["predict", "-"], input=text)
    assert result.exit_code == 1 and said in result.stderr and result.stdout == ""


def test_what_cannot_be_and_what_is_misused_have_different_exit_statuses(
    cases: Path, tmp_path: Path
) -> None:
    assert run(app, ["predict", str(tmp_path / "none.json")]).exit_code == 1
    assert run(app, ["predict", str(cases), "--gpu", "k80"]).exit_code == 1
    assert run(app, ["predict", str(cases), "--model", "magic"]).exit_code == 2
    assert run(app, ["predict", str(cases), "--level", "2"]).exit_code == 2
