"""``igniterd predict`` as it is used."""

import json
from pathlib import Path
from typing import Any

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


UNCAPPED = [{"model": "vgg19", "batch": 4}, {"model": "vgg19", "batch": 4, "share": None}]


def predicted(*tenants: dict[str, object]) -> list[dict[str, Any]]:
    """What is answered for one case."""
    result = run(
        app, ["predict", "-", "--format", "json"], input=json.dumps([{"tenants": tenants}])
    )
    assert result.exit_code == 0, result.stderr
    (answer,) = json.loads(result.stdout)
    return list(answer["tenants"])


def test_a_share_that_is_missing_null_or_1_is_none() -> None:
    answers = [predicted(tenant)[0] for tenant in (*UNCAPPED, UNCAPPED[0] | {"share": 1})]
    assert answers[0]["share"] == 1
    assert answers[0] == answers[1] == answers[2]


def test_shares_count_towards_one_gpu_beside_any_number_without() -> None:
    capped = {"model": "ssd", "batch": 2, "share": 0.4}
    assert [t["share"] for t in predicted(*UNCAPPED, capped)] == [1, 1, 0.4]
    cases = [{"tenants": [*UNCAPPED, capped | {"share": 0.6}, capped | {"share": 0.6}]}]
    refused = run(app, ["predict", "-"], input=json.dumps(cases))
    assert refused.exit_code == 1
    assert (
        "[0].tenants have shares that add up to 1.2; those below 1 may add up to at most 1 (leave "
        "out the share of a model that has none)" in " ".join(refused.stderr.split())
    )


def test_the_table_says_who_is_uncapped() -> None:
    cases = [{"tenants": [*UNCAPPED, {"model": "ssd", "batch": 2, "share": 0.4}]}]
    result = run(app, ["predict", "-"], input=json.dumps(cases))
    shares = [line.split()[-4] for line in result.stdout.splitlines()[1:]]
    assert shares == ["uncapped", "uncapped", "0.4"]


def test_an_uncapped_neighbour_slows_much_more_and_each_more_somewhat_more_again() -> None:
    me = {"model": "resnet50", "batch": 4, "share": 0.5}

    def slowdown(*neighbours: dict[str, object]) -> float:
        return float(predicted(me, *neighbours)[0]["latency_ms"] / alone - 1)

    alone = predicted(me)[0]["latency_ms"]
    one = slowdown(UNCAPPED[0])
    assert one > 5 * slowdown(UNCAPPED[0] | {"share": 0.5}) > 0
    assert slowdown(*UNCAPPED) == pytest.approx(2 * 1.1875 * one, rel=0.05)


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
