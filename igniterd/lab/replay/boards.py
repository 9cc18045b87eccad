"""Where a replay takes its service times from: the measured tables, or a performance model where
nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from igniterd.arrays import F64
from igniterd.errors import CannotRun
from igniterd.lab.gpu.truth import (
    DISPERSION_CV,
    MAX_BATCH,
    STRAGGLER_CHANCE,
    STRAGGLER_FACTOR,
    Truth,
    neighbour_weight,
    share_units,
)
from igniterd.perf.api import UNCAPPED, PerformanceModel, Tenant
from igniterd.predict import service_cv

_KNOTS = (1, 2, 4, 8, 16, 32)  # batches at which a model is asked for interference


@dataclass(frozen=True, slots=True)
class Replica:
    """One workload, or its part, on one GPU. ``share`` is ``UNCAPPED`` without one. ``slo_p99_ms``
    is NaN where none is known."""

    workload: str
    model: str
    rate_per_s: float
    share: float
    max_batch_size: int
    max_queue_delay_us: int = 0
    slo_p99_ms: float = math.nan


class Board(Protocol):
    """Where service times come from."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    def dispersion(self, replicas: Sequence[Replica]) -> Sequence[tuple[float, float, float]]:
        """Of one execution of each: coefficient of variation, chance of a straggler, how many times
        longer it takes."""
        ...

    def tables(self, replicas: Sequence[Replica]) -> tuple[F64, F64]:
        """``solo_ms[i, batch]`` alone and ``excess[i, j, batch_i, batch_j]`` beside another that
        executes; index 0 of batches is unused.

        Raises :class:`CannotRun` for a model, a batch or an uncapped replica that it does not know.
        """
        ...


class MeasuredBoard:
    """The measured V100, see :mod:`igniterd.lab.gpu.truth`, with the emulator's dispersion.

    Pairs were measured at shares that add up to 1, so it refuses a replica that is uncapped beside
    others. One that is alone has the whole GPU, which was measured.
    """

    name = "measured tables"

    def __init__(self, truth: Truth | None = None) -> None:
        self._truth = truth or Truth.v100()

    def dispersion(self, replicas: Sequence[Replica]) -> Sequence[tuple[float, float, float]]:
        return [(DISPERSION_CV, STRAGGLER_CHANCE, STRAGGLER_FACTOR)] * len(replicas)

    def tables(self, replicas: Sequence[Replica]) -> tuple[F64, F64]:
        for r in replicas:
            if r.model not in self._truth.models:
                raise CannotRun(
                    f"workload {r.workload}: model {r.model!r} was not measured; measured are "
                    f"{', '.join(self._truth.models)}"
                )
            if r.max_batch_size > MAX_BATCH:
                raise CannotRun(
                    f"workload {r.workload}: batches of {r.max_batch_size} were not measured; at "
                    f"most {MAX_BATCH} were"
                )
            if r.share >= UNCAPPED and len(replicas) > 1:
                raise CannotRun(
                    f"workload {r.workload}: it has no share, and what is uncapped beside others "
                    "was not measured; give it a share below 1, or replay against the model "
                    "(--against model)"
                )
        full = self._truth.tables([r.model for r in replicas])
        units = [share_units(r.share) for r in replicas]
        n = len(replicas)
        solo = np.ascontiguousarray(np.stack([full.solo_ms[i, :, units[i]] for i in range(n)]))
        excess = np.empty((n, n, MAX_BATCH + 1, MAX_BATCH + 1))
        for i in range(n):
            for j in range(n):
                excess[i, j] = full.excess[i, j, :, :, units[i]] * neighbour_weight(
                    units[j], units[i]
                )
        return solo, excess


class ModelBoard:
    """A performance model in place of measurements. Interference is taken pair by pair and added
    up, as well where one of a pair, or both, are uncapped."""

    def __init__(self, model: PerformanceModel) -> None:
        self._model = model
        self.name = f"the model {model.name}"
        self._pairs: dict[tuple[str, float, str, float], F64] = {}

    def dispersion(self, replicas: Sequence[Replica]) -> Sequence[tuple[float, float, float]]:
        return [(service_cv(self._model, r.model), 0.0, 1.0) for r in replicas]

    def tables(self, replicas: Sequence[Replica]) -> tuple[F64, F64]:
        for r in replicas:
            if r.model not in self._model.models:
                raise CannotRun(
                    f"workload {r.workload}: model {r.model!r} is not in the profile "
                    f"({', '.join(self._model.models)})"
                )
        largest = max(r.max_batch_size for r in replicas)
        n = len(replicas)
        solo, excess = np.zeros((n, largest + 1)), np.zeros((n, n, largest + 1, largest + 1))
        for i, r in enumerate(replicas):
            solo[i, 1:] = self._model.service_curve_ms(r.model, r.share, (), largest)[0]
            for j, other in enumerate(replicas):
                if i != j:
                    excess[i, j, 1:, 1:] = self._excess(r, other, largest)
        return solo, excess

    def _excess(self, one: Replica, other: Replica, largest: int) -> F64:
        key = one.model, one.share, other.model, other.share
        if key not in self._pairs:
            share = other.share
            if max(one.share, share) < UNCAPPED:  # no rounding may take them above one GPU
                share = min(share, 1.0 - one.share)
            alone = {b: self._latency(Tenant(one.model, b, one.share)) for b in _KNOTS}
            rows = [
                [
                    self._latency(
                        Tenant(one.model, b, one.share),
                        Tenant(other.model, c, share),
                    )
                    / alone[b]
                    - 1.0
                    for c in _KNOTS
                ]
                for b in _KNOTS
            ]
            self._pairs[key] = np.asarray(rows)
        knots, every = np.log2(_KNOTS), np.log2(np.arange(1, largest + 1))
        across = np.stack([np.interp(every, knots, row) for row in self._pairs[key]])
        return np.stack([np.interp(every, knots, column) for column in across.T], axis=1)

    def _latency(self, tenant: Tenant, *beside: Tenant) -> float:
        return self._model.predict((tenant, *beside))[0].latency_ms
