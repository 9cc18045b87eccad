"""Whose hand changed a model, where it was not this daemon's. Pure.

Somebody's change by hand is respected for a time. That of a rebalance (``igniterd fleet apply``) is
taken over at once: it says so in the mark of its load (:mod:`igniterd.clients.triton.marks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from igniterd.records import Allocation, ModelReading

AGAIN = 6  # the pause for a hand that undoes what we do doubles as often at most
LATE_S = 900.0
"""So long may a load take whose mark was written before it, the clocks of two machines differ, or
both."""


@dataclass(frozen=True, slots=True)
class Hand:
    """Somebody else's change of a model: what is there now, how often in a row, until when it
    stays."""

    allocation: Allocation
    at_s: float
    until_s: float
    times: int = 1


@dataclass(frozen=True, slots=True)
class Rebalanced:
    """A change of a model by a rebalance."""

    before: Allocation
    after: Allocation


def by_hand(before: Hand | None, here: Allocation, now_s: float, respect_s: float) -> Hand:
    """Respected for ``respect_s``, and longer each time that our next change is undone at once."""
    times = 1
    if before is not None:
        lasted = before.until_s - before.at_s
        under_way = now_s < before.until_s
        times = (
            before.times
            if under_way
            else before.times + 1
            if now_s < before.until_s + lasted
            else 1
        )
    return Hand(here, now_s, now_s + respect_s * 2 ** min(times - 1, AGAIN), times)


def by_rebalance(
    reading: ModelReading, newest_s: float | None, unread_s: float, wall_s: float
) -> bool:
    """Whether a rebalance has set what the model has, since it was read last.

    ``newest_s``: the latest mark of one that was read of it: what was there before and is there
    again was brought back by hand. ``unread_s``: time since the last reading; ``wall_s``: Unix time
    now.
    """
    at_s = reading.rebalanced_s
    if at_s is None or (newest_s is not None and at_s <= newest_s):
        return False
    return wall_s - unread_s - LATE_S <= at_s <= wall_s + LATE_S


def newest(known: Mapping[str, float], readings: Mapping[str, ModelReading]) -> dict[str, float]:
    """The latest mark of a rebalance of each model, ``readings`` taken in."""
    marks = {m: r.rebalanced_s for m, r in readings.items() if r.rebalanced_s is not None}
    return {**known, **{m: max(at_s, known.get(m, at_s)) for m, at_s in marks.items()}}


def in_words(hand: Hand, now_s: float) -> str:
    """What stays so, and for how long."""
    a = hand.allocation
    share = "no share" if a.share is None else f"share {a.share:.1%}"
    again = "" if hand.times == 1 else f", for the {hand.times}. time"
    said = f"somebody else changed it to {share}, batch {a.max_batch_size}{again}"
    return f"{said}; left so for {hand.until_s - now_s:.0f} s"
