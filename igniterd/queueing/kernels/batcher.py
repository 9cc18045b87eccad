"""What Triton's dynamic batcher does with a queue, compiled: one rule for the simulated response
times and for the replay.

Worked out from the server's public source (triton-inference-server/core:
dynamic_batch_scheduler.cc, instance_queue.cc, rate_limiter.cc, payload.cc) for requests of one
item, without priorities, timeouts and preferred batch sizes (the largest batch is then the one
preferred). B is the largest batch, d the queue delay:

- A thread moves queued requests into batches that are ready for an instance. At most 2 an instance
  may be ready; with that many, the thread sleeps.
- The last batch made up stays its own until an instance takes it, or until it is full and its
  requests did not have to wait. What the thread does next goes into that batch as far as there is
  room, then into a new one.
- Awake, it moves what there is if that fills the batch, if the oldest has waited d, or if the batch
  has something in it already. Otherwise it sets its alarm for the moment when the oldest will have
  waited d.
- It is woken by its alarm, whenever an instance takes a batch, and by an arrival when the queue has
  reached what was missing from a full batch when last there was not enough for one (0 for a new
  batch). So a batch made up because its delay was over stays as it is while later requests queue,
  though the instance is not yet free for it.
- An instance takes the first batch, and joins to it those behind it whose oldest request has waited
  longer than d, as far as they fit. One that does not fit is not topped up any more.

Without a delay, a batch grows until it is taken: an instance takes all that is queued, up to B.
With B = 1 a delay has no effect. Even the shortest delay differs from none: what is made up while
the instance executes is hardly topped up. Left out: the thread also looks up every 500 ms; and it
is woken when an instance is done, so it could top up the waiting batch, were it faster than the
instance that takes it. The P99 measured at four loads (``bench/results/tails.txt``) says that it is
not.

The small functions are inlined by request: passing all the arrays of :class:`Batchers` on costs as
much as what they do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from igniterd.arrays import F64, I64


class Batchers(NamedTuple):
    """The batchers of n models. Requests are numbers in ``times``; those of a model are taken in
    that order."""

    times: F64  # (N,) ms: arrivals, ascending for each model
    end: I64  # (n,): the number after the model's last request
    largest: I64  # (n,)
    delay: F64  # (n,) ms
    taken: I64  # (n,): requests below have been taken
    moved: I64  # (n,): below: or are in a batch that is ready
    came: I64  # (n,): below: or are queued
    ready: I64  # (n, most): sizes of the batches that are ready, the first one first
    queued: I64  # (n,): how many they are
    open: NDArray[np.bool_]  # (n,): the last of them may be topped up
    need: I64  # (n,): an arrival wakes the thread when so many are queued
    alarm: F64  # (n,) ms


@njit(cache=True, nogil=True, error_model="numpy")
def batchers(times: F64, offsets: I64, largest: I64, delay: F64, instances: int) -> Batchers:
    """Empty batchers; arrivals of model i are ``times[offsets[i]:offsets[i + 1]]`` (ms, ascending),
    ``largest``, ``delay`` (ms) (n,)."""
    n = largest.shape[0]
    start = offsets[:n]
    ready, queued, need = (
        np.zeros((n, 2 * instances), np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
    )
    opened, alarm = np.zeros(n, np.bool_), np.full(n, np.inf)
    return Batchers(
        times,
        offsets[1:],
        largest,
        delay,
        start.copy(),
        start.copy(),
        start.copy(),
        ready,
        queued,
        opened,
        need,
        alarm,
    )


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _renew(q: Batchers, i: int) -> None:
    """Whatever is moved next goes into a new batch."""
    q.open[i] = False
    q.need[i] = 0


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _wake(q: Batchers, i: int, now: float) -> None:
    """The thread of model ``i`` moves what can be moved."""
    q.alarm[i] = np.inf
    while q.moved[i] < q.came[i] and q.queued[i] < q.ready.shape[1]:
        held = q.ready[i, q.queued[i] - 1] if q.open[i] else 0
        room = q.largest[i] - held
        if room == 0:
            _renew(q, i)
            continue
        due = q.times[q.moved[i]] + q.delay[i]
        size = min(room, q.came[i] - q.moved[i])
        if size < room and now < due:
            q.need[i] = room
            if held == 0:
                q.alarm[i] = due
                return
        if not q.open[i]:
            q.open[i] = True
            q.queued[i] += 1
        q.ready[i, q.queued[i] - 1] = held + size
        q.moved[i] += size
        if size == room and now >= due:
            _renew(q, i)


@njit(cache=True, nogil=True, error_model="numpy")
def await_batch(q: Batchers, i: int, now: float) -> float:
    """When (ms) an instance of model ``i`` that is free from ``now`` on finds a batch; infinity
    when there is none to come.

    All that happens to the batcher until then has happened afterwards.
    """
    while True:
        arrival = q.times[q.came[i]] if q.came[i] < q.end[i] else np.inf
        event = min(arrival, q.alarm[i])
        if event > now:
            if q.queued[i] > 0:
                return now
            if event == np.inf:
                return event
            now = event
        if arrival > event:
            _wake(q, i, event)
            continue
        q.came[i] += 1
        if q.queued[i] < q.ready.shape[1] and q.came[i] - q.moved[i] >= q.need[i]:
            _wake(q, i, event)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _pop(q: Batchers, i: int) -> int:
    """Size of the first batch that is ready, which no longer is."""
    size = int(q.ready[i, 0])
    q.queued[i] -= 1
    for k in range(q.queued[i]):
        q.ready[i, k] = q.ready[i, k + 1]
    return size


@njit(cache=True, nogil=True, error_model="numpy")
def take(q: Batchers, i: int, now: float) -> int:
    """Size of the batch that an instance of model ``i`` takes at ``now``, of the requests from
    ``q.taken[i]`` (before) on.

    ``now`` is what :func:`await_batch` gave.
    """
    size = _pop(q, i)
    if q.open[i] and q.queued[i] == 0:
        _renew(q, i)
    while q.delay[i] > 0.0 and q.queued[i] > 0 and now - q.times[q.taken[i] + size] > q.delay[i]:
        if q.open[i] and q.queued[i] == 1:
            _renew(q, i)
        if size + q.ready[i, 0] > q.largest[i]:
            break
        size += _pop(q, i)
    q.taken[i] += size
    _wake(q, i, now)
    return size
