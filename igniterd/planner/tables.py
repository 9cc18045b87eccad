"""The tables the planner's search reads, taken from the models and from the queue; see :mod:`igniterd.model.kernels.packing`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from igniterd.model import PerformanceModel
from igniterd.model.api import Tenant
from igniterd.model.kernels.packing import Tables
from igniterd.model.tail import response_times
from igniterd.planner.gpus import GpuType

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CAPS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)
"""Largest batches considered, as far as a model was profiled."""
DELAYS = (0.0, 0.5)
"""Queue delays considered, over the service time of a batch of one. Short ones cost next to no P99 and leave the GPU idler, which
the neighbours gain from; longer ones cost more P99 than they save."""
LOADS = (0.0, 0.01, 0.03, 0.08, 0.18, 0.32, 0.48, 0.64, 0.77, 0.87, 0.94, 0.97)
_FAR = 1e6
"""In place of a P99 where the queue has none: far above any SLO, and finite so that interpolation stays a number."""
_GAIN_SHARES = (0.025, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
_GAIN_BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_GAIN_OVER = 8
"""A neighbour's gain is averaged over own batches 1 to this: what a batcher mostly forms."""


def build_tables(gpus: Sequence[GpuType], models: Sequence[str], burstiness: Sequence[float], *, level: float, service_cv: float) -> Tables:
    """Tables for ``models`` (the order is their number) on ``gpus``, under each of the arrival processes ``burstiness``.

    A model that a kind of GPU has no profile of takes for ever there. ``level``: of the upper bound of the service times.
    """
    top = max(gpu.units for gpu in gpus)
    limits = [c for c in CAPS if c <= max(_most_batch(gpu, m) for gpu in gpus for m in models)]
    options = [(c, d) for d in DELAYS for c in limits if c > 1 or d == 0.0]
    caps, delay = np.array([c for c, _ in options], dtype=np.int64), np.array([d for _, d in options])
    first = np.full((len(gpus), len(models), top + 1), np.inf)
    full = np.full((len(gpus), len(models), top + 1, caps.size), np.inf)
    most_batch = np.array([[_most_batch(gpu, m) for m in models] for gpu in gpus], dtype=np.int64)
    for k, gpu in enumerate(gpus):
        shares = np.arange(1, gpu.units + 1) / gpu.units
        for m, name in enumerate(models):
            if name in gpu.model.models:
                curve = gpu.model.share_curves_ms(name, shares, (), int(most_batch[k, m]), level=level)[1]
                known = caps <= most_batch[k, m]
                first[k, m, 1 : gpu.units + 1] = curve[:, 0]
                full[k, m, 1 : gpu.units + 1, known] = curve[:, caps[known] - 1].T
    log_shape = _shapes(first, full, caps)
    queues = [_queue(caps, delay, log_shape, c2, service_cv) for c2 in burstiness]
    p99, busy, batch = (np.stack(parts) for parts in zip(*queues, strict=True))
    gain_units = np.unique(np.maximum(1, np.round(np.array(_GAIN_SHARES) * top))).astype(np.int64)
    gain = np.stack([_gains(gpu, models, gain_units / top, level) for gpu in gpus])
    return Tables(
        first, full, caps, delay, log_shape, np.array(LOADS), p99, busy, batch, gain, gain_units, np.array(_GAIN_BATCHES),
        np.array([gpu.units for gpu in gpus], dtype=np.int64), most_batch,
    )  # fmt: skip


def _most_batch(gpu: GpuType, model: str) -> int:
    return gpu.model.max_batch(model) if model in gpu.model.models else 1


def _shapes(first: F64, full: F64, caps: I64) -> F64:
    """Points of log x, a factor of 2.5 apart, over the range the curves have; below 0.1 batching hardly pays and it matters little."""
    with np.errstate(invalid="ignore"):
        slope = (full - first[..., None]) / np.maximum(caps - 1, 1)
        x = np.maximum(first[..., None] - slope, 1e-3 * first[..., None]) / np.maximum(slope, 1e-6 * first[..., None])
    seen = x[..., caps > 1][np.isfinite(x[..., caps > 1])]
    if not seen.size:
        return np.zeros(1)
    low, high = float(np.log(max(seen.min(), 0.1))), float(np.log(max(seen.max(), 0.2)))
    return np.linspace(low, high, max(2, int(np.ceil((high - low) / np.log(2.5))) + 1))


def _queue(caps: I64, delay: F64, log_shape: F64, burstiness: float, service_cv: float) -> tuple[F64, F64, F64]:
    """P99 (1 - load) / s(1), utilisation and mean batch, each (X, R, C), of the unit curve s(b) = (x + b) / (x + 1)."""
    loads = np.array((0.004, *LOADS[1:]))  # at no load at all there is no queue to evaluate; the limit is reached well before
    shape = np.exp(log_shape)
    grid = np.stack(np.meshgrid(np.arange(shape.size), np.arange(loads.size), np.arange(caps.size), indexing="ij"), axis=-1)
    rows = grid[~((grid[..., 2] == 0) & (grid[..., 0] > 0))]  # with batches of one the shape does not matter: evaluate it once
    x, load, cap = shape[rows[:, 0]], loads[rows[:, 1]], caps[rows[:, 2]]
    curves = (x[:, None] + np.arange(1, caps[-1] + 1)) / (x[:, None] + 1.0)
    rates = 1e3 * load * cap / curves[np.arange(cap.size), cap - 1]
    waits = delay[rows[:, 2]]
    answer = response_times(rates, curves, batches=cap, service_cv=service_cv, max_queue_delay_ms=waits, burstiness=burstiness)
    out = []
    found = (answer.p99_ms * (1.0 - load), answer.utilisation, answer.mean_batch)
    for column, beyond in zip(found, (_FAR, 1.0, cap), strict=True):
        table = np.empty(grid.shape[:3])
        table[rows[:, 0], rows[:, 1], rows[:, 2]] = np.where(answer.ok, column, beyond)
        table[1:, :, 0] = table[0, :, 0]
        out.append(table)
    out[1][:, 0, :] = 0.0
    return out[0], out[1], out[2]


def _gains(gpu: GpuType, models: Sequence[str], shares: F64, level: float) -> F64:
    """Slowdown less 1 by one neighbour that always executes: (M, M, V, V, W)."""
    gain = np.zeros((len(models), len(models), shares.size, shares.size, len(_GAIN_BATCHES)))
    known = [(i, name) for i, name in enumerate(models) if name in gpu.model.models]
    for i, own in known:
        over = min(_GAIN_OVER, gpu.model.max_batch(own))
        alone = _upper(gpu.model, own, shares, (), over, level)
        for j, other in known:
            for v, share in enumerate(shares):
                for w, batch in enumerate(_GAIN_BATCHES):
                    beside = Tenant(other, min(batch, float(gpu.model.max_batch(other))), float(share))
                    gain[i, j, :, v, w] = (_upper(gpu.model, own, shares, (beside,), over, level) / alone).mean(axis=1) - 1.0
    return np.maximum(gain, 0.0)


def _upper(model: PerformanceModel, name: str, shares: F64, neighbours: Sequence[Tenant], most: int, level: float) -> F64:
    return model.share_curves_ms(name, shares, neighbours, most, level=level)[1]
