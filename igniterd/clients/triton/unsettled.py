"""Models of which it is not settled what serves: a load was not answered in time, or one version
may be taking the place of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from igniterd.clients.triton.config import same_allocation
from igniterd.records import Allocation

PATIENCE = 10.0
"""For how many times the wait for its answer a load is looked out for."""
CHANGING_S = 10.0
"""A model that serves several versions for longer than this does so for good."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A load that was not answered in time: Triton may finish it yet."""

    wanted: Allocation | None  # None: the repository's own, whatever that is
    blocks_until_s: float
    asked_until_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """What a server that has ended takes with it: requests executed, and the marks of loads, by
    model."""

    executed: Mapping[str, int]
    marks: Mapping[str, str]

    def of_another(self, later: Trace) -> bool:
        """Whether ``later`` shows another server: something of this is lost, and nothing is left.

        In doubt it is the same one, which was only out of reach for a moment.
        """
        counted = {name: count for name, count in self.executed.items() if count > 0}
        left = any(later.executed.get(name, -1) >= count for name, count in counted.items())
        left = left or any(later.marks.get(name) == mark for name, mark in self.marks.items())
        return not left and bool(counted or self.marks)


class Unsettled:
    """Remembers what was asked for, by model."""

    def __init__(self) -> None:
        self._pending: dict[str, _Pending] = {}
        self._many_since_s: dict[str, float] = {}

    def unanswered(
        self, model: str, wanted: Allocation | None, now_s: float, waited_s: float
    ) -> None:
        """A load of ``model`` was not answered within ``waited_s``."""
        self._pending[model] = _Pending(wanted, now_s + waited_s, now_s + PATIENCE * waited_s)

    def forget(self, model: str) -> None:
        """Another load is asked for."""
        self._pending.pop(model, None)

    def forget_all(self) -> None:
        """A new server has taken the place of the one that was asked: it finishes nothing of
        that."""
        self._pending.clear()

    def __contains__(self, model: object) -> bool:
        """Whether a load is looked out for: its configuration is worth reading at every tick."""
        return model in self._pending

    def loading(self, model: str, serves: Allocation, versions: int, now_s: float) -> bool:
        """Whether what serves now, ``serves`` in so many versions, may not be what serves in a
        moment."""
        if versions == 1 and not self._pending and not self._many_since_s:  # as at most ticks
            return False
        return self._loads(model, serves, now_s) or self._changes(model, versions, now_s)

    def _loads(self, model: str, serves: Allocation, now_s: float) -> bool:
        """It is over when what was asked for serves; it is waited for as long again as it was, and
        looked out for longer."""
        pending = self._pending.get(model)
        if pending is None:
            return False
        if now_s >= pending.asked_until_s or (
            pending.wanted is not None and same_allocation(serves, pending.wanted)
        ):
            del self._pending[model]
            return False
        return now_s < pending.blocks_until_s

    def _changes(self, model: str, versions: int, now_s: float) -> bool:
        """While one version takes the place of another, both are served for a moment."""
        if versions == 1:
            self._many_since_s.pop(model, None)
            return False
        return now_s - self._many_since_s.setdefault(model, now_s) < CHANGING_S
