"""Start a real program, know when it is up, and have it gone afterwards whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from igniterd.errors import CannotRun

_POLL_S = 0.05
_LEAST_PORT = 10240  # fixed ports of known services are lower


class Running:
    """A program that was started, with its log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def until(self, answers: Callable[[], Awaitable[bool]], *, timeout_s: float) -> None:
        """Wait until ``answers`` is true. Raises :class:`CannotRun` with the log's end when it
        exits first or takes too long."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not await answers():
            if not self.alive:
                raise CannotRun(
                    f"{self.name} exited with status {self._process.returncode}: {self.log_end()}"
                )
            if asyncio.get_running_loop().time() > deadline:
                raise CannotRun(
                    f"{self.name} did not answer within {timeout_s:.0f} s: {self.log_end()}"
                )
            await asyncio.sleep(_POLL_S)

    def log_end(self, lines: int = 8) -> str:
        """The last lines of the log."""
        text = (
            self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        )
        return " | ".join(text[-lines:]) or f"its log {self.log} is empty"

    async def stop(self, *, timeout_s: float = 10.0) -> None:
        """Ask it to end, wait, and in the end kill it with all it started."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # it leads a process group of its own
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()


@asynccontextmanager
async def running(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stop_s: float = 10.0,
) -> AsyncIterator[Running]:
    """Run ``command`` with its output in ``log``; stopped on the way out, also when this process
    dies.

    ``env`` is the whole environment. Raises :class:`CannotRun` when it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # When we are killed, the kernel sends the child SIGTERM; setpriv is part of util-linux.
    guard = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    with log.open("ab") as out:
        try:
            process = await asyncio.create_subprocess_exec(
                *guard,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(env),
                cwd=cwd,
                process_group=0,  # in a session of its own it would not keep to our nice
            )
        except OSError as problem:
            raise CannotRun(f"{name} cannot be started: {problem}") from problem
    program = Running(name, process, log)
    try:
        yield program
    finally:
        await asyncio.shield(program.stop(timeout_s=stop_s))


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on, given to nobody else while this process
    lives.

    They lie below those the kernel gives to outgoing connections: any of these could take a port
    before the program that it is meant for listens on it. Raises :class:`CannotRun` without enough.
    """
    ports = _candidates()
    free = (port for port in random.sample(ports, len(ports)) if _is_free(port) and _take(port))
    found = list(itertools.islice(free, count))
    if len(found) < count:
        raise CannotRun(f"{count} ports are wanted; of {ports[0]} to {ports[-1]} too few are free")
    return found


def _candidates() -> Sequence[int]:
    try:
        outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        outgoing = 32768  # Linux's default
    return range(_LEAST_PORT, max(outgoing, 2 * _LEAST_PORT))


def _is_free(port: int) -> bool:
    with socket.socket() as asked, contextlib.suppress(OSError):
        asked.bind(("127.0.0.1", port))
        return True
    return False


def _take(port: int) -> bool:
    """False when another process has taken it. An abstract socket is of the same network as the
    port, and goes with its process."""
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0igniterd-port-{port}")
    except OSError:
        mark.close()
        return False
    mark.detach()  # open until the process ends
    return True


async def listens(port: int) -> bool:
    """Whether something accepts connections on a port of the loopback address."""
    try:
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
