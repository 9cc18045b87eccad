"""The vocabulary of the performance model: who shares a GPU, and what is predicted of them.

Everything that decides or plans speaks to a model through :class:`PerformanceModel`, so that the
published iGniter model and igniterd's own can be exchanged by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from igniterd.arrays import F64

UNCAPPED = 1.0
"""The share of a tenant without one: an MPS percentage of 100 is no cap."""
WHOLE = 0.9999
"""A cap at the whole GPU: what it takes a process that contends with nobody for SMs."""


def capped_total(shares: Iterable[float]) -> float:
    """Sum of the shares that cap their process. A GPU grants at most 1 of them; any number of
    uncapped tenants may be beside."""
    return sum(share for share in shares if share < UNCAPPED)


class Tenant(NamedTuple):
    """One model executing on a GPU.

    ``batch`` may be fractional (a mean batch); ``share`` is a fraction of the SMs in (0, 1],
    ``UNCAPPED`` where no cap holds it; ``utilisation`` is the fraction of the time it is executing:
    1 for a closed loop.
    """

    model: str
    batch: float
    share: float = UNCAPPED
    utilisation: float = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted service of one batch of one tenant. Latency includes both transfers."""

    latency_ms: float  # mean
    upper_ms: float  # upper bound of a new measurement at the level asked for
    throughput_per_s: float  # of a closed loop
    inside: bool  # within the range that was profiled; outside, the figures are extrapolated


class PerformanceModel(Protocol):
    """Service times of tenants that share a GPU."""

    @property
    def name(self) -> str: ...

    @property
    def share_unit(self) -> float:
        """Granularity of a share on this board (two SMs; 0.025 on a V100)."""
        ...

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models profiled."""
        ...

    def max_batch(self, model: str) -> int:
        """Largest batch profiled."""
        ...

    def service_cv(self, model: str) -> float | None:
        """Coefficient of variation of one service time; ``None`` where it was not profiled."""
        ...

    def predict(self, tenants: Sequence[Tenant], *, level: float = 0.95) -> tuple[Prediction, ...]:
        """Mean and upper bound of the service time of each tenant, all of them together on one
        GPU."""
        ...

    def service_curve_ms(
        self,
        model: str,
        share: float,
        neighbours: Sequence[Tenant],
        max_batch: int,
        *,
        level: float = 0.95,
    ) -> tuple[F64, F64]:
        """Mean and upper bound of the service time of batches 1..max_batch, each shape
        (max_batch,), ms.

        Raises ``KeyError`` for a model that is not profiled.
        """
        ...

    def share_curves_ms(
        self,
        model: str,
        shares: F64,
        neighbours: Sequence[Tenant],
        max_batch: int,
        *,
        level: float = 0.95,
    ) -> tuple[F64, F64]:
        """Mean and upper bound of batches 1..max_batch at every share: ``shares`` (n_shares,) ->
        each (n_shares, max_batch), ms.

        The neighbours stay as they are while the share varies. One call of this is much cheaper
        than ``service_curve_ms`` for each share: it is what searches use. Raises ``KeyError`` for a
        model that is not profiled.
        """
        ...
