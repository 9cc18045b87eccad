"""The chain of the age of the oldest request (see :mod:`igniterd.model.kernels.tail`) on a lattice of time, compiled.

It is solved on a coarse lattice by elimination and carried over to a fine one. Behind full batches the age is a random walk whose tail is
geometric: it stands for all ages beyond the lattice, so the cost does not grow with the load.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from igniterd.model.kernels.renewal import after_constant, after_random, constant_counts, phases, random_counts, service_pmf

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SWEEPS = 24  # most steps of the fine chain after the coarse solution
CLOSE = 1e-4  # done when what is left to change (sum of absolute differences) is estimated below this
EPS = 1e-9  # chances below this are left out


@njit(cache=True, nogil=True, error_model="numpy")
def lattice(
    rate: float, service: F64, cv: float, delay: float, scv: float, k: int, nodes: int, aged: int
) -> tuple[F64, F64, F64, I64, F64, F64, F64, F64, I64, F64]:
    """Everything the chain needs on one lattice; times in steps. ``k`` is the steps between constant arrivals (0: random arrivals).

    Returns counts (nodes, B, m) and the sums of ages (``aged``, B) of :mod:`igniterd.model.kernels.renewal`; the chances of (batch, phase)
    from each age at completion (nodes, B m) with the range of those above 0 (nodes, 2); P(A_(B-1) <= x) (nodes,); the pmf of A_B
    (2, nodes: whole, and the part of x that a window ending at x sees); wait (nodes,), the pmf of the delay; the pmf of services (B, nodes)
    and their ends (B, 2); the age at completion after (batch, phase) (B m, nodes).
    """
    largest = service.shape[0]
    alpha, mu = phases(rate, scv)
    if k > 0:
        counts, sums = constant_counts(k, largest, nodes), np.zeros((0, largest))
    else:
        counts, sums = random_counts(alpha, mu, largest, nodes, aged)
    m = counts.shape[2]
    reached, overflow = _window(counts, k)
    pmf, ends = np.zeros((largest, nodes)), np.empty((largest, 2), np.int64)
    fresh = np.zeros((largest * m, nodes))
    for b in range(largest):
        ends[b, 0], ends[b, 1] = service_pmf(service[b], cv * service[b], pmf[b])
        for i in range(m):
            if k > 0:
                after_constant(pmf[b], ends[b, 1], k - i, fresh[b * m + i])
            else:
                after_random(pmf[b], ends[b, 1], mu[i], fresh[b * m + i])
    wait = np.zeros(nodes)
    node = min(int(delay), nodes - 2)
    wait[node] = 1.0 - (delay - node)
    wait[node + 1] = delay - node
    moves = counts.copy()
    if delay > 0.0:
        _hold(counts, reached, wait, node, moves)
    flat = moves.reshape((nodes, largest * m))
    return counts, sums, flat, _ranges(flat), reached, overflow, wait, pmf, ends, fresh


@njit(cache=True, nogil=True, error_model="numpy")
def _ranges(rows: F64) -> I64:
    """First and last + 1 place above 0 of each row."""
    out = np.zeros((rows.shape[0], 2), np.int64)
    for x in range(rows.shape[0]):
        row = rows[x]
        low, high = 0, row.shape[0]
        while low < high and row[low] < EPS:
            low += 1
        while high > low and row[high - 1] < EPS:
            high -= 1
        out[x, 0], out[x, 1] = low, high
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _window(counts: F64, k: int) -> tuple[F64, F64]:
    """P(A_(B-1) <= x) and the pmf of A_B, see :func:`lattice`."""
    nodes, largest, m = counts.shape
    reached, overflow = np.empty(nodes), np.zeros((2, nodes))
    for x in range(nodes):
        below, last = 0.0, 0.0
        for n in range(largest):
            for i in range(m):
                if n < largest - 1:
                    below += counts[x, n, i]
                else:
                    last += counts[x, n, i]
        reached[x] = max(0.0, 1.0 - below)
        overflow[1, x] = max(0.0, 1.0 - below - last)
    if k > 0:
        overflow[1] *= 0.0
        if k * largest < nodes:
            overflow[0, k * largest] = 1.0
            overflow[1, k * largest] = 0.5
    else:
        for x in range(nodes - 1, 0, -1):
            overflow[1, x] = 0.5 * max(0.0, overflow[1, x] - overflow[1, x - 1])
        for x in range(nodes - 1):
            overflow[0, x] = overflow[1, x] + overflow[1, x + 1]
    return reached, overflow


@njit(cache=True, nogil=True, error_model="numpy")
def _hold(counts: F64, reached: F64, wait: F64, node: int, moves: F64) -> None:
    """Change ``moves`` for a queue delay that is ``node`` or the next: a batch that is younger at completion waits for it, or fills up."""
    largest, m = counts.shape[1:]
    for x in range(node + 1):
        young = wait[node + 1] if x == node else 1.0
        filled = 0.0
        for o in (node, node + 1):
            if x < o:
                filled += wait[o] * (reached[o] - reached[x])
        for n in range(largest - 1):
            for i in range(m):
                moves[x, n, i] *= 1.0 - young
                for o in (node, node + 1):
                    if x < o:
                        moves[x, n, i] += wait[o] * counts[o, n, i]
        # filled by an arrival, so the process is fresh: the chances of its phases are those at node 0
        for i in range(m):
            moves[x, largest - 1, i] += filled * counts[0, 0, i]


@njit(cache=True, nogil=True, error_model="numpy")
def _behind(rho: F64, overflow: F64, out: F64) -> None:
    """Write into ``out`` the ages (y >= 0) of the oldest requests left behind by full batches."""
    out[:] = 0.0
    low, high = 0, rho.shape[0]
    while low < high and overflow[0, low] < EPS:
        low += 1
    while high > low and overflow[0, high - 1] < EPS:
        high -= 1
    back = overflow[0, low:high][::-1].copy()  # back[j] is for an A_B of high - 1 - j
    for x in range(low, rho.shape[0]):
        r = rho[x]
        if r > EPS:
            out[0] += r * overflow[1, x]
            start = max(1, x - high + 1)
            stop = min(x - low + 1, out.shape[0])
            if stop > start:
                add(r, back[start - (x - high + 1) :], out[start:stop])


@njit(cache=True, nogil=True, error_model="numpy")
def add(weight: float, source: F64, out: F64) -> None:
    """out += weight * source, over the length of ``out``; slices keep the loop free of index checks, so that it is vectorised."""
    for j in range(out.shape[0]):
        out[j] += weight * source[j]


@njit(cache=True, nogil=True, error_model="numpy")
def _serve(behind: F64, pmf: F64, first: int, last: int, out: F64) -> None:
    """Add to ``out`` the ages ``behind`` after one more full batch."""
    for y in range(behind.shape[0]):
        g = behind[y]
        if g > EPS:
            stop = min(out.shape[0], y + last)
            if stop > y + first:
                add(g, pmf[first:], out[y + first : stop])


@njit(cache=True, nogil=True, error_model="numpy")
def coarse_ages(moves: F64, ranges: I64, overflow: F64, pmf: F64, ends: I64, fresh: F64, inside: int, zeta: float) -> F64:
    """Stationary ages (inside + 1,) on a coarse lattice; the last state is every age from ``inside`` on, geometric with ``zeta``."""
    largest = pmf.shape[0]
    m = moves.shape[1] // largest
    size = inside + (1 if zeta > 0.0 else 0)
    chain = np.zeros((size, size))
    source, behind = np.zeros(moves.shape[0]), np.zeros(moves.shape[0])
    first, last = ends[largest - 1, 0], ends[largest - 1, 1]
    for x in range(inside):
        row = chain[x, :inside]
        for j in range(ranges[x, 0], ranges[x, 1]):
            w = moves[x, j]
            if w > EPS:
                add(w, fresh[j], row[: min(ends[j // m, 1], inside)])
        source[x] = 1.0
        _behind(source[: x + 1], overflow, behind[: x + 1])
        source[x] = 0.0
        _serve(behind[: x + 1], pmf[largest - 1], first, last, row)
    if zeta > 0.0:
        p = 1.0 - zeta
        for x in range(inside, source.shape[0]):
            source[x] = p
            p *= zeta
        _behind(source, overflow, behind)
        _serve(behind[:inside], pmf[largest - 1], first, last, chain[inside, :inside])
    for x in range(size):
        stays = 1.0 - chain[x].sum()
        chain[x, size - 1] += max(0.0, stays)
    rho = np.zeros(inside + 1)
    _eliminate(chain, rho[:size])
    return rho


@njit(cache=True, nogil=True, error_model="numpy")
def _eliminate(chain: F64, pi: F64) -> None:
    """Write the stationary vector of ``chain`` (n, n) into ``pi`` (Grassmann, Taksar, Heyman); ``chain`` is overwritten."""
    n = chain.shape[0]
    for k in range(n - 1, 0, -1):
        out = chain[k, :k].sum()
        if out <= 0.0:
            continue
        source = chain[k, :k]
        for i in range(k):
            p = chain[i, k]
            if p > 1e-15:
                p /= out
                chain[i, k] = p
                target = chain[i, :k]
                for j in range(k):
                    target[j] += p * source[j]
    pi[0] = 1.0
    total = 1.0
    for k in range(1, n):
        s = 0.0
        for i in range(k):
            s += pi[i] * chain[i, k]
        pi[k] = s
        total += s
    for k in range(n):
        pi[k] /= total


@njit(cache=True, nogil=True, error_model="numpy")
def refine(coarse: F64, ratio: int, inside: int, rho: F64) -> float:
    """Spread a coarse solution over the fine nodes of ``rho``; returns the mass beyond ``inside``."""
    rho[:] = 0.0
    size = coarse.shape[0] - 1
    # node 0 holds those that find the instance idle, all at age 0, and half a cell of the others, about half of what node 1 has
    idle = max(0.0, coarse[0] - 0.5 * coarse[1])
    for c in range(size):
        p = (coarse[c] if c > 0 else 2.0 * (coarse[0] - idle)) / ratio
        for k in range(-ratio + 1, ratio):
            x = c * ratio + k
            if 0 <= x < inside:
                rho[x] += p * (1.0 - abs(k) / ratio) * (0.5 if x == 0 else 1.0)
    rho[0] += idle
    return coarse[size]


@njit(cache=True, nogil=True, error_model="numpy")
def extend(rho: F64, inside: int, zeta: float, beyond: float) -> None:
    """Continue ``rho`` geometrically from ``inside`` on, with the mass ``beyond`` in all."""
    p = beyond * (1.0 - zeta)
    for x in range(inside, rho.shape[0]):
        rho[x] = p
        p *= zeta


@njit(cache=True, nogil=True, error_model="numpy")
def _sweep(
    rho: F64, moves: F64, ranges: I64, overflow: F64, pmf: F64, ends: I64, fresh: F64, inside: int, zeta: float, taken: F64, behind: F64
) -> float:
    """One step of the chain in place, normalised; leaves ``taken`` (B m,), what the batches took. Returns the sum of absolute changes."""
    largest = pmf.shape[0]
    m = moves.shape[1] // largest
    taken[:] = 0.0
    for x in range(rho.shape[0]):
        low, high = ranges[x, 0], ranges[x, 1]
        if rho[x] > EPS and high > low:
            add(rho[x], moves[x, low:], taken[low:high])
    _behind(rho, overflow, behind)
    new = np.zeros(inside)
    for j in range(taken.shape[0]):
        if taken[j] > EPS:
            add(taken[j], fresh[j], new[: min(ends[j // m, 1], inside)])
    _serve(behind, pmf[largest - 1], ends[largest - 1, 0], ends[largest - 1, 1], new)
    total = new.sum()
    beyond = 0.0
    if zeta > 0.0:
        level, scale, back = 0.0, 0.0, 1.0
        for j in range(1, min(8, inside)):
            back /= zeta
            level += new[inside - j]
            scale += back
        beyond = level / scale / (1.0 - zeta)
        total += beyond
    change = 0.0
    for x in range(inside):
        new[x] /= total
        change += abs(new[x] - rho[x])
        rho[x] = new[x]
    if zeta > 0.0:
        extend(rho, inside, zeta, beyond / total)
    return change


@njit(cache=True, nogil=True, error_model="numpy")
def approach(
    rho: F64, moves: F64, ranges: I64, overflow: F64, pmf: F64, ends: I64, fresh: F64, inside: int, zeta: float, taken: F64
) -> None:
    """Sweep until ``rho`` is stationary to ``CLOSE``; arguments as in :func:`_sweep`."""
    behind, old, step, last = np.empty(rho.shape[0]), np.empty(inside), np.empty(inside), np.zeros(inside)
    known = False  # whether ``last`` is the change of the sweep before, undisturbed
    for n in range(SWEEPS):
        old[:] = rho[:inside]
        change = _sweep(rho, moves, ranges, overflow, pmf, ends, fresh, inside, zeta, taken, behind)
        along, size = 0.0, 0.0
        for x in range(inside):
            step[x] = rho[x] - old[x]
            along += step[x] * last[x]
            size += last[x] * last[x]
        ratio = max(-0.95, min(0.95, along / size)) if known and size > 0.0 else 0.0
        lead = ratio / (1.0 - ratio)
        if change * max(0.3, abs(lead)) < CLOSE and (known or change < 0.1 * CLOSE):
            break
        jump = known and n % 3 == 2  # by now the slowest mode is what is left: go where it leads (Aitken)
        for x in range(inside):
            last[x] = step[x]
            if jump:
                rho[x] = max(0.0, rho[x] + step[x] * lead)
        known = n > 0 and not jump
