"""Remembered answers, of which the old ones are forgotten. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Memo(Generic[V]):
    """Remembers at least the last ``size`` answers that were asked for, and at most twice as
    many."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._new: dict[Hashable, V] = {}
        self._old: dict[Hashable, V] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def get(self, key: Hashable) -> V | None:
        """The answer; None where there is none, or none any more."""
        found = self._new.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self.keep(key, found)
        return found

    def keep(self, key: Hashable, answer: V) -> V:
        """Remember ``answer``, and give it back."""
        if len(self._new) >= self._size:
            self._old, self._new = self._new, {}
        self._new[key] = answer
        return answer
