"""What a broker does not take, by what the messages are about: said once, and not tried for ever.

Some brokers answer no; others end the connection. A subject whose messages end connections again
and again rests for a while, so that the others get through.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from igniterd.edgelog import EdgeLogger

_BLAMED_AFTER = 2  # connections in a row that end while a message of one topic is sent
_FIRST_REST_S, _LONGEST_REST_S = 60.0, 3600.0  # before such a subject is tried again
_SAYS = "the broker does not take it"


@dataclass(slots=True)
class _Fault:
    """``topic``: whose message ended the last connection, ``times`` in a row; ``refused``: topics
    whose last message was not taken."""

    topic: str = ""
    times: int = 0
    rests_until_s: float = float("-inf")
    refused: set[str] = field(default_factory=set)


class Faults:
    """Knows them by subject; one may have several topics, and stands or falls with all of them."""

    def __init__(self, once: EdgeLogger, clock: Callable[[], float] = time.monotonic) -> None:
        self._once, self._clock = once, clock
        self._faults: dict[str, _Fault] = {}

    def rests(self, subject: str) -> bool:
        """Whether nothing about it is to be sent now."""
        fault = self._faults.get(subject)
        return fault is not None and self._clock() < fault.rests_until_s

    def refused(self, subject: str, topic: str, why: str) -> None:
        """The broker said no to a message."""
        self._faults.setdefault(subject, _Fault()).refused.add(topic)
        self._once.failed(subject, why, says=_SAYS)

    def ended(self, subject: str, topic: str, why: str) -> None:
        """A connection ended while a message was on its way; again and again is its fault."""
        fault = self._faults.setdefault(subject, _Fault())
        fault.times = fault.times + 1 if fault.topic == topic else 1
        fault.topic = topic
        over = fault.times - _BLAMED_AFTER
        if over >= 0:
            rest_s = min(_FIRST_REST_S * 2**over, _LONGEST_REST_S)
            fault.rests_until_s = self._clock() + rest_s
            reason = f"it ends the connection ({why}); not sent again for {rest_s:g} s"
            self._once.failed(subject, reason, says=_SAYS)

    def taken(self, subject: str, topic: str) -> None:
        """The broker took a message. All is well once it takes those that it did not."""
        fault = self._faults.get(subject)
        if fault is not None:
            fault.refused.discard(topic)
            if fault.topic == topic:
                fault.topic, fault.times = "", 0
            if fault.refused or fault.topic:
                return
            del self._faults[subject]
        self._once.worked(subject, says="the broker takes it again")
