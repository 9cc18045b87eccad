"""The daemon as one process among others: its end, its lock, a changed configuration, ticks that
fail. No Triton is needed."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from igniterd import setup as wiring
from igniterd.clients.systemd import Notifier
from igniterd.config import Config, parse_config
from igniterd.daemon import Daemon
from igniterd.errors import CannotRun, ConfigError
from igniterd.estimate import ModelState
from igniterd.lab.programs.process import free_ports
from igniterd.loop import Loop
from igniterd.perf import builtin_profile
from igniterd.predictors import fitted
from igniterd.state.lock import HostLock
from tests.waiting import until


@pytest.fixture
def nowhere() -> int:
    """A port nobody listens on, kept from others."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def settings(
    folder: Path, port: int, *, mode: str = "act", slo_ms: float = 15.0, interval_s: float = 0.05
) -> Config:
    text = (
        f'[[triton]]\nurl = "127.0.0.1:{port}"\nmetrics_url = "http://127.0.0.1:{port}/metrics"\n'
        '[gpu]\nsource = "none"\n'
        f'[loop]\nmode = "{mode}"\ninterval_s = {interval_s}\nio_timeout_s = 0.02\n'
        '[mps]\nenabled = false\n[metrics]\nlisten = "127.0.0.1:0"\n'
        f'[state]\ndirectory = "{folder}"\n[[model]]\nname = "alexnet"\nslo_p99_ms = {slo_ms}\n'
    )
    return parse_config(text, source="test")


@asynccontextmanager
async def running(daemon: Daemon) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(daemon.run())
    try:
        yield task
    finally:
        daemon.stopping.set()
        async with asyncio.timeout(20):
            await asyncio.gather(task, return_exceptions=True)


async def test_a_tick_that_fails_costs_itself_and_is_said_once(
    tmp_path: Path, nowhere: int
) -> None:
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
            await until(lambda: not made.health.alive()[0])
            for whether in (made.health.alive, made.health.ready):
                assert "the last tick failed: see the log" in whether()[1]
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
        with pytest.raises(
            CannotRun,
            match=rf"another igniterd \(process {os.getpid()}\) has state.directory {tmp_path}/a",
        ):
            await Daemon(settings(tmp_path / "a", nowhere, mode="advise")).run()
        with pytest.raises(
            CannotRun, match=f"another igniterd on this host acts on Triton 127.0.0.1:{nowhere}"
        ):
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


async def test_a_changed_configuration_is_taken_up_and_a_wrong_one_is_not(
    tmp_path: Path, nowhere: int
) -> None:
    answers: list[Config | Exception] = [
        ConfigError("igniterd.toml", ["model[0].slo_p99_ms: missing"]),
        ValueError("a figure nobody thought of"),
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
            for left in (2, 1):
                made.rereading.set()
                await until(lambda left=left: len(answers) == left and made._preparing is None)
                number = made.loop.carry.number
                # the old one goes on
                await until(lambda number=number: made.loop.carry.number > number)
            made.rereading.set()
            await until(lambda: made.config.model[0].slo_p99_ms == 30)
            number = made.loop.carry.number
            await until(lambda: made.loop.carry.number > number > 2)
            assert not task.done()
    refused = [line["problems"] for line in said if "not taken up" in line["event"]]
    assert refused == [["model[0].slo_p99_ms: missing"], ["a figure nobody thought of"]]


async def test_the_name_of_a_run_is_its_process_own(tmp_path: Path, nowhere: int) -> None:
    made = Daemon(told(tmp_path, nowhere), reread=lambda: told(tmp_path, nowhere, "# anew"))
    other = Daemon(told(tmp_path, nowhere))
    assert made.setup.run != other.setup.run
    async with running(made):
        await until(lambda: made.loop.carry.number > 1)
        before = made.setup
        made.rereading.set()
        await until(lambda: made.setup is not before)
        assert made.setup.run == before.run


async def test_what_hangs_or_fails_at_the_end_keeps_nobody_else(
    tmp_path: Path, nowhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "CLOSE_S", 0.1)
    made = Daemon(settings(tmp_path, nowhere))
    closed = []

    class Hanging:
        async def start(self) -> None: ...
        async def close(self) -> None:
            await asyncio.Event().wait()

        def set_status(self, status: str, reason: str) -> None: ...
        def set_profiles(self, packed: object) -> None: ...

    class Failing:
        async def close(self) -> None:
            raise OSError("no")

    made.setup.publisher, made.setup.nvml = Hanging(), Failing()  # type: ignore[assignment]
    monkeypatch.setattr(made.history, "close", lambda: closed.append("history"))
    with capture_logs() as said:
        async with running(made):
            await until(lambda: made.loop.carry.number > 1)
    assert closed == ["history"]
    assert [line["what"] for line in said if line["event"] == "left behind at the end"] == [
        "mqtt",
        "nvml",
    ]
    assert said[-1]["event"] == "stopped; what is applied goes on serving"


STUCK = """
import asyncio, threading
from igniterd.cli import run

class Daemon:
    async def run(self):
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)  # as a name look-up without an answer

asyncio.run(run._served(Daemon(), threading.Event()))
"""  # noqa: E501


def test_a_thread_that_never_ends_does_not_keep_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", STUCK], timeout=30, check=False).returncode == 0


def test_a_fit_that_takes_too_long_is_ended() -> None:
    with pytest.raises(CannotRun, match=r"could not be fitted to the profile within 0\.001 s"):
        fitted(builtin_profile("v100"), timeout_s=0.001)
    assert not [child for child in multiprocessing.active_children() if child.name == "fit"]


def told(
    folder: Path, port: int, more: str = "", *, listen: str = "127.0.0.1:0", state: str = "state"
) -> Config:
    text = (
        f'[[triton]]\nurl = "127.0.0.1:{port}"\nmetrics_url = "http://127.0.0.1:{port}/metrics"\n'
        f'{more}\n[gpu]\nsource = "none"\n'
        "[loop]\ninterval_s = 0.05\nio_timeout_s = 0.02\n[mps]\nenabled = false\n[metrics]\n"
        f'listen = "{listen}"\n'
        f'[state]\ndirectory = "{folder}/{state}"\n[[model]]\nname = "alexnet"\nslo_p99_ms = 15\n'
    )
    return parse_config(text, source="test")


async def got(address: tuple[str, int], path: str) -> tuple[int, str]:
    """Status and text of one page; a fresh connection each time, as a scraper's."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(20):
            answer = (await reader.read()).decode()
    finally:
        writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split(" ", 2)[1]), body


def wrong_files(folder: Path) -> dict[str, str]:
    """Configurations that are right as text, and cannot be started."""
    (folder / "garbage.pem").write_text("no certificate")
    (folder / "latin").write_bytes("p\u00e4ss".encode("latin-1"))
    (folder / "long").write_text("a" * 70_000)
    broker = '[mqtt]\nurl = "mqtt://127.0.0.1:1"\nusername = "u"\n'
    return {
        "no such password file": broker + f'password_file = "{folder}/none"',
        "a folder as password file": broker + f'password_file = "{folder}"',
        "a password in another encoding": broker + f'password_file = "{folder}/latin"',
        "a password that MQTT cannot carry": broker + f'password_file = "{folder}/long"',
        "no such authority for the broker": '[mqtt]\nurl = "mqtts://127.0.0.1:1"\nca_file = '
        f'"{folder}/none.pem"',
        "garbage as authority for the broker": '[mqtt]\nurl = "mqtts://127.0.0.1:1"\nca_file = '
        f'"{folder}/garbage.pem"',
        "no such authority for Triton": f'ca_file = "{folder}/none.pem"',
        "garbage as authority for Triton": f'ca_file = "{folder}/garbage.pem"',
    }


@pytest.mark.parametrize("number", range(8))
async def test_what_cannot_be_started_is_said_and_the_old_one_ticks_on(
    tmp_path: Path, nowhere: int, number: int
) -> None:
    more = list(wrong_files(tmp_path).values())[number]
    made = Daemon(told(tmp_path, nowhere), reread=lambda: told(tmp_path, nowhere, more))
    with capture_logs() as said:
        async with running(made) as task:
            await until(lambda: made.loop.carry.number > 1)
            before = made.setup
            made.rereading.set()
            await until(lambda: any("not taken up" in line["event"] for line in said))
            number = made.loop.carry.number
            await until(lambda: made.loop.carry.number > number + 2)
            assert made.setup is before
            assert not task.done()
    (refused,) = [line["problems"] for line in said if "not taken up" in line["event"]]
    assert str(tmp_path) in refused[0], "the file is named"


async def test_an_address_that_is_taken_is_said_and_one_that_is_free_is_taken_over(
    tmp_path: Path, nowhere: int
) -> None:
    listen = [f"127.0.0.1:{nowhere}", "localhost:0"]
    made = Daemon(
        told(tmp_path, nowhere), reread=lambda: told(tmp_path, nowhere, listen=listen.pop(0))
    )
    with capture_logs() as said:
        async with running(made):
            await until(lambda: made.loop.carry.number > 1)
            first = made.admin.address
            made.rereading.set()
            await until(lambda: any("not taken up" in line["event"] for line in said))
            assert (await got(first, "/livez"))[0] == 200
            made.rereading.set()
            await until(lambda: made.admin.address != first)
            assert (await got(made.admin.address, "/livez"))[0] == 200
            await until(lambda: not made._aside)
            with pytest.raises(ConnectionRefusedError):
                await got(first, "/livez")
    assert f"metrics.listen 127.0.0.1:{nowhere}" in str(
        next(line for line in said if "not taken up" in line["event"])
    )


async def test_a_reload_leaves_no_gap_in_what_is_shown(tmp_path: Path, nowhere: int) -> None:
    """Ticks are far enough apart that a busy machine makes none late: ``/livez`` says so after
    five intervals."""
    slos = iter(range(20, 100))

    def reread(slo_ms: float = 15.0) -> Config:
        return settings(tmp_path, nowhere, slo_ms=slo_ms, interval_s=0.5)

    made = Daemon(reread(), reread=lambda: reread(next(slos)))
    async with running(made):
        await until(lambda: made.loop.carry.number > 1)
        for _ in range(5):
            before = made.setup
            made.rereading.set()
            while made.setup is before or made._shown is before:
                for path, part in (
                    ("/metrics", "igniterd_"),
                    ("/state", '"models":[{'),
                    ("/livez", "healthy"),
                ):
                    status, text = await got(made.admin.address, path)
                    assert (status, part in text) == (200, True), path
        assert made.config.model[0].slo_p99_ms >= 24


async def test_of_many_hangups_the_last_configuration_counts(tmp_path: Path, nowhere: int) -> None:
    slo_ms, reading, go_on = [20.0], threading.Event(), threading.Event()

    def reread() -> Config:
        read = settings(tmp_path, nowhere, slo_ms=slo_ms[0])
        reading.set()
        go_on.wait(20)
        return read

    made = Daemon(settings(tmp_path, nowhere), reread=reread)
    async with running(made):
        await until(lambda: made.loop.carry.number > 1)
        made.rereading.set()
        await until(reading.is_set)
        for number in range(10):  # while the first is being read
            slo_ms[0] = 30.0 + number
            made.rereading.set()
            ticks = made.loop.carry.number
            await until(lambda then=ticks: made.loop.carry.number > then)
        number = made.loop.carry.number
        await until(lambda: made.loop.carry.number > number + 3)  # the old one ticks on
        assert made.config.model[0].slo_p99_ms == 15
        go_on.set()
        await until(lambda: made.config.model[0].slo_p99_ms == 39)


async def test_ticks_go_on_while_the_name_of_a_broker_is_looked_up(
    tmp_path: Path, nowhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked, answer = socket.getaddrinfo, threading.Event(), threading.Event()

    def slow(host: str, *rest: Any, **more: Any) -> Any:
        if host != "broker.example":
            return real(host, *rest, **more)
        asked.set()
        answer.wait(60)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    names = ["gpu-b", "gpu-c"]

    def reread() -> Config:
        return told(
            tmp_path,
            nowhere,
            f'[host]\nname = "{names.pop(0)}"\n[mqtt]\nurl = "mqtt://broker.example"',
        )

    made = Daemon(told(tmp_path, nowhere, '[mqtt]\nurl = "mqtt://broker.example"'), reread=reread)
    async with running(made):
        await until(asked.is_set)
        for name in ("gpu-b", "gpu-c"):
            made.rereading.set()
            await until(lambda name=name: made.config.host.name == name)
            number = made.loop.carry.number
            await until(lambda number=number: made.loop.carry.number > number + 5)
        assert not answer.is_set(), "nobody waited for the answer"
        answer.set()


def kept_in(folder: Path) -> dict[str, bytes]:
    """Files and what is in them, but for the history, which the first daemon goes on writing."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith("history")
    }


async def test_a_refused_daemon_writes_nothing(tmp_path: Path, nowhere: int) -> None:
    async with running(Daemon(settings(tmp_path, nowhere))) as first:
        await until((tmp_path / "igniterd.lock").exists)
        (tmp_path / "learnt.json").write_text("what the first has learnt")
        second = Daemon(settings(tmp_path, nowhere))
        second.loop.carry = replace(
            second.loop.carry, belief={"alexnet": ModelState(copy=("1", "python"))}
        )
        before = kept_in(tmp_path)
        with pytest.raises(CannotRun):
            await second.run()
        assert kept_in(tmp_path) == before
        assert not first.done()


async def test_alive_without_a_triton_but_not_ready_and_why(tmp_path: Path, nowhere: int) -> None:
    made = Daemon(settings(tmp_path, nowhere))
    async with running(made):
        await until(lambda: made.loop.carry.number > 8)
        assert (await got(made.admin.address, "/livez"))[0] == 200
        assert (await got(made.admin.address, "/healthz"))[0] == 200
        status, why = await got(made.admin.address, "/readyz")
        assert status == 503
        assert "triton:main: not read yet" in why


HUNG_UP_EARLY = """
import asyncio, threading
from igniterd.cli import run

class Daemon:
    rereading = asyncio.Event()

    async def run(self):
        async with asyncio.timeout(20):
            await self.rereading.wait()

early = threading.Event()
early.set()
asyncio.run(run._served(Daemon(), early))
"""


def test_a_hangup_before_the_daemon_listens_is_heard() -> None:
    assert (
        subprocess.run([sys.executable, "-c", HUNG_UP_EARLY], timeout=60, check=False).returncode
        == 0
    )


async def test_a_reload_into_another_folder_moves_everything_and_lets_the_old_one_go(
    tmp_path: Path, nowhere: int
) -> None:
    made = Daemon(
        told(tmp_path, nowhere, state="a"), reread=lambda: told(tmp_path, nowhere, state="b")
    )
    loop, tick = made.loop, made.loop.tick

    async def learning(now_s: float) -> Any:
        done = await tick(now_s)
        loop.carry = replace(loop.carry, belief={"alexnet": ModelState(copy=("1", "python"))})
        return done

    loop.tick = learning  # type: ignore[method-assign]
    async with running(made):
        await until(lambda: made.loop.carry.number > 1)
        made.rereading.set()
        await until(lambda: made.config.state.directory.name == "b")
        await until((tmp_path / "b" / "history.db").exists)
        await until((tmp_path / "a" / "learnt.json").exists)
        with pytest.raises(CannotRun, match=r"state.directory .*/b"):
            await Daemon(told(tmp_path, nowhere, state="b")).run()
        with pytest.raises(CannotRun, match="acts on Triton"):  # the Triton is still this daemon's
            await Daemon(told(tmp_path, nowhere, state="c")).run()
        lock = HostLock(tmp_path / "a", ())
        lock.take()
        lock.release()


async def test_a_reload_into_a_folder_of_another_daemon_is_refused_and_nothing_is_let_go(
    tmp_path: Path, nowhere: int
) -> None:
    other = HostLock(tmp_path / "b", ())
    other.take()
    made = Daemon(
        told(tmp_path, nowhere, state="a"), reread=lambda: told(tmp_path, nowhere, state="b")
    )
    with capture_logs() as said:
        async with running(made) as task:
            await until(lambda: made.loop.carry.number > 1)
            made.rereading.set()
            await until(lambda: any("not taken up" in line["event"] for line in said))
            number = made.loop.carry.number
            await until(lambda: made.loop.carry.number > number + 2)
            assert made.config.state.directory.name == "a"
            with pytest.raises(CannotRun, match=r"state.directory .*/a"):
                await Daemon(told(tmp_path, nowhere, state="a")).run()
            assert not task.done()
    other.release()


async def test_a_reload_tells_systemd_of_its_end_whichever_it_is(
    tmp_path: Path, nowhere: int
) -> None:
    answers: list[Config | Exception] = [
        ConfigError("t", ["no"]),
        settings(tmp_path, nowhere, slo_ms=30),
    ]

    def reread() -> Config:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        heard: list[str] = []

        def kinds() -> list[str]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.append(manager.recv(65_536).decode().partition("\n")[0])
            return [kind for kind in heard if kind != "WATCHDOG=1"]

        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        made = Daemon(settings(tmp_path / "state", nowhere), reread=reread, notifier=notifier)
        async with running(made):
            await until(lambda: kinds() == ["READY=1"])
            for _ in range(2):
                before = len(kinds())
                made.rereading.set()
                await until(lambda before=before: kinds()[before:] == ["RELOADING=1", "READY=1"])
        assert kinds()[-1] == "STOPPING=1"


async def test_an_error_in_a_task_that_nobody_waits_for_is_said_once(
    tmp_path: Path, nowhere: int
) -> None:
    async def dies() -> None:
        raise ZeroDivisionError("a task of somebody's")

    made = Daemon(settings(tmp_path, nowhere))
    with capture_logs() as said:
        async with running(made):
            await until(lambda: made.loop.carry.number > 1)
            for _ in range(3):
                task = asyncio.get_running_loop().create_task(dies())
                await asyncio.wait([task])
                del task
                gc.collect()
            await until(lambda: any("ZeroDivision" in str(line.get("reason")) for line in said))
    assert len([line for line in said if "ZeroDivision" in str(line.get("reason"))]) == 1


async def test_another_host_of_the_same_port_is_listened_on(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    hosts = ["0.0.0.0", "192.0.2.1", "localhost"]  # the second is no address of this host

    def reread() -> Config:
        return told(tmp_path, 1, listen=f"{hosts[0]}:{port}")

    made = Daemon(told(tmp_path, 1, listen=f"127.0.0.1:{port}"), reread=reread)
    with capture_logs() as said:
        async with running(made):
            await until(lambda: made.loop.carry.number > 1)
            made.rereading.set()
            await until(lambda: made.config.metrics.address[0] == "0.0.0.0")
            assert (await got(("127.0.0.1", port), "/livez"))[0] == 200
            hosts.pop(0)
            made.rereading.set()
            await until(lambda: any("not taken up" in line["event"] for line in said))
            assert (await got(("127.0.0.1", port), "/livez"))[0] == 200
            hosts.pop(0)
            made.rereading.set()
            await until(lambda: made.config.metrics.address[0] == "localhost")
            assert (await got(("127.0.0.1", port), "/livez"))[0] == 200


async def test_hangups_that_all_move_the_address_end_with_the_last(
    tmp_path: Path, nowhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    slo_ms = [20.0]

    def reread() -> Config:
        model = (
            told(tmp_path, nowhere, listen=f"127.0.0.1:{port}")
            .model[0]
            .model_copy(update={"slo_p99_ms": slo_ms[0]})
        )
        return told(tmp_path, nowhere, listen=f"127.0.0.1:{port}").model_copy(
            update={"model": [model]}
        )

    made = Daemon(told(tmp_path, nowhere), reread=reread)
    # a model is being reloaded: what is prepared waits
    acting = asyncio.get_running_loop().create_future()
    with capture_logs() as said:
        async with running(made):
            await until(lambda: made.loop.carry.number > 1)
            monkeypatch.setattr(
                Loop, "acting", property(lambda _: None if acting.done() else acting)
            )
            for number in range(4):
                slo_ms[0] = 30.0 + number
                made.rereading.set()
                await until(
                    lambda: (
                        not made.rereading.is_set()
                        and made._preparing is not None
                        and made._preparing.done()
                    )
                )
            assert made.config.model[0].slo_p99_ms == 15
            acting.set_result(None)
            await until(lambda: made.config.model[0].slo_p99_ms == 33)
            assert (await got(("127.0.0.1", port), "/livez"))[0] == 200
    assert [line for line in said if "not taken up" in line["event"]] == []
