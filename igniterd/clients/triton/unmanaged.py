"""Models of a Triton that nobody asked about: what share of a GPU they hold.

Whoever gave them one, the GPU has so much less to give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from igniterd.clients.triton.config import held_by_device
from igniterd.clients.triton.json_config import config_to_dict
from igniterd.clients.triton.reading import Served
from igniterd.engines.hosting import SHADOW

EVERY_TICK = 2
"""So many of those that are known longest are read again: an idle one's counters do not tell that
somebody gave it a share."""
AT_LEAST_S = 1.0


@dataclass(slots=True)
class _Unmanaged:
    """What it holds of each GPU, and when and of what that was read."""

    success: int
    versions: tuple[str, ...]
    read_at_s: float
    seen_at_s: float  # when it was in truth: ``read_at_s`` is put earlier
    shares: dict[int, float]  # device number -> what it holds of it


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
        age_s = 0.0 if name in self._seen else self._age_s(name)
        self._seen[name] = _Unmanaged(
            now.executed, now.versions, now_s - age_s, now_s, self._shares_of(message, now)
        )

    def _shares_of(self, message: Any, now: Served) -> dict[int, float]:
        try:
            held = held_by_device(config_to_dict(message), self._shares_dir)
        except Exception:  # a configuration nobody thought of, of a model nobody asked about
            return {}
        return {device: share * len(now.versions) for device, share in held.items()}

    @property
    def shares(self) -> dict[int, float]:
        """What they hold of each GPU, by its device number, whoever gave it to them."""
        held: dict[int, float] = {}
        for model in self._seen.values():
            for device, share in model.shares.items():
                held[device] = held.get(device, 0.0) + share
        return held
