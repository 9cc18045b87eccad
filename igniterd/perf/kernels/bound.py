"""Mean and upper bound of one tenant's service times, for every share and batch. Arrays as in
``kernels.mean``."""

from __future__ import annotations

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.perf.kernels.mean import (
    COMPANY,
    OVERLAP,
    combined,
    company,
    contended,
    crowding,
    gpu_ms,
    greater,
    host_ms,
    rank,
    sharp,
    spread_of,
)

TERMS = 10
"""What is kept of a neighbour for one victim, see ``terms_of``."""
MEETING_SD = 0.05
"""What an uncapped neighbour may cost beside waiting (of the time alone, one standard deviation).
With it and ``interference``'s contention at other batches the bound covers 98 % of KACE's open
uncapped pairs of inference and 95 % of those with training, on which both were chosen."""
ADDING_SD = 0.73
"""What several uncapped neighbours cost is told from what each does; all but the worst may be off
by this (relative, one standard deviation). That of KACE's open triples about what their pairs, as
measured, make together (from the quartiles; ``bench/foreign_choices.py``)."""


@njit(cache=True, nogil=True, error_model="numpy")
def terms_of(
    gpus: F64,
    hosts: F64,
    knots: F64,
    unit: float,
    floors: F64,
    weights: F64,
    spreads: F64,
    contention: F64,
    near: I64,
    batch: F64,
    share: F64,
    utilisation: F64,
    own_share: float,
    out: F64,
) -> None:
    """Write (n, TERMS) into ``out``, one row a neighbour: how much of the time it executes on the
    GPU, and over the victim's x = floor / g its e and the variance of e.

    What it does as far as it is capped: e = out[1] + out[2] x, variance = out[3] + out[4] x +
    out[5] x^2. What it keeps waiting: e = out[6] x, variance = out[7] x^2. out[8] is the
    utilisation, out[9] the part of the SMs that is contended for. ``weights`` (models, 4),
    ``spreads`` (models, 4, 4), ``contention`` (models, 2) and ``own_share``: the victim's.
    """
    for j in range(near.shape[0]):
        k = near[j]
        w, v = weights[k], spreads[k]
        s, c = share[j], crowding(batch[j], share[j])
        both = contended(own_share, s)
        out[j, 0] = out[j, 8] = utilisation[j]
        out[j, 1] = max(w[0] + w[2] * s + w[3] * c, 0.0)
        out[j, 2] = max(w[1], 0.0)
        out[j, 3] = (
            v[0, 0]
            + v[2, 2] * s * s
            + v[3, 3] * c * c
            + 2.0 * (v[0, 2] * s + v[0, 3] * c + v[2, 3] * s * c)
        )
        out[j, 4] = 2.0 * (v[0, 1] + v[1, 2] * s + v[1, 3] * c)
        out[j, 5] = v[1, 1]
        out[j, 6] = out[j, 7] = 0.0
        out[j, 9] = both
        if both == 0.0 and hosts[k, 0, 0] <= 0.0:
            continue
        gpu = gpu_ms(gpus[k], knots, unit, batch[j], s)
        host = host_ms(hosts[k], knots, unit, batch[j], s)
        if host > 0.0:
            out[j, 0] *= gpu / greater(host, gpu)
        load = both * gpu / floors[k]
        out[j, 6] = contention[k, 0] * load
        out[j, 7] = contention[k, 1] * load * load


@njit(cache=True, nogil=True, error_model="numpy")
def slowdown(terms: F64, x: float, parts: F64, order: I64) -> tuple[float, float]:
    """(slowdown of the GPU part, its variance) of one victim at ``x`` = floor / g; ``terms`` (n,
    TERMS) of its neighbours, see ``terms_of``.

    ``parts`` and ``order`` (n,) are work space. The variance is that of the weights and contention,
    plus what is not known about how several neighbours add: of capped ones half the way to the
    plain sum counts as one standard deviation, for uncapped ones see ``ADDING_SD``.
    """
    total, queued, squares, most = 0.0, 0.0, 0.0, 0.0
    for j in range(terms.shape[0]):
        d = terms[j, 0]
        parts[j] = (1.0 - terms[j, 9]) * (terms[j, 1] + terms[j, 2] * x)
        total += d * parts[j]
        one = d * terms[j, 6] * x
        queued += one
        squares += one * one
        most = max(most, one)
    rank(parts, order)
    slow = combined(parts, terms[:, 0], order)
    variance = (0.5 * (total - slow)) ** 2 + (ADDING_SD * (queued - most)) ** 2
    none, of = 1.0, max(queued, 1e-100)
    even = squares / of / of
    for k in range(terms.shape[0]):
        j = order[k]
        d = terms[j, 0]
        # slopes of the slowdown: over what a capped one does, and over what is waited for
        slope = d * (1.0 - terms[j, 9]) * (OVERLAP + (1.0 - OVERLAP) * none)
        none *= 1.0 - d
        variance += slope * slope * (terms[j, 3] + (terms[j, 4] + terms[j, 5] * x) * x)
        waits = d * x * (1.0 + COMPANY * (1.0 + even - 2.0 * d * terms[j, 6] * x / of))
        variance += waits * waits * terms[j, 7] + (MEETING_SD * terms[j, 9] * d) ** 2
    return slow + queued + company(queued, squares), variance


@njit(cache=True, nogil=True, error_model="numpy")
def curves(
    gpus: F64,
    hosts: F64,
    spread: F64,
    knots: F64,
    unit: float,
    transfer: F64,
    floor_ms: float,
    rise: F64,
    terms: F64,
    noise: F64,
    batches: F64,
    shares: F64,
    deviations: float,
    mean: F64,
    upper: F64,
) -> None:
    """Write the latency (ms) of one tenant into ``mean`` and ``upper``, each (n_shares, n_batches).

    ``gpus``, ``hosts`` and ``spread`` are the tenant's own times and variances, ``rise`` (2,) that
    of its host, ``terms`` (n, TERMS) its neighbours' (see ``terms_of``), ``noise`` (2,) the
    variance of one measurement alone and what comes on top beside neighbours. The bound lies
    ``deviations`` standard deviations of the logarithm of the time above the mean; what slows is
    taken to be lognormal.
    """
    n = terms.shape[0]
    parts, order = np.empty(n), np.empty(n, np.int64)
    nobody = 1.0
    for j in range(n):
        nobody *= 1.0 - terms[j, 8]
    for s in range(shares.shape[0]):
        for b in range(batches.shape[0]):
            size = batches[b]
            gpu = gpu_ms(gpus, knots, unit, size, shares[s])
            host = host_ms(hosts, knots, unit, size, shares[s])
            variance = spread_of(spread, knots, unit, size, shares[s]) + noise[0]
            if n == 0:
                time = greater(host, gpu)
            else:
                slow, doubt = slowdown(terms, floor_ms / gpu, parts, order)
                gpu *= 1.0 + slow
                time = gpu
                doubt = np.log1p(doubt / (1.0 + slow) ** 2)
                if host > 0.0:
                    longer = 1.0 + rise[0] * (1.0 - nobody)
                    host *= longer
                    time = greater(host, gpu)
                    follows = sharp(gpu / time)
                    risen = (1.0 - follows) * (1.0 - nobody) / longer
                    doubt = follows * follows * doubt + risen * risen * rise[1]
                variance += doubt + noise[1]
            moved = (transfer[0] + transfer[1]) * size
            mean[s, b] = time + moved
            upper[s, b] = time * np.exp(deviations * np.sqrt(variance)) + moved
