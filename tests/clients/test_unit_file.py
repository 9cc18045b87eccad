"""The unit that ships, through systemd's own tools where the machine has them and through its own
text everywhere."""

import shutil
import subprocess
from pathlib import Path

import pytest

from igniterd.acting import STEP_ENDS_S
from igniterd.cli.run import LEAVE_S
from igniterd.clients.mqtt_broker import Broker
from igniterd.config import Config, load_config
from igniterd.fleet.config import load_fleet_config
from igniterd.setup import CLOSE_S

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = (SYSTEMD / "igniterd.service").read_text()


FLEET_UNIT = (SYSTEMD / "igniterd-fleet.service").read_text()


def settings(name: str, unit: str = UNIT) -> list[str]:
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{name}=")]


@pytest.fixture(params=["igniterd.service", "igniterd-fleet.service"])
def verifiable(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A unit as it ships, but for the program: `verify` wants one that is there."""
    program = tmp_path / "igniterd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    name = str(request.param)
    path = tmp_path / name
    unit = (SYSTEMD / name).read_text()
    assert "/opt/igniterd/bin/igniterd" in unit
    path.write_text(unit.replace("/opt/igniterd/bin/igniterd", str(program)))
    return path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing: install it (Debian: apt-get install systemd)"
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.integration
def test_systemd_takes_the_unit_without_a_word(verifiable: Path) -> None:
    done = analyze("verify", "--man=no", str(verifiable))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.integration
def test_a_mistake_in_the_unit_would_be_found(verifiable: Path) -> None:
    verifiable.write_text(verifiable.read_text().replace("Type=notify", "Type=notfy"))
    assert "notfy" in analyze("verify", "--man=no", str(verifiable)).stderr


@pytest.mark.integration
def test_it_stays_locked_down(verifiable: Path) -> None:
    done = analyze("security", "--offline=yes", "--threshold=20", str(verifiable))
    assert done.returncode == 0, done.stdout


def test_the_watchdog_outlasts_many_ticks() -> None:
    """A reload goes on beside the ticks; a tick itself takes at most two rounds of calls."""
    interval_s = load_config(SYSTEMD / "igniterd.toml").loop.interval_s
    assert settings("WatchdogSec") == ["60"]
    assert 10 * interval_s <= 60


def test_numba_can_keep_what_it_compiled() -> None:
    assert settings("CacheDirectory") == ["igniterd"]
    assert "NUMBA_CACHE_DIR=/var/cache/igniterd/numba" in settings("Environment")


def test_the_example_configuration_is_one() -> None:
    config = load_config(SYSTEMD / "igniterd.toml")
    assert isinstance(config, Config)
    assert config.state.directory == Path("/var/lib") / settings("StateDirectory")[0]
    assert config.loop.mode == "observe", "an example must not change a host"


def test_a_reload_is_a_hangup() -> None:
    """Which both listen to: for systemd an end by SIGHUP is a clean one, and nothing would
    start it again."""
    assert settings("ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert settings("ExecReload", FLEET_UNIT) == settings("ExecReload")


def test_the_end_has_time_for_everything_that_has_a_deadline() -> None:
    # the step, its cancellation, clients, history, what was learnt, threads
    closing_s = STEP_ENDS_S + 1 + CLOSE_S + 2 + 2 + LEAVE_S
    assert closing_s < float(settings("TimeoutStopSec")[0])


def test_the_example_of_the_fleet_is_one() -> None:
    (command,) = settings("ExecStart", FLEET_UNIT)
    assert command.endswith("igniterd fleet --config /etc/igniterd/fleet.toml")
    config = load_fleet_config(SYSTEMD / "fleet.toml")
    assert (config.fleet.clusters, config.fleet.consolidate) == (["default"], False)
    daemon = load_config(SYSTEMD / "igniterd.toml")
    assert config.metrics.address != daemon.metrics.address, "both may run on one host"


def test_the_fleet_has_time_to_hand_over() -> None:
    # of every cluster at once: what is sent, the task, and its cancellations; then threads
    closing_s = 5 * Broker("mqtt://broker").timeout_s + CLOSE_S + LEAVE_S
    assert closing_s < float(settings("TimeoutStopSec", FLEET_UNIT)[0])
