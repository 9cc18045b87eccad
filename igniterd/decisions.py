"""What was decided and done in a tick: plans, their steps, what came of them. Frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from igniterd.hands import Rebalanced
from igniterd.loads import Estimate
from igniterd.records import Allocation, Observation, ShareState, Window
from igniterd.states import Cause, Standing


class StepKind(StrEnum):
    SHRINK = "shrink"
    GROW = "grow"
    BATCHING = "batching"
    ROLLBACK = "rollback"
    REVIVE = "revive"  # the same again, for a model whose process has died
    RELOCATE = "relocate"  # to another GPU of its server
    ADOPT = "adopt"  # a process of its own, for a model that runs inside tritonserver


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one model, safe to stop after."""

    model: str
    kind: StepKind
    before: Allocation
    after: Allocation
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One model under the plan."""

    model: str
    allocation: Allocation
    feasible: bool
    predicted_p99_ms: float | None  # under the plan, at the upper rate and the upper service time
    slo_p99_ms: float
    utilisation: float | None = None
    reason: str = ""  # why it cannot be kept, or empty
    needs_share: float | None = None  # the least share that would hold the SLO, where one would


class DecisionKind(StrEnum):
    """What a decision came to; the ``outcome`` label of ``igniterd_decisions_total``."""

    HOLD = "hold"  # what is applied is good enough
    WAIT = "wait"  # a change would pay, but not now (warm-up, cool-down, unhealthy source)
    MOVE = "move"
    INFEASIBLE = "infeasible"  # not every SLO can be kept; the plan says which are let go


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision of one tick."""

    at_s: float
    outcome: DecisionKind
    why: str  # one sentence for people
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    feasible: bool = True
    # every rate may grow by this factor and all SLOs hold (>= 1 when feasible)
    headroom: float | None = None
    allocated_share: float = 0.0
    # what the SLOs need at the present rates, by the last search; the rest could be given away
    least_share: float | None = None
    least_by_gpu: Mapping[str, float] = field(default_factory=dict)  # the same of each GPU
    # ``headroom`` of each GPU that is planned
    headroom_by_gpu: Mapping[str, float] = field(default_factory=dict)
    # by GPU that is planned: what is left free for what is not planned with
    reserved: Mapping[str, float] = field(default_factory=dict)
    # by model that is not planned with: the most it is reckoned to take of a GPU
    takes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Actuation:
    """One step as carried out."""

    step: Step
    ok: bool
    duration_s: float
    error: str = ""
    cause: Cause = Cause.NONE


@dataclass(frozen=True, slots=True)
class ActResult:
    """What came of a plan: the steps tried, in order; nothing after the first refusal."""

    actuations: tuple[Actuation, ...] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """One whole turn of the loop."""

    number: int
    at_s: float
    wall_time_s: float
    observation: Observation
    window: Window
    estimate: Estimate
    plan: Plan
    outcome: ActResult
    stage_s: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds it took
    shares: Mapping[str, ShareState] = field(default_factory=dict)  # of the models that have one
    standings: Mapping[str, Standing] = field(default_factory=dict)  # of every configured model
    rebalanced: Mapping[str, Rebalanced] = field(default_factory=dict)  # by a rebalance, since
