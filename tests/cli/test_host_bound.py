"""What is said of a model that waits for its host, by ``igniterd profile --show`` and ``check``;
the truth of the emulated board is the measure."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.cli.host_bound import HostBound, host_bound
from igniterd.lab.gpu.floor import HostFloor
from igniterd.lab.gpu.truth import Truth
from igniterd.perf import Profile, builtin_profile, load_model
from igniterd.perf.igniter_model import IgniterModel
from tests.factories import profile_of_truth

FLOOR_MS = 10.0
BUYS = "a larger share buys nothing there; CUDA graphs or TensorRT would"


@pytest.fixture(scope="module")
def floored() -> Profile:
    """The resnet50 of an eager framework, beside models that wait for no host."""
    return profile_of_truth({"resnet50": HostFloor(FLOOR_MS, 0.4)})


def said_of(command: list[str]) -> str:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def check_command(folder: Path, profile: Profile, *models: str) -> list[str]:
    profile.save(folder / "p.json")
    path = folder / "igniterd.toml"
    path.write_text(
        f'[state]\ndirectory = "{folder}/state"\n[gpu]\nsource = "none"\n'
        + "".join(
            f'[[model]]\nname = "{name}"\nslo_p99_ms = 200\nprofile = "p.json"\n' for name in models
        )
    )
    return ["check", "--config", str(path)]


def true_bound(share: float) -> list[int]:
    """Batches that wait for the host on the emulated board."""
    return [b for b in range(1, 33) if Truth.v100().solo_ms("resnet50", b, share) < FLOOR_MS]


def test_the_bound_is_about_that_of_the_board(floored: Profile) -> None:
    found = host_bound(load_model(floored), "resnet50", 0.1)
    assert found is not None
    assert found.host_ms == pytest.approx(FLOOR_MS, rel=0.1)
    assert found.largest == pytest.approx(true_bound(1.0)[-1], abs=2)
    assert found.largest_at_least == pytest.approx(true_bound(0.1)[-1], abs=1)


def test_nothing_is_found_without_a_floor(floored: Profile) -> None:
    model = load_model(floored)
    assert [host_bound(model, name, 0.1) for name in ("alexnet", "vgg19", "ssd")] == [None] * 3
    shipped = builtin_profile("v100")
    assert host_bound(load_model(shipped), "resnet50", 0.1) is None
    assert host_bound(IgniterModel(shipped), "resnet50", 0.1) is None


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        (HostBound(10.0, 13, 0.1, 1), "up to batch 13, with a share of 10 % up to 1 (10 ms): "),
        (HostBound(6.04, 7, 0.125, 0), "up to batch 7, with a share of 12.5 % at none (6.04 ms): "),
        (HostBound(9.9, 32, 0.1, 32), "up to batch 32 (9.9 ms): "),
    ],
)
def test_the_smallest_share_is_told_where_it_differs(bound: HostBound, said: str) -> None:
    assert bound.sentence == f"bound by the host {said}{BUYS}"


def test_a_profile_shown_says_it_of_that_model_alone(tmp_path: Path, floored: Profile) -> None:
    floored.save(tmp_path / "p.json")
    text = said_of(["profile", "--show", str(tmp_path / "p.json")])
    assert re.findall(r"(\w+): bound by the host up to batch", text) == ["resnet50"]
    assert BUYS in text


def test_a_profile_without_floors_is_shown_as_ever(tmp_path: Path) -> None:
    builtin_profile("v100").save(tmp_path / "p.json")
    assert "bound by the host" not in said_of(["profile", "--show", str(tmp_path / "p.json")])


def test_check_warns_in_words_and_figures(tmp_path: Path, floored: Profile) -> None:
    command = check_command(tmp_path, floored, "alexnet", "resnet50")
    text = said_of(command)
    assert re.findall(r"(\w+) model (\w+): bound by the host", text) == [("warn", "resnet50")]
    findings = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    (found,) = [f for f in findings if "host_ms" in f]
    expected = host_bound(load_model(floored), "resnet50", 0.1)
    assert expected is not None
    assert found == {
        "level": "warn",
        "what": "model resnet50",
        "said": expected.sentence,
        "host_ms": pytest.approx(expected.host_ms, abs=1e-3),
        "host_bound_to": expected.largest,
        "least_share": 0.1,
        "host_bound_to_at_least_share": expected.largest_at_least,
    }


def test_check_names_the_board_where_there_are_several(tmp_path: Path, floored: Profile) -> None:
    other = builtin_profile("v100")
    board = other.board.model_copy(update={"name": "NVIDIA H100"})
    other.model_copy(update={"board": board}).save(tmp_path / "h100.json")
    command = check_command(tmp_path, floored, "resnet50")
    path = tmp_path / "igniterd.toml"
    path.write_text(
        path.read_text().replace('profile = "p.json"', 'profile = ["h100.json", "p.json"]')
    )
    assert f"model resnet50 on {floored.board.name}: bound by the host" in said_of(command)
