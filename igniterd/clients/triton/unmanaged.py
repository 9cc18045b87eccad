"""Models of a Triton that nobody asked about: what share of a GPU they hold, and how busy those
are that hold none.

Whoever gave them one, the GPU has so much less to give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from igniterd.clients.triton.config import held_by_device, uncapped_by_device
from igniterd.clients.triton.json_config import config_to_dict
from igniterd.clients.triton.reading import Served
from igniterd.engines.hosting import SHADOW

EVERY_TICK = 2
"""So many of those that are known longest are read again: an idle one's counters do not tell that
somebody gave it a share."""
AT_LEAST_S = 1.0
SMOOTH_S = 10.0  # time constant of what they are busy
LONGEST_S = 120.0  # a mean over more than that is not what they are busy now


@dataclass(slots=True)
class BusyClock:
    """Instances that execute at a time, of a counter of the time that executions took."""

    spent_ns: int
    at_s: float
    busy: float = 0.0

    def read(self, spent_ns: int, now_s: float) -> None:
        """The counter at ``now_s``. What went down is another copy's."""
        span_s, spent_s = now_s - self.at_s, (spent_ns - self.spent_ns) / 1e9
        if span_s <= 0:
            return
        if 0 <= spent_s < math.inf and span_s <= LONGEST_S:
            self.busy += (1 - math.exp(-span_s / SMOOTH_S)) * (spent_s / span_s - self.busy)
        self.spent_ns, self.at_s = spent_ns, now_s


@dataclass(slots=True)
class _Unmanaged:
    """What it holds of each GPU, and when and of what that was read."""

    success: int
    versions: tuple[str, ...]
    read_at_s: float
    seen_at_s: float  # when it was in truth: ``read_at_s`` is put earlier
    shares: dict[int, float]  # device number -> what it holds of it
    # device number -> the part of its executions there, where no share confines them
    uncapped: dict[int, float]
    clock: BusyClock


class UnmanagedModels:
    """Knows them by their statistics, and says whose configuration should be read (again)."""

    def __init__(self, max_age_s: float, age_s: Callable[[str], float], shares_dir: str) -> None:
        """``age_s``: how old the first reading of a model counts, so that not all of them are read
        again together."""
        self.names: frozenset[str] = frozenset()
        self.copies: frozenset[str] = frozenset()
        self._max_age_s, self._age_s = max_age_s, age_s
        self._shares_dir = shares_dir
        self._seen: dict[str, _Unmanaged] = {}

    def due(self, served: Mapping[str, Served], wanted: Iterable[str], now_s: float) -> list[str]:
        """Whose configuration may have changed since it was read."""
        others = frozenset(served) - frozenset(wanted)
        self.copies = frozenset(name for name in others if name.startswith(SHADOW))
        self.names = others - self.copies
        for gone in self._seen.keys() - self.names:
            del self._seen[gone]
        due = []
        for name in self.names:
            other, now = self._seen.get(name), served[name]
            if other is not None and other.uncapped:
                other.clock.read(_spent_ns(now), now_s)
            same = (
                other is not None
                and now.executed >= other.success
                and now.versions == other.versions
            )
            if other is None or not same or now_s - other.read_at_s >= self._max_age_s:
                due.append(name)
            else:
                other.success = now.executed
        rest = self._seen.keys() - set(due)
        idle = [
            (seen_s, name)
            for name in rest
            if now_s - (seen_s := self._seen[name].seen_at_s) >= AT_LEAST_S
        ]
        return due + [name for _, name in nsmallest(EVERY_TICK, idle)]

    def learn(self, name: str, message: Any, now: Served, now_s: float) -> None:
        """``message`` is the ``ModelConfig`` of one that was due."""
        before = self._seen.get(name)
        age_s = 0.0 if before is not None else self._age_s(name)
        shares, uncapped = self._parts_of(message, now)
        clock = (
            before.clock
            if before is not None and before.uncapped
            else BusyClock(_spent_ns(now), now_s)
        )
        self._seen[name] = _Unmanaged(
            now.executed, now.versions, now_s - age_s, now_s, shares, uncapped, clock
        )

    def _parts_of(self, message: Any, now: Served) -> tuple[dict[int, float], dict[int, float]]:
        """By device number: what it holds by its share, and which part of it executes there without
        one."""
        try:
            config = config_to_dict(message)
            held = held_by_device(config, self._shares_dir)
            uncapped = uncapped_by_device(config, self._shares_dir)
        except Exception:  # a configuration nobody thought of, of a model nobody asked about
            return {}, {}
        return {device: share * len(now.versions) for device, share in held.items()}, uncapped

    @property
    def shares(self) -> dict[int, float]:
        """What they hold of each GPU, by its device number, whoever gave it to them."""
        held: dict[int, float] = {}
        for model in self._seen.values():
            for device, share in model.shares.items():
                held[device] = held.get(device, 0.0) + share
        return held

    @property
    def busy(self) -> dict[int, float]:
        """The part of the time, at most 1, that those without a share execute on each GPU; by its
        device number."""
        found: dict[int, float] = {}
        for model in self._seen.values():
            for device, part in model.uncapped.items():
                found[device] = min(1.0, found.get(device, 0.0) + part * model.clock.busy)
        return found


def _spent_ns(served: Served) -> int:
    """The time that executions of all its versions took."""
    return sum(
        batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns
        for version in served.all
        for batch in version.batch_stats
    )
