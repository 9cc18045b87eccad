"""Stationary response time of a dynamic batcher, by the age of the oldest request, compiled.

A batch takes what is queued when the instance is free, up to the largest batch. Let x be the age of
the oldest request when its batch starts. What came after it is a fresh renewal process, so x alone
is a Markov chain, for any renewal arrivals. With A_k the sum of k interarrival times, N(x) the
number of arrivals within x of the oldest, B the largest batch, S_b the service of a batch of b:

    b = min(N(x) + 1, B)      what the batch takes
    y = x - A_b               age of the next oldest at this start (negative: it has yet to come)
    x' = max(0, y + S_b)      its age when the instance is free

The chain lives on a lattice of time. Services are put on it with mean and variance kept, so drift
and spread are right however coarse it is. It is solved on a coarse lattice by the elimination of
Grassmann, Taksar and Heyman (Oper. Res. 33(5), 1985), which subtracts nothing, and carried over to
a fine one, where a few steps of the chain restore the detail. Behind full batches x is a random
walk, whose tail is exponential with the root of E exp(t (S_B - A_B)) = 1; beyond the lattice that
tail takes over, so the cost does not grow with the load.

A response is an age at the start of a batch plus the service of that batch. Ages of the others in a
batch are uniform below the oldest given its size, which is exact for Poisson arrivals; for constant
arrivals they are a comb, exact too.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.queueing.kernels.chain import (
    EPS,
    Lattice,
    add,
    approach,
    coarse_ages,
    lattice,
    refine,
    total,
)
from igniterd.queueing.kernels.renewal import constant_counts, phases, random_counts, tail_decay

POINTS = 208  # points of the distribution function, about
FINER = 1.7  # times as many for constant arrivals: nothing but the services spreads the ages

MEAN, UTILISATION, MEAN_BATCH = 0, 1, 2
STATS = 3


@njit(cache=True, nogil=True, error_model="numpy")
def _reach(rate: float, scv: float, service: F64, cv: float) -> int:
    """Largest batch that matters: hardly ever more come during the service of so many (6 standard
    deviations)."""
    largest = service.shape[0]
    b = 1
    while b < largest:
        mean = rate * service[b - 1]
        need = int(mean + 6.0 * np.sqrt(mean * max(scv, 0.1) + (cv * mean) ** 2)) + 2
        if need <= b:
            return b
        b = min(largest, need)
    return largest


@njit(cache=True, nogil=True, error_model="numpy")
def _reach_constant(rate: float, service: F64, cv: float) -> int:
    """Largest batch that matters where arrivals are constant: 6 standard deviations above the batch
    m that reproduces itself, m = rate s(m).

    Of what a batch exceeds m by, the next one inherits the part g = rate s'(m). With the spread of
    one service, and a half for where in its period it ends, the variance of batches is ((cv m)^2 +
    1/4) / (1 - g^2).
    """
    largest = service.shape[0]
    if rate * service[0] * (1.0 + 5.0 * cv + 6.0 * cv * cv) < 1.0:
        return min(2, largest)
    m = 1
    while m < largest and rate * service[m - 1] > m:
        m += 1
    far = min(largest, 2 * m + 1)
    g = rate * (service[far - 1] - service[m - 1]) / max(1, far - m)
    if m == largest or g > 0.99:
        return largest
    sd = np.sqrt(((cv * m) ** 2 + 0.25) / (1.0 - g * g))
    return min(largest, int(m + 6.0 * sd) + 2)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(inside: F64, tilt: F64, out: F64) -> None:
    """Add to ``out`` requests spread from node 0 to node x, ``inside[x]`` a node on average, half
    at either end.

    The density rises linearly by ``tilt[x]`` a node, around the average.
    """
    level, slope = 0.0, 0.0
    for x in range(inside.shape[0] - 1, 0, -1):
        each = inside[x]
        half = 0.5 * tilt[x] * x
        out[x] += max(0.0, level + slope * x) + 0.5 * (each + half)
        level += each - half
        slope += tilt[x]
    out[0] += 0.5 * level


@njit(cache=True, nogil=True, error_model="numpy")
def _spread_ages(q: Lattice, rho: F64, counts: F64, sums: F64, ages: F64) -> None:
    """Write into ``ages`` (B, nodes) how many requests have which age when their batch of b starts,
    for one batch; random arrivals."""
    largest, nodes = ages.shape
    inside, tilt = np.zeros((largest, nodes)), np.zeros((largest if sums.shape[0] else 1, nodes))
    low = 0
    for x in range(nodes):
        if rho[x] < EPS:
            continue
        # the least number that may have come by x, which grows with x
        while low < largest and total(counts[x, low]) < EPS:
            low += 1
        for n in range(low, largest):
            p = total(counts[x, n])
            if p < EPS:
                break
            p *= rho[x]
            ages[n, x] += p
            if x == 0:
                ages[n, 0] += p * n
                continue
            inside[n, x] = p * n / x
            if n > 0 and x < sums.shape[0]:
                # a density linear in the age that has the mean age of this many arrivals
                middle = sums[x, n] / (total(counts[x, n]) * n * x)
                tilt[n, x] = inside[n, x] * max(-1.0, min(1.0, 6.0 * middle - 3.0)) * 2.0 / x
    for n in range(1, largest):
        _fill(inside[n], tilt[n if sums.shape[0] else 0], ages[n])
    _left(rho, q.overflow, ages[largest - 1], largest)


@njit(cache=True, nogil=True, error_model="numpy")
def _left(rho: F64, overflow: F64, out: F64, largest: int) -> None:
    """Add the ages in full batches that leave others behind: between the next oldest, A_B after the
    oldest, and the oldest."""
    nodes = out.shape[0]
    # requests a node, at u steps below the oldest, of those whose A_B is u or more
    crowd = np.zeros(nodes + 1)
    for u in range(nodes - 1, 0, -1):
        crowd[u] = crowd[u + 1] + overflow[0, u] * (largest - 1) / u
    even = np.empty(nodes)  # even[nodes - u] is the mean of crowd at u and u + 1
    for u in range(1, nodes):
        even[nodes - u] = 0.5 * (crowd[u] + crowd[u + 1])
    passed = 0.0
    for x in range(1, nodes):
        passed += overflow[0, x - 1]
        r = rho[x]
        if r > EPS and passed + overflow[1, x] > EPS:
            out[x] += r * (passed + overflow[1, x] + overflow[0, 0] * (largest - 1))
            if largest > 1:
                end = overflow[1, x] * (largest - 1) / x
                rest = end - crowd[x]
                out[x] += 0.5 * r * (crowd[1] + rest)
                add(r, even[nodes - x + 1 :], out[1:x])
                for y in range(1, x):
                    out[y] += r * rest
                out[0] += 0.5 * r * end


@njit(cache=True, nogil=True, error_model="numpy")
def _comb_ages(q: Lattice, rho: F64, ages: F64) -> None:
    """The same for constant arrivals: a batch has ages x, x - k, …"""
    largest, nodes = ages.shape
    k = q.k
    for x in range(nodes):
        # chance that others are left behind
        full = 0.0 if x < k * largest else (0.5 if x == k * largest else 1.0)
        for place in range(2):
            b = (q.ranges[x, 0] + place) // q.m + 1
            p = q.counts[x, place]
            if p > 0.0 and b < largest:
                _comb(p * rho[x], x, k, b, ages[b - 1])
            elif p > 0.0:
                full += p
        _comb(full * rho[x], x, k, largest, ages[largest - 1])


@njit(cache=True, nogil=True, error_model="numpy")
def _comb(weight: float, x: int, k: int, b: int, out: F64) -> None:
    """Add b requests of ages x, x - k, …"""
    if weight > EPS:
        for j in range(b):
            out[max(0, x - j * k)] += weight


@njit(cache=True, nogil=True, error_model="numpy")
def layout(
    rate: float, service: F64, cv: float, scv: float
) -> tuple[float, float, int, int, int, int, int]:
    """Choose the lattice for ``rate`` (1/ms), ``service`` (ms, shape (B,)), ``scv`` of the
    interarrival times.

    Returns its step (ms), the decay (1/ms) of the tail beyond it (infinite when nothing is there),
    steps between constant arrivals, steps of the coarse lattice, the largest batch that matters,
    nodes of ages and of responses.
    """
    largest = service.shape[0]
    used = _reach(rate, scv, service, cv) if scv > 0.0 else _reach_constant(rate, service, cv)
    slow = service[used - 1] * (1.0 + 5.0 * cv + 6.0 * cv * cv)
    span, end, decay = slow, 2.0 * slow, np.inf
    if used == largest:
        full = service[largest - 1]
        decay = tail_decay(rate, scv, largest, full, cv)
        span += 14.0 / decay
        end += 14.0 / decay
        closed = max((largest + 5.0 * np.sqrt(largest * scv)) / rate, slow)
        if closed < span:
            span, end = closed, closed + max(0.0, 1.0 - 4.0 * cv) * full
        else:
            decay = np.inf
    step = end / POINTS
    k, ratio = 0, 4
    if scv <= 0.0:
        k = max(1, int(FINER / (rate * step) + 0.5))
        ratio = min(4, k)
        k -= k % ratio
        step = 1.0 / (rate * k)
    return step, decay, k, ratio, used, int(span / step) + 3, int(end / step) + 3


@njit(cache=True, nogil=True, error_model="numpy")
def solve(
    rate: float,
    service: F64,
    cv: float,
    scv: float,
    decay: float,
    k: int,
    ratio: int,
    inside: int,
    points: int,
    stats: F64,
) -> F64:
    """The distribution function of the response on ``points`` nodes; all times in steps, the rest
    as :func:`layout` gives it.

    Writes ``stats`` (shape (STATS,)): mean, utilisation, mean batch.
    """
    largest = service.shape[0]
    zeta = np.exp(-decay) if decay < 100.0 else 0.0
    small = inside // ratio + 1
    grown, nodes = (2 * small, 2 * inside) if zeta > 0.0 else (small + 2, inside + 2)
    if k > 0:
        flat, first = constant_counts(k, largest, nodes)
        fewer, fewer_first = constant_counts(k // ratio, largest, grown)
        counts, sums = np.zeros((0, 0, 0)), np.zeros((0, 0))
    else:
        alpha, mu = phases(rate, scv)
        counts, sums = random_counts(
            alpha, mu, largest, max(nodes, grown * ratio), inside if scv > 1.0 else 0
        )
        flat, fewer = (
            counts[:nodes].reshape((nodes, largest * mu.shape[0])),
            _thinned(counts, grown, ratio),
        )
        first, fewer_first = np.zeros(nodes, np.int64), np.zeros(grown, np.int64)
    q = lattice(rate * ratio, service / ratio, cv, scv, k // ratio, fewer, fewer_first)
    coarse = coarse_ages(q, small, zeta**ratio)
    q = lattice(rate, service, cv, scv, k, flat, first)
    rho, taken = np.empty(nodes), np.empty(largest * q.m)
    refine(coarse, ratio, inside, rho)
    approach(q, rho, inside, zeta, taken)
    ages = np.zeros((largest, nodes))
    if k > 0:
        _comb_ages(q, rho, ages)
    else:
        _spread_ages(q, rho, counts, sums, ages)
    batches, busy, fuller = 0.0, 0.0, 1.0
    for b in range(largest - 1):
        p = total(taken[b * q.m : (b + 1) * q.m])
        fuller -= p
        batches += p * (b + 1.0)
        busy += p * service[b]
    batches += fuller * largest
    busy += fuller * service[largest - 1]
    stats[UTILISATION] = rate * busy / batches
    stats[MEAN_BATCH] = batches
    return _responses(ages, q.pmf, q.ends, batches, points, decay, stats)


@njit(cache=True, nogil=True, error_model="numpy")
def _thinned(counts: F64, nodes: int, ratio: int) -> F64:
    """Every ``ratio``-th of the nodes of ``counts`` (., B, m), flat: shape (nodes, B m)."""
    largest, m = counts.shape[1:]
    out = np.empty((nodes, largest * m))
    for x in range(nodes):
        for n in range(largest):
            for i in range(m):
                out[x, n * m + i] = counts[x * ratio, n, i]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _responses(
    ages: F64, pmf: F64, ends: I64, batches: float, points: int, decay: float, stats: F64
) -> F64:
    """Distribution function of age plus service on ``points`` nodes; sets the mean, with the
    exponential tail beyond."""
    mass = np.zeros(points)
    for b in range(ages.shape[0]):
        for x in range(min(points, ages.shape[1])):
            a = ages[b, x]
            if a > EPS:
                start, stop = x + ends[b, 0], min(x + ends[b, 1], points)
                if stop > start:
                    add(a, pmf[b, ends[b, 0] :], mass[start:stop])
    cdf = np.empty(points)
    below, over = 0.0, 0.0
    for j in range(points):
        cdf[j] = min(1.0, (below + 0.5 * mass[j]) / batches)
        below += mass[j]
        over += 1.0 - cdf[j]
    stats[MEAN] = over - 0.5 * (2.0 - cdf[0] - cdf[points - 1])
    if decay < np.inf:
        stats[MEAN] += (1.0 - cdf[points - 1]) / decay
    return cdf


@njit(cache=True, nogil=True, error_model="numpy")
def quantile(cdf: F64, step: float, decay: float, q: float) -> float:
    """Value below which a fraction ``q`` lies; beyond the end of ``cdf`` by the exponential
    tail."""
    n = cdf.shape[0]
    if cdf[n - 1] < q:
        beyond = np.log((1.0 - cdf[n - 1]) / max(1.0 - q, 1e-12)) / decay if decay < np.inf else 0.0
        return (n - 1) * step + max(0.0, beyond)
    low, high = 0, n - 1
    while high - low > 1:
        middle = (low + high) // 2
        if cdf[middle] < q:
            low = middle
        else:
            high = middle
    rise = cdf[high] - cdf[low]
    part = (q - cdf[low]) / rise if rise > 0.0 else 1.0
    return (low + part) * step
