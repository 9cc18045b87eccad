"""Which models to move between the GPUs of a host, and where to. Pure.

A GPU that cannot hold its SLOs is relieved of the fewest tenants: of one, else of two, else of
three. A GPU is emptied where all of its tenants fit on the others. Guesses (see
:mod:`igniterd.decide.tenant`) say whom it would help to move, and where there is room; the search
of one GPU (:mod:`igniterd.decide.search`) then plans every GPU that a move touches, and what it
does not confirm is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from igniterd.decide.fewest import fewest_changes
from igniterd.decide.gpu import LEAST_ROOM, ROOM_TO_REMEMBER, GpuContext
from igniterd.decide.room import ONE, Room
from igniterd.decide.search import GpuPlan, Search, find
from igniterd.decide.state import ALL, HALF, REMEMBERED, Margins
from igniterd.decide.tenant import EPS
from igniterd.predict import Demand, LatencyPrediction, LatencyPredictor
from igniterd.records import Allocation

MOST_TENANTS = 3
"""Moved together to relieve one GPU."""
MOST_CONFIRMED = 2
"""Guesses that are looked into in one tick: each costs the searches of two GPUs or more."""
USED_FIRST = 1.0
"""What a GPU that is in use is preferred by, where GPUs are to be emptied."""

DemandOn = Callable[[str, str, Margins], Demand | None]
"""What to plan for of a model on a GPU where it is not, at given margins; ``None`` where it cannot
be moved there."""


@dataclass(frozen=True, slots=True)
class Found:
    """``to``: model -> its new GPU. ``target``: what all models of the GPUs touched are to have."""

    to: Mapping[str, str]
    target: Mapping[str, Allocation]
    served: Mapping[str, LatencyPrediction]
    headroom: float
    margins: Margins
    touched: frozenset[str]
    made_for: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Host:
    """The GPUs of a host, each with its case, and what their models would be elsewhere.

    ``movable``: by GPU, the models that may be moved from it.
    """

    cases: Mapping[str, GpuContext]
    movable: Mapping[str, Sequence[str]]
    demand_on: DemandOn
    tried: set[tuple[tuple[str, str], ...]] = field(default_factory=set)
    _guessed: dict[tuple[str, tuple[str, ...]], float | None] = field(default_factory=dict)

    def relieved(self, source: str, ladder: Sequence[Margins] = (ALL, HALF)) -> Found | None:
        """The fewest moves after which ``source`` and the GPUs they lead to hold every SLO, with
        one of the margins of ``ladder``."""
        confirmed = 0
        for moves in self._reliefs(source):
            key = tuple(sorted(moves.items()))
            if key in self.tried:
                continue
            self.tried.add(key)
            for margins in ladder:
                found = self._confirmed(source, moves, margins, LEAST_ROOM)
                if found is not None:
                    return found
            confirmed += 1
            if confirmed == MOST_CONFIRMED:
                return None
        return None

    def emptied(self, source: str) -> Found | None:
        """Moves that leave no model on ``source``, with room to spare where they lead to."""
        leavers = list(self.cases[source].here)
        if not leavers or set(leavers) != set(self.movable[source]):
            return None
        moves = self._placed(source, leavers, used=True)
        key = tuple(sorted((moves or {}).items()))
        if moves is None or key in self.tried:
            return None
        self.tried.add(key)
        return self._confirmed(source, moves, REMEMBERED, ROOM_TO_REMEMBER)

    def fullness(self, gpu: str) -> float:
        """About what the models there need of the GPU; above 1 where no share is enough."""
        guess = self._guess(gpu, self._demands(gpu, ALL))
        return 2.0 if guess is None else guess

    # ------------------------------------------------------------ guesses

    def _reliefs(self, source: str) -> Iterator[dict[str, str]]:
        """Moves that help by guess: those of fewer models first, then those that leave most
        room."""
        demands = {d.model: d for d in self._demands(source, ALL)}
        for count in range(1, MOST_TENANTS + 1):
            ranked = []
            for leavers in combinations(self.movable[source], count):
                rest = [d for m, d in demands.items() if m not in leavers]
                left = self._guess(source, rest)
                if left is None or left > self._capacity(source):
                    continue
                moves = self._placed(source, leavers, used=False)
                if moves is not None:
                    ranked.append((max(self._filled(moves, g) for g in moves.values()), moves))
            yield from (moves for _, moves in sorted(ranked, key=lambda each: each[0]))

    def _placed(self, source: str, leavers: Sequence[str], *, used: bool) -> dict[str, str] | None:
        """A GPU for each of ``leavers``, the one that needs most first, where it leaves most room;
        ``None`` where one fits nowhere. ``used``: GPUs that are in use come first."""
        needs = {d.model: self._alone(source, d) for d in self._demands(source, ALL)}
        moves: dict[str, str] = {}
        for model in sorted(leavers, key=lambda m: (-needs[m], m)):
            rooms = []
            for gpu in self.cases:
                if gpu == source or self.cases[gpu].waits or self.cases[gpu].shed:
                    continue
                filled = self._filled({**moves, model: gpu}, gpu)
                if filled <= 1.0:
                    prefers = USED_FIRST if used and self.cases[gpu].here else 0.0
                    rooms.append((prefers - filled, gpu))
            if not rooms:
                return None
            moves[model] = max(rooms)[1]
        return moves

    def _filled(self, moves: Mapping[str, str], gpu: str) -> float:
        """About what part of what ``gpu`` has to give is needed once ``moves`` are made; above 1
        where they cannot be."""
        coming = [m for m, to in moves.items() if to == gpu]
        demands = list(self._demands(gpu, ALL))
        for model in coming:
            demand = self.demand_on(model, gpu, ALL)
            if demand is None:
                return 2.0
            demands.append(demand)
        guess = self._guess(gpu, demands)
        capacity = self._capacity(gpu)
        return 2.0 if guess is None or capacity <= 0 else guess / capacity

    def _alone(self, gpu: str, demand: Demand) -> float:
        return self._guess(gpu, [demand]) or 1.0

    def _guess(self, gpu: str, demands: Sequence[Demand]) -> float | None:
        """About the least share that ``demands`` need together on ``gpu``; ``None`` where no share
        holds one of them."""
        key = (gpu, tuple(d.model for d in demands))
        if key not in self._guessed:
            self._guessed[key] = _least(self._predictor(gpu, ALL), demands)
        return self._guessed[key]

    def _capacity(self, gpu: str) -> float:
        case = self.cases[gpu]
        return Room.of([], case.reserved).capacity[ONE] + EPS

    def _demands(self, gpu: str, margins: Margins) -> Sequence[Demand]:
        return self.cases[gpu].demands(margins)

    def _predictor(self, gpu: str, margins: Margins) -> LatencyPredictor:
        return self.cases[gpu].predictors.at(margins)

    # ------------------------------------------------------------ the search itself

    def _confirmed(
        self, source: str, moves: Mapping[str, str], margins: Margins, least_room: float
    ) -> Found | None:
        """The plan of every GPU that ``moves`` touch; ``None`` where one cannot hold its SLOs."""
        target, served = dict[str, Allocation](), dict[str, LatencyPrediction]()
        rooms, rates = [], dict[str, float]()
        for gpu in dict.fromkeys([source, *moves.values()]):
            stay = [d for d in self._demands(gpu, margins) if d.model not in moves]
            come = [
                demand
                for model, to in moves.items()
                if to == gpu and (demand := self.demand_on(model, gpu, margins)) is not None
            ]
            if not stay and not come:
                continue
            planned = self._plan(gpu, stay, come, margins)
            if planned is None or planned.headroom < least_room:
                return None
            target |= planned.allocations
            served |= planned.served
            rooms.append(planned.headroom)
            rates |= {d.model: d.rate_per_s for d in (*stay, *come)}
        touched = frozenset([source, *moves.values()])
        return Found(dict(moves), target, served, min(rooms), margins, touched, rates)

    def _plan(
        self, gpu: str, stay: Sequence[Demand], come: Sequence[Demand], margins: Margins
    ) -> GpuPlan | None:
        predictor, reserved = self._predictor(gpu, margins), self.cases[gpu].reserved
        found = find(predictor, [*stay, *come], reserved=reserved)
        if not found.feasible:
            return None
        here = {d.model: self.cases[gpu].here[d.model] for d in stay}
        here |= {d.model: found.allocations[d.model] for d in come}
        demands = [*stay, *come]
        room = Room.of(demands, reserved)
        allocations = fewest_changes(predictor, demands, here, found, room)
        return replace(found, allocations=allocations)


def _least(predictor: LatencyPredictor, demands: Sequence[Demand]) -> float | None:
    if not demands:
        return 0.0
    search = Search(predictor, demands)
    settled = search.settle(1.0, guess=True)
    if isinstance(settled, str):
        return None
    return sum(search.least(settled[0], [d.model for d in demands]).values())
