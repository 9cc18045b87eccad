"""Stationary response time of a dynamic batcher with one instance and Poisson arrivals, compiled.

The queue is M/G[1,B]/1: a batch starts when the instance is free and takes what is queued, at most B. Service of a batch of b is gamma
distributed with mean ``service[b-1]`` and coefficient of variation ``cv`` (0: constant, 1: exponential).

1. *Chain.* n = requests present when a batch starts (it takes min(n, B)). During a gamma service the number of Poisson arrivals is negative
   binomial, so the rows are closed forms; the stationary vector comes from the elimination of Grassmann, Taksar and Heyman (Oper. Res.
   33(5), 1985), which subtracts nothing and so loses no digits, restricted to the band that can be non-zero (a batch removes at most B).
2. *Waits.* Poisson arrivals inside a service are uniform in it, also given their number K; then the service is gamma with K more in its
   shape. So the wait of the requests that came during a service is a mixture of uniform boxes, one for each (previous batch, next batch);
   requests left behind by a full batch add the whole batches before them, and their places among the K arrivals are order statistics.
3. *Smearing.* A box smeared by gamma services is a difference of two smeared ramps. The edges are collected by variance on a few levels and
   each level is convolved once with a gamma kernel of three matched moments. Summing twice gives the distribution function on a grid.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from igniterd.model.kernels.smear import accumulate, add_edge, quantile, spread_levels

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

OK, OVERLOAD, NEAR_OVERLOAD = 0, 1, 2

GRID = 512  # points of the distribution function
LEVELS = 7  # variances that edges are collected on
MAX_STATES = 2048
_EPS = 1e-9  # states and counts less likely than this are left out

# places in the vector of statistics
MEAN, UTILISATION, MEAN_BATCH, STEP = 0, 1, 2, 3
STATS = 4


@njit(cache=True, nogil=True, error_model="numpy")
def _counts(rate: float, mean: float, cv: float, out: F64) -> int:
    """Write P(K arrivals during a gamma service) into ``out``; return how many entries matter. Units of ``rate`` and ``mean`` agree."""
    m = rate * mean
    size = out.shape[0]
    p = 0.0
    ratio = 0.0
    shape = 0.0
    if cv < 1e-3:
        p = np.exp(-m)
    else:
        shape = 1.0 / (cv * cv)
        ratio = m / (shape + m)
        p = np.exp(-shape * np.log1p(m / shape))
    total = 0.0
    k = 0
    while k < size:
        out[k] = p
        total += p
        k += 1
        if k > m and p < _EPS * 0.1:
            break
        p *= m / k if cv < 1e-3 else ratio * (shape + k - 1.0) / k
    for j in range(k, size):
        out[j] = 0.0
    for j in range(k):
        out[j] /= total
    return k


@njit(cache=True, nogil=True, error_model="numpy")
def _eliminate(rows: F64, band: int, reach: int, pi: F64) -> None:
    """Write the stationary vector of a banded chain into ``pi`` (Grassmann, Taksar, Heyman).

    ``rows[i, j - i + band]`` is P(i -> j); no state goes down by more than ``band`` or up by more than ``reach``. ``rows`` is overwritten.
    """
    n = rows.shape[0]
    for k in range(n - 1, 0, -1):
        low = max(0, k - band)
        width = k - low
        source = rows[k, band - width : band]
        out = 0.0
        for j in range(width):
            out += source[j]
        pi[k] = out
        if out <= 0.0:
            continue
        for i in range(max(0, k - reach), k):
            p = rows[i, k - i + band]
            if p > 1e-14:
                p /= out
                target = rows[i, low - i + band : low - i + band + width]
                for j in range(width):
                    target[j] += p * source[j]
    pi[0] = 1.0
    total = 1.0
    for k in range(1, n):
        if pi[k] <= 0.0:
            continue
        s = 0.0
        for i in range(max(0, k - reach), k):
            s += pi[i] * rows[i, k - i + band]
        pi[k] = s / pi[k]
        total += pi[k]
    for k in range(n):
        pi[k] /= total


@njit(cache=True, nogil=True, error_model="numpy")
def _chain(counts: F64, used: I64, largest: int, states: int, delay: float, rate: float, service: F64) -> tuple[F64, int]:
    """Transition rows of the number present at batch starts, 1..states, in the banded form of :func:`_eliminate`."""
    reach = 0
    for b in range(largest):
        reach = max(reach, used[b])
    reach = max(reach, largest)
    rows = np.zeros((states, largest + reach + 1))
    waiting = np.zeros(largest + 1)
    if delay > 0.0:
        p = np.exp(-rate * delay)
        for j in range(1, largest):
            waiting[j] = p
            p *= rate * delay / j
    for i in range(states):
        n = i + 1
        b = min(n, largest)
        left = n - b
        a = counts[b - 1]
        top = used[b - 1]
        if delay > 0.0 and left == 0:
            inside, late = _late(a, service[b - 1], delay, rate)
            sure = 0.0
            crowd = a[0] if inside else 0.0  # all k came within the delay before the end: times (rate delay)^k / k!
            for k in range(1, largest):
                crowd *= rate * delay / k
                p = late * waiting[k]
                if inside:
                    p += max(0.0, a[k] - crowd)
                rows[i, k - n + largest] += p
                sure += p
            for k in range(largest + 1, top):
                j = min(k, states)
                rows[i, j - n + largest] += a[k]
                sure += a[k]
            rows[i, largest - n + largest] += max(0.0, 1.0 - sure)
        else:
            for k in range(top):
                j = min(max(1, left + k), states)
                rows[i, j - n + largest] += a[k]
    return rows, reach


@njit(cache=True, nogil=True, error_model="numpy")
def _late(a: F64, mean: float, delay: float, rate: float) -> tuple[bool, float]:
    """Whether a first request of this service can be older than the delay at its end, and the chance that it is not."""
    if mean > delay:
        return True, min(1.0, a[0] * np.exp(rate * delay))
    return False, 1.0


@njit(cache=True, nogil=True, error_model="numpy")
def _classes(counts: F64, used: I64, largest: int, service: F64, cv: float, out: F64) -> None:
    """Mean, variance and third central moment of the time from the start of the next batch to the end of a request's own.

    ``out[:, c - 1]`` is for a request whose batch ends at place c of the queue: c <= B its own service; beyond, the full batches before it
    and its own, which takes in what arrives meanwhile.
    """
    full = service[largest - 1]
    full_var = (cv * full) ** 2
    full_third = 2.0 * cv**4 * full**3
    for i in range(out.shape[1]):
        c = i + 1
        ahead = (c - 1) // largest
        rest = c - ahead * largest
        mean, square, var, third = 0.0, 0.0, 0.0, 0.0
        if ahead == 0 or rest == largest:
            s = service[rest - 1]
            mean, square, var, third = s, s * s, (cv * s) ** 2, 2.0 * cv**4 * s**3
        elif ahead == 1:
            a = counts[largest - 1]
            for k in range(used[largest - 1]):
                s = service[min(largest, rest + k) - 1]
                mean += a[k] * s
                square += a[k] * s * s
            var, third = (cv * mean) ** 2, 2.0 * cv**4 * mean**3
        else:
            s = service[min(largest, rest + int(0.5 * ahead * largest)) - 1]
            mean, square, var, third = s, s * s, (cv * s) ** 2, 2.0 * cv**4 * s**3
        out[0, i] = ahead * full + mean
        out[1, i] = ahead * full_var + var + max(0.0, square - mean * mean)
        out[2, i] = ahead * full_third + third


@njit(cache=True, nogil=True, error_model="numpy")
def _box(edges: F64, moments: F64, levels: F64, own: F64, low: float, high: float, spread: float, third: float, weight: float) -> None:
    """Add requests whose wait is uniform on (low, high), the upper edge uncertain, in the class ``own`` (mean, variance, third)."""
    width = high - low
    if width < 0.5:
        middle = 0.5 * (low + high)
        low, high, width = middle - 0.25, middle + 0.25, 0.5
    slope = weight / width
    add_edge(edges, moments, levels, own[0] + low, own[1], own[2], slope)
    add_edge(edges, moments, levels, own[0] + high, own[1] + spread, own[2] + third, -slope)


@njit(cache=True, nogil=True, error_model="numpy")
def _delayed(
    edges: F64,
    moments: F64,
    levels: F64,
    classes: F64,
    largest: int,
    n: int,
    a: F64,
    used: I64,
    s: float,
    delay: float,
    rate: float,
    weight: float,
) -> float:
    """Add the requests served after a batch that left nothing behind, when a young batch waits; returns the sum of (wait + class mean).

    Times in grid steps. The oldest request of a batch that ends its delay waits all of it, the others are uniform in it. A batch that
    fills while waiting starts with its last request, after a gamma number of interarrival times.
    """
    total = 0.0
    inside, late = _late(a, s, delay, rate)
    crowd = a[0] if inside else 0.0
    poisson = np.exp(-rate * delay)
    sure = 0.0
    for k in range(1, largest):
        own = classes[:, k - 1]
        crowd *= rate * delay / k
        if inside:
            p = a[k] - crowd
            if p > 0.0:
                # all k uniform in the service, less the case that even the first of them is younger than the delay
                slope = weight * k * a[k] / s
                add_edge(edges, moments, levels, own[0], own[1], own[2], slope)
                add_edge(edges, moments, levels, own[0] + s, own[1], own[2], -slope)
                slope = -weight * k * crowd / delay
                add_edge(edges, moments, levels, own[0], own[1], own[2], slope)
                add_edge(edges, moments, levels, own[0] + delay, own[1], own[2], -slope)
                total += weight * k * (0.5 * (a[k] * s - crowd * delay) + p * own[0])
                sure += p
        p = late * poisson
        poisson *= rate * delay / k
        sure += p
        if p > _EPS:
            _box(edges, moments, levels, own, delay, delay, 0.0, 0.0, weight * p)
            total += weight * p * (delay + k * own[0] + 0.5 * (k - 1) * delay)
            if k > 1:
                _box(edges, moments, levels, own, 0.0, delay, 0.0, 0.0, weight * p * (k - 1))
    for k in range(largest, used):
        sure += a[k]
    filled = 1.0 - sure
    if filled > _EPS:
        mean, var = _filling(largest, a[0], s, delay, rate)
        own = classes[:, largest - 1]
        sd = np.sqrt(3.0 * var)
        _box(edges, moments, levels, own, mean - sd, mean + sd, 0.0, 0.0, weight * filled)
        _box(edges, moments, levels, own, 0.0, mean, var, 0.0, weight * filled * (largest - 2))
        _box(edges, moments, levels, own, 0.0, 0.0, 0.0, 0.0, weight * filled)
        total += weight * filled * largest * (0.5 * mean + own[0])
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _filling(largest: int, empty: float, s: float, delay: float, rate: float) -> tuple[float, float]:
    """Mean and variance of the time from the first to the last arrival of a batch that fills up while it waits."""
    n = largest - 1
    edge = min(s, delay)
    p = empty
    for i in range(1, n + 1):
        p *= rate * edge / i  # nothing but these n + 1 from before the service ended: the time is the largest of n uniform ones
    zero, one, two = p, p * edge * n / (n + 1.0), p * edge * edge * n / (n + 2.0)
    if delay > s:
        q0 = _poisson_tail(rate * delay, n) - _poisson_tail(rate * s, n)
        q1 = _poisson_tail(rate * delay, n + 1) - _poisson_tail(rate * s, n + 1)
        q2 = _poisson_tail(rate * delay, n + 2) - _poisson_tail(rate * s, n + 2)
        zero += q0
        one += q1 * n / rate
        two += q2 * n * (n + 1.0) / (rate * rate)
    if zero <= 1e-300:
        return edge * n / (n + 1.0), 0.0
    mean = one / zero
    return mean, max(0.0, two / zero - mean * mean)


@njit(cache=True, nogil=True, error_model="numpy")
def _poisson_tail(m: float, n: int) -> float:
    """P(Poisson(m) >= n)."""
    p = np.exp(-m)
    below = 0.0
    for k in range(n):
        below += p
        p *= m / (k + 1.0)
    return max(0.0, 1.0 - below)


@njit(cache=True, nogil=True, error_model="numpy")
def _overflow(
    edges: F64,
    moments: F64,
    levels: F64,
    classes: F64,
    largest: int,
    left: int,
    k: int,
    mean: float,
    var: float,
    third: float,
    weight: float,
) -> float:
    """Waits of k arrivals behind ``left`` others when not all fit the next batch; returns the sum of (wait + class mean).

    ``mean``, ``var``, ``third`` are of the service they came in. The i-th of k uniform arrivals leaves the fraction Beta(k + 1 - i, i).
    """
    total = 0.0
    n = left + k
    first = left + 1
    while first <= n:
        end = ((first - 1) // largest + 1) * largest
        end = min(end, n)
        a1 = float(n - end + 1)  # from the last of the group
        a2 = float(n - first + 1)
        m = a2 - a1 + 1.0
        s1 = 0.5 * (a1 + a2)
        s2 = (a2 * (a2 + 1.0) * (a2 + 2.0) - (a1 - 1.0) * a1 * (a1 + 1.0)) / (3.0 * m)  # mean of a (a + 1)
        centre = s1 / (k + 1.0)
        half = np.sqrt(3.0 * max(0.0, s2 / ((k + 1.0) * (k + 2.0)) - centre * centre))
        low, high = max(0.0, centre - half), centre + half
        own = classes[:, end - 1]
        width = max((high - low) * mean, 0.5)
        slope = weight * m / width
        add_edge(edges, moments, levels, own[0] + low * mean, own[1] + low * low * var, own[2] + low**3 * third, slope)
        add_edge(edges, moments, levels, own[0] + low * mean + width, own[1] + high * high * var, own[2] + high**3 * third, -slope)
        total += weight * m * (own[0] + centre * (mean + var / mean))
        first = end + 1
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def poisson_tail(rate: float, service: F64, cv: float, delay: float, stats: F64, cdf: F64) -> int:
    """Response time under Poisson arrivals of ``rate`` (1/ms), ``service`` (ms, shape (B,)), queue ``delay`` (ms).

    Writes ``stats`` (shape (STATS,): mean ms, utilisation, mean batch, grid step ms) and ``cdf`` (shape (GRID,)); returns a code.
    """
    largest = service.shape[0]
    if largest == 1:
        delay = 0.0
    load = rate * service[largest - 1] / largest
    if not load < 1.0:
        return OVERLOAD
    # tail of the queue behind a full batch: exp(-theta n), by the two first moments of the drift
    counted = load * largest
    theta = 2.0 * largest * (1.0 - load) / (counted * (1.0 + cv * cv * counted))
    states = int(largest + 20.0 / theta) + 8 if counted > 1e-9 else largest + 8
    if states > MAX_STATES:
        return NEAR_OVERLOAD
    room = int(counted + 12.0 * np.sqrt(counted * (1.0 + cv * cv * counted)) * (1.0 + cv)) + 24
    counts = np.empty((largest, room))
    used = np.empty(largest, np.int64)
    for b in range(largest):
        used[b] = _counts(rate, service[b], cv, counts[b])
    rows, reach = _chain(counts, used, largest, states, delay, rate, service)
    pi = np.empty(states)
    _eliminate(rows, largest, reach, pi)
    _responses(rate, service, cv, delay, counts, used, pi, stats, cdf)
    return OK


@njit(cache=True, nogil=True, error_model="numpy")
def _responses(rate: float, service: F64, cv: float, delay: float, counts: F64, used: I64, pi: F64, stats: F64, cdf: F64) -> None:
    """From the batch starts to the distribution of the response time; arguments as in :func:`poisson_tail`."""
    largest = service.shape[0]
    states = pi.shape[0]
    reach = 0
    for b in range(largest):
        reach = max(reach, used[b])
    classes = np.empty((3, states + reach + largest))
    _classes(counts, used, largest, service, cv, classes)
    batches, busy, tail = 0.0, 0.0, 0.0
    for i in range(states):
        b = min(i + 1, largest)
        batches += pi[i] * b
        busy += pi[i] * service[b - 1]
    last = states - 1
    while last > 0 and tail + pi[last] < 1e-6:
        tail += pi[last]
        last -= 1
    slowest = service[min(last, largest - 1)]
    end = delay + slowest * (1.0 + 3.0 * cv) + classes[0, last] + (4.0 + 6.0 * cv) * np.sqrt(classes[1, last])
    step = end / (GRID - 4)
    classes[0] /= step
    classes[1] /= step * step
    classes[2] /= step**3
    edges = np.zeros((LEVELS, GRID))
    moments = np.zeros((LEVELS, 2))
    levels = np.empty(LEVELS)
    spread_levels(classes[1, 0], classes[1, last] + (cv * slowest / step) ** 2, levels)
    mean = _collect(rate * step, service / step, cv, delay / step, counts, used, pi, classes, edges, moments, levels, 1.0 / batches)
    accumulate(edges, moments, levels, cdf)
    stats[MEAN] = mean * step
    stats[UTILISATION] = rate * busy / batches
    stats[MEAN_BATCH] = batches
    stats[STEP] = step


@njit(cache=True, nogil=True, error_model="numpy")
def _collect(
    rate: float,
    service: F64,
    cv: float,
    delay: float,
    counts: F64,
    used: I64,
    pi: F64,
    classes: F64,
    edges: F64,
    moments: F64,
    levels: F64,
    scale: float,
) -> float:
    """Collect the edges of every box, times in grid steps; returns the mean response."""
    largest = service.shape[0]
    total = 0.0
    plain = np.zeros(largest)  # slopes of boxes that start at the very end of a service, by class
    for i in range(pi.shape[0]):
        if pi[i] < _EPS:
            continue
        n = i + 1
        b = min(n, largest)
        left = n - b
        s = service[b - 1]
        a = counts[b - 1]
        weight = pi[i] * scale
        shape = 1.0 / (cv * cv) if cv >= 1e-3 else 0.0
        waiting = delay > 0.0 and left == 0
        if waiting:
            total += _delayed(edges, moments, levels, classes, largest, n, a, used[b - 1], s, delay, rate, weight)
        elif left == 0:
            _box(edges, moments, levels, classes[:, 0], 0.0, 0.0, 0.0, 0.0, weight * a[0])
            total += weight * a[0] * classes[0, 0]
        for k in range(largest if waiting else 1, used[b - 1]):
            w = weight * a[k]
            if w < _EPS:
                continue
            # the service given k arrivals, weighted with its inverse: one less in the shape makes the box exact
            mean, var, third = s, 0.0, 0.0
            if shape > 0.0:
                pace = shape / s + rate
                mean = (shape + k - 1.0) / pace
                var = mean / pace
                third = 2.0 * var / pace
            if left + k <= largest:
                own = classes[:, left + k - 1]
                slope = w * k / mean
                plain[left + k - 1] += slope
                add_edge(edges, moments, levels, own[0] + mean, own[1] + var, own[2] + third, -slope)
                total += w * k * (own[0] + 0.5 * (mean + var / mean))
            else:
                total += _overflow(edges, moments, levels, classes, largest, left, k, mean, var, third, w)
    for c in range(largest):
        own = classes[:, c]
        add_edge(edges, moments, levels, own[0], own[1], own[2], plain[c])
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def tail_rows(
    rates: F64, services: F64, batches: I64, cvs: F64, delays: F64, stats: F64, cdf: F64, quantiles: F64, points: F64, codes: I64
) -> None:
    """Evaluate many rows: ``rates`` (R,) 1/ms, ``services`` (R, B) ms, ``batches`` (R,) largest batch, ``cvs`` (R,), ``delays`` (R,) ms.

    Writes ``stats`` (R, STATS), ``points`` (R, Q) the values at ``quantiles`` (Q,), ``codes`` (R,), ``cdf`` (GRID,) that of the last row.
    """
    for r in range(rates.shape[0]):
        stats[r, :] = np.nan
        points[r, :] = np.nan
        codes[r] = poisson_tail(rates[r], services[r, : batches[r]], cvs[r], delays[r], stats[r], cdf)
        if codes[r] == OK:
            for q in range(quantiles.shape[0]):
                points[r, q] = quantile(cdf, stats[r, STEP], quantiles[q])
