"""What `igniterd plan` says beside the plan: the SLO at which one GPU would do; and how a sweep is
drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.cli.plan import _progress
from igniterd.planner.progress import report


def planned(
    folder: Path, slo_ms: float, model: str = "vgg19", rate: float = 10, copies: int = 1
) -> tuple[int, list[dict[str, Any]]]:
    """GPUs, and the advice."""
    path = folder / "w.csv"
    rows = "".join(f"a{n},{model},{slo_ms},{rate}\n" for n in range(copies))
    path.write_text(f"workload,model,slo_p99_ms,rate_per_s\n{rows}")
    result = CliRunner().invoke(app, ["plan", str(path), "--format", "json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    return len(document["gpus"]), document["advice"]


@pytest.mark.parametrize(
    ("model", "slo_ms", "rate"),
    [("vgg19", 4.3, 10), ("vgg19", 4.5, 40), ("ssd", 7.0, 10)],
)
def test_an_slo_just_above_the_fastest_service_says_where_one_gpu_would_do(
    tmp_path: Path, model: str, slo_ms: float, rate: float
) -> None:
    gpus, advice = planned(tmp_path, slo_ms, model, rate)
    if gpus == 1:
        assert advice == []
        return
    (one,) = advice
    assert (one["workload"], one["gpus"], one["slo_p99_ms"]) == ("a0", gpus, slo_ms)
    assert 0 < one["load"] < 0.5
    assert one["enough_slo_ms"] > slo_ms
    assert f"{one['enough_slo_ms']:.6g} ms" in one["sentence"]
    assert planned(tmp_path, one["enough_slo_ms"], model, rate) == (1, []), "it is true"


def test_copies_are_advised_once_and_the_table_says_it_too(tmp_path: Path) -> None:
    _, advice = planned(tmp_path, 7.0, "ssd", 10, copies=3)
    (one,) = advice
    assert one["others"] == 2
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "w.csv")])
    assert "and 2 like it: at an SLO of 7 ms" in " ".join(result.stdout.split())


def test_requests_that_one_gpu_cannot_carry_need_no_word(tmp_path: Path) -> None:
    gpus, advice = planned(tmp_path, 60, "vgg19", 1500)
    assert (gpus > 1, advice) == (True, [])


def test_progress_is_said_after_two_seconds_and_once_a_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([0.0, 0.5, 1.9, 2.5, 2.9, 3.6, 4.0])
    with _progress(lambda: next(times)):
        for step in "abcdef":
            report(step)
    said = capsys.readouterr().err.splitlines()
    assert said == ["igniterd plan: 2 s: c", "igniterd plan: 4 s: e"]


def test_a_sweep_is_drawn_so_that_the_bound_is_not_above_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    real = Figure.savefig

    def kept(self: Figure, *args: object, **more: object) -> None:
        drawn.append(self)
        real(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", kept)
    path = tmp_path / "w.csv"
    path.write_text("workload,model,slo_p99_ms,rate_per_s\na,vgg19,60,100\nb,resnet50,40,300\n")
    result = CliRunner().invoke(
        app, ["plan", str(path), "--sweep", "rate=0.5..2:4", "--plot", str(tmp_path / "s.png")]
    )
    assert result.exit_code == 0, result.stderr
    lines = {line.get_label(): line for line in drawn[0].axes[0].get_lines()}
    plan, bound = lines["GPUs"], lines["lower bound"]
    assert plan.get_drawstyle() == bound.get_drawstyle() == "default"
    at = np.linspace(0.5, 2.0, 500)
    assert (np.interp(at, *plan.get_data()) >= np.interp(at, *bound.get_data()) - 1e-9).all()
