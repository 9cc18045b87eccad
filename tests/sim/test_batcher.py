"""The batcher that is fed one request at a time does what the one that knows them all does."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.queueing.kernels.batcher import await_batch, batchers, take
from tests.sim.batcher import Batcher


def one_at_a_time(times: list[float], curve: list[float], delay: float) -> list[tuple[float, ...]]:
    batcher, coming, free, now = Batcher(len(curve), delay), 0, 0.0, 0.0
    taken = []
    while True:
        arrival = times[coming] if coming < len(times) else math.inf
        start = max(now, free) if batcher.ready else math.inf
        now = min(arrival, batcher.alarm_s, start)
        if now == math.inf:
            return taken
        if now == arrival:
            coming += 1
            batcher.arrive(now)
        elif now == batcher.alarm_s:
            batcher.wake(now)
        else:
            taken.append(batcher.take(now))
            free = now + curve[len(taken[-1]) - 1]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 24), min_size=1, max_size=80),
    st.integers(1, 6),
    st.sampled_from([0.0, 1.0, 3.0, 7.5, 20.0]),
)
def test_it_is_the_compiled_rule(gaps: list[int], largest: int, delay: float) -> None:
    times = np.cumsum(np.asarray(gaps) / 4.0)
    curve = [6.0 + b / 2 for b in range(largest)]
    q = batchers(times, np.array([0, times.size]), np.array([largest]), np.array([delay]), 1)
    sizes, now = [], 0.0
    while sum(sizes) < times.size:
        now = await_batch(q, 0, now)
        sizes.append(take(q, 0, now))
        now += curve[sizes[-1] - 1]
    taken = one_at_a_time(times.tolist(), curve, delay)
    assert [len(batch) for batch in taken] == sizes
    assert [at for batch in taken for at in batch] == times.tolist()


def test_what_waits_is_told_in_the_order_in_which_it_came() -> None:
    batcher = Batcher(2, 1.0)
    for at_s in (0.0, 0.5, 0.6, 0.7, 0.8):
        batcher.arrive(at_s)
    assert [list(b) for b in batcher.ready] == [[0.0, 0.5], [0.6, 0.7]]
    assert batcher.waiting == [0.0, 0.5, 0.6, 0.7, 0.8]
    assert batcher.take(1.0) == (0.0, 0.5)
    assert batcher.waiting == [0.6, 0.7, 0.8]
