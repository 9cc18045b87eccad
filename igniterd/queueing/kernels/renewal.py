"""Arrivals and services on a lattice of time, compiled. Times are in lattice steps.

Arrivals are a renewal process given by its squared coefficient of variation: 0 is constant, 1
Poisson, above 1 hyperexponential with two phases of balanced means (each phase brings half of the
time). The state of the process between two arrivals is a phase: of the hyperexponential, or for
constant arrivals the steps since the last arrival (phase k - 1 is followed by an arrival; the extra
phase k stands for "the next arrives at this very node", half of what a node on an arrival stands
for).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64


@njit(cache=True, nogil=True, error_model="numpy")
def service_pmf(mean: float, sd: float, out: F64) -> tuple[int, int]:
    """Write a gamma distribution on the nodes of ``out``, its mean and variance kept; return the
    first and last + 1 node used."""
    size = out.shape[0]
    if sd < 0.75:
        node = max(1, int(np.floor(mean + 0.5)))
        if node + 1 >= size:
            return 0, 0
        e = mean - node
        square = max(sd * sd + e * e, abs(e))
        if mean < 0.5:
            square = -e  # between nodes 0 and 1
        out[node - 1] = 0.5 * (square - e)
        out[node] = 1.0 - square
        out[node + 1] = 0.5 * (square + e)
        return node - 1, node + 2
    shape = (mean / sd) ** 2
    rate = shape / mean
    first = max(0, int(mean - 5.0 * sd))
    last = min(size, int(mean + (5.0 + 6.0 * sd / mean) * sd) + 2)
    if last <= first:
        return 0, 0
    mode = max(mean - sd * sd / mean, 0.05 * mean)
    total, one = 0.0, 0.0
    for k in range(first, last):
        p = 0.0
        if k > 0:
            p = np.exp((shape - 1.0) * np.log(k / mode) - rate * (k - mode))
        elif shape <= 1.0:
            p = 0.5
        out[k] = p
        total += p
        one += p * k
    # sampling a density moves its mean by part of a step: move it back, between neighbours
    drift = mean - one / total if last < size else 0.0
    up, down = max(0.0, min(1.0, drift)), max(0.0, min(1.0, -drift))
    before = 0.0
    for k in range(first, last):
        here = out[k] / total
        after = out[k + 1] / total if k + 1 < last else 0.0
        stays = 1.0 - (up if k + 1 < last else 0.0) - (down if k > first else 0.0)
        out[k] = here * stays + before * up + after * down
        before = here
    return first, last


@njit(cache=True, nogil=True, error_model="numpy")
def phases(rate: float, scv: float) -> tuple[F64, F64]:
    """(chance of each phase at an arrival, its rate): hyperexponential with balanced means, one
    phase at ``scv`` 1."""
    if scv <= 1.0:
        alpha, mu = np.empty(1), np.empty(1)
        alpha[0], mu[0] = 1.0, rate
        return alpha, mu
    p = 0.5 * (1.0 + np.sqrt((scv - 1.0) / (scv + 1.0)))
    alpha, mu = np.empty(2), np.empty(2)
    alpha[0], alpha[1] = p, 1.0 - p
    mu[0], mu[1] = 2.0 * p * rate, 2.0 * (1.0 - p) * rate
    return alpha, mu


@njit(cache=True, nogil=True, error_model="numpy")
def _step_counts(alpha: F64, mu: F64) -> F64:
    """P(j arrivals in one step, phase at its end | phase at its start), shape (J, m, m), by
    uniformisation."""
    m = alpha.shape[0]
    top = mu[0] if m == 1 else max(mu[0], mu[1])
    jumps = int(top + 8.0 * np.sqrt(top)) + 6
    now = np.zeros((jumps + 1, m, m))
    new = np.zeros((jumps + 1, m, m))
    out = np.zeros((jumps + 1, m, m))
    for i in range(m):
        now[0, i, i] = 1.0
    weight = np.exp(-top)
    for u in range(jumps + 1):
        for k in range(min(u + 2, jumps + 1)):
            for i in range(m):
                for j in range(m):
                    out[k, i, j] += weight * now[k, i, j]
                    chance = now[k, i, j] * (1.0 - mu[j] / top)
                    if k > 0:
                        for h in range(m):
                            chance += now[k - 1, i, h] * mu[h] / top * alpha[j]
                    new[k, i, j] = chance
        weight *= top / (u + 1.0)
        now, new = new, now
    last = jumps + 1
    while last > 1 and out[last - 1, 0, 0] + out[last - 1, m - 1, 0] < 1e-10:
        last -= 1
    return out[:last]


@njit(cache=True, nogil=True, error_model="numpy")
def random_counts(
    alpha: F64, mu: F64, largest: int, nodes: int, aged_nodes: int
) -> tuple[F64, F64]:
    """P(n arrivals by node x, phase there), n < B, fresh at 0; shape (nodes, B, m).

    Also the mean of the sum of their n ages at x, for each n, over all phases, at the first
    ``aged_nodes`` nodes; shape (aged_nodes, B).
    """
    m = alpha.shape[0]
    step = _step_counts(alpha, mu)
    table, sums = np.zeros((nodes, largest, m)), np.zeros((aged_nodes, largest))
    now, new = np.zeros((m, largest)), np.zeros((m, largest))
    aged, older = np.zeros((m, largest)), np.zeros((m, largest))
    for i in range(m):
        now[i, 0] = alpha[i]
        table[0, 0, i] = alpha[i]
    weighted = step * 0.5 * np.arange(step.shape[0]).reshape((-1, 1, 1))
    low, high = 0, 1  # counts outside are as good as impossible
    for x in range(1, nodes):
        if x < aged_nodes:
            _grow_older(step, weighted, now, low, high, aged, older)
            aged, older = older, aged
            for i in range(m):
                for n in range(largest):
                    sums[x, n] += aged[i, n]
        new[:] = 0.0
        _advance(step, now, low, high, new)
        now, new = new, now
        low, high = _support(now, low, min(largest, high + step.shape[0] - 1))
        if low == high:
            break
        for n in range(low, high):
            for i in range(m):
                table[x, n, i] = now[i, n]
    return table, sums


@njit(cache=True, nogil=True, error_model="numpy")
def _support(now: F64, low: int, high: int) -> tuple[int, int]:
    """The part of ``low`` to ``high`` - 1 outside which ``now`` (m, B) is as good as 0."""
    last = now.shape[0] - 1
    while high > low and now[0, high - 1] + now[last, high - 1] < 1e-11:
        high -= 1
    while low < high and now[0, low] + now[last, low] < 1e-11:
        low += 1
    return low, high


@njit(cache=True, nogil=True, error_model="numpy")
def _advance(step: F64, now: F64, low: int, high: int, out: F64) -> None:
    """Add to ``out`` (m, B) what ``now``, with counts from ``low`` to ``high`` - 1, is one step
    later."""
    m = now.shape[0]
    for j in range(m):
        for k in range(min(step.shape[0], now.shape[1] - low)):
            target = out[j, low + k :]
            size = min(target.shape[0], high - low)
            one = now[0, low:high]
            a = step[k, 0, j]
            if m == 1:
                for n in range(size):
                    target[n] += a * one[n]
            else:
                two = now[1, low:high]
                b = step[k, 1, j]
                for n in range(size):
                    target[n] += a * one[n] + b * two[n]


@njit(cache=True, nogil=True, error_model="numpy")
def _grow_older(
    step: F64, weighted: F64, now: F64, low: int, high: int, aged: F64, out: F64
) -> None:
    """Write the sums of ages one step later: those there grow by the step, new ones have half of it
    on average.

    ``weighted[j]`` is ``step[j] * j / 2``.
    """
    for i in range(now.shape[0]):
        for n in range(low, high):
            aged[i, n] += n * now[i, n]
    out[:] = 0.0
    _advance(step, aged, low, high, out)
    _advance(weighted, now, low, high, out)


@njit(cache=True, nogil=True, error_model="numpy")
def constant_counts(k: int, largest: int, nodes: int) -> tuple[F64, I64]:
    """The same for an arrival every ``k`` steps, as the (at most two) entries above 0 of (n,
    phase), flat, and the first's place.

    Shapes (nodes, 2) and (nodes,). On an arrival's node, half has it just behind and half just
    ahead.
    """
    table, first = np.zeros((nodes, 2)), np.zeros(nodes, np.int64)
    for x in range(min(nodes, k * largest + 1)):
        n, phase = x // k, x % k
        if phase > 0 or x == 0:
            first[x] = n * (k + 1) + phase
            table[x, 0] = 1.0
        else:
            first[x] = (n - 1) * (k + 1) + k
            table[x, 0] = 0.5
            if n < largest:
                table[x, 1] = 0.5
    return table, first


@njit(cache=True, nogil=True, error_model="numpy")
def after_random(pmf: F64, last: int, mu: float, out: F64) -> None:
    """Write max(0, S - E) on the nodes of ``out``: S by ``pmf`` (below ``last``), E exponential
    with ``mu`` per step."""
    q = np.exp(-mu)
    # where in its step E ends, mean: the part that the lower node gets
    f = 1.0 / mu - q / (1.0 - q)
    near, far = (1.0 - q) * (1.0 - f), (1.0 - q) * f
    above, total = 0.0, 0.0
    for k in range(min(last, out.shape[0]) - 1, 0, -1):
        here = pmf[k] + q * above
        out[k] = near * here + far * above
        total += out[k]
        above = here
    out[0] = 1.0 - total


@njit(cache=True, nogil=True, error_model="numpy")
def tail_decay(rate: float, scv: float, largest: int, full: float, cv: float) -> float:
    """Decay of the ages behind full batches, per unit of time: the root above 0 of E exp(t (S_B -
    A_B)) = 1 (Kingman's exponent).

    Infinite where services behind full batches never take longer than the arrivals (both constant).
    """
    spread = largest * scv / (rate * rate) + (cv * full) ** 2
    drift = largest / rate - full
    if spread <= 1e-12 * drift * full:
        return np.inf
    high = 2.0 * drift / spread
    limit = 1.0 / (cv * cv * full) if cv > 0.0 else np.inf
    low = 0.0
    for _ in range(60):
        if high >= limit:
            high = limit * (1.0 - 1e-9)
            break
        if _exponent(high, rate, scv, largest, full, cv) > 0.0:
            break
        low = high
        high *= 2.0
        if high * full > 700.0:
            return high
    for _ in range(40):
        middle = 0.5 * (low + high)
        if _exponent(middle, rate, scv, largest, full, cv) > 0.0:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


@njit(cache=True, nogil=True, error_model="numpy")
def _exponent(t: float, rate: float, scv: float, largest: int, full: float, cv: float) -> float:
    """log E exp(t (S_B - A_B))."""
    service = t * full if cv < 1e-3 else -np.log1p(-t * cv * cv * full) / (cv * cv)
    if scv <= 0.0:
        return service - t * largest / rate
    alpha, mu = phases(rate, scv)
    gap = 0.0
    for i in range(alpha.shape[0]):
        gap += alpha[i] * mu[i] / (mu[i] + t)
    return service + largest * np.log(gap)
