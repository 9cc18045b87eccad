"""The host's process table: which share each stub process of Triton was really started with, and
which GPUs each tritonserver was told to see.

Triton says OK to a share that nothing reads. Only the process itself tells: its start-up leaves a
receipt in its own name (``/proc/PID/comm``, which every user may read, in every pid namespace), and
launchers up to 25.07 give it an environment that shows the variable (the same user or root only).

A model's code may do as it likes in there: name its process anew, or fork workers that look like
it. Those are no instances. One that died stays in the table as a zombie, which Triton reaps at its
next load.

A scan costs little: what a process is does not change once it is a few seconds old, so only young
ones, stubs and servers are looked at each time. What a server was started with is read once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from igniterd.clients.environments import VARIABLE
from igniterd.clients.receipt import share_of_receipt
from igniterd.clients.servers import MPS, SERVER, WANTED, Program, facts_by_port, grpc_port_of
from igniterd.devices import ServerFacts
from igniterd.errors import Unreachable
from igniterd.records import Stub

PROC = Path("/proc")
STUB = "triton_python_backend_stub"
_COMM = STUB[:15]  # the kernel keeps fifteen characters of a name
_YOUNG_SCANS = 20  # a process may become a stub by exec for so many scans after it was first seen
_FULL_EVERY = 30  # scans after which every process is looked at again: pids are used anew
_PATH, _INSTANCE = 1, 8  # of a stub's arguments
_ENDED = ("Z", "X")  # states of a process that has ended and is in the table until its parent asks
_JOIN_S = 0.2  # longest wait for another's look at the table to end


@dataclass(slots=True)
class _Known:
    """A process that was looked at: how often, and what it is, with its start time in ticks.

    ``worker``: it was forked by a model's code, and looks like the model's process. ``program``:
    it is no stub, but a server.
    """

    scans: int
    stub: Stub | None = None
    started: str = ""
    worker: bool = False
    program: Program | None = None


class ProcessTable:
    """Reads one host's ``/proc``, from a thread: a process that hangs in the kernel holds up its
    readers."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._known: dict[int, _Known] = {}
        self._ports: dict[int, int | None] = {}
        self._parents: dict[int, bool] = {}  # of this scan: whether each is a tritonserver
        self._scans = 0
        self._servers: Mapping[int, ServerFacts] = {}
        self._reading: asyncio.Future[tuple[Stub, ...]] | None = None

    async def read(self) -> tuple[Stub, ...]:
        """All stub processes of this host, by pid.

        Raises :class:`Unreachable` where ``/proc`` cannot be read, and while an earlier read hangs.
        One that is under way is waited for: its answer may be older than what the caller wants to
        see.
        """
        while self._reading is not None and not self._reading.done():
            done, _ = await asyncio.wait([self._reading], timeout=_JOIN_S)
            if not done:
                raise Unreachable(
                    "the host's process table: an earlier look at it has not ended yet"
                )
        self._reading = asyncio.ensure_future(asyncio.to_thread(self.scan))
        return await asyncio.shield(self._reading)

    async def servers(self) -> Mapping[int, ServerFacts]:
        """What the environment of each tritonserver says, by the port that its arguments give for
        gRPC, as the last :meth:`read` saw it.

        Not for the port of another host. Where servers in several containers claim one port,
        nothing is read of it. Raises what :meth:`read` does where there was none yet.
        """
        reading = self._reading
        if reading is None:
            await self.read()
        elif not reading.done():
            await asyncio.shield(reading)
        return self._servers

    def scan(self) -> tuple[Stub, ...]:
        """The same, in this thread."""
        try:
            pids = [int(entry.name) for entry in os.scandir(self._proc) if entry.name.isdecimal()]
        except OSError as error:
            raise Unreachable(f"the host's process table {self._proc}: {error.strerror}") from error
        self._scans += 1
        self._parents = {}
        full = self._scans % _FULL_EVERY == 0
        self._known = {pid: self._looked_at(pid, full) for pid in pids}
        found = tuple(k.stub for _, k in sorted(self._known.items()) if k.stub is not None)
        servers = {stub.server_pid for stub in found}
        self._ports = {pid: port for pid, port in self._ports.items() if pid in servers}
        programs = (k.program for k in self._known.values() if k.program is not None)
        self._servers = facts_by_port(programs, self._network("self"))
        return found

    def _looked_at(self, pid: int, full: bool) -> _Known:
        known = self._known.get(pid) or _Known(0)
        known.scans += 1
        if known.stub is not None:
            return self._again(pid, known)
        if known.program is not None:
            state, started = self._stat(pid)
            if started == known.started and state not in _ENDED:
                return known
            known = _Known(1)
        if (known.scans > _YOUNG_SCANS and not full) or self._same_worker(pid, known):
            return known
        name = self._text(pid, "comm").strip()
        if name in (SERVER, MPS):
            known.started, known.program = self._stat(pid)[1], self._program(pid, name)
        if known.program is None and self._is_stub(pid, name):
            state, started = self._stat(pid)
            known.stub = self._stub(pid, int(started or 0)) if state not in _ENDED else None
            known.started, known.worker = started, known.stub is None and self._is_worker(pid)
        return known

    def _same_worker(self, pid: int, known: _Known) -> bool:
        return known.worker and self._stat(pid)[1] == known.started

    def _again(self, pid: int, known: _Known) -> _Known:
        """A stub seen before: the same process as long as its start time is; its receipt comes
        once."""
        state, started = self._stat(pid)
        if started != known.started:
            self._known[pid] = _Known(0)
            return self._looked_at(pid, True)
        if state in _ENDED:
            return _Known(known.scans)
        if known.stub is not None and known.stub.by != "receipt":
            known.stub = self._with_share(known.stub)
        return known

    def _program(self, pid: int, name: str) -> Program | None:
        """``None`` for what only looks like one: it has ended, is about to become a stub, or asks
        MPS control a question."""
        if self._stat(pid)[0] in _ENDED or self._is_servers(self._parent(pid)):
            return None
        try:
            environment = self._environment(pid)
        except OSError:
            environment = {}  # as of one that is just starting or ending
        pids = dict(_pairs(self._text(pid, "status"))).get("NSpid", "").split()
        words = self._text(pid, "cmdline").split("\0")
        told = {n: environment[n] for n in WANTED & environment.keys()} if environment else None
        found = Program(name, words, told, self._network(pid), len(pids) > 1)
        return found if found.stays else None

    def _network(self, pid: int | str) -> str:
        try:
            return str((self._proc / str(pid) / "ns" / "net").readlink())
        except OSError:
            return ""

    def _is_stub(self, pid: int, name: str) -> bool:
        return (
            name == _COMM
            or share_of_receipt(name) is not None
            or self._is_servers(self._parent(pid))
        )

    def _is_servers(self, parent: int) -> bool:
        """Whether ``parent`` is a tritonserver: it has no children but stubs, whatever they call
        themselves."""
        if parent not in self._parents:
            known = parent in self._ports or self._text(parent, "comm").strip() == SERVER
            self._parents[parent] = known
        return self._parents[parent]

    def _parent(self, pid: int) -> int:
        return int((*self._text(pid, "stat").rpartition(")")[2].split(), "0", "0")[1])

    def _is_worker(self, pid: int) -> bool:
        """Whether its parent is a stub: it was forked by the model's code, and serves nothing."""
        parent = self._parent(pid)
        known = self._known.get(parent)
        return (known is not None and known.stub is not None) or _is_stubs(
            self._text(parent, "cmdline").split("\0")
        )

    def _stub(self, pid: int, started: int) -> Stub | None:
        words = self._text(pid, "cmdline").split("\0")
        if not _is_stubs(words) or self._is_worker(pid):
            return None
        facts = dict(_pairs(self._text(pid, "status")))
        pids = tuple(int(p) for p in facts.get("NSpid", str(pid)).split())
        server = int(facts.get("PPid", "0"))
        found = Stub(
            pid, (pid, *pids[1:]), server, self._port(server), words[_PATH], words[_INSTANCE]
        )
        return self._with_share(replace(found, started=started))

    def _with_share(self, stub: Stub) -> Stub:
        receipt = share_of_receipt(self._text(stub.pid, "comm").strip())
        if receipt is not None:
            return replace(stub, share=receipt, by="receipt")
        try:
            environment = self._environment(stub.pid)
        except OSError:
            return stub
        share = _fraction(environment.get(VARIABLE, ""))
        by = "" if share is None else "environment"
        venv = environment.get("VIRTUAL_ENV", "")
        return replace(stub, share=share, by=by, environment_read=True, virtual_env=venv)

    def _environment(self, pid: int) -> dict[str, str]:
        data = (self._proc / str(pid) / "environ").read_bytes()
        lines = (line.partition("=") for line in data.decode(errors="replace").split("\0"))
        return {name: value for name, _, value in lines if name}

    def _port(self, server: int) -> int | None:
        """The port its server was told to answer gRPC at; ``None`` where its arguments are
        hidden."""
        if server not in self._ports:
            words = self._text(server, "cmdline").split("\0")
            self._ports[server] = grpc_port_of(words) if words[0] else None
        return self._ports[server]

    def _stat(self, pid: int) -> tuple[str, str]:
        """The state and the start time in the kernel's ticks; the name before them may have spaces
        and brackets."""
        words = self._text(pid, "stat").rpartition(")")[2].split() + [""] * 20
        return words[0], words[19]

    def _text(self, pid: int, name: str) -> str:
        """A file of a process; empty when it has ended, or is hidden."""
        try:
            return (self._proc / str(pid) / name).read_bytes().decode(errors="replace")
        except OSError:
            return ""


def _is_stubs(words: Sequence[str]) -> bool:
    """Whether these are a stub's arguments."""
    return words[0].endswith(STUB) and len(words) > _INSTANCE


def _pairs(status: str) -> Iterable[tuple[str, str]]:
    for line in status.splitlines():
        name, _, value = line.partition(":")
        yield name, value.strip()


def _fraction(percent: str) -> float | None:
    try:
        share = float(percent) / 100.0
    except ValueError:
        return None
    return share if 0.0 < share <= 1.0 else None
