"""The host floor of an emulated model: what launching the kernels of one batch costs the host.

Eager PyTorch launches every kernel from Python. That takes the host about the same time whatever
the batch and the share, and the GPU idles where it is done sooner. ``truth.py`` has the rules. The
standard library is all this module needs, because Triton's stub processes import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class HostFloor:
    """The host takes ``ms`` a batch, and ``1 + rise`` times as long while any neighbour executes.

    Without ``ms`` there is no floor. Raises ``ValueError`` for a negative or infinite figure, and
    for a ``rise`` of no floor.
    """

    ms: float = 0.0
    rise: float = 0.0

    def __post_init__(self) -> None:
        for name, unit in (("ms", "a time in milliseconds"), ("rise", "a fraction")):
            if not 0.0 <= getattr(self, name) < inf:
                raise ValueError(
                    f"host floor: {name} is {getattr(self, name)!r}: give {unit}, 0 or more"
                )
        if self.rise and not self.ms:
            raise ValueError(
                f"host floor: rise is {self.rise!r} and ms is 0: without a floor nothing rises; "
                "give ms above 0"
            )

    def least_ms(self, *, beside: bool) -> float:
        """The least time (ms) of a batch: alone, or beside any neighbour that executes."""
        return self.ms * (1.0 + self.rise) if beside else self.ms

    def batch_ms(self, gpu_ms: float, *, beside: bool) -> float:
        """Time (ms) of a batch that the GPU takes ``gpu_ms`` for: the longer of both."""
        return max(self.least_ms(beside=beside), gpu_ms)

    def busy(self, gpu_ms: float) -> float:
        """Part of a batch's time beside a neighbour, in (0, 1], for which it keeps the GPU busy;
        ``gpu_ms`` is the GPU's time alone, above 0."""
        return gpu_ms / self.batch_ms(gpu_ms, beside=True)


NO_FLOOR = HostFloor()
