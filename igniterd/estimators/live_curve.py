"""The service-time curve of a model that has no profile, learnt from its live traffic at its
present share. Pure.

Every batch size executed keeps a mean, older windows weighing less. Through the means goes a line
in the batch, a + c b, which is what a GPU does but for steps where a kernel's tiles fill up; each
batch size is then drawn from the line towards its own mean by how well that is known (best linear
unbiased prediction; C. R. Henderson, Biometrics 31, 1975). Batches never executed have the line
alone, and say so by their error. Before two sizes are seen, the slope is what networks on a GPU
usually have, within wide bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from igniterd.arrays import F64
from igniterd.documents import Document
from igniterd.estimators.dispersion import Dispersion, Moments
from igniterd.estimators.dispersion import Kept as KeptDispersion
from igniterd.queueing.tail import SERVICE_CV

MEMORY_S = 120.0
SCATTER_SD = 0.01  # of a window's mean: neighbours come and go
MOST = 3000.0  # executions counted at most: what is old is not known ever better
CLIP_SIGMA = 4.0
# relative growth of the service time when the batch doubles from a typical one, before it is seen
SLOPE, SLOPE_SD = 0.6, 0.25
STEP_SD = 0.03  # of single sizes around the line, relative, until three are known
LEAST_STEP_SD = 0.01


@dataclass(frozen=True, slots=True)
class Size:
    """Executions of one batch size, as weighed now, and their mean service time."""

    executions: float
    mean_ms: float
    at_s: float


@dataclass(frozen=True, slots=True)
class LiveCurve:
    """What is known of a model's service times under one allocation."""

    share: float | None = None
    instances: int = 1
    sizes: Mapping[int, Size] = field(default_factory=dict)
    dispersion: Dispersion = field(default_factory=Dispersion)  # of single service times

    @property
    def largest(self) -> int:
        """Largest batch executed; 0 before the first."""
        return max(self.sizes, default=0)


@dataclass(frozen=True, slots=True)
class Points:
    """Service times (ms) of batches 1..B with their relative standard errors, each (B,); ``seen``:
    executions behind each."""

    mean_ms: F64
    error: F64
    seen: F64


def update_curve(
    curve: LiveCurve,
    at_s: float,
    executions: Mapping[int, int],
    service_ms: Mapping[int, float],
    *,
    share: float | None,
    instances: int,
) -> LiveCurve:
    """``curve`` with one more window: executions and their mean service time (ms) by batch size.
    Another share begins another curve."""
    if (share, instances) != (curve.share, curve.instances):
        curve = LiveCurve(share, instances, dispersion=curve.dispersion.elsewhere())
    seen = {
        b: (n, service_ms[b])
        for b, n in executions.items()
        if n > 0 and 0 < service_ms[b] < math.inf
    }
    if not seen:
        return curve
    # a curve that was steady follows a lasting change no slower
    most = max(curve.dispersion.cv, SERVICE_CV) ** 2
    fresh = {b: _merge(curve.sizes.get(b), at_s, n, ms, most) for b, (n, ms) in seen.items()}
    window = {b: Moments(n, math.log(ms)) for b, (n, ms) in seen.items()}
    return replace(
        curve,
        sizes={**curve.sizes, **fresh},
        dispersion=curve.dispersion.after(window, scatter=SCATTER_SD**2),
    )


def _merge(old: Size | None, at_s: float, n: int, ms: float, variance: float) -> Size:
    if old is None:
        return Size(float(n), ms, at_s)
    kept = old.executions * math.exp(-max(0.0, at_s - old.at_s) / MEMORY_S)
    spread = (
        CLIP_SIGMA
        * old.mean_ms
        * math.sqrt(variance * (1 / n + 1 / max(1.0, kept)) + SCATTER_SD**2)
    )
    # one odd window is held back; the next ones may go on from there
    ms = min(old.mean_ms + spread, max(old.mean_ms - spread, ms))
    return Size(min(MOST, kept + n), (kept * old.mean_ms + n * ms) / (kept + n), at_s)


def points(curve: LiveCurve, largest: int, at_s: float) -> Points | None:
    """Service times of batches 1..``largest`` as known at ``at_s``; None before any execution."""
    if not curve.sizes or largest < 1:
        return None
    top = max(largest, curve.largest)
    batch = np.array(sorted(curve.sizes), dtype=np.float64)
    known = [curve.sizes[int(b)] for b in batch]
    weight = np.array(
        [max(1e-3, k.executions * math.exp(-max(0.0, at_s - k.at_s) / MEMORY_S)) for k in known]
    )
    mean = np.array([k.mean_ms for k in known])
    return _blend(_fit_line(batch, mean, weight, curve.dispersion.cv**2), top, largest)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A line through means, in units of ``unit_ms``: ``line`` (2,) is the value at the typical
    batch and the growth with its doubling."""

    batch: F64
    y: F64
    noise: F64  # variance of y
    weight: F64
    line: F64
    covariance: F64
    step: float  # standard deviation of single sizes around the line, relative
    typical: float
    unit_ms: float


def _fit_line(batch: F64, mean_ms: F64, weight: F64, variance: float) -> _Fit:
    unit_ms, typical = (
        float(np.average(mean_ms, weights=weight)),
        float(np.average(batch, weights=weight)),
    )
    y = mean_ms / unit_ms
    noise = y**2 * (variance / weight + SCATTER_SD**2)
    x = np.stack([np.ones_like(batch), batch / typical - 1])
    step = STEP_SD
    for _ in range(2):  # the second time with the steps that the first has shown
        spread = noise + (step * y) ** 2
        covariance: F64 = np.linalg.inv((x / spread) @ x.T + np.diag([1.0, SLOPE_SD**-2])).astype(
            np.float64
        )
        line = covariance @ (x @ (y / spread) + np.array([1.0, SLOPE / SLOPE_SD**2]))
        if batch.size < 3:
            break
        missed = ((y - line @ x) ** 2 - noise) / y**2
        step = math.sqrt(max(LEAST_STEP_SD**2, (float(missed.sum()) + 2 * STEP_SD**2) / batch.size))
    return _Fit(batch, y, noise, weight, line, covariance, step, typical, unit_ms)


def _blend(fit: _Fit, top: int, largest: int) -> Points:
    """The line everywhere, drawn towards the means where there are any; never falling with the
    batch."""
    at = np.arange(1.0, top + 1)
    along = np.stack([np.ones_like(at), at / fit.typical - 1])
    straight = np.maximum(fit.line @ along, 0.05 * float(fit.y.min()))
    line_var = np.einsum("ib,ij,jb->b", along, fit.covariance, along)
    where = fit.batch.astype(int) - 1
    own, own_noise, seen = straight.copy(), np.full(top, np.inf), np.zeros(top)
    own[where], own_noise[where], seen[where] = fit.y, fit.noise, fit.weight
    steps = (fit.step * straight) ** 2
    pull = steps / (steps + own_noise)
    mean = np.maximum.accumulate(straight + pull * (own - straight))
    variance = (1 - pull) * steps + (1 - pull) ** 2 * line_var
    return Points(
        mean[:largest] * fit.unit_ms, np.sqrt(variance[:largest]) / mean[:largest], seen[:largest]
    )


def where(share: float | None) -> str:
    """The allocation a curve was learnt under, in words."""
    return "as it runs now" if share is None else f"at a share of {share:.1%}"


def describe(known: Points) -> str:
    """How sure it is, in words: ``batches 1 to 6 within 2 %, 7 to 8 not seen, within 5 %``."""
    tested = [i + 1 for i, n in enumerate(known.seen) if n >= 1]
    if not tested:
        return "no batch seen"
    low, high = tested[0], tested[-1]
    largest = known.error.size
    text = (
        f"{'batch' if low == high else 'batches'} {_range(low, high)} within "
        f"{_percent(known.error[low - 1 : high].max())}"
    )
    beyond = [_range(a, b) for a, b in ((1, low - 1), (high + 1, largest)) if a <= b]
    if beyond:
        worst = max(known.error[: low - 1].max(initial=0.0), known.error[high:].max(initial=0.0))
        text += f", {' and '.join(beyond)} not seen, within {_percent(worst)}"
    return text


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _percent(error: float) -> str:
    """Two standard errors, in whole per cent."""
    return f"{max(1, math.ceil(200 * float(error) - 1e-9))} %"


def to_plain(curve: LiveCurve, at_s: float) -> dict[str, Any]:
    """For JSON; ``at_s`` is now."""
    sizes = {
        str(b): [
            round(s.executions * math.exp(-max(0.0, at_s - s.at_s) / MEMORY_S), 2),
            round(s.mean_ms, 5),
        ]
        for b, s in curve.sizes.items()
    }
    return {
        "share": curve.share,
        "instances": curve.instances,
        "sizes": sizes,
        "dispersion": curve.dispersion.plain(),
    }


Batch = Annotated[int, Field(strict=False, gt=0, le=4096)]  # keys of JSON are text
Executions = Annotated[float, Field(ge=0)]
Milliseconds = Annotated[float, Field(gt=0)]


class _Kept(Document):
    share: Annotated[float, Field(gt=0, le=1)] | None
    instances: int
    sizes: dict[Batch, Annotated[tuple[Executions, Milliseconds], Field(strict=False)]]
    dispersion: KeptDispersion = KeptDispersion()


def from_plain(plain: object, at_s: float) -> LiveCurve:
    """What :func:`to_plain` gave, as known at ``at_s``. Raises ``ValidationError``, a
    ``ValueError``, for anything else."""
    kept = _Kept.model_validate(plain)
    sizes = {b: Size(executions, ms, at_s) for b, (executions, ms) in kept.sizes.items()}
    return LiveCurve(kept.share, kept.instances, sizes, kept.dispersion.recalled())
