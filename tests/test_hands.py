"""Whether a rebalance has set what a model has, since it was read last."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from igniterd.hands import LATE_S, by_hand, by_rebalance, in_words, newest
from igniterd.records import Allocation, ModelReading

NOW_S = 1_764_000_000.0
READING = ModelReading("m", "1", "main", True, "python", Allocation(0.3, 8))
times = st.floats(-1e5, 1e5).map(lambda each: NOW_S + each)


@given(mark_s=times, before_s=st.none() | times, unread_s=st.floats(0.0, 1e5))
def test_a_mark_is_believed_once_and_about_when_it_was_written(
    mark_s: float, before_s: float | None, unread_s: float
) -> None:
    reading = replace(READING, rebalanced_s=mark_s)
    believed = by_rebalance(reading, before_s, unread_s, NOW_S)
    assert believed == (
        (before_s is None or mark_s > before_s)
        and NOW_S - LATE_S - unread_s <= mark_s <= NOW_S + LATE_S
    )
    known = newest({} if before_s is None else {"m": before_s}, {"m": reading})
    assert not by_rebalance(reading, known["m"], unread_s, NOW_S)


def test_without_a_mark_nothing_is_a_rebalances() -> None:
    assert not by_rebalance(READING, None, 0.0, NOW_S)
    assert newest({"m": 5.0, "gone": 1.0}, {"m": READING}) == {"m": 5.0, "gone": 1.0}
    assert newest({"m": 5.0}, {"m": replace(READING, rebalanced_s=4.0)}) == {"m": 5.0}


def test_a_hand_in_words() -> None:
    hand = by_hand(None, Allocation(0.3, 8), 100.0, 600.0)
    again = by_hand(hand, Allocation(None, 4), 701.0, 600.0)
    assert in_words(hand, 160.0) == (
        "somebody else changed it to share 30.0%, batch 8; left so for 540 s"
    )
    assert in_words(again, 701.0) == (
        "somebody else changed it to no share, batch 4, for the 2. time; left so for 1200 s"
    )
