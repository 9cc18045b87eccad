"""The folder of a run, and the configuration the daemon gets."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from igniterd.clients.shares import prepare_share
from igniterd.config import load_config
from igniterd.decide.search import find
from igniterd.demo.environment import Environment, configure, private_state, workplace
from igniterd.demo.forecast import LEVEL
from igniterd.demo.scenario import AFTER, BEFORE, DemoPhase, Scenario, paper, two_gpus
from igniterd.errors import CannotRun
from igniterd.lab.host import EmulatedHost, TritonHost
from igniterd.lab.programs.process import Running
from igniterd.lab.programs.programs import Program
from igniterd.lab.services import BrokerHost, MpsHost
from igniterd.perf import Profile, builtin_profile, load_model
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import Mode
from tests.users import NOBODY, as_root


def made(
    folder: Path,
    *,
    mps: Program | None = None,
    broker: bool = False,
    state: Path | None = None,
    play: Scenario | None = None,
) -> Environment:
    """One in which nothing runs."""
    never = Running("never started", None, folder / "log")  # type: ignore[arg-type]
    host = EmulatedHost(
        triton=TritonHost((play or paper()).host(), folder / "triton", (8000, 8001, 8002)),
        mps=MpsHost(mps, folder / "pipes", never) if mps else None,
        broker=BrokerHost(1883, never) if broker else None,
    )
    return Environment(folder, host, "127.0.0.1:9409", (), state or folder / "state")


def test_the_configuration_is_one_the_daemon_takes(tmp_path: Path) -> None:
    here = made(tmp_path, mps=Program(Path("/usr/bin/nvidia-cuda-mps-control")), broker=True)
    configure(here, paper())
    settings = load_config(here.config)
    assert {m.name: m.slo_p99_ms for m in settings.model} == {
        "alexnet": 60.0,
        "resnet50": 160.0,
        "vgg19": 240.0,
    }
    assert settings.triton[0].url == "127.0.0.1:8001"
    assert settings.mps.control == "/usr/bin/nvidia-cuda-mps-control"
    assert settings.mqtt is not None and settings.mqtt.url == "mqtt://127.0.0.1:1883"
    assert settings.gpu.source == f"emulated:{tmp_path / 'triton' / 'board'}"
    profile = Profile.load(settings.model[0].profile)
    assert {m.name for m in settings.model} <= set(profile.models)


def test_without_mps_control_and_broker_shares_are_steered_and_nothing_is_published(
    tmp_path: Path,
) -> None:
    here = made(tmp_path)
    configure(here, paper())
    settings = load_config(here.config)
    assert settings.mps.enabled and settings.mqtt is None


def test_a_control_program_that_is_not_installed_finds_its_libraries(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH" "$1"\n')
    program.chmod(0o755)
    (tmp_path / "run").mkdir()
    here = made(tmp_path / "run", mps=Program(program, (Path("/some/lib dir"),)))
    configure(here, paper())
    clean = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    control = load_config(here.config).mps.control
    said = subprocess.run(
        [control, "-f"], capture_output=True, text=True, timeout=10, check=True, env=clean
    ).stdout
    assert said.strip() == "/some/lib dir -f"


def of_another_user(checkout: Path) -> None:
    os.chown(checkout, NOBODY, NOBODY)


def open_to_all(checkout: Path) -> None:
    checkout.chmod(0o777)


def the_users_own(checkout: Path) -> None:
    checkout.chmod(0o755)


@pytest.mark.parametrize("name", ["src", "my sources"])
@pytest.mark.parametrize(
    "whose", [the_users_own, open_to_all, pytest.param(of_another_user, marks=as_root)]
)
def test_a_share_can_be_given_whoever_owns_the_checkout(
    tmp_path: Path, whose: Callable[[Path], None], name: str
) -> None:
    checkout = tmp_path / name
    checkout.mkdir()
    whose(checkout)
    with workplace(checkout / ".demo") as folder:
        with private_state(folder) as state:
            here = made(folder, state=state)
            configure(here, paper())
            settings = load_config(here.config)
            assert Path(prepare_share(settings.shares, 0.3)).is_dir()
            (settings.state.directory / "history.db").write_text("what was done")
        assert (folder / "state" / "history.db").read_text() == "what was done"
        assert state == folder / "state" or not state.parent.exists()


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
    with (
        workplace(tmp_path / "demo"),
        pytest.raises(CannotRun, match="another demo is running"),
        workplace(tmp_path / "demo"),
    ):
        pass


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with (
        pytest.raises(CannotRun, match="give an empty or new folder"),
        workplace(tmp_path / "demo"),
    ):
        pass


def test_the_scenario_is_the_papers_slowed() -> None:
    play = paper()
    assert [phase.mode for phase in play.phases] == [None, Mode.ACT, Mode.ACT]
    assert play.rates(play.phases[1]) == {m: r / 4 for m, r in BEFORE.items()}
    assert play.rates(play.phases[2]) == {m: r / 4 for m, r in AFTER.items()}
    assert {m.name: play.slo_ms(m.name) for m in play.models} == {
        "alexnet": 60.0,
        "resnet50": 160.0,
        "vgg19": 240.0,
    }
    assert [each.key for each in paper(frozen=True).phases] == [
        "bare",
        "steered",
        "frozen",
        "shifted",
    ]
    # three minutes with all that starts and stops
    assert sum(a.settle_s + a.measured_s for a in play.phases) < 160


def test_the_scenario_of_two_gpus_does_not_fit_on_one() -> None:
    """By igniterd's own model: before the shift each GPU holds its models. After it GPU 0 does not,
    even without margins; with one of them beside those of GPU 1 both do."""
    play = two_gpus(slow_factor=1.0)
    assert play.host().devices == play.boards
    homes = {m.name: m.gpu for m in play.models}
    on_0 = [m for m, gpu in homes.items() if gpu == 0]
    on_1 = [m for m, gpu in homes.items() if gpu == 1]
    _, steered, shifted = play.phases
    assert fits(play, steered, on_0) and fits(play, steered, on_1)
    assert not fits(play, shifted, on_0, margins=False)
    moved = [m for m in on_0 if fits(play, shifted, [*on_1, m])]
    assert any(fits(play, shifted, [each for each in on_0 if each != m]) for m in moved)
    assert sum(a.settle_s + a.measured_s for a in play.phases) < 170


def fits(play: Scenario, phase: DemoPhase, models: list[str], *, margins: bool = True) -> bool:
    """Whether shares of one GPU hold the SLOs of ``models``; with margins for 1.2 times their
    rates and 90 % of their SLOs."""
    model = load_model(builtin_profile("v100"))
    rate, slo = (1.2, 0.9) if margins else (1.0, 1.0)
    demands = [
        Demand(
            m,
            m,
            phase.rates_per_s[m] * rate,
            play.slo_ms(m) * slo,
            max_batch=model.max_batch(m),
        )
        for m in models
    ]
    return find(LatencyPredictor(model, level=LEVEL, upper=False), demands).feasible


def test_the_configuration_of_two_gpus_leaves_the_map_to_the_daemon(tmp_path: Path) -> None:
    here = made(tmp_path, play=two_gpus())
    configure(here, two_gpus())
    settings = load_config(here.config)
    assert settings.gpu.source == f"emulated:{tmp_path / 'triton' / 'boards'}"
    assert list(settings.triton[0].gpus) == []
    assert [m.gpu for m in settings.model] == [None] * 3
    assert settings.decide.moves
