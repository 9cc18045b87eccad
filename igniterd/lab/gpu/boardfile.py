"""The emulated board's state, shared between processes: a small memory-mapped file with one slot
for each loaded copy of a model.

Every copy announces its model, share, memory and what it executes now, so that copies slow each
other and the board can say how much power it draws. All fields are 8-byte floats, written one at a
time by the slot's owner alone (such a store is never seen half done); claiming a slot takes a file
lock. Times are CLOCK_MONOTONIC seconds, which all processes of a machine share. Behind the slots
stands what the board is, in JSON: it never changes. The standard library is all this module needs,
because Triton's stub processes import it.

A host with several boards has a folder with one such file, ``*.board``, for each.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SLOTS = 256
_FIELDS = 16  # floats in the header, and in a slot
_BYTES = 8 * _FIELDS * (SLOTS + 1)
_MAGIC = 1.70e9

# header
# _H_TOP: slots ever used, from the first
_H_MAGIC, _H_SLOW, _H_MEMORY, _H_CLAIMS, _H_ENERGY, _H_TOP = range(6)
# slot
(
    _PID,
    _BORN,
    _MODEL,
    _UNITS,
    _MEMORY,
    _BATCH,
    _STARTED,
    _POWER,
    _LAST_BATCH,
    _LAST_STARTED,
    _LAST_ENDED,
    _ENERGY,
    _COUNT,
    _BUSY,
    _LAST_BUSY,
) = range(15)


class OutOfMemory(Exception):
    """The board has no room for another copy."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One loaded copy of a model as its slot says. ``units`` is 0 for a process without an MPS
    share; ``batch`` is 0 while it is idle.

    ``energy_j`` is what its finished executions drew above idle; ``power_w`` is what the running
    one draws. ``busy`` is the part of the time, in (0, 1], for which the running one keeps the GPU
    busy beside others.
    """

    pid: int
    model: int
    units: int
    memory_bytes: int
    batch: int
    started_s: float
    power_w: float
    last_batch: int
    last_started_s: float
    last_ended_s: float
    energy_j: float
    executions: int
    busy: float = 1.0


def board_paths(path: Path) -> list[Path]:
    """The board file at ``path``, or all of the folder there. Raises ``ValueError`` for a folder
    without one."""
    if not path.is_dir():
        return [path]
    if found := sorted(path.glob("*.board")):
        return found
    raise ValueError(f"{path} has no board file (*.board)")


class BoardFile:
    """The board, opened. Make one with :meth:`create`; other processes :meth:`open` it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _BYTES)
        self.cells = memoryview(self._map).cast("d")
        if self.cells[_H_MAGIC] != _MAGIC:
            raise ValueError(f"{path} is not a board file of this version")
        with path.open("rb") as file:
            file.seek(_BYTES)
            self.about: dict[str, str] = json.loads(file.read() or b"{}")
        """What it is: ``kind``, ``uuid``, ``pci``; empty where nothing was said."""

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        slow_factor: float,
        memory_bytes: int,
        about: Mapping[str, str] | None = None,
    ) -> BoardFile:
        """A new board without tenants. Times of the tables are multiplied by ``slow_factor``."""
        path.write_bytes(bytes(_BYTES) + json.dumps(dict(about or {})).encode())
        with path.open("r+b") as file, mmap.mmap(file.fileno(), _BYTES) as area:
            cells = memoryview(area).cast("d")
            cells[_H_MAGIC], cells[_H_SLOW], cells[_H_MEMORY] = (
                _MAGIC,
                slow_factor,
                float(memory_bytes),
            )
            cells.release()
        return cls(path)

    def close(self) -> None:
        """Let go of the mapping."""
        self.cells.release()
        self._map.close()

    @property
    def slow_factor(self) -> float:
        return self.cells[_H_SLOW]

    @property
    def memory_bytes(self) -> int:
        return int(self.cells[_H_MEMORY])

    @property
    def claims(self) -> int:
        """Copies ever loaded."""
        return int(self.cells[_H_CLAIMS])

    @property
    def departed_energy_j(self) -> float:
        """What copies that have left drew above idle, so that the board's total never falls."""
        return self.cells[_H_ENERGY]

    @property
    def _top(self) -> int:
        return int(self.cells[_H_TOP])

    def copies(self) -> list[Copy]:
        """Every copy that is loaded."""
        return [c for c in map(self._copy, range(self._top)) if c is not None]

    def claim(self, *, model: int, units: int, memory_bytes: int) -> Slot:
        """A slot for this process. Raises :class:`OutOfMemory` when the board has no room for
        it."""
        with self._locked():
            self._reap()
            used = sum(c.memory_bytes for c in self.copies())
            if used + memory_bytes > self.memory_bytes:
                raise OutOfMemory(
                    f"out of memory: this copy needs {memory_bytes / 2**20:.0f} MiB, "
                    f"{(self.memory_bytes - used) / 2**20:.0f} MiB of "
                    f"{self.memory_bytes / 2**20:.0f} MiB are free"
                )
            base = next((b for b in map(_base, range(SLOTS)) if self.cells[b + _PID] == 0.0), None)
            if base is None:
                raise OutOfMemory(f"all {SLOTS} slots of the emulated board are taken")
            for offset in range(_FIELDS):
                self.cells[base + offset] = 0.0
            cells = self.cells
            cells[base + _MODEL], cells[base + _UNITS], cells[base + _MEMORY] = (
                float(model),
                float(units),
                float(memory_bytes),
            )
            cells[base + _BORN] = float(_born(os.getpid()))
            cells[base + _PID] = float(os.getpid())
            cells[_H_TOP] = max(cells[_H_TOP], float(base // _FIELDS))
            cells[_H_CLAIMS] += 1.0
            return Slot(self, base)

    def reap(self) -> None:
        """Free the slots of processes that are gone."""
        if any(
            not _alive(self.cells, b) for b in map(_base, range(self._top)) if self.cells[b + _PID]
        ):
            with self._locked():
                self._reap()

    def _reap(self) -> None:
        for base in map(_base, range(self._top)):
            if self.cells[base + _PID] and not _alive(self.cells, base):
                self.free(base)

    def free(self, base: int) -> None:
        """Empty the slot at ``base``; its energy stays counted."""
        self.cells[_H_ENERGY] += self.cells[base + _ENERGY]
        self.cells[base + _ENERGY] = self.cells[base + _BATCH] = self.cells[base + _PID] = 0.0

    def _copy(self, index: int) -> Copy | None:
        base = _base(index)
        v = self.cells[base : base + _FIELDS].tolist()
        if not v[_PID]:
            return None
        return Copy(
            pid=int(v[_PID]),
            model=int(v[_MODEL]),
            units=int(v[_UNITS]),
            memory_bytes=int(v[_MEMORY]),
            batch=int(v[_BATCH]),
            started_s=v[_STARTED],
            power_w=v[_POWER],
            last_batch=int(v[_LAST_BATCH]),
            last_started_s=v[_LAST_STARTED],
            last_ended_s=v[_LAST_ENDED],
            energy_j=v[_ENERGY],
            executions=int(v[_COUNT]),
            busy=v[_BUSY],
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Slot:
    """This process's place on the board."""

    def __init__(self, board: BoardFile, base: int) -> None:
        self._board = board
        self._base = base

    def begin(self, batch: int, power_w: float, now_s: float, busy: float = 1.0) -> None:
        """An execution starts. Beside others it keeps the GPU busy for ``busy`` of the time."""
        cells, base = self._board.cells, self._base
        cells[base + _STARTED], cells[base + _POWER], cells[base + _BUSY] = now_s, power_w, busy
        cells[base + _BATCH] = float(batch)

    def end(self, now_s: float) -> None:
        """The execution is over."""
        cells, base = self._board.cells, self._base
        started = cells[base + _STARTED]
        cells[base + _LAST_BATCH], cells[base + _LAST_STARTED], cells[base + _LAST_ENDED] = (
            cells[base + _BATCH],
            started,
            now_s,
        )
        cells[base + _LAST_BUSY] = cells[base + _BUSY]
        cells[base + _ENERGY] += cells[base + _POWER] * (now_s - started)
        cells[base + _COUNT] += 1.0
        cells[base + _BATCH] = 0.0

    def others(
        self, since_s: float, now_s: float
    ) -> list[tuple[int, int, int, float, float, float]]:
        """Executions of other copies that overlap [since_s, now_s]: (model, units, batch, busy,
        from_s, to_s), clipped to it.

        A copy shows its running execution and the one before, so this is exact for spans no longer
        than two executions.
        """
        cells, found = self._board.cells, []
        for base in range(_FIELDS, _FIELDS * (int(cells[_H_TOP]) + 1), _FIELDS):
            if not cells[base + _PID] or base == self._base:
                continue
            batch, started = cells[base + _BATCH], cells[base + _STARTED]
            last_started, last_ended = cells[base + _LAST_STARTED], cells[base + _LAST_ENDED]
            who = (int(cells[base + _MODEL]), int(cells[base + _UNITS]))
            if batch and started != last_started and started < now_s:
                busy = cells[base + _BUSY]
                found.append((*who, int(batch), busy, max(since_s, started), now_s))
            if last_ended > since_s:
                found.append(
                    (
                        *who,
                        int(cells[base + _LAST_BATCH]),
                        cells[base + _LAST_BUSY],
                        max(since_s, last_started),
                        min(now_s, last_ended),
                    )
                )
        return found

    def release(self) -> None:
        """The copy leaves the board."""
        with self._board._locked():
            self._board.free(self._base)


def _base(index: int) -> int:
    return _FIELDS * (index + 1)


def _born(pid: int) -> int:
    """Start time of a process in clock ticks, 0 when there is no such process: a process id alone
    can be used again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *_, born = stat.rsplit(")", 1)[1].split()[:20]
    return 0 if state == "Z" else int(born)


def _alive(cells: memoryview[float], base: int) -> bool:
    return _born(int(cells[base + _PID])) == int(cells[base + _BORN]) != 0
