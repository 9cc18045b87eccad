"""What is believed of each model's load and behaviour: records that travel from the estimate to
decisions.

Units are in the names, as in :mod:`igniterd.records`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from igniterd.records import Effect


@dataclass(frozen=True, slots=True)
class BiasEstimate:
    """What live traffic says of a model's service times where it runs now.

    The logarithm of measured over predicted service time is ``level + tilt x (log2(batch) - 2)``,
    known to the standard error ``sd``, at this share and beside neighbours that keep ``pressure``
    of the GPU busy (share x utilisation, summed). ``cv``: the coefficient of variation of one
    service time, without what uncapped neighbours add to it; None: as profiled.
    """

    share: float
    pressure: float
    level: float
    tilt: float
    sd: float
    cv: float | None = None


@dataclass(frozen=True, slots=True)
class ShareTest:
    """What service times say of a share: ``verdict`` is empty as long as both answers are
    possible."""

    share: float
    verdict: Effect | None
    said: str
    weak: bool = False  # the model itself may have changed since it was known how long it takes


@dataclass(frozen=True, slots=True)
class LiveService:
    """Service times of a model without a profile, learnt from its traffic under its present
    allocation.

    Mean service time and its relative standard error for batches 1, 2, …; ``said`` puts the error
    in words. ``cv``: the dispersion of one service time.
    """

    share: float | None
    mean_ms: tuple[float, ...]
    error: tuple[float, ...]
    said: str
    cv: float


@dataclass(frozen=True, slots=True)
class Changed:
    """A model found to have become another: when, and by what it was noticed."""

    at_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Load:
    """One model's present load and behaviour, as believed now."""

    model: str
    rate_per_s: float  # best estimate of the present arrival rate
    rate_upper_per_s: float  # what plans are made for: an upper quantile of the near-future rate
    confident: bool  # enough samples to decide on
    utilisation: float = 0.0  # measured fraction of the time spent executing
    mean_batch: float = 1.0
    # squared coefficient of variation of the times between arrivals, in steps; never below 1
    arrival_scv: float = 1.0
    # what the rate may be again soon: its recent peak, or what it is at this time of day
    remembered_per_s: float = 0.0
    bias: float = 1.0  # measured / predicted service time, learnt
    bias_upper: float = 1.0
    # the same, in full, for plans; None before anything is learnt
    published_bias: BiasEstimate | None = None
    live: LiveService | None = None  # where no profile says more
    share_test: ShareTest | None = None  # what service times say of its share
    changed: Changed | None = None  # the last time that what was learnt had to be forgotten
    measured_mean_ms: float | None = None  # queue + service of the requests completed lately
    measured_p50_ms: float | None = None
    measured_p99_ms: float | None = None
    predicted_mean_ms: float | None = None
    predicted_p50_ms: float | None = None
    predicted_p99_ms: float | None = None  # at ``rate_per_s``, present allocation and neighbours
    error_ratio: float | None = None  # this window: measured / predicted mean service time - 1
    items_per_request: float = 1.0  # samples a request brings, lately
    watched_s: float = 0.0  # traffic observed so far
    stuck_s: float = 0.0  # how long requests have waited with nothing executed


@dataclass(frozen=True, slots=True)
class Estimate:
    at_s: float
    loads: Mapping[str, Load] = field(default_factory=dict)
    warm: bool = False  # every model read now has been watched for long enough
    # models whose prediction raised, and what
    left_out: Mapping[str, str] = field(default_factory=dict)
