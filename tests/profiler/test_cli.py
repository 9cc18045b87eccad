"""The command line: what is wrong is said before anything is touched; a profile is shown and drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.emulator.process import free_ports
from igniterd.model.own import OwnModel
from igniterd.model.profile import builtin_profile
from igniterd.profiler.partial import Partial, Settings
from igniterd.profiler.show import residuals


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["profile", *arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name models to profile"),
        (("m", "--show", "x.json"), "name models to profile"),
        (("m", "m"), "a model is named twice"),
        (("m", "--gpu", "cuda"), "should be nvml, none or"),
        (("m", "--shape", "X"), "should be INPUT=d1,d2"),
        (("m", "--shape", "X=3,0"), "should be INPUT=d1,d2"),
        (("m", "--points", "2"), "--points"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    code, text = run(*arguments, "-o", str(tmp_path / "p.json"))
    assert code == 2
    assert said in text.replace("│", "").replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    code, text = run("m", "-o", str(tmp_path / "p.json"), "--triton", f"127.0.0.1:{port}", "--gpu", "none")
    assert code == 1
    assert str(port) in text


def test_a_server_that_was_left_changed_is_not_profiled_anew(tmp_path: Path) -> None:
    settings = Settings(models=["m"], triton="127.0.0.1:1", shares=tmp_path / "shares")
    Partial(settings=settings, originals={"m": {"name": "m"}}).write(tmp_path / "p.json.partial")
    code, text = run("m", "-o", str(tmp_path / "p.json"))
    assert code == 1
    assert "--resume or --restore" in text


def test_nothing_to_restore(tmp_path: Path) -> None:
    Partial(settings=Settings(models=["m"], triton="127.0.0.1:1", shares=tmp_path / "shares")).write(tmp_path / "p.partial")
    code, text = run("--restore", str(tmp_path / "p.partial"))
    assert (code, "nothing to put back" in text) == (0, True)
    code, text = run("--restore", str(tmp_path / "none"))
    assert (code, "cannot be read" in text) == (1, True)
    (tmp_path / "other").write_text("{}")
    code, text = run("--resume", str(tmp_path / "other"))
    assert (code, "igniterd-profile-partial" in text) == (1, True)


def test_a_profile_is_shown_and_drawn(tmp_path: Path) -> None:
    builtin_profile("v100").save(tmp_path / "v100.json")
    code, text = run("--show", str(tmp_path / "v100.json"), "--plot", str(tmp_path / "v100.png"))
    assert code == 0
    assert "80 SMs, shares in steps of 2.5 %" in text
    assert "resnet50: 11 points alone" in text
    assert f"{len(builtin_profile('v100').co_runs)} co-runs" in text
    assert (tmp_path / "v100.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "v100.png").stat().st_size > 50_000


def test_residuals_are_of_the_fit_and_of_the_fit_without_the_point() -> None:
    profile = builtin_profile("v100")
    found = residuals(profile, OwnModel(profile), "resnet50")
    assert len(found) == 11
    assert all(abs(r.fitted_error) < 0.05 for r in found)
    foretold = [abs(r.foretold_error) for r in found if r.foretold_error is not None]
    assert len(foretold) == 11
    assert sum(foretold) > sum(abs(r.fitted_error) for r in found)
