"""The published performance model, faithfully: F. Xu et al., IEEE TPDS 34(3), 2023 (arXiv
2211.01713), sec. 3 and 4.

It is the baseline igniterd's own model is compared with, and what the published provisioning
strategy runs on. Coefficients are least-squares fits of the measurements in a profile's ``igniter``
parts, taken the way the paper's prototype takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import curve_fit

from igniterd.arrays import F64
from igniterd.errors import ProfileError
from igniterd.perf.api import Prediction, Tenant, capped_total
from igniterd.perf.kernels import published
from igniterd.perf.profile import Copies, IgniterInputs, ModelProfile, Profile


@dataclass(frozen=True, slots=True)
class BoardCoefficients:
    """Equations (6), (9), (10) and (3)."""

    top_clock_mhz: float  # F
    power_limit_w: float  # P
    idle_power_w: float  # p_idle
    alpha_f: float  # MHz/W, below 0
    alpha_sch: float  # ms per kernel and tenant
    beta_sch: float  # ms per kernel
    bytes_per_ms: float  # B_pcie

    def row(self) -> F64:
        """Shape (6,), as ``kernels.published`` reads it."""
        return np.array(
            [
                self.top_clock_mhz,
                self.power_limit_w,
                self.idle_power_w,
                self.alpha_f,
                self.alpha_sch,
                self.beta_sch,
            ],
            dtype=np.float64,
        )


@dataclass(frozen=True, slots=True)
class ModelCoefficients:
    """Equations (5), (8) and (11), and the fits of power and L2 use over batch / active time
    (items/ms)."""

    k1: float
    k2: float
    k3: float
    k4: float
    k5: float  # k1..k5 with the share in percent
    gap_ms: float  # k_sch n_k
    kernels: int  # n_k
    a_power: float
    b_power: float
    a_l2: float
    b_l2: float
    alpha_cache: float
    input_bytes: int  # d_load, per item
    output_bytes: int  # d_feedback, per item

    @property
    def k_sch(self) -> float:
        """Scheduling time of one kernel (ms), alone on the GPU."""
        return self.gap_ms / self.kernels

    def row(self) -> F64:
        """Shape (12,), as ``kernels.published`` reads it."""
        fits = (self.a_power, self.b_power, self.a_l2, self.b_l2, self.alpha_cache)
        return np.array(
            [self.k1, self.k2, self.k3, self.k4, self.k5, self.gap_ms, self.kernels, *fits],
            dtype=np.float64,
        )


class IgniterModel:
    """:class:`igniterd.perf.api.PerformanceModel` by the published equations.

    It has no notion of its own error: the upper bound is the mean.
    """

    name = "igniter"

    def __init__(self, profile: Profile) -> None:
        """Fit the coefficients. Raises :class:`ProfileError` when the profile lacks the published
        method's inputs."""
        self.board = _board(profile)
        self.coefficients = {
            name: _model(name, model, profile) for name, model in profile.models.items()
        }
        self._unit = profile.board.share_unit
        self._board_row = self.board.row()
        self._rows = {name: c.row() for name, c in self.coefficients.items()}
        self._transfer = {
            name: np.array([c.input_bytes, c.output_bytes], dtype=np.float64)
            / self.board.bytes_per_ms
            for name, c in self.coefficients.items()
        }
        self._service_cv = {name: model.service_cv for name, model in profile.models.items()}
        self._range = {
            name: _range(model.igniter) for name, model in profile.models.items() if model.igniter
        }

    @property
    def share_unit(self) -> float:
        return self._unit

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.coefficients)

    def max_batch(self, model: str) -> int:
        return self._range[model][0]

    def service_cv(self, model: str) -> float | None:
        return self._service_cv[model]

    def predict(self, tenants: Sequence[Tenant], *, level: float = 0.95) -> tuple[Prediction, ...]:
        """See the protocol. ``level`` is ignored: the published model has no bounds.

        Raises ``ValueError`` where equation (9) leaves no clock: so much power asked for that the
        line reaches 0 MHz.
        """
        if not tenants:
            return ()
        out = np.empty((len(tenants), 2))
        rows, transfer = (
            np.stack([self._rows[t.model] for t in tenants]),
            np.stack([self._transfer[t.model] for t in tenants]),
        )
        batch, share, utilisation = (
            np.array([getattr(t, f) for t in tenants], dtype=np.float64)
            for f in ("batch", "share", "utilisation")
        )
        published.latencies(rows, transfer, self._board_row, batch, share, utilisation, out)
        _answered(out)
        inside = self._inside(tenants)
        return tuple(
            Prediction(float(lat), float(lat), 1000.0 * t.batch / float(cycle), inside)
            for t, (lat, cycle) in zip(tenants, out, strict=True)
        )

    def service_curve_ms(
        self,
        model: str,
        share: float,
        neighbours: Sequence[Tenant],
        max_batch: int,
        *,
        level: float = 0.95,
    ) -> tuple[F64, F64]:
        mean, upper = self.share_curves_ms(
            model, np.array([share]), neighbours, max_batch, level=level
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
        out = np.empty((len(shares), max_batch))
        shares = np.asarray(shares, dtype=np.float64)
        published.curves(
            self._rows[model],
            self._transfer[model],
            self._board_row,
            shares,
            self._around(neighbours),
            out,
        )
        _answered(out)
        return out, out.copy()

    def power_w(self, tenants: Sequence[Tenant]) -> float:
        """Power the tenants ask for by (10) (W); above the limit the clock falls by (9)."""
        return self.board.idle_power_w + float(self._around(tenants)[0])

    def _around(self, neighbours: Sequence[Tenant]) -> F64:
        around = np.array([0.0, 0.0, 0.0, 1.0])
        for tenant in neighbours:
            state = np.empty((1, 3))
            published.pressure(
                self._rows[tenant.model][None],
                np.array([float(tenant.batch)]),
                np.array([tenant.share]),
                state,
            )
            around[:3] += tenant.utilisation * np.array([state[0, 1], state[0, 2], 1.0])
            around[3] *= 1.0 - tenant.utilisation
        return around

    def _inside(self, tenants: Sequence[Tenant]) -> bool:
        def within(t: Tenant) -> bool:
            top, low, high = self._range[t.model]
            return 1 <= t.batch <= top and low - 1e-9 <= t.share <= high + 1e-9

        return capped_total(t.share for t in tenants) <= 1 + 1e-6 and all(
            within(t) for t in tenants
        )


def _answered(out: F64) -> None:
    if np.isnan(out).any():
        raise ValueError(
            "the published model has no answer: the tenants ask for more power than its clock "
            "line reaches"
        )


def _range(inputs: IgniterInputs) -> tuple[int, float, float]:
    shares = [p.share for p in inputs.gpu_points]
    return max(p.batch for p in inputs.gpu_points), min(shares), max(shares)


def _line(x: F64, y: F64) -> tuple[float, float]:
    """Least-squares slope and intercept of y over x."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def _board(profile: Profile) -> BoardCoefficients:
    board = profile.board
    top, limit, idle = board.max_clock_mhz, board.power_limit_w, board.idle_power_w
    ladder = sorted(board.copies, key=lambda c: c.copies)
    if top is None or limit is None or idle is None or len(ladder) < 4:
        raise ProfileError(
            f"profile of {board.name}: the published model needs max_clock_mhz, power_limit_w, "
            "idle_power_w and copies (1 to 4)"
        )
    alpha_sch, beta_sch = _scheduling(ladder, top)
    return BoardCoefficients(
        top,
        limit,
        idle,
        _clock_slope(ladder, top, limit),
        alpha_sch,
        beta_sch,
        board.pcie_bytes_per_ms,
    )


def _scheduling(ladder: Sequence[Copies], top_mhz: float) -> tuple[float, float]:
    """Equation (6): growth of the idle time per kernel, at the top clock, over the number of
    tenants from two on."""
    gaps = np.array([c.gap_per_kernel_ms * c.clock_mhz / top_mhz for c in ladder])
    tenants = np.array([c.copies for c in ladder], dtype=np.float64)
    return _line(tenants[1:], gaps[1:] - gaps[0])


def _clock_slope(ladder: Sequence[Copies], top_mhz: float, limit_w: float) -> float:
    """Equation (9): clock lost per watt above the limit.

    A capped board cannot show the power asked for, so it is continued from the copies that still
    ran at the top clock.
    """
    free = [c for c in ladder if c.clock_mhz >= top_mhz]
    held = [c for c in ladder if c.clock_mhz < top_mhz]
    if len(free) < 2 or not held:
        return 0.0
    step = (free[-1].power_w - free[0].power_w) / (len(free) - 1)
    excess = np.array([free[-1].power_w + step * (i + 1) for i in range(len(held))]) - limit_w
    lost = np.array([c.clock_mhz - top_mhz for c in held])
    return float(excess @ lost / (excess @ excess))


def _model(name: str, model: ModelProfile, profile: Profile) -> ModelCoefficients:
    inputs, top, idle = model.igniter, profile.board.max_clock_mhz, profile.board.idle_power_w
    if (
        inputs is None
        or model.kernels is None
        or model.gap_ms is None
        or top is None
        or idle is None
    ):
        raise ProfileError(
            f"models.{name}: the published model needs kernels, gap_ms and the igniter "
            "measurements; igniterd's own needs none of them"
        )
    points = inputs.gpu_points
    batch, share, gpu, clock, power = (
        np.array([getattr(p, f) for p in points], dtype=np.float64)
        for f in ("batch", "share", "gpu_ms", "clock_mhz", "power_w")
    )
    k = _solo_surface(batch, 100 * share, gpu * np.minimum(clock / top, 1.0) - model.gap_ms, name)
    ability = batch / (gpu - model.gap_ms)
    free = clock > top - 1
    counted = np.array([p.l2_pct is not None for p in points])
    a_power, b_power = _line(ability[free], power[free] - idle)
    a_l2, b_l2 = _line(
        ability[counted], np.array([p.l2_pct for p in points if p.l2_pct is not None])
    )
    slowdown = inputs.active_pair_ms * inputs.pair_clock_mhz / top / inputs.active_solo_ms
    return ModelCoefficients(
        *k,
        model.gap_ms,
        model.kernels,
        a_power,
        b_power,
        a_l2,
        b_l2,
        (slowdown - 1) / inputs.pair_l2_pct,
        model.input_bytes,
        model.output_bytes,
    )


def _solo_surface(
    batch: F64, share_pct: F64, active: F64, name: str
) -> tuple[float, float, float, float, float]:
    """k1..k5 of equation (11), unweighted least squares from ones."""

    def active_time(x: F64, *k: float) -> F64:
        return np.asarray(
            (k[0] * x[0] ** 2 + k[1] * x[0] + k[2]) / (x[1] + k[3]) + k[4], dtype=np.float64
        )

    try:
        k, _ = curve_fit(
            active_time, np.stack([batch, share_pct]), active, p0=np.ones(5), maxfev=100_000
        )
    except RuntimeError as exc:
        raise ProfileError(
            f"models.{name}: the published solo surface does not fit these measurements: {exc}"
        ) from exc
    return float(k[0]), float(k[1]), float(k[2]), float(k[3]), float(k[4])
