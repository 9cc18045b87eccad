"""Say a failure once when it begins and once when it is over, however many ticks it lasts.

One that comes and goes is no news each time: after the first failure and its recovery, further
short ones are counted, and told in one line every ten minutes. One that lasts is told all the same.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

QUIET_S = 600.0
"""Least time between two lines about a key that flaps."""
LASTING_S = 30.0
"""A failure that lasts so long is told, even if others were told lately; the next has to last
longer."""
MOST_KEYS = 1000


@dataclass(slots=True)
class _State:
    since_s: float | None = None  # when the failure under way began
    failures: int = 0  # counted in it
    told: bool = False  # it has been told of
    times: int = 0  # failures begun since the last line
    said_s: float = float("-inf")  # the last line
    ended_s: float = float("-inf")  # the last failure
    patience_s: float = LASTING_S  # how long the next one has to last to be told out of turn
    owed: bool = False  # the last line said that it fails, on and off


class EdgeLogger:
    """Turns a stream of "it failed" / "it worked" into few lines for each key. Bounded in memory.

    >>> once = Once("nvml")
    >>> once.failed("read", "no answer in 0.3 s")   # doctest: +SKIP
    """

    def __init__(self, source: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = structlog.get_logger("igniterd").bind(**({"source": source} if source else {}))
        self._clock = clock
        self._states: OrderedDict[str, _State] = OrderedDict()

    def failed(
        self,
        key: str,
        reason: str,
        *,
        says: str = "failing",
        more: dict[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        """Warn with the words `says` if `key` worked until now; otherwise only count. `more`
        replaces what a line carries beside the reason, which is the key as ``what``."""
        state, now_s = self._state(key), self._clock()
        if state.since_s is None:
            state.since_s, state.failures, state.told = now_s, 0, False
            state.times += 1
        state.failures += 1
        lasting = now_s - state.since_s >= state.patience_s
        if state.told or not (lasting or now_s - state.said_s >= QUIET_S):
            return
        often = {"times": state.times} if state.times > 1 else {}
        self._log.warning(says, **_about(key, more), reason=reason, **often, **extra)
        state.told, state.said_s = True, now_s
        state.owed = state.times > 1 and not lasting  # then its end is no news either
        state.patience_s = min(2 * state.patience_s, QUIET_S) if lasting else state.patience_s
        state.times = 0

    def worked(
        self, key: str, *, says: str = "recovered", more: dict[str, Any] | None = None, **extra: Any
    ) -> None:
        """Tell of the recovery if `key` failed until now; otherwise nothing."""
        state, now_s = self._states.get(key), self._clock()
        if state is None:
            return
        if state.since_s is not None:
            state.since_s, state.ended_s = None, now_s
            if state.told and not state.owed:
                state.said_s = now_s
                self._log.info(says, **_about(key, more), failures=state.failures, **extra)
        elif now_s - state.ended_s >= QUIET_S:  # at rest: what was not told is, and it is forgotten
            del self._states[key]
            if state.times or state.owed:
                often = {"times": state.times} if state.times else {}
                self._log.info(says, **_about(key, more), **often, **extra)

    def failing(self, key: str) -> bool:
        return (state := self._states.get(key)) is not None and state.since_s is not None

    def known(self) -> tuple[str, ...]:
        """Keys that fail, or did lately: those to be told of when they work."""
        return tuple(self._states)

    def _state(self, key: str) -> _State:
        if key not in self._states:
            self._states[key] = _State()
            if len(self._states) > MOST_KEYS:
                self._states.popitem(last=False)
        return self._states[key]


class Lately:
    """What was said lately, by its kind. Bounded in memory: what is older is forgotten first."""

    def __init__(self, again_s: float = QUIET_S, most: int = MOST_KEYS) -> None:
        self._again_s, self._most = again_s, most
        self._at_s: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, kind: object) -> bool:
        return kind in self._at_s

    def __len__(self) -> int:
        return len(self._at_s)

    def said(self, kind: str, at_s: float) -> bool:
        """Whether `kind` was said within the time, as far as that is known."""
        return at_s - self._at_s.get(kind, float("-inf")) < self._again_s

    def note(self, kind: str, at_s: float) -> None:
        """It is said now."""
        self._at_s[kind] = at_s
        self._at_s.move_to_end(kind)
        while len(self._at_s) > self._most:
            self._at_s.popitem(last=False)


def _about(key: str, more: dict[str, Any] | None) -> dict[str, Any]:
    return {"what": key} if more is None else more
