"""Which of several ``igniterd fleet`` speaks for a cluster: a claim by term on one retained topic.

Pure: times are handed in, what is to be said is handed out. It rests on one thing that MQTT
promises: all listeners get the messages of one topic in the same order.

- Whoever has heard no claim for a lease claims the next term. Of one term the first claim that the
  broker passes on counts. A higher term beats a lower one.
- A claim counts for its author once it has come back from the broker. It counts from the time it
  was sent, for one lease, and is renewed well before that.
- A name is that of one connection. It dies with it: the broker says ``released`` (Last Will), and
  the other claims at once.
- Who has slept longer than its lease does not speak any more: its own clock says so before it says
  a word. What it has put on the wire before it fell asleep carries an old term.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

LEASE_S = 10.0
_MOST_SENT = 16  # renewals on the way that are remembered
_RENEWALS = 3.0  # in a lease
_LEAST_S = 0.2  # between two claims, whatever is heard


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim, or the end of one. ``id`` is that of its event."""

    speaker: str
    term: int
    id: str
    released: bool = False


class Speakership:
    """One process' part in it. Whoever drives it calls :meth:`due` after every event and at least
    every :attr:`pace_s`, and asks :meth:`speaks` before each word."""

    def __init__(self, *, lease_s: float = LEASE_S, patience_s: float = 0.0) -> None:
        """``patience_s`` is waited in addition before a claim: different ones keep two from
        claiming at the same time."""
        self.lease_s = lease_s
        self.pace_s = lease_s / 10
        self.term = 0  # of the last claim of its own that counted
        self.name = ""  # of the connection; empty without one
        self.holder = ""  # who speaks, as far as it is known
        self._patience_s = patience_s
        self._listens_s = lease_s / 5
        self._highest, self._first = 0, ""  # the highest term heard, and whose claim was first
        self._listening = False
        self._from_s = float("inf")  # when to claim, unless another one is heard
        self._mine: int | None = None  # the term that is claimed, heard or not
        self._until_s = float("-inf")  # the end of its lease
        self._claimed_s = float("-inf")
        self._sent: OrderedDict[str, float] = OrderedDict()  # its claims on the way, by id
        self._said_s = float("-inf")
        self._count = 0
        self._again = False  # the topic's retained message is not its own: say it again
        self._higher = False  # another one has claimed its term: take the next

    def connected(self, name: str) -> None:
        """A connection of this new name begins; what the topic has is heard from now on."""
        self._stand_down()
        self.name, self.holder, self._listening = name, "", False
        self._from_s = float("-inf")

    def listening(self, at_s: float) -> None:
        """The connection is subscribed to the topic."""
        self._listening = True
        self._from_s = max(self._from_s, at_s + self._listens_s + self._patience_s)

    def disconnected(self) -> None:
        self.connected("")

    def speaks(self, at_s: float) -> bool:
        """Whether it is the one now."""
        return self._mine is not None and self._first == self.name != "" and self._is_held(at_s)

    def lost(self, name: str) -> Claim:
        """What the broker is to say should the connection of this name be lost."""
        return Claim(name, self._highest, f"{name}-lost", released=True)

    def heard(self, claim: Claim, at_s: float) -> None:
        """A message of the topic, in the order in which the broker has sent them."""
        if claim.released:
            self._heard_release(claim, at_s)
            return
        own = claim.speaker == self.name
        if claim.term > self._highest:
            self._highest, self._first = claim.term, claim.speaker
            if not own:
                self._stand_down()
        if own:
            self._heard_own(claim, at_s)
        else:
            self._from_s = at_s + self.lease_s + self._patience_s
            if self._mine is not None:  # and it counts: whoever listens only now has to hear it
                self._again = True
                self._higher |= claim.term == self._mine
        if claim.speaker == self._first or not self.speaks(at_s):
            self.holder = claim.speaker

    def due(self, at_s: float) -> Claim | None:
        """What is to be said now."""
        if not self._listening:
            return None
        if self._mine is not None and at_s >= max(self._until_s, self._claimed_s + self.lease_s):
            # it has slept, or hears nothing of what it says: it listens first
            self._stand_down()
            self._from_s = at_s + self._listens_s + self._patience_s
        if self._mine is None:
            if at_s < self._from_s:
                return None
            self._mine, self._claimed_s = self._highest + 1, at_s
        elif not self._is_time(at_s):
            return None
        elif self._higher and self._first == self.name and self._mine == self._highest:
            self._mine += 1
        self._again = self._higher = False
        return self._say(self._mine, at_s)

    def release(self, at_s: float) -> Claim | None:
        """The end of its claim, if it has one: it speaks no more."""
        term = self._mine
        self._stand_down()
        self._from_s = float("inf")
        return None if term is None else Claim(self.name, term, self._id(), released=True)

    # ------------------------------------------------------------ inside

    def _heard_own(self, claim: Claim, at_s: float) -> None:
        sent_s = self._sent.pop(claim.id, None)
        if sent_s is None or self._mine is None or claim.term > self._mine:
            return
        if self._first != self.name or claim.term != self._highest:
            if claim.term == self._mine:  # somebody was first
                self._stand_down()
                self._from_s = at_s + self.lease_s + self._patience_s
            return
        self.term = claim.term
        self._until_s = max(self._until_s, sent_s + self.lease_s)

    def _heard_release(self, claim: Claim, at_s: float) -> None:
        if claim.speaker == self.name:
            return
        self._highest = max(self._highest, claim.term)
        if claim.speaker == self.holder:
            self.holder = ""
            if self._mine is None and self.name:
                self._from_s = min(self._from_s, at_s + self._patience_s)
        if self._mine is not None:
            self._again = True  # it stands on the topic in place of its own

    def _stand_down(self) -> None:
        self._mine, self._until_s = None, float("-inf")
        self._again = self._higher = False
        self._sent.clear()

    def _is_held(self, at_s: float) -> bool:
        return at_s < self._until_s

    def _is_time(self, at_s: float) -> bool:
        pause_s = _LEAST_S if self._again else self.lease_s / _RENEWALS
        return at_s - self._said_s >= pause_s

    def _say(self, term: int, at_s: float) -> Claim:
        claim = Claim(self.name, term, self._id())
        self._said_s = self._sent[claim.id] = at_s
        while len(self._sent) > _MOST_SENT:
            self._sent.popitem(last=False)
        return claim

    def _id(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"
