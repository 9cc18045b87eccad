"""GPUs as the planner sees them: who is on each, what is planned for, and what it predicts with.
Pure.

A site is a GPU, or several of one host that share a model and are planned together. A seat is one
model on a site. Both are values: a move makes new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from igniterd.colocation import Demand
from igniterd.decide.judge import PredictorPair
from igniterd.decide.room import Reserved
from igniterd.decide.state import ALL, Margins
from igniterd.fleet.checks import instances_on
from igniterd.fleet.cluster import HostView, allocation_from
from igniterd.fleet.knowledge import BoardKind, Knowledge
from igniterd.loads import BiasEstimate
from igniterd.messages.state import BoardState, Learnt, ModelState
from igniterd.perf.api import UNCAPPED
from igniterd.placement import GpuGroup
from igniterd.predict import LatencyPrediction
from igniterd.records import Allocation

_ACTS = "act"
_UNKNOWN_SD = 1.0  # of a logarithm: the profile knows better, and its bound is taken
_UNSAID = 0.01  # room of a GPU of which nobody says what is needed, where all of it is given


@dataclass(frozen=True, slots=True)
class Seat:
    """One model on a site. ``home``: the kind of board that what was learnt of it is of.
    ``weight``: the part of its traffic that is served here. ``fixed``: it is not moved (again)."""

    host: str  # whose daemon says this of it
    model: ModelState
    here: Allocation
    home: BoardKind
    gpus: tuple[str, ...]
    weight: float = 1.0
    fixed: bool = False

    @property
    def key(self) -> str:
        """Of all models of a cluster. A host's name has no slash."""
        return f"{self.host}/{self.model.name}"

    @property
    def served_as(self) -> str:
        """What Triton calls it."""
        return self.model.model or self.model.name

    @property
    def rate_per_s(self) -> float:
        """Requests a second that are served here, as expected."""
        return (self.model.rate_per_s or 0.0) * self.weight

    @property
    def shed(self) -> bool:
        """Whether its host says that its SLO does not hold."""
        return self.model.feasible is False

    def name_on(self, kind: BoardKind) -> str | None:
        """What the profile of this kind of board calls it; None without one."""
        return kind.name_of(self.model.profiles, self.model.profile_model or self.served_as)

    def as_new(self) -> Seat:
        """With what a host believes of it to which it comes. The daemon there has seen none of its
        traffic: it predicts as profiled, and would shed what only fits because it was learnt to be
        quick, or to keep closer to its mean. That it is slow is believed: so it will be there."""
        learnt = self.model.learnt
        if learnt is not None:
            unknown = {"sd": _UNKNOWN_SD, "cv": None}
            learnt = learnt.model_copy(update=unknown) if learnt.level > 0 else None
        known = {"bias": max(1.0, self.model.bias or 1.0), "learnt": learnt}
        return replace(self, model=self.model.model_copy(update=known))

    def demand(
        self, kind: BoardKind, level: float, slo_margin: float, margins: Margins, *, several: bool
    ) -> Demand:
        """What to plan for on a board of ``kind``, on which it has a profile. ``several``: it is
        planned together with other GPUs."""
        model, name = self.model, self.name_on(kind)
        if name is None:
            raise LookupError(f"{self.key} has no profile of {kind}")
        profiled = kind.pair(level).upper.model.max_batch(name)
        least, largest = model.batches or (1, profiled)
        largest = min(largest, profiled)
        rate = model.rate_per_s or 0.0
        upper = max(rate, model.rate_upper_per_s or 0.0)
        same = kind is self.home
        return Demand(
            model=self.key,
            profiled_as=name,
            rate_per_s=model.items_per_request
            * self.weight
            * (rate + margins.kept * (upper - rate)),
            slo_ms=model.slo_p99_ms * (1 - margins.kept * slo_margin),
            priority=model.priority,
            min_share=model.min_share,
            max_share=max(model.min_share, model.max_share),
            brings=model.items,
            max_batch=largest,
            min_batch=min(least, largest),
            # what was learnt on another kind of board says nothing of this one
            bias=(model.bias or 1.0) if same else 1.0,
            learnt=_estimate(model.learnt) if same and model.learnt else None,
            arrival_scv=max(1.0, model.burstiness or 1.0),
            steerable=model.steerable,
            instances=self.here.instances,
            # where its share is in doubt there
            reserved=model.reserved if same else 0.0,
            keeps_batch=model.keeps_batch,
            gpus=self.gpus if several else (),
            devices=self.here.devices,
        )


def _given(seats: Iterable[Seat], gpu: str) -> float:
    """The part of a GPU that these have, or use where it is not limited."""
    return sum(
        seat.gpus.count(gpu)
        * (seat.here.share if seat.here.share is not None else seat.model.busy or 0.0)
        for seat in seats
    )


def _estimate(learnt: Learnt) -> BiasEstimate:
    return BiasEstimate(
        learnt.share, learnt.pressure, learnt.level, learnt.tilt, learnt.sd, learnt.cv
    )


@dataclass(frozen=True, eq=False)
class Site:
    """GPUs of one host that are planned together, and who is on them.

    It is what :mod:`igniterd.decide.moves` asks of a side. ``others``: models on it that are not
    planned with, so that it is never empty. ``waits``: why nobody is to move here.
    """

    host: str
    group: GpuGroup
    kind: BoardKind
    level: float
    slo_margin: float
    seats: tuple[Seat, ...]
    taken: Mapping[str, float]  # by GPU: the part that others hold
    published: Mapping[str, float]  # by GPU: the least shares that its daemon says it must give
    memory_free: Mapping[str, int]  # by GPU, bytes; none where the host does not tell
    others: tuple[str, ...] = ()
    waits: str = ""
    acts: bool = True  # whether its daemon brings its models to what it plans
    guessed: Mapping[str, float] = field(default_factory=dict)  # by GPU: as published, after moves
    was: Site | None = None  # before the last move of the present plan that changed it
    _demands: dict[Margins, list[Demand]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def changed(self) -> bool:
        """Whether a move of the present plan has changed it."""
        return self.was is not None

    @cached_property
    def predictors(self) -> PredictorPair:
        return self.kind.pair(self.level)

    @cached_property
    def here(self) -> dict[str, Allocation]:
        """By the key of each seat."""
        return {seat.key: seat.here for seat in self.seats}

    @property
    def shed(self) -> frozenset[str]:
        """The seats whose SLO does not hold, as their host says; none once it was replanned."""
        return frozenset(seat.key for seat in self.seats if seat.shed and not self.changed)

    def demands(self, margins: Margins) -> list[Demand]:
        if margins not in self._demands:
            several = len(self.group.gpus) > 1
            self._demands[margins] = [
                s.demand(self.kind, self.level, self.slo_margin, margins, several=several)
                for s in self.seats
            ]
        return self._demands[margins]

    @property
    def reserved(self) -> Reserved:
        """What others hold, as the search takes it."""
        return self.taken if len(self.group.gpus) > 1 else self.taken[self.name]

    def room(self, gpu: str) -> float:
        """About the part of a GPU that nobody needs. What is given may be far more than is needed:
        where its daemon says nothing, a GPU that is given away is looked into last."""
        free = 1.0 - self.taken.get(gpu, 0.0)
        said = gpu in self.published or gpu in self.guessed
        return free - self._needed(gpu) if said else self._unsaid(gpu, free)

    def _unsaid(self, gpu: str, free: float) -> float:
        return max(free - _given(self.seats, gpu), min(free, _UNSAID))

    def _needed(self, gpu: str) -> float:
        """As its daemon says; what its models have where that says nothing."""
        said = self.published.get(gpu, self.guessed.get(gpu))
        return _given(self.seats, gpu) if said is None else said

    @cached_property
    def fares(self) -> dict[str, LatencyPrediction]:
        """How every seat fares as it is now, by key."""
        demands = self.demands(ALL)
        return self.predictors.upper.together(demands, self.here) if demands else {}

    def with_seats(self, seats: Sequence[Seat], memory_taken: Mapping[str, int]) -> Site:
        """The site with other seats, after a move."""
        left = {gpu: free - memory_taken.get(gpu, 0) for gpu, free in self.memory_free.items()}
        return replace(
            self,
            seats=tuple(seats),
            group=GpuGroup(self.group.gpus, tuple(seat.key for seat in seats)),
            memory_free=left,
            was=self,
            published={},
            guessed={gpu: self._needed_by(seats, gpu) for gpu in self.group.gpus},
            _demands={},
        )

    def _needed_by(self, seats: Sequence[Seat], gpu: str) -> float:
        """Who comes may be given more than it needs, and who stays too; the lower guess."""
        given = _given(seats, gpu)
        stay = {seat.key for seat in seats} & {seat.key for seat in self.seats}
        come = _given([seat for seat in seats if seat.key not in stay], gpu)
        gone = _given([seat for seat in self.seats if seat.key not in stay], gpu)
        return max(0.0, min(given, self._needed(gpu) + come - gone))


def sites_of(host: HostView, knowledge: Knowledge) -> Iterator[Site]:
    """The GPUs of a host of which something can be predicted."""
    on: dict[str, list[ModelState]] = {uuid: [] for uuid in host.boards}
    for model in host.models.values():
        for gpu in dict.fromkeys(model.gpus):
            if gpu in on and model.seen:
                on[gpu].append(model)
    for gpus in _grouped(on):
        site = _site(host, knowledge, gpus, on)
        if site is not None:
            yield site


def _grouped(on: Mapping[str, Sequence[ModelState]]) -> Iterator[tuple[str, ...]]:
    """GPUs that share a model, together."""
    groups: list[set[str]] = []
    for gpu, models in on.items():
        mine = {gpu, *(g for m in models for g in m.gpus if g in on)}
        touched = [group for group in groups if group & mine]
        for group in touched:
            groups.remove(group)
            mine |= group
        groups.append(mine)
    yield from (tuple(sorted(group)) for group in groups)


def _site(
    host: HostView,
    knowledge: Knowledge,
    gpus: Sequence[str],
    on: Mapping[str, Sequence[ModelState]],
) -> Site | None:
    models = {m.name: m for gpu in gpus for m in on[gpu]}
    digests = tuple(dict.fromkeys(d for m in models.values() for d in m.profiles))
    kinds = [knowledge.kind_of(host.boards[gpu], digests) for gpu in gpus]
    kind = kinds[0]
    if kind is None or any(each is not kind for each in kinds):
        return None
    seats, others = [], []
    for model in models.values():
        seat = _seat(host, model, kind)
        if seat is None:
            others.append(model.name)
        else:
            seats.append(seat)
    decision = host.state.decision
    least = decision.least_by_gpu if decision is not None else {}
    boards = {gpu: host.boards[gpu] for gpu in gpus}
    return Site(
        host.name,
        GpuGroup(tuple(gpus), tuple(seat.key for seat in seats)),
        kind,
        host.state.terms.level,
        host.state.terms.slo_margin,
        tuple(seats),
        {gpu: _taken(host, board, on[gpu], seats) for gpu, board in boards.items()},
        {gpu: least.get(gpu, 0.0) for gpu in gpus if gpu in least or not on[gpu]},
        {
            gpu: board.memory_total_bytes - board.memory_used_bytes
            for gpu, board in boards.items()
            if board.memory_total_bytes is not None and board.memory_used_bytes is not None
        },
        tuple(others),
        host.degraded or next((f"{gpu}: {b.fault}" for gpu, b in boards.items() if b.fault), ""),
        host.state.mode == _ACTS,
    )


def _taken(
    host: HostView, board: BoardState, models: Sequence[ModelState], seats: Sequence[Seat]
) -> float:
    """The part of a GPU that is held by strangers, and by models that are not planned with."""
    planned = {seat.model.name for seat in seats}
    held = sum(_held(host, m, board.uuid) for m in models if m.name not in planned)
    return min(1.0, (board.reserved or 0.0) + held)


def _held(host: HostView, model: ModelState, gpu: str) -> float:
    """What a model is left that is not planned with here. Its own daemon may plan it all the same,
    and then reserves nothing for it."""
    share = model.applied.share if model.applied is not None else None
    if share is None or share >= UNCAPPED:
        return max(model.reserved, model.busy or 0.0)
    return max(model.reserved, share * instances_on(model, gpu, host.tritons.get(model.triton)))


def _seat(host: HostView, model: ModelState, kind: BoardKind) -> Seat | None:
    """A model that its host plans with; None for one that it only watches, or that has no profile
    of this kind of board."""
    applied, planned = model.applied, model.feasible is not None and model.rate_per_s is not None
    if applied is None or applied.instances < 1 or not planned:
        return None
    each = model.gpus * applied.instances if len(model.gpus) == 1 else model.gpus
    fixed = bool(model.stays) or len(set(model.gpus)) != 1 or not model.ready
    seat = Seat(host.name, model, allocation_from(applied), kind, each, fixed=fixed)
    return seat if seat.name_on(kind) is not None else None
