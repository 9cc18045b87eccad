"""The daemon as one process among others: its end, its lock, a changed configuration, ticks that fail. No Triton is needed."""

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from igniterd import daemon as daemon_module
from igniterd.clients.lock import HostLock
from igniterd.config import Config, parse_config
from igniterd.daemon import Daemon, Fresh
from igniterd.errors import CannotRun, ConfigError
from igniterd.knowledge import fitted
from igniterd.model import builtin_profile


@pytest.fixture
def nowhere() -> int:
    """A port nobody listens on, kept from others."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def settings(folder: Path, port: int, *, mode: str = "act", slo_ms: float = 15.0) -> Config:
    text = (
        f'[[triton]]\nurl = "127.0.0.1:{port}"\nmetrics_url = "http://127.0.0.1:{port}/metrics"\n[gpu]\nsource = "none"\n'
        f'[loop]\nmode = "{mode}"\ninterval_s = 0.05\nio_timeout_s = 0.02\n[mps]\nenabled = false\n[metrics]\nlisten = "127.0.0.1:0"\n'
        f'[state]\ndirectory = "{folder}"\n[[model]]\nname = "alexnet"\nslo_p99_ms = {slo_ms}\n'
    )
    return parse_config(text, source="test")


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  the daemon's ticks make it true
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(daemon: Daemon) -> AsyncIterator["asyncio.Task[Fresh | None]"]:
    task = asyncio.create_task(daemon.run())
    try:
        yield task
    finally:
        daemon.stopping.set()
        async with asyncio.timeout(20):
            await asyncio.gather(task, return_exceptions=True)


async def test_a_tick_that_fails_costs_itself_and_is_said_once(tmp_path: Path, nowhere: int) -> None:
    made = Daemon(settings(tmp_path, nowhere))
    tick, failing = made.loop.tick, [False]

    async def sometimes(now_s: float) -> Any:
        if failing[0]:
            raise ZeroDivisionError("a curve without points")
        return await tick(now_s)

    made.loop.tick = sometimes  # type: ignore[method-assign]
    with capture_logs() as said:
        async with running(made):
            await until(lambda: made.loop.carry.number > 2)
            failing[0] = True
            await until(lambda: made._once._failures.get("tick", 0) > 3)
            assert "the last tick failed: see the log" in made.health()[1]
            number, failing[0] = made.loop.carry.number, False
            await until(lambda: made.loop.carry.number > number)
            assert not made._once.failing("tick")
    assert [(line["event"], line.get("reason")) for line in said if line.get("what") == "tick"] == [
        ("failing", "ZeroDivisionError('a curve without points')"),
        ("recovered", None),
    ]


async def test_a_second_daemon_is_told_of_the_first(tmp_path: Path, nowhere: int) -> None:
    async with running(Daemon(settings(tmp_path / "a", nowhere))) as first:
        await until((tmp_path / "a" / "igniterd.lock").exists)
        with pytest.raises(CannotRun, match=rf"another igniterd \(process {os.getpid()}\) has state.directory {tmp_path}/a"):
            await Daemon(settings(tmp_path / "a", nowhere, mode="advise")).run()
        with pytest.raises(CannotRun, match=f"another igniterd on this host acts on Triton 127.0.0.1:{nowhere}"):
            await Daemon(settings(tmp_path / "b", nowhere)).run()
        advising = Daemon(settings(tmp_path / "c", nowhere, mode="advise"))
        async with running(advising):
            await until(lambda: advising.loop.carry.number > 1)
        assert not first.done()
    again = Daemon(settings(tmp_path / "a", nowhere))
    async with running(again):
        await until(lambda: again.loop.carry.number > 1)


def test_a_state_directory_that_cannot_be_written_is_said_and_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    lock = HostLock(tmp_path / "file" / "state", ())
    with capture_logs() as said:
        lock.take()
    lock.release()
    assert [line["event"] for line in said] == ["state.directory cannot be written"]


async def test_a_changed_configuration_is_taken_up_and_a_wrong_one_is_not(tmp_path: Path, nowhere: int) -> None:
    answers: list[Config | Exception] = [
        ConfigError("igniterd.toml", ["model[0].slo_p99_ms: missing"]),
        settings(tmp_path, nowhere, slo_ms=30),
    ]

    def reread() -> Config:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    made = Daemon(settings(tmp_path, nowhere), reread=reread)
    with capture_logs() as said:
        async with running(made) as task:
            await until(lambda: made.loop.carry.number > 1)
            made.rereading.set()
            await until(lambda: len(answers) == 1 and made._rereading is None)
            number = made.loop.carry.number
            await until(lambda: made.loop.carry.number > number)  # the old one goes on
            made.rereading.set()
            async with asyncio.timeout(20):
                fresh = await task
    assert fresh is not None
    assert fresh.carry.number > number
    assert fresh.config.model[0].slo_p99_ms == 30
    (refused,) = [line for line in said if "not taken up" in line["event"]]
    assert refused["problems"] == ["model[0].slo_p99_ms: missing"]
    again = Daemon(fresh.config, knowledge=fresh.knowledge, carry=fresh.carry)
    async with running(again):
        await until(lambda: again.loop.carry.number > fresh.carry.number)


async def test_what_hangs_or_fails_at_the_end_keeps_nobody_else(tmp_path: Path, nowhere: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "CLOSE_S", 0.1)
    made = Daemon(settings(tmp_path, nowhere))
    closed = []

    class Hanging:
        async def start(self) -> None: ...
        async def close(self) -> None:
            await asyncio.Event().wait()

        def set_status(self, status: str, reason: str) -> None: ...

    class Failing:
        async def close(self) -> None:
            raise OSError("no")

    made.publisher, made.nvml = Hanging(), Failing()  # type: ignore[assignment]
    monkeypatch.setattr(made.history, "close", lambda: closed.append("history"))
    with capture_logs() as said:
        async with running(made):
            await until(lambda: made.loop.carry.number > 1)
    assert closed == ["history"]
    assert [line["what"] for line in said if line["event"] == "left behind at the end"] == ["mqtt", "nvml"]
    assert said[-1]["event"] == "stopped; what is applied goes on serving"


STUCK = """
import asyncio, threading
from igniterd.cli import run

class Daemon:
    async def run(self):
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)  # as a name look-up without an answer

asyncio.run(run._served(Daemon()))
"""


def test_a_thread_that_never_ends_does_not_keep_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", STUCK], timeout=30, check=False).returncode == 0


def test_a_fit_that_takes_too_long_is_ended() -> None:
    with pytest.raises(CannotRun, match=r"could not be fitted to the profile within 0\.001 s"):
        fitted(builtin_profile("v100"), timeout_s=0.001)
    assert not [child for child in multiprocessing.active_children() if child.name == "fit"]
