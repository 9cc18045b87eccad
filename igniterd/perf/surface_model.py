"""igniterd's own performance model: a solo surface with its uncertainty, and what each neighbour
adds to it.

A profile may have shares at which only the smallest batch was measured (often the whole GPU). What
larger batches gain there from the larger share is an extrapolation that no uncertainty of the fit
covers. There are two readings of the measurements: the fit's, and that larger batches gain no more
than a single item does. Beyond :func:`trusted_share` each has a chance of one half. The upper bound
is exceeded as rarely as its level says under both together.

Fitted from latencies alone: at most eleven solo points a model and a co-run an ordered pair are
enough, fewer widen the bounds. The parts are explained where they are:
:mod:`igniterd.perf.surface`, :mod:`igniterd.perf.interference`, :mod:`igniterd.perf.kernels.mean`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from igniterd.arrays import F64, I64
from igniterd.perf import interference, surface
from igniterd.perf.api import Prediction, Tenant, capped_total
from igniterd.perf.interference import CoRunSample, Neighbour, Prior
from igniterd.perf.kernels import bound
from igniterd.perf.kernels import mean as kernel
from igniterd.perf.profile import CoTenant, ModelProfile, Profile

_deviations = lru_cache(maxsize=64)(NormalDist().inv_cdf)


class SurfaceModel:
    """:class:`igniterd.perf.api.PerformanceModel` fitted from a profile's solo points and co-runs.

    Guaranteed by construction: the mean latency never falls when the tenant's batch grows, its
    share shrinks, or a neighbour appears or executes more of the time; the bound is not below the
    mean for levels of 0.5 and more.
    """

    name = "igniterd"

    def __init__(self, profile: Profile, prior: Prior | None = None) -> None:
        """Fit. ``prior`` is what to think of pairs never measured together; without one, what the
        V100's pairs do."""
        self._index = {name: i for i, name in enumerate(profile.models)}
        models = list(profile.models.values())
        self._unit = profile.board.share_unit
        self._ranges = {name: _range(model) for name, model in profile.models.items()}
        self._service_cv = {name: model.service_cv for name, model in profile.models.items()}
        self._trusted = {name: trusted_share(model) for name, model in profile.models.items()}
        self._grid = surface.make_grid(2 * max(r[0] for r in self._ranges.values()), self._unit)
        self.transfer = (
            np.array([[m.input_bytes, m.output_bytes] for m in models])
            / profile.board.pcie_bytes_per_ms
        )
        self._surfaces = [
            _surface(m, float(t.sum())) for m, t in zip(models, self.transfer, strict=True)
        ]
        tables = [s.table(self._grid) for s in self._surfaces]
        self.gpus = np.stack([t.gpu for t in tables])
        self.hosts = np.stack([t.host for t in tables])
        self.variances = np.stack([t.variance for t in tables])
        self.floors = np.ascontiguousarray(self.gpus[:, 0, -1])
        observed = observations(profile, self)
        found = interference.learn(len(models), observed, prior or interference.shipped_prior())
        self.weights, self.spreads = found.weights, found.spreads
        self.contention, self.rises = found.contention, found.rises
        self._noise = np.array([surface.NOISE_SD**2, interference.NOISE_SD**2])

    @property
    def share_unit(self) -> float:
        return self._unit

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._index)

    @property
    def knots(self) -> F64:
        """Batches of the tables, shape (batches,)."""
        return self._grid.batches

    def max_batch(self, model: str) -> int:
        return self._ranges[model][0]

    def service_cv(self, model: str) -> float | None:
        return self._service_cv[model]

    def plain(self, model: str) -> bool:
        """Whether the plainest solo surface explains what was measured of ``model``."""
        return self._surfaces[self._index[model]].plain

    def host_bound_to(self, model: str, share: float) -> int:
        """The largest batch, of those profiled, that waits for its host at ``share``: more SMs do
        not speed it up. 0 where there is none."""
        found = 0
        for batch in range(1, self.max_batch(model) + 1):
            gpu, host = self.parts(model, batch, share)
            if gpu >= host:
                break
            found = batch
        return found

    def parts(self, model: str, batch: float, share: float) -> tuple[float, float]:
        """GPU and host time (ms) of one batch alone, without transfers; it takes the greater."""
        i = self._index[model]
        at = (self.knots, self._unit, batch, share)
        return float(kernel.gpu_ms(self.gpus[i], *at)), float(kernel.host_ms(self.hosts[i], *at))

    def alone(self, model: str, batch: float, share: float) -> tuple[float, float]:
        """Time (ms) of one batch alone, without transfers, and the variance of its logarithm."""
        gpu, host = self.parts(model, batch, share)
        spread = self.variances[self._index[model]]
        return float(kernel.greater(host, gpu)), float(
            kernel.spread_of(spread, self.knots, self._unit, batch, share)
        )

    def predict(self, tenants: Sequence[Tenant], *, level: float = 0.95) -> tuple[Prediction, ...]:
        """See the protocol. Raises ``ValueError`` for a share or batch that is not above 0."""
        inside = self._inside(tenants)
        found = []
        for i, tenant in enumerate(tenants):
            others = [*tenants[:i], *tenants[i + 1 :]]
            mean, upper = self._curves(
                tenant.model,
                np.array([tenant.share]),
                others,
                np.array([float(tenant.batch)]),
                level,
            )
            cycle = (
                float(mean[0, 0])
                - float(self.transfer[self._index[tenant.model], 0]) * tenant.batch
            )
            found.append(
                Prediction(
                    float(mean[0, 0]), float(upper[0, 0]), 1000.0 * tenant.batch / cycle, inside
                )
            )
        return tuple(found)

    def service_curve_ms(
        self,
        model: str,
        share: float,
        neighbours: Sequence[Tenant],
        max_batch: int,
        *,
        level: float = 0.95,
    ) -> tuple[F64, F64]:
        mean, upper = self._curves(
            model, np.array([share]), neighbours, np.arange(1.0, max_batch + 1), level
        )
        return mean[0], upper[0]

    def share_curves_ms(
        self,
        model: str,
        shares: F64,
        neighbours: Sequence[Tenant],
        max_batch: int,
        *,
        level: float = 0.95,
    ) -> tuple[F64, F64]:
        return self._curves(
            model,
            np.asarray(shares, dtype=np.float64),
            neighbours,
            np.arange(1.0, max_batch + 1),
            level,
        )

    def latencies_ms(self, who: I64, batch: F64, share: F64, utilisation: F64, out: F64) -> None:
        """Mean latencies of n tenants without any Python in between: ``who`` (n,) indexes
        ``models``; ``out`` is (n, 2), see the kernel."""
        own = (self.gpus, self.hosts, self.knots, self._unit, self.transfer, self.floors)
        beside = (self.weights, self.contention, self.rises)
        kernel.latencies(*own, *beside, who, batch, share, utilisation, out)

    def _curves(
        self, model: str, shares: F64, neighbours: Sequence[Tenant], batches: F64, level: float
    ) -> tuple[F64, F64]:
        """Mean and guarded upper bound (ms): ``shares`` (n_shares,), ``batches`` (n_batches,) ->
        each (n_shares, n_batches)."""
        mean, upper = self._fitted(model, shares, neighbours, batches, level)
        most = self._trusted[model] + 1e-9
        if max(shares.tolist()) <= most:  # as it mostly is; many times faster than numpy's any()
            return mean, upper
        beyond, trusted, one = shares > most, np.array([self._trusted[model]]), np.ones(1)
        # where the fit's reading is below for certain, the other may be exceeded twice as often
        other = max(0.5, 2.0 * level - 1.0)
        known = self._fitted(model, trusted, neighbours, np.append(one, batches), other)
        single = self._fitted(model, shares[beyond], neighbours, one, level)[0]
        upper[beyond] = np.maximum(upper[beyond], known[1][0, 1:] * single / known[0][0, 0])
        return mean, upper

    def _fitted(
        self, model: str, shares: F64, neighbours: Sequence[Tenant], batches: F64, level: float
    ) -> tuple[F64, F64]:
        """As :meth:`_curves`, with the upper bound that the fit alone gives."""
        i = self._index[model]
        if not (
            shares.min() > 0
            and batches.min() > 0
            and all(t.share > 0 and t.batch > 0 for t in neighbours)
        ):
            raise ValueError(
                f"{model}: shares and batches, its own and its neighbours', must be above 0"
            )
        near = np.array([self._index[t.model] for t in neighbours], dtype=np.int64)
        batch, share, utilisation = (
            np.array([(t.batch, t.share, t.utilisation) for t in neighbours], dtype=np.float64)
            .reshape(-1, 3)
            .T.copy()
        )
        terms = np.empty((near.shape[0], bound.TERMS))
        tables = (self.gpus, self.hosts, self.knots, self._unit, self.floors)
        learnt = (self.weights[i], self.spreads[i], self.contention[i])
        # the whole GPU is a cap like any other while a share is searched for
        own_share = float(shares[0]) if shares.shape[0] == 1 else 0.0
        bound.terms_of(*tables, *learnt, near, batch, share, utilisation, own_share, terms)
        mean, upper = (
            np.empty((shares.shape[0], batches.shape[0])),
            np.empty((shares.shape[0], batches.shape[0])),
        )
        own = (
            self.gpus[i],
            self.hosts[i],
            self.variances[i],
            self.knots,
            self._unit,
            self.transfer[i],
            self.floors[i],
            self.rises[i],
        )
        bound.curves(*own, terms, self._noise, batches, shares, _deviations(level), mean, upper)
        return mean, upper

    def _inside(self, tenants: Sequence[Tenant]) -> bool:
        def within(t: Tenant) -> bool:
            largest, low, high = self._ranges[t.model]
            return 1 <= t.batch <= largest and low - 1e-9 <= t.share <= high + 1e-9

        return capped_total(t.share for t in tenants) <= 1 + 1e-6 and all(
            within(t) for t in tenants
        )


def observations(profile: Profile, model: SurfaceModel) -> list[CoRunSample]:
    """Every tenant of every co-run of ``profile``, against the solo surface of ``model``."""
    index = {name: i for i, name in enumerate(model.models)}
    found = []
    for run in profile.co_runs:
        for place, me in enumerate(run.tenants):
            others = tuple(
                _neighbour(model, index[t.model], t)
                for k, t in enumerate(run.tenants)
                if k != place
            )
            found.append(_sample(profile.models[me.model], model, me, others))
    return found


def _sample(
    of: ModelProfile, model: SurfaceModel, me: CoTenant, others: tuple[Neighbour, ...]
) -> CoRunSample:
    i = model.models.index(me.model)
    gpu, host = model.parts(me.model, me.batch, me.share)
    alone, variance = model.alone(me.model, me.batch, me.share)
    transfer = float(model.transfer[i].sum()) * me.batch
    time = max(me.latency_ms - transfer, 0.05 * me.latency_ms)
    here = [p.latency_ms for p in of.solo if (p.batch, p.share) == (me.batch, me.share)]
    if here and not model.plain(me.model):
        # what it took alone just there is surer than a surface that its points lie off
        off = (max(here[0] - transfer, 0.05 * here[0]) / alone) ** 0.5
        gpu, host, variance = gpu * off, host * off, min(variance, 2 * surface.NOISE_SD**2)
    doubt = variance + ((me.latency_error or 0.0) * me.latency_ms / time) ** 2
    return CoRunSample(i, time, gpu, doubt, float(model.floors[i]), others, host, me.share)


def _neighbour(model: SurfaceModel, index: int, of: CoTenant) -> Neighbour:
    gpu, host = model.parts(of.model, of.batch, of.share)
    load, busy = gpu / float(model.floors[index]), gpu / float(kernel.greater(host, gpu))
    return Neighbour(index, of.batch, of.share, load, busy)


def trusted_share(model: ModelProfile) -> float:
    """The largest share at which more than one batch was measured; the largest of all where there
    is no such share."""
    batches: dict[float, set[int]] = {}
    for point in model.solo:
        batches.setdefault(point.share, set()).add(point.batch)
    return max((share for share, seen in batches.items() if len(seen) > 1), default=max(batches))


def _range(model: ModelProfile) -> tuple[int, float, float]:
    shares = [p.share for p in model.solo]
    return max(p.batch for p in model.solo), min(shares), max(shares)


def _surface(model: ModelProfile, transfer_ms: float) -> surface.Surface:
    batch = np.array([p.batch for p in model.solo], dtype=np.float64)
    latency = np.array([p.latency_ms for p in model.solo])
    # Transfers are of the order of a tenth of a latency; a link slower than the profile says must
    # not leave nothing for the GPU.
    gpu = np.maximum(latency - transfer_ms * batch, 0.05 * latency)
    error = np.array([p.latency_error or 0.0 for p in model.solo]) * latency / gpu
    return surface.Surface(batch, np.array([p.share for p in model.solo]), gpu, error)
