"""When a closed loop has settled, and the mean service time of one execution then. Pure.

Triton's statistics are read every so often; each reading gives a :class:`Slice`: how many
executions ended since the last one and how long they took together. The first executions do not
count (caches fill, the clock rises): where they end is found by the marginal standard error rule
(White, 1997), the cut after which the standard error of the rest is least. Slices that lie far out
(the host was busy with something else) are left out, at most a tenth of them, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64

LEAST_SLICES = 5
_FAR_OUT = 6.0  # robust standard deviations
_MOST_LEFT_OUT = 0.1


@dataclass(frozen=True, slots=True)
class Slice:
    """Executions of one batch size between two readings."""

    count: int
    total_ns: int


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean service time of one execution: ``error`` is its relative standard error, ``cv`` the
    dispersion of single executions."""

    ms: float
    error: float
    cv: float
    count: int
    left_out: int


def mean_of(slices: Sequence[Slice]) -> Mean | None:
    """The settled mean, or ``None`` while there are too few slices to say how sure it is."""
    seen = [s for s in slices if s.count > 0]
    if len(seen) < LEAST_SLICES:
        return None
    count = np.array([s.count for s in seen], dtype=np.float64)
    each = np.array([s.total_ns for s in seen]) / count / 1e6
    start = _settling_slices(each, count)
    each, count = each[start:], count[start:]
    kept = _near(each, count)
    left_out = int(count.shape[0] - kept.sum())
    each, count = each[kept], count[kept]
    total = float(count.sum())
    mean = float(count @ each) / total
    # variance of one execution
    single = float(count @ (each - mean) ** 2) / max(1, each.shape[0] - 1)
    return Mean(
        mean,
        float(np.sqrt(single / total)) / mean,
        float(np.sqrt(single)) / mean,
        int(total),
        left_out,
    )


def _settling_slices(each: F64, count: F64) -> int:
    """Slices to drop from the front, at most half of them: the cut with the least squared standard
    error after it."""
    last = each.shape[0] // 2
    errors = []
    for cut in range(last + 1):
        e, n = each[cut:], count[cut:]
        mean = (n @ e) / n.sum()
        errors.append(float(n @ (e - mean) ** 2) / float(n.sum()) ** 2)
    return int(np.argmin(errors))


def _near(each: F64, count: F64) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which slices to keep: those within ``_FAR_OUT`` deviations of the median, their own size
    taken into account."""
    off = (each - np.median(each)) * np.sqrt(count)
    scale = 1.4826 * float(np.median(np.abs(off)))
    most = int(_MOST_LEFT_OUT * each.shape[0])
    if scale <= 0.0 or most == 0:
        return np.ones(each.shape[0], dtype=np.bool_)
    far = np.abs(off) / scale
    limit = max(_FAR_OUT, float(np.sort(far)[-most - 1]))
    return np.asarray(far <= limit)
