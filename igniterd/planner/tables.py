"""The tables the planner's search reads, taken from the models and from the queue; see
:mod:`igniterd.queueing.kernels.lookup`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

from igniterd.arrays import F64, I64
from igniterd.perf import PerformanceModel
from igniterd.perf.api import Tenant
from igniterd.planner.gpu_types import GpuType
from igniterd.queueing.kernels import lookup
from igniterd.queueing.kernels.lookup import Tables
from igniterd.queueing.parallel import response_times_threaded

CAPS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)
"""Largest batches considered, as far as a model was profiled. Queue delays are not: under Triton's
rule (a batch whose oldest request has waited the delay is sealed, even while the instance is busy)
none lowers a model's own P99 (``bench/delays.py``: by more than 2 % in 0 of 60 situations). It
makes the model less busy, for its neighbours' sake; beside one another, a delay of half to twice a
service raised the own P99 by 12 to 54 % and lowered the other's by about 1 %. With the least share
that holds the SLO there is no such slack."""
LOADS = (0.0, 0.015, 0.06, 0.16, 0.32, 0.5, 0.68, 0.82, 0.92, 0.97)
_FINER = 4
"""Points put between two evaluated ones by a monotone cubic, so that the kernels can be content
with straight lines."""
_FAR = 1e6
"""In place of a P99 where the queue has none: far above any SLO, and finite so that interpolation
stays a number."""
_MEND_SHARES = (0.1, 0.3, 0.75)
_MEND_LOADS = (0.12, 0.35, 0.65, 0.88)
_GAIN_SHARES = (0.05, 0.15, 0.3, 0.5, 0.8)
_GAIN_BATCHES = (1.0, 3.0, 8.0, 24.0)
_GAIN_UTILISATION = 0.85
"""How busy the neighbour is when its gain is taken: what tenants with the least share they need
mostly are."""
_GAIN_OVER = 8
"""A neighbour's gain is averaged over own batches 1 to this: what a batcher mostly forms."""


def build_tables(
    gpus: Sequence[GpuType],
    models: Sequence[str],
    arrival_scv: Sequence[float],
    *,
    level: float,
    service_cv: float,
) -> Tables:
    """Tables for ``models`` (the order is their number) on ``gpus``, under each of the arrival
    processes ``arrival_scv``.

    A model that a kind of GPU has no profile of takes for ever there. ``level``: of the upper bound
    of the service times.
    """
    top = max(gpu.units for gpu in gpus)
    limits = [c for c in CAPS if c <= max(_most_batch(gpu, m) for gpu in gpus for m in models)]
    caps = np.array(limits, dtype=np.int64)
    most_batch = np.array([[_most_batch(gpu, m) for m in models] for gpu in gpus], dtype=np.int64)
    curves = np.full((len(gpus), len(models), top + 1, int(most_batch.max()) + 1), np.inf)
    for k, gpu in enumerate(gpus):
        shares = np.arange(1, gpu.units + 1) / gpu.units
        for m, name in enumerate(models):
            if name in gpu.model.models:
                most = int(most_batch[k, m])
                curves[k, m, 1 : gpu.units + 1, 1 : most + 1] = gpu.model.share_curves_ms(
                    name, shares, (), most, level=level
                )[1]
    log_shape = _shapes(curves)
    queues = [_queue(caps, log_shape, c2, service_cv) for c2 in arrival_scv]
    load = np.array(LOADS)
    p99, utilisation, batch = (
        np.stack([_finer(part, log_shape, load) for part in parts])
        for parts in zip(*queues, strict=True)
    )
    gain_units = np.unique(np.maximum(1, np.round(np.array(_GAIN_SHARES) * top))).astype(np.int64)
    gain = np.stack([_gains(gpu, models, gain_units / top, level) for gpu in gpus])
    mend_units = np.maximum(1.0, np.round(np.array(_MEND_SHARES) * top))
    mend = np.ones((len(gpus), len(models), mend_units.size, len(_MEND_LOADS), caps.size))
    tables = Tables(
        curves,
        caps,
        _between(log_shape),
        _between(load),
        p99,
        np.array([is_random(c2) for c2 in arrival_scv]),
        utilisation,
        batch,
        mend,
        mend_units,
        np.array(_MEND_LOADS),
        gain,
        gain_units,
        np.array(_GAIN_BATCHES),
        np.array([_overlap(gpu, level) for gpu in gpus]),
        np.array([gpu.units for gpu in gpus], dtype=np.int64),
        most_batch,
    )
    _mend(tables, arrival_scv[0], service_cv)
    return tables


def _mend(t: Tables, arrival_scv: float, service_cv: float) -> None:
    """Compare the tables with the queue under the real curves, at a few points, and fill ``t.mend``
    with the ratios."""
    points = [
        (kind, model, e, g, c)
        for kind, model, e, g, c in np.ndindex(t.mend.shape)
        if 1 < t.caps[c] <= t.most_batch[kind, model] and t.mend_units[e] <= t.units[kind]
    ]
    cases = []
    for kind, model, e, g, c in points:
        curve = t.curve_ms[kind, model, int(t.mend_units[e])]
        cases.append(
            (curve[1:], int(t.caps[c]), float(t.mend_load[g] * t.caps[c] / curve[t.caps[c]]))
        )
    if not cases:
        return
    curves = np.stack(
        [
            np.where(np.isfinite(curve), curve, np.nanmax(curve[np.isfinite(curve)]))
            for curve, _, _ in cases
        ]
    )
    caps, rates = (
        np.array([cap for _, cap, _ in cases], dtype=np.int64),
        np.array([rate for _, _, rate in cases]),
    )
    exact = response_times_threaded(
        1e3 * rates, curves, batches=caps, service_cv=service_cv, arrival_scv=arrival_scv
    )
    for (kind, model, e, g, c), rate, p99, ok in zip(
        points, rates.tolist(), exact.p99_ms.tolist(), exact.ok.tolist(), strict=True
    ):
        by_table = lookup.p99_ms(t, kind, 0, model, int(t.mend_units[e]), c, rate, 1.0)
        ratio = min(1.2, max(0.8, p99 / by_table)) if ok else 1.0
        t.mend[kind, model, e, g, c] = ratio


def _most_batch(gpu: GpuType, model: str) -> int:
    return gpu.model.max_batch(model) if model in gpu.model.models else 1


def _shapes(curves: F64) -> F64:
    """Points of log x, a factor of 3 apart, over the range the curves have; below 0.1 batching
    hardly pays and it matters little."""
    first = curves[..., 1:2]
    with np.errstate(invalid="ignore"):
        slope = np.maximum(
            (curves[..., 2:] - first) / np.arange(1, curves.shape[-1] - 1), 1e-6 * first
        )
        x = np.maximum(first - slope, 1e-3 * first) / slope
    seen = x[np.isfinite(x)]
    if not seen.size:
        return np.zeros(1)
    low, high = float(np.log(max(seen.min(), 0.1))), float(np.log(np.clip(seen.max(), 0.2, 100.0)))
    return np.linspace(low, high, max(2, int(np.ceil((high - low) / np.log(3.0))) + 1))


def _between(grid: F64) -> F64:
    """The grid with points put between."""
    places = np.linspace(0, grid.size - 1, _FINER * (grid.size - 1) + 1)
    return np.interp(places, np.arange(grid.size), grid)


def _finer(table: F64, log_shape: F64, load: F64) -> F64:
    """The table with monotone cubics between its points, in shape and in load."""
    for axis, grid in enumerate((log_shape, load)):
        if grid.size > 1:
            table = np.asarray(PchipInterpolator(grid, table, axis=axis)(_between(grid)))
    return table


def is_random(arrival_scv: float) -> bool:
    """Whether an arrival process is nearer to Poisson than to constant arrivals."""
    return arrival_scv >= 0.5


def _queue(
    caps: I64, log_shape: F64, arrival_scv: float, service_cv: float
) -> tuple[F64, F64, F64]:
    """P99 as ``Tables`` has it, utilisation and mean batch, each (X, R, C), of the unit curve s(b)
    = (x + b) / (x + 1)."""
    # at no load at all there is no queue to evaluate; the limit is reached well before
    loads = np.array((0.004, *LOADS[1:]))
    shape = np.exp(log_shape)
    grid = np.stack(
        np.meshgrid(
            np.arange(shape.size), np.arange(loads.size), np.arange(caps.size), indexing="ij"
        ),
        axis=-1,
    )
    # with batches of one the shape does not matter: evaluate it once
    rows = grid[~((grid[..., 2] == 0) & (grid[..., 0] > 0))]
    x, load, cap = shape[rows[:, 0]], loads[rows[:, 1]], caps[rows[:, 2]]
    curves = (x[:, None] + np.arange(1, caps[-1] + 1)) / (x[:, None] + 1.0)
    rates = 1e3 * load * cap / curves[np.arange(cap.size), cap - 1]
    answer = response_times_threaded(
        rates, curves, batches=cap, service_cv=service_cv, arrival_scv=arrival_scv
    )
    out = []
    if is_random(arrival_scv):
        scale = 1.0 / (1.0 - load)
    else:
        batches = (
            lookup.working(np.append(0.0, curve), int(c), rate)
            for curve, c, rate in zip(curves, cap, rates / 1e3, strict=True)
        )
        scale = np.array([time for _, time in batches])
    found = (answer.p99_ms / scale, answer.utilisation, answer.mean_batch)
    for column, beyond in zip(found, (_FAR, 1.0, cap), strict=True):
        table = np.empty(grid.shape[:3])
        table[rows[:, 0], rows[:, 1], rows[:, 2]] = np.where(answer.ok, column, beyond)
        table[1:, :, 0] = table[0, :, 0]
        out.append(table)
    out[1][:, 0, :] = 0.0
    return out[0], out[1], out[2]


def _gains(gpu: GpuType, models: Sequence[str], shares: F64, level: float) -> F64:
    """Slowdown less 1 by one neighbour, over how busy it is: (M, M, V, V, W)."""
    gain = np.zeros((len(models), len(models), shares.size, shares.size, len(_GAIN_BATCHES)))
    known = [(i, name) for i, name in enumerate(models) if name in gpu.model.models]
    for i, own in known:
        over = min(_GAIN_OVER, gpu.model.max_batch(own))
        alone = _upper(gpu.model, own, shares, (), over, level)
        for j, other in known:
            for v, share in enumerate(shares):
                for w, batch in enumerate(_GAIN_BATCHES):
                    beside = Tenant(
                        other,
                        min(batch, float(gpu.model.max_batch(other))),
                        float(share),
                        _GAIN_UTILISATION,
                    )
                    gain[i, j, :, v, w] = (
                        _upper(gpu.model, own, shares, (beside,), over, level) / alone - 1.0
                    ).mean(axis=1) / _GAIN_UTILISATION
    return np.maximum(gain, 0.0)


def _overlap(gpu: GpuType, level: float) -> float:
    """How much of its slowdown each further neighbour, like the first, adds: of three; the mean
    over the models."""
    share = np.array([0.25])
    found = []
    for name in gpu.model.models:
        beside = Tenant(name, min(3.0, float(gpu.model.max_batch(name))), 0.25, _GAIN_UTILISATION)
        alone, one, three = (
            float(_upper(gpu.model, name, share, [beside] * n, 1, level)[0, 0]) for n in (0, 1, 3)
        )
        found.append((three - one) / (one - alone) / 2.0 if one > alone * 1.001 else 1.0)
    return float(np.clip(np.mean(found), 0.0, 1.5))


def _upper(
    model: PerformanceModel,
    name: str,
    shares: F64,
    neighbours: Sequence[Tenant],
    most: int,
    level: float,
) -> F64:
    return model.share_curves_ms(name, shares, neighbours, most, level=level)[1]
