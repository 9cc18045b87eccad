"""The folder of a run, and the configuration the daemon gets."""

import os
import subprocess
from pathlib import Path

import pytest

from igniterd.config import load_config
from igniterd.demo.scenario import AFTER, BEFORE, paper
from igniterd.demo.stage import Stage, configure, workplace
from igniterd.emulator.host import BrokerHost, EmulatedHost, MpsHost, TritonHost
from igniterd.emulator.process import Running
from igniterd.emulator.programs import Program
from igniterd.errors import CannotRun
from igniterd.model import Profile
from igniterd.records import Mode


def made(folder: Path, *, mps: Program | None = None, broker: bool = False) -> Stage:
    """A stage on which nothing runs."""
    never = Running("never started", None, folder / "log")  # type: ignore[arg-type]
    host = EmulatedHost(
        triton=TritonHost(paper().host(), folder / "triton", (8000, 8001, 8002)),
        mps=MpsHost(mps, folder / "pipes", never) if mps else None,
        broker=BrokerHost(1883, never) if broker else None,
    )
    return Stage(folder, host, "127.0.0.1:9409", ())


def test_the_configuration_is_one_the_daemon_takes(tmp_path: Path) -> None:
    stage = made(tmp_path, mps=Program(Path("/usr/bin/nvidia-cuda-mps-control")), broker=True)
    configure(stage, paper())
    settings = load_config(stage.config)
    assert {m.name: m.slo_p99_ms for m in settings.model} == {"alexnet": 60.0, "resnet50": 160.0, "vgg19": 240.0}
    assert settings.triton[0].url == "127.0.0.1:8001"
    assert settings.mps.control == "/usr/bin/nvidia-cuda-mps-control"
    assert settings.mqtt is not None and settings.mqtt.url == "mqtt://127.0.0.1:1883"
    assert settings.gpu.source == f"emulated:{tmp_path / 'triton' / 'board'}"
    profile = Profile.load(settings.model[0].profile)
    assert {m.name for m in settings.model} <= set(profile.models)


def test_without_mps_control_and_broker_shares_are_steered_and_nothing_is_published(tmp_path: Path) -> None:
    stage = made(tmp_path)
    configure(stage, paper())
    settings = load_config(stage.config)
    assert settings.mps.enabled and settings.mqtt is None


def test_a_control_program_that_is_not_installed_finds_its_libraries(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH" "$1"\n')
    program.chmod(0o755)
    (tmp_path / "run").mkdir()
    stage = made(tmp_path / "run", mps=Program(program, (Path("/some/lib dir"),)))
    configure(stage, paper())
    clean = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    control = load_config(stage.config).mps.control
    said = subprocess.run([control, "-f"], capture_output=True, text=True, timeout=10, check=True, env=clean).stdout
    assert said.strip() == "/some/lib dir -f"


def test_a_folder_is_emptied_only_if_it_was_ours(tmp_path: Path) -> None:
    with workplace(tmp_path / "demo") as place:
        (place / "host").mkdir()
        (place / "host" / "log").write_text("old")
    with workplace(tmp_path / "demo") as place:
        assert [p.name for p in place.iterdir()] == [".igniterd-demo"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(CannotRun, match="not empty"), workplace(foreign):
        pass
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with workplace(tmp_path / "demo"), pytest.raises(CannotRun, match="another demo is running"), workplace(tmp_path / "demo"):
        pass


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(CannotRun, match="give an empty or new folder"), workplace(tmp_path / "demo"):
        pass


def test_the_scenario_is_the_papers_slowed() -> None:
    play = paper()
    assert [act.mode for act in play.acts] == [None, Mode.ACT, Mode.ACT]
    assert play.rates(play.acts[1]) == {m: r / 4 for m, r in BEFORE.items()}
    assert play.rates(play.acts[2]) == {m: r / 4 for m, r in AFTER.items()}
    assert {m.name: play.slo_ms(m.name) for m in play.models} == {"alexnet": 60.0, "resnet50": 160.0, "vgg19": 240.0}
    assert [act.key for act in paper(frozen=True).acts] == ["bare", "steered", "frozen", "shifted"]
    assert sum(a.settle_s + a.measured_s for a in play.acts) < 160  # three minutes with all that starts and stops
