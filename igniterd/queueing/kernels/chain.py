"""The chain of the age of the oldest request (see :mod:`igniterd.queueing.kernels.stationary`) on a
lattice of time, compiled.

It is solved on a coarse lattice by elimination and carried over to a fine one. Behind full batches
the age is a random walk whose tail is geometric: it stands for all ages beyond the lattice, so the
cost does not grow with the load.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.queueing.kernels.renewal import after_random, phases, service_pmf

STEPS = 24  # most steps of the fine chain after the coarse solution
# done when what is left to change (sum of absolute differences) is estimated below this; 1e-4 costs
# a quarter more time
CLOSE = 3e-4
EPS = 1e-9  # chances below this are left out


class Lattice(NamedTuple):
    """Everything the chain needs on one lattice; times in steps, B the largest batch, m the phases
    of the arrivals.

    A batch and the phase of the arrivals at its start have one number, j = (batch - 1) m + phase.
    """

    k: int  # steps between constant arrivals, 0 for random arrivals
    m: int
    # (nodes, width): chance of j = first[x] + place when a batch starts whose oldest has age x
    counts: F64
    ranges: I64  # (nodes, 3): first, and the places between which ``counts`` is above 0
    # (2, nodes): pmf of A_B; and the part of node x in it that a window ending at x sees
    overflow: F64
    back: F64  # the pmf of A_B backwards, from where it ends to where it begins
    begin: int  # where it begins
    pmf: F64  # (B, nodes): of services
    ends: I64  # (B, 2): first and last + 1 node of each
    # random: (B m, nodes), the age at completion after j; constant: (B, nodes), distribution
    # functions of services
    fresh: F64


@njit(cache=True, nogil=True, error_model="numpy")
def lattice(
    rate: float, service: F64, cv: float, scv: float, k: int, counts: F64, first: I64
) -> Lattice:
    """Put a queue on a lattice: ``rate`` per step, ``service`` (B,) in steps; ``counts`` and
    ``first`` of its arrivals."""
    largest, nodes = service.shape[0], counts.shape[0]
    mu = phases(rate, scv)[1]
    m = k + 1 if k > 0 else mu.shape[0]
    ranges = _ranges(counts, first)
    overflow = _window(counts, ranges, largest, k)
    pmf, ends = np.zeros((largest, nodes)), np.empty((largest, 2), np.int64)
    fresh = np.zeros((largest if k > 0 else largest * m, nodes))
    for b in range(largest):
        ends[b, 0], ends[b, 1] = service_pmf(service[b], cv * service[b], pmf[b])
        if k > 0:
            below = 0.0
            for x in range(nodes):
                below += pmf[b, x]
                fresh[b, x] = below
        else:
            for i in range(m):
                after_random(pmf[b], ends[b, 1], mu[i], fresh[b * m + i])
    begin, stop = 0, nodes
    while begin < stop and overflow[0, begin] < EPS:
        begin += 1
    while stop > begin and overflow[0, stop - 1] < EPS:
        stop -= 1
    back = np.empty(stop - begin)
    for x in range(begin, stop):
        back[stop - 1 - x] = overflow[0, x]
    return Lattice(k, m, counts, ranges, overflow, back, begin, pmf, ends, fresh)


@njit(cache=True, nogil=True, error_model="numpy")
def _ranges(counts: F64, first: I64) -> I64:
    """The ``ranges`` of a :class:`Lattice`."""
    out = np.zeros((counts.shape[0], 3), np.int64)
    for x in range(counts.shape[0]):
        row = counts[x]
        low, high = 0, row.shape[0]
        while low < high and row[low] < EPS:
            low += 1
        while high > low and row[high - 1] < EPS:
            high -= 1
        out[x, 0], out[x, 1], out[x, 2] = first[x], low, high
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _window(counts: F64, ranges: I64, largest: int, k: int) -> F64:
    """``overflow`` of a :class:`Lattice`."""
    nodes = counts.shape[0]
    overflow = np.zeros((2, nodes))
    if k > 0:
        if k * largest < nodes:
            overflow[0, k * largest] = 1.0
            overflow[1, k * largest] = 0.5
        return overflow
    for x in range(nodes):
        overflow[1, x] = max(0.0, 1.0 - total(counts[x, ranges[x, 1] : ranges[x, 2]]))
    for x in range(nodes - 1, 0, -1):
        overflow[1, x] = 0.5 * max(0.0, overflow[1, x] - overflow[1, x - 1])
    for x in range(nodes - 1):
        overflow[0, x] = overflow[1, x] + overflow[1, x + 1]
    return overflow


@njit(cache=True, nogil=True, error_model="numpy")
def add(weight: float, source: F64, out: F64) -> None:
    """out += weight * source, over the length of ``out``; slices keep the loop free of index
    checks, so that it is vectorised."""
    for j in range(out.shape[0]):
        out[j] += weight * source[j]


@njit(cache=True, nogil=True, error_model="numpy")
def total(a: F64) -> float:
    """Sum of a vector."""
    s = 0.0
    for x in a:
        s += x
    return s


@njit(cache=True, nogil=True, error_model="numpy")
def _land(k: int, m: int, taken: F64, pmf: F64, ends: I64, fresh: F64, out: F64) -> None:
    """Add to ``out`` the ages of the oldest requests when the batches ``taken`` (B m,) are done;
    arrays as in :class:`Lattice`."""
    for j in range(taken.shape[0]):
        weight = taken[j]
        if weight > EPS:
            b = j // m
            if k == 0:
                add(weight, fresh[j], out[: min(ends[b, 1], out.shape[0])])
            else:
                gap = k - j % m  # until it comes
                out[0] += weight * fresh[b, min(gap, fresh.shape[1] - 1)]
                stop = min(ends[b, 1] - gap, out.shape[0])
                if stop > 1:
                    add(weight, pmf[b, gap + 1 :], out[1:stop])


@njit(cache=True, nogil=True, error_model="numpy")
def _behind(back: F64, begin: int, seen: F64, rho: F64, low: int, out: F64) -> None:
    """Write into ``out`` the ages (y >= 0) of the oldest requests left behind by full batches;
    ``rho`` is 0 below ``low``.

    ``back``, ``begin`` and ``seen`` (the second row of ``overflow``) are those of a
    :class:`Lattice`.
    """
    out[:] = 0.0
    first, last = begin, begin + back.shape[0]
    for x in range(max(low, first), rho.shape[0]):
        r = rho[x]
        if r > EPS:
            out[0] += r * seen[x]
            start = max(1, x - last + 1)
            stop = min(x - first + 1, out.shape[0])
            if stop > start:
                add(r, back[start - (x - last + 1) :], out[start:stop])


@njit(cache=True, nogil=True, error_model="numpy")
def _serve(pmf: F64, first: int, last: int, behind: F64, out: F64) -> None:
    """Add to ``out`` the ages ``behind`` after one more full batch, whose service ``pmf`` is above
    0 from ``first`` to ``last`` - 1."""
    for y in range(behind.shape[0]):
        if behind[y] > EPS:
            stop = min(out.shape[0], y + last)
            if stop > y + first:
                add(behind[y], pmf[first:], out[y + first : stop])


@njit(cache=True, nogil=True, error_model="numpy")
def _take(rho: F64, low: int, counts: F64, ranges: I64, taken: F64) -> None:
    """Add to ``taken`` what batches take that start at the ages ``rho``."""
    for x in range(low, rho.shape[0]):
        if rho[x] > EPS:
            first, start, stop = ranges[x, 0], ranges[x, 1], ranges[x, 2]
            if stop > start:
                add(rho[x], counts[x, start:], taken[first + start : first + stop])


@njit(cache=True, nogil=True, error_model="numpy")
def _step(q: Lattice, rho: F64, low: int, taken: F64, behind: F64, out: F64) -> None:
    """Add to ``taken`` (B m,) what batches take that start at the ages ``rho`` (0 below ``low``),
    to ``out`` the next ages."""
    _take(rho, low, q.counts, q.ranges, taken)
    _behind(q.back, q.begin, q.overflow[1], rho, low, behind)
    _land(q.k, q.m, taken, q.pmf, q.ends, q.fresh, out)
    _serve(q.pmf[-1], q.ends[-1, 0], q.ends[-1, 1], behind, out)


@njit(cache=True, nogil=True, error_model="numpy")
def coarse_ages(q: Lattice, inside: int, zeta: float) -> F64:
    """Stationary ages (inside + 1,); the last state is every age from ``inside`` on, geometric with
    ``zeta`` (none when that is 0)."""
    size = inside + (1 if zeta > 0.0 else 0)
    nodes = q.counts.shape[0]
    chain = np.zeros((size, size))
    rho, behind, taken = np.zeros(nodes), np.zeros(nodes), np.empty(q.pmf.shape[0] * q.m)
    for x in range(inside):
        taken[:] = 0.0
        rho[x] = 1.0
        _step(q, rho[: x + 1], x, taken, behind[: x + 1], chain[x, :inside])
        rho[x] = 0.0
    if zeta > 0.0:
        extend(rho, inside, zeta, 1.0)
        taken[:] = 0.0
        _step(q, rho, inside, taken, behind[:inside], chain[inside, :inside])
    for x in range(size):
        chain[x, size - 1] += max(0.0, 1.0 - total(chain[x]))
        # where all is constant the chain may come apart: then what follows from an idle start is
        # what counts
        chain[x, 0] += 1e-9
    pi = np.zeros(inside + 1)
    _eliminate(chain, pi[:size])
    return pi


@njit(cache=True, nogil=True, error_model="numpy")
def _eliminate(chain: F64, pi: F64) -> None:
    """Write the stationary vector of ``chain`` (n, n) into ``pi`` (Grassmann, Taksar, Heyman);
    ``chain`` is overwritten."""
    n = chain.shape[0]
    for k in range(n - 1, 0, -1):
        source = chain[k, :k]
        out = total(source)
        if out <= 0.0:
            continue
        for i in range(k):
            p = chain[i, k]
            if p > 1e-15:
                p /= out
                chain[i, k] = p
                add(p, source, chain[i, :k])
    pi[0] = 1.0
    whole = 1.0
    for k in range(1, n):
        s = 0.0
        for i in range(k):
            s += pi[i] * chain[i, k]
        pi[k] = s
        whole += s
    for k in range(n):
        pi[k] /= whole


@njit(cache=True, nogil=True, error_model="numpy")
def refine(coarse: F64, ratio: int, inside: int, rho: F64) -> None:
    """Spread a coarse solution over the first ``inside`` of the fine nodes of ``rho``."""
    rho[:] = 0.0
    # node 0 holds those that find the instance idle, all at age 0, and half a cell of the others,
    # about half of what node 1 has
    idle = max(0.0, coarse[0] - 0.5 * coarse[1])
    for c in range(coarse.shape[0] - 1):
        p = (coarse[c] if c > 0 else 2.0 * (coarse[0] - idle)) / ratio
        for k in range(-ratio + 1, ratio):
            x = c * ratio + k
            if 0 <= x < inside:
                rho[x] += p * (1.0 - abs(k) / ratio) * (0.5 if x == 0 else 1.0)
    rho[0] += idle


@njit(cache=True, nogil=True, error_model="numpy")
def extend(rho: F64, inside: int, zeta: float, beyond: float) -> None:
    """Continue ``rho`` geometrically from ``inside`` on, with the mass ``beyond`` in all."""
    p = beyond * (1.0 - zeta)
    for x in range(inside, rho.shape[0]):
        rho[x] = p
        p *= zeta


@njit(cache=True, nogil=True, error_model="numpy")
def _normalise(rho: F64, zeta: float) -> float:
    """Scale ``rho`` so that it and its geometric tail add up to 1; returns the mass of the tail."""
    beyond = 0.0
    if zeta > 0.0:
        level, scale, back = 0.0, 0.0, 1.0
        for j in range(1, min(8, rho.shape[0])):  # a few nodes, against noise
            back /= zeta
            level += rho[rho.shape[0] - j]
            scale += back
        beyond = level / scale / (1.0 - zeta)
    whole = total(rho) + beyond
    for x in range(rho.shape[0]):
        rho[x] /= whole
    return beyond / whole


@njit(cache=True, nogil=True, error_model="numpy")
def approach(q: Lattice, rho: F64, inside: int, zeta: float, taken: F64) -> None:
    """Step on from ``rho`` until it is stationary to ``CLOSE``; leaves ``taken`` (B m,), what the
    batches took.

    Only the first ``inside`` nodes are states; the rest is their tail, falling by ``zeta`` a node.
    """
    behind, last, new = np.empty(inside), np.zeros(inside), np.empty(inside)
    tail_taken, tail_out = np.zeros(taken.shape[0]), np.zeros(inside)
    if zeta > 0.0:  # what comes of the tail is always the same, times its mass
        tail = np.zeros(rho.shape[0])
        extend(tail, inside, zeta, 1.0)
        _step(q, tail, inside, tail_taken, behind, tail_out)
    now = rho[:inside]
    beyond = _normalise(now, zeta)
    before = 0.0  # change of the step before, 0 where a jump lies between
    for n in range(STEPS):
        taken[:] = 0.0
        new[:] = 0.0
        _step(q, now, 0, taken, behind, new)
        add(beyond, tail_taken, taken)
        add(beyond, tail_out, new)
        beyond = _normalise(new, zeta)
        change, along = 0.0, 0.0
        for x in range(inside):
            step = new[x] - now[x]
            change += abs(step)
            along += step * last[x]
            last[x] = step
            now[x] = new[x]
        ratio = min(0.8, change / before) if before > 0.0 else 0.0  # a larger one is not trusted
        if change * max(0.3, ratio / (1.0 - ratio)) < CLOSE and (
            before > 0.0 or change < 0.1 * CLOSE
        ):
            break
        before = change if n > 0 else 0.0
        # by now the slowest mode is what is left: go where it leads (Aitken)
        if ratio > 0.0 and n % 3 == 2:
            ratio = ratio if along > 0.0 else -ratio
            for x in range(inside):
                now[x] = max(0.0, now[x] + last[x] * ratio / (1.0 - ratio))
            beyond = _normalise(now, zeta)
            before = 0.0
    extend(rho, inside, zeta, beyond)
