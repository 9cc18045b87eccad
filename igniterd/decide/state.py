"""What one decision leaves to the next: a record a model, a record a GPU. Pure.

Nothing here is looked up in two places: a model that is not known has the record of one of which
nothing happened, and so has a GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, TypeVar

from igniterd.decide.room import Reserved
from igniterd.predict import LatencyPrediction
from igniterd.records import Allocation

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Margins:
    """What a plan is made for. Margins are given up before a model is.

    | margins | arrival rate | service times | SLO |
    |---|---|---|---|
    | ``REMEMBERED`` | as ``ALL``, no lower than of late or usual | upper | as ``ALL`` |
    | ``ALL`` | upper quantile (``rate_level``) | upper bound (``level``) | less ``slo_margin`` |
    | ``HALF`` | half way to it | mean | less half of ``slo_margin`` |
    | ``NONE`` | as expected | mean | as it is |

    Where even ``NONE`` keeps no plan, nothing is left free for neighbours that no share confines:
    their SLO is not promised, and that of the models planned with is. Then the margins are tried
    again, ``CROWDED``.
    """

    kept: float
    """The fraction of each margin that is kept."""
    remembered: bool = False
    """Whether rates are as high as they were of late, or usually are at this time."""
    crowded: bool = False
    """Whether nothing is left free for what uncapped neighbours are seen to take."""


REMEMBERED = Margins(1.0, remembered=True)
ALL, HALF, NONE = Margins(1.0), Margins(0.5), Margins(0.0)
CROWDED = tuple(replace(margins, crowded=True) for margins in (ALL, HALF, NONE))
LADDER = (ALL, HALF, NONE, *CROWDED)
"""In the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Probation:
    """A change under watch until it has proved itself."""

    before: Allocation
    at_s: float
    mean_ms: float | None  # measured before the change
    rate_per_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """How often in a row something came to nothing, and when it is tried next."""

    times: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Part:
    """What an uncapped neighbour is reckoned to take of a GPU, and until when at the least."""

    level: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Underway:
    """A plan being carried out step by step on one GPU.

    It is valid for exactly the ``models`` it was made for, of which those in ``free`` could be
    changed, and for the rates in ``made_for``; ``whys`` has the sentence of each change.
    """

    target: Mapping[str, Allocation]
    free: frozenset[str] = frozenset()
    made_for: Mapping[str, float] = field(default_factory=dict)
    whys: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> frozenset[str]:
        return frozenset(self.target)


@dataclass(frozen=True, slots=True)
class Relocation:
    """Moves between GPUs under way.

    ``to``: model -> its new GPU; ``target``: what all models of ``gpus`` are to have;
    ``made_for``: the rates planned for, at ``margins``.
    """

    to: Mapping[str, str]
    target: Mapping[str, Allocation]
    gpus: frozenset[str]
    made_for: Mapping[str, float] = field(default_factory=dict)
    margins: Margins = ALL
    why: str = ""


@dataclass(frozen=True, slots=True)
class CachedVerdict:
    """A GPU found to hold every SLO with ``room`` to spare: true for as long as no rate has grown
    by that much, until ``until_s``.

    P99 only falls when a rate falls, so a GPU far from its limit need not be judged again at every
    tick.
    """

    until_s: float
    here: Mapping[str, Allocation]
    rates: Mapping[str, float]
    biases: Mapping[str, float]
    arrival_scv: Mapping[str, float]
    served: Mapping[str, LatencyPrediction]
    room: float
    reserved: Reserved = 0.0
    # models that may be changed, and whether in their share
    knobs: frozenset[tuple[str, bool]] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelHold:
    """What is kept of one model."""

    gpu: str | None = None
    """Where it was seen last, the first of several decided for together; None: not there now."""
    shed_why: str | None = None
    """Why the plan sheds it; None: it does not."""
    shed: Pause | None = None
    """How often it was shed lately, and until when it stays so."""
    needs_share: float | None = None
    """Of one that is shed: the share with which it would fit."""
    probation: Probation | None = None
    refused_until_s: float = -inf
    refusals: int = 0
    """In a row."""
    refused_why: str = ""
    asked: Allocation | None = None
    """By a load that was not answered, and may end yet."""
    pending_share: float | None = None
    """The largest share that such loads may bring."""
    unhosted: Pause | None = None
    """It could not be given a process of its own."""
    revived: Pause | None = None
    """It was brought back, and may die again."""
    left_out: tuple[str, float] | None = None
    """A prediction of it failed: why, until when."""
    relocated_at_s: float = -inf
    """When it was moved to another GPU last."""
    uncapped: Part | None = None
    """What it takes of the GPU that has most of its instances, while it is not planned with and
    confined to no share."""


@dataclass(frozen=True, slots=True)
class GpuHold:
    """What is kept of one GPU, so that one holds up no other."""

    plan: Underway | None = None
    moved_at_s: float = -inf
    searched_at_s: float = -inf
    held_until_s: float = -inf
    """Its last step was not let through: nothing is begun before."""
    sought_at_s: float = -inf
    """When moves from it were looked for last."""
    least: Mapping[str, float] = field(default_factory=dict)
    """By the last search: the least that its plan takes, by GPU."""
    margins: Margins = ALL
    """What the plan that is applied keeps of them."""
    verdict: CachedVerdict | None = None
    foreign: Part | None = None
    """What models take that nobody configured, and that no share confines."""


NO_MODEL = ModelHold()
NO_GPU = GpuHold()


@dataclass(frozen=True, slots=True)
class DecisionState:
    """All that outlives a decision."""

    models: Mapping[str, ModelHold] = field(default_factory=dict)
    gpus: Mapping[str, GpuHold] = field(default_factory=dict)
    reloads: tuple[float, ...] = ()
    """When, in the last hour."""
    under_way: int = 0
    """Reloads that have begun and are not counted yet."""
    took_over_s: Mapping[tuple[str, bool], float] = field(default_factory=dict)
    """First shares, see :func:`igniterd.decide.cooldown.takes_over`."""
    relocation: Relocation | None = None
    """The moves under way."""
    tried_moves: Mapping[tuple[tuple[str, str], ...], float] = field(default_factory=dict)
    """Moves that were looked into and came to nothing, and until when they are not again."""

    def of(self, model: str) -> ModelHold:
        return self.models.get(model, NO_MODEL)

    def gpu(self, name: str) -> GpuHold:
        return self.gpus.get(name, NO_GPU)

    def gpu_of(self, model: str) -> str:
        """Where the model was seen last; empty where it never was."""
        return self.of(model).gpu or ""

    def with_model(self, model: str, **changes: Any) -> DecisionState:
        return self.with_models({model: replace(self.of(model), **changes)})

    def with_models(self, changed: Mapping[str, ModelHold]) -> DecisionState:
        """A model of which nothing is kept any more takes no place."""
        if not changed:
            return self
        models = {m: hold for m, hold in {**self.models, **changed}.items() if hold != NO_MODEL}
        return replace(self, models=models)

    def with_gpu(self, name: str, **changes: Any) -> DecisionState:
        return replace(self, gpus={**self.gpus, name: replace(self.gpu(name), **changes)})

    def without_plan(self, gpu: str) -> DecisionState:
        return self if self.gpu(gpu).plan is None else self.with_gpu(gpu, plan=None)

    @property
    def shed(self) -> dict[str, str]:
        """The models that the plans shed, with the reasons."""
        return {m: h.shed_why for m, h in self.models.items() if h.shed_why is not None}

    @property
    def asked(self) -> dict[str, Allocation]:
        """What loads that were not answered may bring yet, by model."""
        return {m: h.asked for m, h in self.models.items() if h.asked is not None}

    @property
    def left_out(self) -> dict[str, tuple[str, float]]:
        """The models of which a prediction failed: why, until when."""
        return {m: h.left_out for m, h in self.models.items() if h.left_out is not None}

    @property
    def on_probation(self) -> dict[str, Probation]:
        return {m: h.probation for m, h in self.models.items() if h.probation is not None}

    @property
    def least_by_gpu(self) -> dict[str, float]:
        """The least share that each GPU's plan takes, by the last search."""
        return {gpu: least for hold in self.gpus.values() for gpu, least in hold.least.items()}

    @property
    def target(self) -> dict[str, Allocation]:
        """What all plans under way lead to."""
        plans = (hold.plan for hold in self.gpus.values() if hold.plan is not None)
        return {model: a for plan in plans for model, a in plan.target.items()}

    def without_relocation(self) -> DecisionState:
        """Once it is over, or dropped: nobody is shed on account of how things were before."""
        if self.relocation is None:
            return self
        clear = {
            model: replace(self.of(model), shed_why=None, needs_share=None)
            for model in self.relocation.target
        }
        return replace(self.with_models(clear), relocation=None)

    def without_pending(self, models: Collection[str]) -> DecisionState:
        """``models`` are on a server that started anew: no load of before can end any more."""
        return self.with_models(
            {
                model: replace(self.models[model], asked=None, pending_share=None)
                for model in self.asked.keys() & set(models)
            }
        )

    def pruned(self, gpus: Mapping[str, str]) -> DecisionState:
        """Less what is about models and GPUs that are not there any more.

        ``gpus``: of each model that is there. Failures of a model outlive its absence. Where one
        has gone from a GPU, who was let go there need not wait to fit again.
        """
        relieved = {hold.gpu for m, hold in self.models.items() if gpus.get(m) != hold.gpu}
        holds = {}
        for model, gpu in gpus.items():
            hold = self.of(model)
            if hold.gpu != gpu:
                hold = replace(hold, gpu=gpu)
            elif gpu in relieved and hold.shed is not None:
                hold = replace(hold, shed=None)
            holds[model] = hold
        for model in self.models.keys() - gpus.keys():
            holds[model] = replace(
                self.models[model],
                gpu=None,
                shed_why=None,
                shed=None,
                needs_share=None,
                probation=None,
                uncapped=None,
            )
        there = set(gpus.values())
        boards = {
            name: hold
            if name in there
            else replace(hold, plan=None, verdict=None, least={}, margins=ALL)
            for name, hold in self.gpus.items()
        }
        kept = {m: holds[m] for m in (*self.models, *gpus) if m in holds and holds[m] != NO_MODEL}
        return replace(self, models=kept, gpus=boards)


def only(known: Mapping[K, V], there: Collection[K]) -> dict[K, V]:
    """What is known of those that are ``there``."""
    return {key: value for key, value in known.items() if key in there}
