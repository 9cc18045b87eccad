"""Which profiles are asked of the broker now: a few at a time, and again where one did not come.
Pure."""

from __future__ import annotations

from collections.abc import Set

MOST = 16
"""At a time: brokers drop what one listener lets wait, and a profile may have many parts."""
PATIENCE_S = 10.0
"""Who subscribes anew is given what is retained again."""


class Asking:
    """Rotates among what is wanted."""

    def __init__(self, most: int = MOST, patience_s: float = PATIENCE_S) -> None:
        self._most, self._patience_s = most, patience_s
        self._since_s: dict[str, float] = {}  # of those asked for now
        self._last_s: dict[str, float] = {}  # when each was asked for last, of those wanted

    def now(self, wanted: Set[str], at_s: float) -> list[str]:
        """Those to listen to. One that did not come in time is left out once, and then has its turn
        after the others."""
        tired = {d for d, since in self._since_s.items() if at_s - since >= self._patience_s}
        self._since_s = {d: s for d, s in self._since_s.items() if d in wanted and d not in tired}
        self._last_s = {d: s for d, s in self._last_s.items() if d in wanted}
        waiting = [d for d in wanted if d not in self._since_s and d not in tired]
        waiting.sort(key=lambda d: (self._last_s.get(d, float("-inf")), d))
        for digest in waiting[: self._most - len(self._since_s)]:
            self._since_s[digest] = self._last_s[digest] = at_s
        return list(self._since_s)
