"""Distribution functions from boxes with uncertain edges, compiled.

A mixture of uniform densities is, twice integrated, a sum of ramps that start at the edges of the boxes. When the place of an edge is
uncertain, its ramp is smeared by the edge's own distribution. Edges are collected on a few levels of variance (an edge between two
levels is split so that its variance is kept), each level is convolved once, with a shifted gamma kernel that has the level's variance and
skew, and two running sums give the distribution function. Places are in grid steps; ``edges`` has shape (levels, points), ``moments``
(levels, 2): total size and size times skew.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@njit(cache=True, nogil=True, error_model="numpy")
def spread_levels(low: float, high: float, levels: F64) -> None:
    """Write variances from ``low`` to ``high`` (grid steps squared) into ``levels``, geometrically."""
    n = levels.shape[0]
    low = max(low, 1e-6)
    high = max(high, low * 1.0001)
    ratio = (high / low) ** (1.0 / (n - 1))
    v = low
    for i in range(n):
        levels[i] = v
        v *= ratio


@njit(cache=True, nogil=True, error_model="numpy")
def add_edge(edges: F64, moments: F64, levels: F64, place: float, variance: float, third: float, weight: float) -> None:
    """Add a ramp of slope ``weight`` that starts around ``place``; ``third`` is the third central moment of the place."""
    points = edges.shape[1]
    if place >= points - 1:
        return
    place = max(place, 0.0)
    node = int(place)
    part = place - node
    n = levels.shape[0]
    size = abs(weight)
    low = 0
    upper = 0.0
    if variance >= levels[n - 1]:
        low = n - 2
        upper = 1.0
    elif variance > levels[0]:
        while levels[low + 1] < variance:
            low += 1
        upper = (variance - levels[low]) / (levels[low + 1] - levels[low])
    lower = 1.0 - upper
    edges[low, node] += weight * lower * (1.0 - part)
    edges[low, node + 1] += weight * lower * part
    edges[low + 1, node] += weight * upper * (1.0 - part)
    edges[low + 1, node + 1] += weight * upper * part
    skew = third / max(variance, 1e-12) ** 1.5 if variance > 1e-9 else 0.0
    moments[low, 0] += size * lower
    moments[low, 1] += size * lower * skew
    moments[low + 1, 0] += size * upper
    moments[low + 1, 1] += size * upper * skew


@njit(cache=True, nogil=True, error_model="numpy")
def _kernel(variance: float, skew: float, out: F64) -> tuple[int, int]:
    """Write a zero-mean kernel into ``out`` (odd length, centre in the middle); return its reach to the left and right."""
    centre = out.shape[0] // 2
    out[:] = 0.0
    if variance < 0.75:
        out[centre - 1] = 0.5 * variance
        out[centre] = 1.0 - variance
        out[centre + 1] = 0.5 * variance
        return 1, 1
    sd = np.sqrt(variance)
    left = min(centre - 2, int(4.5 * sd) + 1)
    right = min(centre - 2, int((4.5 + 3.0 * skew) * sd) + 1)
    gaussian = skew < 0.02
    shape = 4.0 / (skew * skew) if not gaussian else 0.0
    root = np.sqrt(shape)
    total = 0.0
    mean = 0.0
    for o in range(-left, right + 1):
        z = o / sd
        p = 0.0
        if gaussian:
            p = np.exp(-0.5 * z * z)
        else:
            y = shape + z * root
            if y > 0.0:
                p = np.exp((shape - 1.0) * np.log(y / shape) - (y - shape))
        out[centre + o] = p
        total += p
        mean += p * o
    mean /= total
    # sampling a skewed density moves its mean by part of a step: move it back, between neighbours
    shift = int(np.floor(-mean))
    part = -mean - shift
    if shift < -1 or shift > 0:
        shift, part = 0, 0.0
    previous = 0.0
    if shift == 0:
        for i in range(centre - left, centre + right + 2):
            value = out[i] / total
            out[i] = value * (1.0 - part) + previous * part
            previous = value
    else:
        for i in range(centre + right, centre - left - 2, -1):
            value = out[i] / total
            out[i] = value * part + previous * (1.0 - part)
            previous = value
    return left + 1, right + 1


@njit(cache=True, nogil=True, error_model="numpy")
def accumulate(edges: F64, moments: F64, levels: F64, out: F64) -> None:
    """Write the distribution function at the grid points into ``out``, shape (points,)."""
    points = edges.shape[1]
    slope = np.zeros(2 * points)  # from `points` before zero on: a smeared edge may reach below zero, and its mean must stay where it is
    kernel = np.empty(2 * points + 1)
    first = points
    for level in range(levels.shape[0]):
        if moments[level, 0] <= 0.0:
            continue
        left, right = _kernel(levels[level], moments[level, 1] / moments[level, 0], kernel)
        for j in range(points):
            e = edges[level, j]
            if e != 0.0:
                low = points + j - left
                first = min(first, low)
                high = min(2 * points, points + j + right + 1)
                start = points - left - low
                for i in range(low, high):
                    slope[i] += e * kernel[start + i]
    density = 0.0
    total = 0.0
    for i in range(first, points):
        density += slope[i]
        total += density
    for i in range(points):
        out[i] = min(1.0, max(0.0, total))
        density += slope[points + i]
        total += density
    for i in range(1, points):
        out[i] = max(out[i], out[i - 1])


@njit(cache=True, nogil=True, error_model="numpy")
def quantile(cdf: F64, step: float, q: float) -> float:
    """Value below which a fraction ``q`` lies; NaN where the grid ends before."""
    n = cdf.shape[0]
    if not cdf[n - 1] >= q:
        return np.nan
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
