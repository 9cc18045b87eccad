"""The programs of the demo: the emulated host, and the daemon started as a user would start it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from igniterd.config import State
from igniterd.demo.scenario import Scenario
from igniterd.errors import CannotRun
from igniterd.files import others_hand
from igniterd.lab.host import EmulatedHost, triton_host
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.lab.services import broker_host, mps_host
from igniterd.perf import builtin_profile
from igniterd.records import Mode

CONFIG = "igniterd.toml"
PROFILE = "profile.json"
_MARK = ".igniterd-demo"
_WITHOUT_MPS = "the emulated board gives shares without MPS control, a real one does not"
_WITHOUT_BROKER = "no hints over MQTT in this run"
T = TypeVar("T")


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """An empty ``folder`` for one run, what an earlier run left there removed.

    Raises :class:`CannotRun` for a folder with other things in it, or while another demo runs in
    it.
    """
    folder = folder.resolve()
    if (
        folder.exists()
        and not (folder / _MARK).exists()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise CannotRun(
            f"{folder} is not empty and not of an earlier demo: give an empty or new folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _MARK).open("a") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise CannotRun(
                f"another demo is running in {folder}: wait for it, or give another folder"
            ) from problem
        for old in folder.iterdir():
            if old.name != _MARK:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        yield folder


@dataclass(frozen=True, slots=True)
class Environment:
    """The programs around the daemon, running."""

    folder: Path
    host: EmulatedHost
    admin: str  # host:port of the daemon's admin address
    notes: tuple[str, ...]
    state: Path  # where the daemon keeps its history and the environments of shares

    @property
    def config(self) -> Path:
        return self.folder / CONFIG


@contextmanager
def private_state(folder: Path) -> Iterator[Path]:
    """Where the daemon of a run in ``folder`` keeps its state: in it, or in a private folder.

    Triton runs what is in there, so the daemon refuses a place that another user could change. A
    checkout may be such a place: mounted into a container, where root works in a user's folder.
    The state is then moved to ``folder`` when all is over, for those who look at the history.
    """
    wanted = folder / "state"
    if not others_hand(folder) and _is_plain(wanted):
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="igniterd-demo-") as name:
        place = Path(name) / "state"
        try:
            yield place
        finally:
            if place.exists():
                shutil.copytree(place, wanted, symlinks=True)


def _is_plain(place: Path) -> bool:
    """Whether the configuration takes it: Triton gives the path to a shell."""
    try:
        State(directory=place)
    except ValidationError:
        return False
    return True


@asynccontextmanager
async def start_environment(scenario: Scenario, folder: Path) -> AsyncIterator[Environment]:
    """Start the host in ``folder`` and write the daemon's configuration. MPS control and the broker
    are left out where they cannot run."""
    notes: list[str] = []
    async with AsyncExitStack() as stack:
        state = stack.enter_context(private_state(folder))
        host = EmulatedHost(
            mps=await _if_possible(stack, mps_host(folder / "host" / "mps"), notes, _WITHOUT_MPS),
            broker=await _if_possible(
                stack, broker_host(folder / "host" / "broker"), notes, _WITHOUT_BROKER
            ),
            triton=await stack.enter_async_context(
                triton_host(scenario.host(), folder / "host" / "triton")
            ),
        )
        made = Environment(folder, host, f"127.0.0.1:{free_ports(1)[0]}", tuple(notes), state)
        configure(made, scenario)
        yield made


async def _if_possible(
    stack: AsyncExitStack, part: AbstractAsyncContextManager[T], notes: list[str], without: str
) -> T | None:
    """A part the demo can do without: where it cannot run, a note says why and what that means."""
    try:
        return await stack.enter_async_context(part)
    except CannotRun as problem:
        notes.append(f"{problem}; {without}")
        return None


def configure(here: Environment, scenario: Scenario) -> None:
    """The files an administrator would write: the configuration and the models' profile on this
    board."""
    builtin_profile("v100").time_scaled(scenario.slow_factor).save(here.folder / PROFILE)
    host = here.host
    lines = [
        "# Written by `igniterd demo`; the daemon of the demo runs with it.",
        '[host]\nname = "demo"\ncluster = "demo"\n',
        f'[[triton]]\nname = "main"\nurl = "{host.triton.url}"\nmetrics_url = '
        f'"{host.triton.metrics_url}"\n',
        f'[gpu]\nsource = "emulated:{host.triton.board_path}"\n',
        f'[metrics]\nlisten = "{here.admin}"\n',
        f'[state]\ndirectory = "{here.state}"\n',
    ]
    if host.mps is not None:
        control = _mps_program(here.folder, host.mps.control)
        lines.append(
            f'[mps]\nenabled = true\ncontrol = "{control}"\npipe_directory = '
            f'"{host.mps.pipe_directory}"\n'
        )
    if host.broker is not None:
        lines.append(f'[mqtt]\nurl = "{host.broker.url}"\n')
    lines += [
        f'[[model]]\nname = "{model.name}"\nslo_p99_ms = {scenario.slo_ms(model.name):g}\n'
        f'profile = "{PROFILE}"\n'
        for model in scenario.models
    ]
    here.config.write_text("\n".join(lines), encoding="utf-8")


def _mps_program(folder: Path, control: programs.Program) -> Path:
    """The control program as it can be started by its name alone: one that is not installed needs
    its library folders."""
    if not control.libraries:
        return control.path
    path = folder / "bin" / control.path.name
    path.parent.mkdir()
    exports = "".join(
        f"export {key}={shlex.quote(value)}\n" for key, value in control.environment().items()
    )
    path.write_text(f'#!/bin/sh\n{exports}exec {shlex.quote(str(control.path))} "$@"\n')
    path.chmod(0o755)
    return path


def _environment() -> dict[str, str]:
    package = Path(__file__).parents[2]
    before = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": f"{package}:{before}" if before else str(package)}


@asynccontextmanager
async def running_daemon(here: Environment, mode: Mode) -> AsyncIterator[Running]:
    """``igniterd run --config`` in a process of its own; stopped on the way out, what it applied
    stays."""
    command = [
        sys.executable,
        "-m",
        "igniterd",
        "run",
        "--config",
        str(here.config),
        "--mode",
        mode.value,
        "--log-format",
        "json",
    ]
    async with running(
        "igniterd", command, log=here.folder / "daemon.log", env=_environment()
    ) as program:
        yield program


async def _run_module(*arguments: str, timeout_s: float) -> tuple[int, str, str]:
    """Exit status, output and errors of ``python -m …``; killed when it takes too long
    (:class:`CannotRun`) or we are."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        env=_environment(),
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        raise CannotRun(f"{' '.join(arguments[:2])} did not end within {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return (
        process.returncode or 0,
        out.decode(errors="replace").strip(),
        err.decode(errors="replace").strip(),
    )


async def check_live(here: Environment) -> list[str]:
    """``igniterd check --live`` in lines. Raises :class:`CannotRun` when something is wrong; MPS
    control may be: this board needs none."""
    _, out, err = await _run_module(
        "igniterd",
        "check",
        "--live",
        "--format",
        "json",
        "--config",
        str(here.config),
        timeout_s=300.0,
    )
    try:
        findings = json.loads(out)
        bad = [f for f in findings if f["level"] == "bad" and not f["what"].startswith("MPS")]
    except (ValueError, TypeError, KeyError):
        raise CannotRun(f"igniterd check says: {out[-500:]} {err[-500:]}") from None
    if bad:
        raise CannotRun(
            "igniterd check says: " + "; ".join(f"{f['what']}: {f['said']}" for f in bad)
        )
    return [f"{f['level']:>4}  {f['what']}: {f['said']}" for f in findings]
