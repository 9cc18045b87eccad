"""A performance model kept from promising more than was measured.

A profile may have shares at which only the smallest batch was measured (often the whole GPU). What
larger batches gain there from the larger share is then an extrapolation that no uncertainty of the
fit covers. The upper bound of :class:`Guarded` covers it: it is never below the mean under the
other reading of the measurements, that larger batches gain no more than the one measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from igniterd.arrays import F64
from igniterd.perf import PerformanceModel, Profile
from igniterd.perf.api import Prediction, Tenant


class Guarded:
    """:class:`igniterd.perf.api.PerformanceModel` whose upper bounds do not stand on gains that no
    batch was measured to have."""

    def __init__(self, model: PerformanceModel, profile: Profile) -> None:
        self._model = model
        self._trusted = {
            name: trusted_share(profile, name) for name in model.models if name in profile.models
        }

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def share_unit(self) -> float:
        return self._model.share_unit

    @property
    def models(self) -> tuple[str, ...]:
        return self._model.models

    def max_batch(self, model: str) -> int:
        return self._model.max_batch(model)

    def predict(self, tenants: Sequence[Tenant], *, level: float = 0.95) -> tuple[Prediction, ...]:
        """As the model says; only service curves are guarded."""
        return self._model.predict(tenants, level=level)

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
        mean, upper = self._model.share_curves_ms(model, shares, neighbours, max_batch, level=level)
        trusted = self._trusted[model]
        beyond = np.asarray(shares) > trusted + 1e-9
        if beyond.any():
            known = self._model.share_curves_ms(
                model, np.array([trusted]), neighbours, max_batch, level=level
            )[0]
            upper[beyond] = np.maximum(upper[beyond], known * mean[beyond, :1] / known[0, 0])
        return mean, upper


def trusted_share(profile: Profile, model: str) -> float:
    """The largest share at which more than one batch was measured; the largest of all where there
    is no such share."""
    batches: dict[float, set[int]] = {}
    for point in profile.models[model].solo:
        batches.setdefault(point.share, set()).add(point.batch)
    return max((share for share, seen in batches.items() if len(seen) > 1), default=max(batches))
