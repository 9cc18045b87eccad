"""igniterd's own performance model: a monotone solo surface and what each neighbour adds to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from igniterd.model.api import F64, Prediction, Tenant
from igniterd.model.kernels import mean
from igniterd.model.profile import ModelProfile, Profile

_PRIOR_GAIN = 0.09
_MARGIN = 1.06


class OwnModel:
    """:class:`igniterd.model.api.PerformanceModel` fitted from a profile's solo points and co-runs."""

    name = "igniterd"

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        rate = profile.board.pcie_bytes_per_ms
        self._transfer = {n: np.array([m.input_bytes, m.output_bytes]) / rate for n, m in profile.models.items()}
        self._rows = {n: _surface(m, float(self._transfer[n].sum())) for n, m in profile.models.items()}
        self._gain = self._gains()

    @property
    def share_unit(self) -> float:
        return self._profile.board.share_unit

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._rows)

    def max_batch(self, model: str) -> int:
        return max(p.batch for p in self._profile.models[model].solo)

    def predict(self, tenants: Sequence[Tenant], *, level: float = 0.95) -> tuple[Prediction, ...]:
        if not tenants:
            return ()
        out = np.empty((len(tenants), 2))
        batch, share, duty = (np.array([getattr(t, f) for t in tenants], dtype=np.float64) for f in ("batch", "share", "duty"))
        rows, transfer = np.stack([self._rows[t.model] for t in tenants]), np.stack([self._transfer[t.model] for t in tenants])
        gain = np.array([[self._gain[a.model, b.model] for b in tenants] for a in tenants])
        mean.latencies(rows, transfer, gain, batch, share, duty, out)
        return tuple(
            Prediction(float(lat), float(lat) * _MARGIN, 1000.0 * t.batch / float(cycle), self._inside(t))
            for t, (lat, cycle) in zip(tenants, out, strict=True)
        )

    def service_curve_ms(
        self, model: str, share: float, neighbours: Sequence[Tenant], max_batch: int, *, level: float = 0.95
    ) -> tuple[F64, F64]:
        low, high = self.share_curves_ms(model, np.array([share]), neighbours, max_batch, level=level)
        return low[0], high[0]

    def share_curves_ms(
        self, model: str, shares: F64, neighbours: Sequence[Tenant], max_batch: int, *, level: float = 0.95
    ) -> tuple[F64, F64]:
        out = np.empty((len(shares), max_batch))
        factor = 1.0 + sum(self._gain[model, n.model] * n.duty for n in neighbours)
        mean.curves(self._rows[model], self._transfer[model], factor, np.asarray(shares, dtype=np.float64), out)
        return out, out * _MARGIN

    def _inside(self, tenant: Tenant) -> bool:
        points = self._profile.models[tenant.model].solo
        return tenant.batch <= max(p.batch for p in points) and tenant.share >= min(p.share for p in points) - 1e-9

    def _gains(self) -> dict[tuple[str, str], float]:
        seen: dict[tuple[str, str], list[float]] = {}
        for run in self._profile.co_runs:
            for me in run.tenants:
                others = [t for t in run.tenants if t is not me]
                solo = mean.solo_ms(self._rows[me.model], float(me.batch), me.share)
                gpu = me.latency_ms - float(self._transfer[me.model].sum()) * me.batch
                for other in others:
                    seen.setdefault((me.model, other.model), []).append(max(gpu / solo - 1, 0.0) / len(others))
        return {(a, b): float(np.mean(seen.get((a, b), [_PRIOR_GAIN]))) for a in self._rows for b in self._rows}


def _surface(model: ModelProfile, transfer_ms: float) -> F64:
    batch = np.array([p.batch for p in model.solo], dtype=np.float64)
    share = np.array([p.share for p in model.solo])
    gpu = np.array([p.latency_ms for p in model.solo]) - transfer_ms * batch

    def residual(k: F64) -> F64:
        return np.asarray(np.log(((k[0] * batch + k[1]) / (share + k[2]) + k[3] + k[4] * batch) / gpu))

    start = np.array([gpu[-1] * share[-1] / batch[-1], 0.01, 0.01, gpu.min() / 2, 0.01])
    return np.asarray(least_squares(residual, start, bounds=(1e-9, np.inf)).x)
