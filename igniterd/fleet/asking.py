"""Which profiles are asked of the broker now: a few at a time, and again where one did not come;
and which ones the broker does not keep. Pure."""

from __future__ import annotations

from collections import Counter
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


class Missing:
    """Notices what the broker does not keep. MQTT has no word for the end of what is retained:
    without any retained message for ``quiet_s`` after its answer to a subscription, there is none.
    It is asked for ``tries`` times, as brokers drop what one listener lets wait."""

    def __init__(self, quiet_s: float, tries: int = 2) -> None:
        self._quiet_s, self._tries = quiet_s, tries
        self.gone: set[str] = set()
        self._since_s: dict[str, float] = {}  # when the subscription that stands was answered
        self._asked: Counter[str] = Counter()
        self._again: set[str] = set()  # to be let go, so that they are subscribed to anew

    def of(self, wanted: Set[str]) -> Set[str]:
        """Those that it makes sense to ask for now."""
        return wanted - self.gone - self._again

    def look(self, answered: Set[str], heard_s: float, at_s: float) -> None:
        """``answered``: those wanted, to which the broker has answered the subscription;
        ``heard_s``: when it last gave anything retained."""
        self._again &= answered
        waiting = answered - self._again - self.gone
        self._since_s = {digest: self._since_s.get(digest, at_s) for digest in waiting}
        for digest, since_s in self._since_s.items():
            if at_s - max(since_s, heard_s) >= self._quiet_s:
                self._asked[digest] += 1
                done = self._asked[digest] >= self._tries
                (self.gone if done else self._again).add(digest)
