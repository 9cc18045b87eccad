"""Mean service times of igniterd's own model. Their upper bound: ``kernels.bound``.

Arrays, all float64 unless said:

``gpus``       (models, batch knots, share units): GPU time (ms) of one batch alone, without transfers; share node k is (k + 1) units
``hosts``      the same shape: what launching it takes the host (ms), 0 where that is never waited for
``variances``  the same shape: variance of the logarithm of the time
``knots``      (batch knots,): batches of the table, ascending, 1, 2, 3, ... at first
``transfer``   (models, 2): load and feedback time (ms) of one item
``floors``     (models,): GPU time (ms) of batch 1 with the whole GPU, the scale of a model's fixed cost
``weights``    (models, models, 4): of the features of one victim beside one neighbour; ``spreads`` (models, models, 4, 4) their covariance
``contention`` (models, models, 2): what one uncapped neighbour costs a victim, mean and variance; see below
``rises``      (models, 2): how much more the host takes beside others, relative, mean and variance
``who``        (n,) int64: model of each tenant; ``batch``, ``share``, ``utilisation`` (n,)

A batch takes the greater of its host's time h and its GPU time g (smoothly, see ``greater``).

One capped neighbour j slows the GPU part of i by the ratio e = w0 + w1 floor_i / g_i + w2 s_j + w3 s_j
log2(b_j / s_j) / 7: a constant, a cost per batch, and what grows with the neighbour's part of the
GPU and the work it queues there. Several neighbours cost less than the sum of their e, and one that
executes a fraction d of the time counts for d of it; see ``combined``.

An uncapped one (share 1) has its kernels queue for the same SMs, and each waits for one of the
other's: e is c (g_j / floor_j) / (g_i / floor_i) instead, the ratio of how long the kernels are,
each in terms of batch 1 with the whole GPU. Several add up, and some more; see ``COMPANY``. A capped
neighbour of an uncapped victim contends for its part of the SMs.

Any neighbour slows the host by the same ratio. One whose host is waited for executes on the GPU for
g / t of its time only.
"""  # noqa: E501

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64

FEATURES = 4
SHARPNESS = 12
"""Host and GPU make a time by their SHARPNESS-norm: a maximum whose corner is rounded by 6 %."""
OVERLAP = 1.0 / 3.0
"""Of several executing neighbours the worst counts in full and each other for this part, as what
they contend for (clock, L2, DRAM) is contended already. Four equal neighbours then cost twice what
one does, which is about what the published measurements of up to five co-located copies show
(clock, scheduling gaps and L2 use together); nothing finer than that has been measured."""

COMPANY = 0.375
"""What uncapped neighbours of equal weight cost beyond the sum of what each does, where there are
many (relative). Beside one a victim runs unhindered in the gaps between its kernels; of n, each
fills the others'. Two cost half of this more than their sum, three two thirds.

Chosen on KACE's open uncapped triples (``bench/foreign_choices.py``). Without one victim, one
neighbour or one batch the rest choose 0.5 by the median error, 0.125 to 0.5 by its mean, in which
failed training weighs most. On what was left out the median is then 8.3 %, with 0 it is 11.1 to
11.3."""


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _below(knots: F64, batch: float) -> int:
    """Index of the knot at or below ``batch``, so that the next one exists (when there are two)."""
    last = knots.shape[0] - 2
    if last < 0:
        return 0
    low = min(int(batch) - 1, last)  # the knots are 1, 2, 3, ... at first
    if knots[low] <= batch <= knots[low + 1]:
        return low
    low = 0
    high = last
    while low < high:
        middle = (low + high + 1) // 2
        if knots[middle] <= batch:
            low = middle
        else:
            high = middle - 1
    return low


@njit(cache=True, nogil=True, error_model="numpy")
def solo(table: F64, knots: F64, unit: float, batch: float, share: float) -> float:
    """The table's value for one model at (batch, share): linear between nodes and beyond the last
    batch, batches below 1 count as 1.

    Below one unit the value is that of one unit; ``table`` is (batch knots, share units).
    """
    b = max(batch, 1.0)
    i = _below(knots, b)
    i2 = min(i + 1, knots.shape[0] - 1)
    fb = (b - knots[i]) / (knots[i2] - knots[i]) if i2 > i else 0.0
    x = min(max(share / unit, 1.0), float(table.shape[1]))
    k = min(int(x) - 1, table.shape[1] - 1)
    k2 = min(k + 1, table.shape[1] - 1)
    fs = x - 1.0 - k
    low = table[i, k] + (table[i, k2] - table[i, k]) * fs
    high = table[i2, k] + (table[i2, k2] - table[i2, k]) * fs
    return low + (high - low) * fb


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def sharp(ratio: float) -> float:
    """``ratio`` to the power of SHARPNESS."""
    square = ratio * ratio
    fourth = square * square
    return fourth * fourth * fourth


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def greater(host: float, gpu: float) -> float:
    """Time (ms) of a batch that takes the host and the GPU so long."""
    if host <= 0.0:
        return gpu
    most = max(host, gpu)
    return most * (sharp(host / most) + sharp(gpu / most)) ** (1.0 / SHARPNESS)


@njit(cache=True, nogil=True, error_model="numpy")
def gpu_ms(table: F64, knots: F64, unit: float, batch: float, share: float) -> float:
    """GPU time (ms) of one batch alone; below one unit it grows with 1 / share."""
    return solo(table, knots, unit, batch, share) * max(1.0, unit / share)


@njit(cache=True, nogil=True, error_model="numpy")
def host_ms(table: F64, knots: F64, unit: float, batch: float, share: float) -> float:
    """Host time (ms) of one batch alone; beyond the last batch of the table, that of the last."""
    if table[0, 0] <= 0.0:
        return 0.0
    return solo(table, knots, unit, min(batch, knots[-1]), share)


@njit(cache=True, nogil=True, error_model="numpy")
def spread_of(spread: F64, knots: F64, unit: float, batch: float, share: float) -> float:
    """Variance of the logarithm of the time alone; beyond the last batch of the table, that of the
    last."""
    return solo(spread, knots, unit, min(batch, knots[-1]), share)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def crowding(batch: float, share: float) -> float:
    """s log2(b / s) / 7: the last feature, of a neighbour (0 at batch 1 with the whole GPU, about 1
    at batch 100 with the whole GPU)."""
    return share * np.log2(max(batch, 1.0) / share) / 7.0


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def beside(w: F64, x: float, share: float, crowd: float) -> float:
    """What one executing neighbour adds to the execution (ratio) at the victim's ``x`` = floor /
    alone.

    Neither part is let below 0, so a neighbour never helps.
    """
    return max(w[0] + w[2] * share + w[3] * crowd, 0.0) + max(w[1], 0.0) * x


@njit(cache=True, nogil=True, error_model="numpy")
def rank(parts: F64, order: I64) -> None:
    """Write into ``order`` (n,) the indices of ``parts`` (n,), largest first (insertion: n is the
    number of tenants of a GPU)."""
    for j in range(parts.shape[0]):
        k = j
        while k > 0 and parts[order[k - 1]] < parts[j]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = j


@njit(cache=True, nogil=True, error_model="numpy")
def combined(parts: F64, utilisation: F64, order: I64) -> float:
    """Expected slowdown by n neighbours, ``parts`` (n,) their e, ``utilisation`` (n,) the fraction
    of the time each executes; see ``OVERLAP``.

    ``order`` (n,) is from ``rank``. Exact for neighbours that execute independently: the largest of
    those executing is neighbour j when j executes and no larger one does. One neighbour costs d e;
    more, or busier ones, never cost less.
    """
    total, largest, none = 0.0, 0.0, 1.0
    for k in range(order.shape[0]):
        j = order[k]
        total += utilisation[j] * parts[j]
        largest += none * utilisation[j] * parts[j]
        none *= 1.0 - utilisation[j]
    return largest + OVERLAP * (total - largest)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def company(queued: float, squares: float) -> float:
    """What several uncapped neighbours cost beyond ``queued``, the sum of what each does alone
    (``squares``: that of their squares); see ``COMPANY``."""
    return COMPANY * (queued - squares / queued) if queued > 0.0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def contended(mine: float, others: float) -> float:
    """What part of a victim's SMs one neighbour's kernels run on too: all of them where that one is
    uncapped, its own part where only the victim is."""
    if others >= 1.0:
        return 1.0
    return others if mine >= 1.0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def latencies(
    gpus: F64,
    hosts: F64,
    knots: F64,
    unit: float,
    transfer: F64,
    floors: F64,
    weights: F64,
    contention: F64,
    rises: F64,
    who: I64,
    batch: F64,
    share: F64,
    utilisation: F64,
    out: F64,
) -> None:
    """Write (n, 2) into ``out``: latency with both transfers, and the time a batch occupies a
    closed loop, which hides loading (ms)."""
    n = who.shape[0]
    work, order = np.empty((4, n)), np.empty(n, np.int64)
    crowd, parts, gpu, felt = work[0], work[1], work[2], work[3]
    uncapped = False
    for j in range(n):
        m = who[j]
        crowd[j] = crowding(batch[j], share[j])
        gpu[j] = gpu_ms(gpus[m], knots, unit, batch[j], share[j])
        felt[j] = utilisation[j]
        uncapped |= share[j] >= 1.0
        if hosts[m, 0, 0] > 0.0:
            host = host_ms(hosts[m], knots, unit, batch[j], share[j])
            felt[j] *= gpu[j] / greater(host, gpu[j])
    for i in range(n):
        m = who[i]
        x = floors[m] / gpu[i]
        queued, squares = 0.0, 0.0
        for j in range(n):
            parts[j] = beside(weights[m, who[j]], x, share[j], crowd[j]) if j != i else 0.0
        if uncapped:
            for j in range(n):
                both = contended(share[i], share[j]) if j != i else 0.0
                waits = contention[m, who[j], 0] * gpu[j] / floors[who[j]] * x
                one = felt[j] * both * waits
                queued += one
                squares += one * one
                parts[j] *= 1.0 - both
        rank(parts, order)
        cycle = gpu[i] * (1.0 + combined(parts, felt, order) + queued + company(queued, squares))
        if hosts[m, 0, 0] > 0.0:
            nobody = 1.0
            for j in range(n):
                nobody *= 1.0 - utilisation[j] if j != i else 1.0
            host = host_ms(hosts[m], knots, unit, batch[i], share[i])
            cycle = greater(host * (1.0 + rises[m, 0] * (1.0 - nobody)), cycle)
        cycle += transfer[m, 1] * batch[i]
        out[i, 0] = cycle + transfer[m, 0] * batch[i]
        out[i, 1] = cycle
