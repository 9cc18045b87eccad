"""MPS control, through its own program: commands on standard input, answers on standard output.

The socket under the pipe directory speaks an unpublished protocol that changes with the driver; the
program comes with the driver. A read starts a few processes of a few milliseconds, and what it
tells changes when an administrator changes it, so read it every 30 s or so. igniterd never starts,
stops or sets anything here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from igniterd.errors import Refused, Unreachable
from igniterd.records import MpsReading

_NO_DAEMON = "cannot find mps control daemon"
_PERCENT = re.compile(r"^\d+(?:\.\d+)?$")
_DEFAULT = "get_default_active_thread_percentage"
_SERVERS = "get_server_list"
_STATE = re.compile(r"[A-Za-z_]+")
_MOST_BYTES = 1_000_000
_KILLED_S = 1.0


DEFAULT_PIPE_DIRECTORY = Path("/tmp/nvidia-mps")  # noqa: S108 - NVIDIA's own default


class MpsControl:
    """The text protocol of ``nvidia-cuda-mps-control``; no other module spells its commands."""

    def __init__(
        self,
        binary: str = "nvidia-cuda-mps-control",
        pipe_directory: Path = DEFAULT_PIPE_DIRECTORY,
        timeout_s: float = 2.0,
    ) -> None:
        """`pipe_directory` is the control daemon's ``CUDA_MPS_PIPE_DIRECTORY``."""
        self._binary = binary
        self._pipe_directory = pipe_directory
        self._timeout_s = timeout_s

    async def read(self) -> MpsReading:
        """The servers running, their states and clients, and the least cap that any of them puts on
        its clients.

        Raises :class:`Unreachable` without a control daemon or an answer in time and
        :class:`Refused` on an answer that is not understood.
        """
        first = await self._ask([_DEFAULT, _SERVERS])
        if not first:
            raise Refused(f"{self._binary}: no answer to {_DEFAULT}")
        caps = [self._fraction(first[0], _DEFAULT)]
        pids = tuple(self._pid(line) for line in first[1:])
        if not pids:
            return MpsReading(default_share=min(caps), client_pids=frozenset())
        states = await self._states(pids)
        clients = await self._clients(pids)
        caps += await self._server_caps(pids)
        return MpsReading(pids, min(caps), states, clients)

    async def _states(self, pids: Sequence[int]) -> dict[int, str]:
        """What each server says of itself; older programs do not know the question."""
        answers = await self._ask([f"get_server_status {pid}" for pid in pids])
        if len(answers) != len(pids):
            return {}
        told = zip(pids, answers, strict=True)
        return {pid: state.upper() for pid, state in told if _STATE.fullmatch(state)}

    async def _clients(self, pids: Sequence[int]) -> frozenset[int] | None:
        """The clients of all servers, each server asked alone: a list has no end mark. Where a
        server has ended since they were listed, none is no answer: another may have taken its
        clients."""
        found, ended = set[int](), False
        for pid in pids:
            answers = await self._ask([f"get_client_list {pid}"])
            if any("not found" in line.lower() for line in answers):
                ended = True
                continue
            if not all(line.isdecimal() for line in answers):
                return None
            found |= {int(line) for line in answers}
        return None if ended and not found else frozenset(found)

    async def _server_caps(self, pids: Sequence[int]) -> list[float]:
        """Each server's own cap; a server that ended in between is left out."""
        answers = await self._ask([f"get_active_thread_percentage {pid}" for pid in pids])
        return [
            self._fraction(line, "get_active_thread_percentage")
            for line in answers
            if "not found" not in line.lower()
        ]

    def _fraction(self, line: str, command: str) -> float:
        if not _PERCENT.match(line):
            raise Refused(f"{self._binary}: {command}: {line}")
        return float(line) / 100.0

    def _pid(self, line: str) -> int:
        if not line.isdecimal():
            raise Refused(f"{self._binary}: {_SERVERS}: {line}")
        return int(line)

    async def _ask(self, commands: Sequence[str]) -> list[str]:
        """Lines of the answer to `commands`, all in one process."""
        environment = os.environ | {"CUDA_MPS_PIPE_DIRECTORY": str(self._pipe_directory)}
        with contextlib.ExitStack() as files:
            asked, answered, complained = (files.enter_context(_memory_file()) for _ in range(3))
            asked.write("".join(f"{command}\n" for command in commands).encode())
            asked.seek(0)
            status = await self._run(asked, answered, complained, environment)
            output, errors = _start_of(answered), _start_of(complained)
        complaint = errors.strip() or output.strip()
        if _NO_DAEMON in complaint.lower():
            raise Unreachable(
                f"MPS control: no control daemon at {self._pipe_directory}: start it with "
                "`nvidia-cuda-mps-control -d`"
            )
        if status != 0:
            raise Unreachable(
                f"MPS control: {self._binary} ended with status {status}: {complaint}"
            )
        return [line.strip() for line in output.splitlines() if line.strip()]

    async def _run(
        self,
        asked: IO[bytes],
        answered: IO[bytes],
        complained: IO[bytes],
        environment: Mapping[str, str],
    ) -> int:
        """The exit status of the program; whatever it has started ends with it.

        Files in memory instead of pipes: a child that it leaves behind would keep a pipe open, and
        the end of the answer would not come.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                self._binary,
                stdin=asked,
                stdout=answered,
                stderr=complained,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise Unreachable(
                f"MPS control: cannot start {self._binary}: {error.strerror or error}"
            ) from error
        try:
            async with asyncio.timeout(self._timeout_s):
                return await process.wait()
        except TimeoutError as error:
            raise Unreachable(
                f"MPS control: no answer from {self._binary} in {self._timeout_s:g} s"
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # killed it ends at once, unless the kernel holds it in a driver
            if process.returncode is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KILLED_S):
                        await process.wait()


def _memory_file() -> IO[bytes]:
    return os.fdopen(os.memfd_create("mps-control", os.MFD_CLOEXEC), "w+b", buffering=0)


def _start_of(file: IO[bytes]) -> str:
    """As much as an answer may be."""
    file.seek(0)
    return file.read(_MOST_BYTES).decode(errors="replace")
