"""The blocking side of NVML: the boards of this host, each read for itself.

What fails on a board is that board's alone: its readings are ``None``, and its ``fault`` says which
board it is, what could not be read, and what mends it. What a board never gives is ``None`` without
a fault.

- A board with MIG on is read as its instances, each a GPU of its own. Power, clocks and temperature
  are the whole board's. The board itself is among the readings only where it has a fault to tell:
  no instance, or one that cannot be had.
- A board keeps its UUID while it is lost, as its index tells. One whose UUID was never had is named
  ``index-N`` instead. One that NVML no longer lists stays, with index -1 if another has its index.
- Memory of 0 bytes is memory that the board shares with the host: it is not known, never 0.
- Memory in use counts what the driver reserves, as the first version of NVML's record does: total
  less used is what can be had. The second version counts it apart.
"""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from igniterd.clients.nvml_calls import Asking, Calls, whole
from igniterd.clients.nvml_devices import Slot, identify, read, slot_at
from igniterd.errors import IgniterdError, Unreachable
from igniterd.records import BoardReading

RENEW_S = 30.0
"""After so long without an answer from a board NVML is initialised anew; each time twice as long,
as that may take seconds from the other boards."""
RENEW_MOST_S = 600.0
_MOST_BOARDS = 512


class Boards:
    """Every board of the host, for one thread. ``library`` gives an object with pynvml's names."""

    def __init__(
        self,
        library: Callable[[], Any],
        *,
        clock: Callable[[], float],
        kernel_version: Callable[[], str],
    ) -> None:
        self._library, self._clock, self._kernel_version = library, clock, kernel_version
        self._calls: Calls | None = None
        self._slots: list[Slot] | None = None
        self._known: dict[str, Slot] = {}  # every board that was ever read, by UUID
        self._ailing = False
        self._opened_s = 0.0
        self._pause_s = RENEW_S

    def read(self) -> tuple[BoardReading, ...]:
        """Every board now. Raises :class:`~igniterd.errors.CannotRun` without NVML on this host,
        :class:`~igniterd.errors.Unreachable` where NVML as a whole does not answer."""
        if self._ailing and self._calls and self._clock() - self._opened_s >= self._pause_s:
            self.close()
            self._pause_s = min(2 * self._pause_s, RENEW_MOST_S)
        calls, slots = self._opened()
        asked = [slot.trouble or Asking(calls) for slot in slots]
        for slot, asking in zip(slots, asked, strict=True):
            identify(slot, asking)
        self._remember(slots)
        readings, self._ailing = list[BoardReading](), False
        for slot, asking in zip(slots, asked, strict=True):
            readings += read(calls, slot, asking)
            nothing = not asking.got and bool(asking.failed)
            self._ailing |= asking.lost or nothing or slot.handle is None or not slot.uuid
        gone = list(self._unlisted(slots))
        if not (self._ailing or gone):
            self._pause_s = RENEW_S
        self._ailing |= bool(gone)
        return _with_driver(_told_apart(readings + gone), calls.replaced())

    def close(self) -> None:
        """Give NVML back; the next read begins anew."""
        calls, self._calls, self._slots = self._calls, None, None
        if calls is not None:
            with contextlib.suppress(Exception):
                calls.end()

    def _opened(self) -> tuple[Calls, list[Slot]]:
        if self._calls is None or self._slots is None:
            calls = Calls(self._library(), self._kernel_version)
            calls.begin()
            self._calls, self._opened_s = calls, self._clock()
            try:
                self._slots = [slot_at(calls, index) for index in range(_count(calls))]
            except IgniterdError:
                self.close()
                raise
            return calls, self._slots
        return self._calls, self._slots

    def _remember(self, slots: list[Slot]) -> None:
        """A board that does not tell its UUID is the one that had its index, unless that one has
        another index now."""
        there = {slot.uuid for slot in slots}
        for slot in slots:
            if not slot.uuid:
                had = (k for u, k in self._known.items() if u not in there)
                was = next((k for k in had if k.index == slot.index), slot)
                slot.uuid, slot.name, slot.pci = was.uuid, was.name, was.pci
        self._known |= {slot.uuid: slot for slot in slots if slot.uuid}

    def _unlisted(self, slots: list[Slot]) -> list[BoardReading]:
        there, taken = {slot.uuid for slot in slots}, {slot.index for slot in slots}
        why = (
            "NVML no longer lists it: reset it or restart the host; if it was taken out, restart "
            "igniterd"
        )
        gone = [slot.reading(why) for uuid, slot in self._known.items() if uuid not in there]
        return [replace(board, index=-1) if board.index in taken else board for board in gone]


def _count(calls: Calls) -> int:
    found = calls.needed("nvmlDeviceGetCount")
    try:
        return whole(_MOST_BOARDS)(found)
    except ValueError:
        raise Unreachable(f"NVML: nvmlDeviceGetCount said {reprlib.repr(found)}") from None


def _with_driver(readings: list[BoardReading], replaced: str) -> tuple[BoardReading, ...]:
    """Readings through the library of another driver are those of every board."""
    return tuple(
        board
        if replaced in board.fault
        else replace(board, fault=f"{board.fault}; {replaced}" if board.fault else replaced)
        for board in readings
    )


def _told_apart(readings: list[BoardReading]) -> list[BoardReading]:
    """A UUID names one board: whoever says it again is named after its place too."""
    seen, out = set[str](), list[BoardReading]()
    for place, board in enumerate(readings):
        if board.uuid in seen:
            why = f"GPU {board.index}: another board has its UUID {board.uuid}: update the driver"
            fault = f"{why}; {board.fault}" if board.fault else why
            out.append(replace(board, uuid=f"{board.uuid}@{place}", fault=fault))
        else:
            out.append(board)
        seen.add(board.uuid)
    return out
