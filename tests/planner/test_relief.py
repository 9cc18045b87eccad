"""What `igniterd plan` says beside the plan: the SLO at which one GPU would do; and how a sweep is
drawn."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from igniterd.cli.app import app

SAID = re.compile(
    r"igniterd plan: a: .* take (\d+) GPUs, .* one v100 would do with an SLO of ([\d.]+) ms"
)


def planned(
    folder: Path, slo_ms: float, model: str = "vgg19", rate: float = 10, *more: str
) -> tuple[int, str]:
    """GPUs, and what is said beside the plan."""
    path = folder / "w.csv"
    path.write_text(f"workload,model,slo_p99_ms,rate_per_s\na,{model},{slo_ms},{rate}\n")
    result = CliRunner().invoke(app, ["plan", str(path), "--format", "json", *more])
    assert result.exit_code == 0, result.stderr
    return len(json.loads(result.stdout)["gpus"]), result.stderr


@pytest.mark.parametrize(
    ("model", "slo_ms", "rate"),
    [("vgg19", 4.3, 10), ("vgg19", 4.5, 40), ("ssd", 7.0, 10)],
)
def test_an_slo_just_above_the_fastest_service_says_where_one_gpu_would_do(
    tmp_path: Path, model: str, slo_ms: float, rate: float
) -> None:
    gpus, said = planned(tmp_path, slo_ms, model, rate)
    if gpus == 1:
        assert said == ""
        return
    found = SAID.search(said)
    assert found, said
    assert int(found[1]) == gpus
    at_least_ms = float(found[2])
    assert at_least_ms > slo_ms
    assert planned(tmp_path, at_least_ms, model, rate) == (1, ""), "it is true"


def test_requests_that_one_gpu_cannot_carry_need_no_word(tmp_path: Path) -> None:
    gpus, said = planned(tmp_path, 60, "vgg19", 1500)
    assert (gpus > 1, said) == (True, "")


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
