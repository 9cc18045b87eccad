"""What a profile tells of a model that waits for its host, in a sentence and in figures."""

from __future__ import annotations

from dataclasses import dataclass

from igniterd.perf.api import UNCAPPED, PerformanceModel
from igniterd.perf.surface_model import SurfaceModel


@dataclass(frozen=True, slots=True)
class HostBound:
    """The batches that wait for the host: those up to ``largest`` at the whole GPU, those up to
    ``largest_at_least`` (0: none) at ``least_share``, the smallest profiled.

    ``host_ms``: what the host takes for a batch, whatever its size and the share.
    """

    host_ms: float
    largest: int
    least_share: float
    largest_at_least: int

    @property
    def sentence(self) -> str:
        """In words."""
        differs = self.largest_at_least != self.largest
        return (
            f"bound by the host up to batch {self.largest}{self._least if differs else ''} "
            f"({self.host_ms:.3g} ms): a larger share buys nothing there; CUDA graphs or TensorRT "
            "would"
        )

    @property
    def _least(self) -> str:
        till = f"up to {self.largest_at_least}" if self.largest_at_least else "at none"
        return f", with a share of {100 * self.least_share:.3g} % {till}"

    def as_json(self) -> dict[str, float]:
        """The figures. ``host_bound_to`` is at the whole GPU."""
        return {
            "host_ms": round(self.host_ms, 4),
            "host_bound_to": self.largest,
            "least_share": round(self.least_share, 6),
            "host_bound_to_at_least_share": self.largest_at_least,
        }


def host_bound(model: PerformanceModel, name: str, least_share: float) -> HostBound | None:
    """Of a model called ``name`` in its profile; ``None`` where no batch waits for its host."""
    if not isinstance(model, SurfaceModel):
        return None
    largest = model.host_bound_to(name, UNCAPPED)
    if not largest:
        return None
    host_ms = model.parts(name, 1.0, UNCAPPED)[1]
    return HostBound(host_ms, largest, least_share, model.host_bound_to(name, least_share))
