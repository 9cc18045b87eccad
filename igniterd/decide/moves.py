"""Which models to move between the GPUs of a host, and where to. Pure.

A GPU that cannot hold its SLOs is relieved of the fewest tenants: of one, else of two, else of
three. A GPU is emptied where all of its tenants fit on the others. What each GPU needs, and what
each model would need elsewhere, is guessed (see :mod:`igniterd.decide.tenant`) to rank the moves.
The search of one GPU (:mod:`igniterd.decide.search`) then plans all that a move touches, and what
it does not confirm is not done.

GPUs that share a model are one case: they are planned together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Generic, Protocol, TypeVar

from igniterd.decide.fewest import fewest_changes
from igniterd.decide.gpu import LEAST_ROOM, ROOM_TO_REMEMBER
from igniterd.decide.judge import PredictorPair
from igniterd.decide.room import Reserved, Room, named
from igniterd.decide.search import HOPELESS, GpuPlan, Search, find
from igniterd.decide.state import ALL, HALF, REMEMBERED, Margins, Relocation
from igniterd.placement import GpuGroup
from igniterd.predict import Demand, LatencyPrediction
from igniterd.records import Allocation

MOST_TENANTS = 3
"""Moved together to relieve one GPU."""
MOST_CONFIRMED = 2
"""Moves that are looked into in one tick: each costs the searches of two GPUs or more."""
SECOND_LOOKS = 8
"""Sets of models that are guessed without those that would go, where the sum of what each needs
says that this is not enough."""
MUCH = 2.0
"""Parts of a GPU that a model needs where no share is enough."""

Moves = Mapping[str, str]
"""Model -> its new GPU."""
DemandOn = Callable[[str, str, Margins], Demand | None]
"""What to plan for of a model on a GPU where it is not, at given margins; ``None`` where it cannot
be moved there."""


class Case(Protocol):
    """What is known of GPUs that are planned together."""

    @property
    def demands(self) -> Callable[[Margins], Sequence[Demand]]:
        """What to plan for at given margins."""

    @property
    def predictors(self) -> PredictorPair: ...

    @property
    def reserved(self) -> Reserved:
        """What others hold."""

    @property
    def here(self) -> Mapping[str, Allocation]:
        """What is applied, by model."""

    @property
    def shed(self) -> Collection[str]:
        """The models whose SLO does not hold."""

    @property
    def waits(self) -> str:
        """Why nobody is to come, empty where somebody may."""


CaseT_co = TypeVar("CaseT_co", bound=Case, covariant=True)


@dataclass(frozen=True, slots=True)
class Side(Generic[CaseT_co]):
    """GPUs that are planned together, and what is known of them."""

    group: GpuGroup
    case: CaseT_co

    def on(self, demand: Demand, gpu: str) -> Demand:
        """``demand`` placed on one of these GPUs."""
        if len(self.group.gpus) == 1:
            return replace(demand, gpus=())
        return replace(demand, gpus=(gpu,) * demand.instances)


@dataclass(frozen=True, slots=True)
class Found:
    """Moves that were confirmed, and how the models of the GPUs that they touch fare then."""

    relocation: Relocation
    served: Mapping[str, LatencyPrediction]
    headroom: float


@dataclass(slots=True)
class Host:
    """The GPUs of a host, or of several. ``movable``: models that may be moved, with the GPU they
    are on. ``needs_known``: what is known of :meth:`needs`, by the name of the side."""

    sides: Sequence[Side[Case]]
    movable: Mapping[str, str]
    demand_on: DemandOn
    tried: set[tuple[tuple[str, str], ...]] = field(default_factory=set)
    needs_known: dict[str, dict[str, float]] = field(default_factory=dict)
    most_confirmed: int = MOST_CONFIRMED
    second_looks: int = SECOND_LOOKS
    used_first: bool = False
    """Whether a GPU in use is chosen before an empty one, whatever room each leaves."""
    rather: frozenset[str] = frozenset()
    """Models that are moved rather than others; of as many moves, before the room counts."""
    _alone: dict[tuple[str, str], float] = field(default_factory=dict)

    def relieved(
        self,
        source: str,
        ladder: Sequence[Margins] = (ALL, HALF),
        first: Sequence[Moves] = (),
    ) -> Found | None:
        """The fewest moves after which the GPUs of ``source`` (a name of a group) and those that
        they lead to hold every SLO, with one of the margins of ``ladder``. ``first``: moves that
        are looked into before any others."""
        side, confirmed = self._side(source), 0
        for moves in chain([list(first)], self._reliefs(side)):
            for margins in ladder:
                most = self.most_confirmed - confirmed
                found, tries = self._first(moves, margins, LEAST_ROOM, most)
                confirmed += tries
                if found is not None or confirmed >= self.most_confirmed:
                    return found
        return None

    def emptied(self, source: str) -> Found | None:
        """Moves that leave no model on ``source``, with room to spare where they lead to."""
        side = self._side(source)
        leavers = list(side.case.here)
        stay = set(side.group.models) - set(leavers)  # what is not planned with is not moved
        if stay or not leavers or any(self.movable.get(m) != source for m in leavers):
            return None
        placed = self._placed(leavers, hot={source}, used=True)
        moves = [placed[1]] if placed else []
        return self._first(moves, REMEMBERED, ROOM_TO_REMEMBER, 1)[0]

    def _first(
        self, candidates: Iterable[Moves], margins: Margins, least_room: float, most: int
    ) -> tuple[Found | None, int]:
        """The first of ``candidates`` that is confirmed, of ``most`` looked into, and how many
        were."""
        tries = 0
        for moves in candidates:
            key = (*sorted(moves.items()), ("", str(margins.kept)))
            if tries == most:
                break
            if key in self.tried:
                continue
            tries += 1
            found = self._confirmed(moves, margins, least_room)
            if found is not None:
                return found, tries
            self.tried.add(key)
        return None, tries

    def _side(self, gpu: str) -> Side[Case]:
        return next(side for side in self.sides if gpu in side.group.gpus)

    # ------------------------------------------------------------ guesses

    def needs(self, side: Side[Case]) -> dict[str, float]:
        """About what part of each GPU its models need at least; above what there is where no share
        is enough."""
        if side.group.name not in self.needs_known:
            self.needs_known[side.group.name] = self._guessed(side)
        return self.needs_known[side.group.name]

    def _guessed(self, side: Side[Case]) -> dict[str, float]:
        demands = side.case.demands(ALL)
        if not demands:
            return dict.fromkeys(side.group.gpus, 0.0)
        search = Search(side.case.predictors.at(ALL), demands, side.case.reserved)
        settled = search.settle(1.0, guess=True)
        if not isinstance(settled, str):
            least = named(search.least(settled[0], [d.model for d in demands]), side.group.name)
            return {gpu: least.get(gpu, 0.0) for gpu in side.group.gpus}  # on some there is nobody
        needs = dict.fromkeys(side.group.gpus, 0.0)
        for d in demands:
            for gpu in set(d.gpus) or {side.group.name}:
                needs[gpu] += self._alone_on(side, gpu, d)
        return needs

    def _alone_on(self, side: Side[Case], gpu: str, demand: Demand) -> float:
        """About what the model needs of a GPU that it has to itself."""
        key = (demand.model, gpu)
        if key not in self._alone:
            alone = replace(demand, gpus=(), pinned=None)
            settled = Search(side.case.predictors.at(ALL), [alone]).settle(1.0, guess=True)
            self._alone[key] = (
                MUCH if isinstance(settled, str) else settled[0][demand.model].granted or 1.0
            )
        return self._alone[key]

    def _spare(self, side: Side[Case], gpu: str) -> float:
        """About what of the GPU nobody needs."""
        return capacities(side)[gpu] - self.needs(side)[gpu]

    def _reliefs(self, side: Side[Case]) -> Iterator[list[Moves]]:
        """Moves that may help, those of fewer models first; of as many, in the order of the room
        that they leave."""
        spare = {gpu: self._spare(side, gpu) for gpu in side.group.gpus}
        hot = {gpu for gpu, left in spare.items() if left < 0} or {
            min(spare, key=spare.__getitem__)
        }
        demands = {d.model: d for d in side.case.demands(ALL)}
        movers = [m for m, gpu in self.movable.items() if gpu in hot and m in demands]
        for count in range(1, MOST_TENANTS + 1):
            ranked = list[tuple[int, float, int, Moves]]()
            for leavers in combinations(movers, count):
                freed = dict(spare)
                for model in leavers:
                    freed[self.movable[model]] += self._alone_on(
                        side, self.movable[model], demands[model]
                    )
                short = min(freed[gpu] for gpu in hot) < -HOPELESS
                if short and not self._fit_without(side, leavers):
                    continue
                placed = self._placed(leavers, hot=hot, used=self.used_first)
                if placed is not None:
                    spared = sum(model not in self.rather for model in leavers)
                    ranked.append((spared, -placed[0], len(ranked), placed[1]))
            yield [moves for *_, moves in sorted(ranked, key=lambda each: each[:3])]

    def _fit_without(self, side: Side[Case], leavers: Sequence[str]) -> bool:
        """Whether those that stay fit by guess. Each that goes also slows them no more, which what
        it needs alone does not tell."""
        if self.second_looks <= 0:
            return False
        self.second_looks -= 1
        stay = [d for d in side.case.demands(ALL) if d.model not in leavers]
        search = Search(side.case.predictors.at(ALL), stay, side.case.reserved)
        settled = search.settle(1.0, guess=True)
        return not isinstance(settled, str) and search.room.holds(settled[0], over=HOPELESS)

    def _placed(
        self, leavers: Sequence[str], *, hot: set[str], used: bool
    ) -> tuple[float, Moves] | None:
        """A GPU for each of ``leavers`` that is not ``hot``, where it leaves most room, and the
        least room left; ``None`` where one fits nowhere. ``used``: GPUs in use come first."""
        taken, moves, least = dict[str, float](), dict[str, str](), 1.0
        needs = {m: self._need_anywhere(m) for m in leavers}
        for model in sorted(leavers, key=lambda m: (-needs[m], m)):
            best: tuple[bool, float, str] | None = None
            for side in self.sides:
                if side.case.waits or (side.case.shed and not hot & set(side.group.gpus)):
                    continue
                for gpu in side.group.gpus:
                    demand = None if gpu in hot else self.demand_on(model, gpu, ALL)
                    if demand is None:
                        continue
                    need = self._alone_on(side, gpu, demand)
                    left = self._spare(side, gpu) - taken.get(gpu, 0.0) - need
                    here = (used and bool(side.case.here), left, gpu)
                    if left >= -HOPELESS and (best is None or here > best):
                        best = here
            if best is None:
                return None
            _, left, gpu = best
            taken[gpu] = taken.get(gpu, 0.0) + self._alone[model, gpu]
            moves[model], least = gpu, min(least, left)
        return least, moves

    def _need_anywhere(self, model: str) -> float:
        side = self._side(self.movable[model])
        demand = next(d for d in side.case.demands(ALL) if d.model == model)
        return self._alone_on(side, self.movable[model], demand)

    # ------------------------------------------------------------ the search itself

    def _confirmed(self, moves: Moves, margins: Margins, least_room: float) -> Found | None:
        """The plan of all that ``moves`` touch; ``None`` where a GPU cannot hold its SLOs."""
        target, served = dict[str, Allocation](), dict[str, LatencyPrediction]()
        rooms, rates, touched = [], dict[str, float](), set[str]()
        ends = {*moves.values(), *(self.movable[m] for m in moves)}
        for side in self.sides:
            if not ends & set(side.group.gpus):
                continue
            touched |= set(side.group.gpus)
            demands = self._after(side, moves, margins)
            if not demands:
                continue
            planned = self._plan(side, demands, moves, margins)
            if planned is None or planned.headroom < least_room:
                return None
            target |= planned.allocations
            served |= planned.served
            rooms.append(planned.headroom)
            rates |= {d.model: d.rate_per_s for d in demands}
        relocation = Relocation(moves, target, frozenset(touched), rates, margins)
        return Found(relocation, served, min(rooms))

    def _after(self, side: Side[Case], moves: Moves, margins: Margins) -> list[Demand]:
        """What is to be served there once ``moves`` are made."""
        stay = [d for d in side.case.demands(margins) if d.model not in moves]
        come = [
            side.on(demand, gpu)
            for model, gpu in moves.items()
            if gpu in side.group.gpus
            and (demand := self.demand_on(model, gpu, margins)) is not None
        ]
        return [*stay, *come]

    def _plan(
        self, side: Side[Case], demands: Sequence[Demand], moves: Moves, margins: Margins
    ) -> GpuPlan | None:
        predictor, reserved = side.case.predictors.at(margins), side.case.reserved
        found = find(predictor, demands, reserved=reserved)
        if not found.feasible:
            return None
        here = {
            d.model: found.allocations[d.model] if d.model in moves else side.case.here[d.model]
            for d in demands
        }
        room = Room.of(demands, reserved)
        return replace(found, allocations=fewest_changes(predictor, demands, here, found, room))


def capacities(side: Side[Case]) -> dict[str, float]:
    """What there is to give, by GPU. A GPU without models of ours has what others leave."""
    reserved = side.case.reserved
    found = named(Room.of(side.case.demands(ALL), reserved).capacity, side.group.name)
    free = 1.0 - (reserved if isinstance(reserved, float | int) else max(reserved.values()))
    return {gpu: found.get(gpu, free) for gpu in side.group.gpus}
