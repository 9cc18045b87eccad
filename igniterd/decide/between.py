"""The part of a host's decision that is about several of its GPUs: which models to move, and when
that is looked for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf

from igniterd.config import Config
from igniterd.decide.gpu import GpuContext, GpuDecision
from igniterd.decide.moves import DemandOn, Found, Host, Side
from igniterd.decide.relocation import begun, carried_on
from igniterd.decide.state import ALL, DecisionState, Margins, Relocation
from igniterd.decisions import DecisionKind
from igniterd.placement import GpuGroup
from igniterd.predict import Demand
from igniterd.records import Observation

SEEK_S = 10.0
"""How often moves from a GPU in trouble are looked for."""
EMPTY_S = 60.0
"""How often moves that would empty a GPU are."""
AGAIN_S = 60.0
"""Moves that were looked into and came to nothing are not looked into again for so long."""
STAYS = 5.0
"""Times ``hold_s``: how long a model stays where it was moved to, but from a GPU in trouble."""

CaseOf = Callable[[GpuGroup, DecisionState], GpuContext | None]


class Between:
    """What moves rest on in one tick. ``case_of`` gives what is known of one GPU; ``fits`` says why
    a model finds no memory on a GPU, or an empty string; ``busy``: GPUs for which nothing is
    decided, and why."""

    def __init__(
        self,
        observation: Observation,
        config: Config,
        case_of: CaseOf,
        demand_on: DemandOn,
        fits: Callable[[str, str], str],
        busy: Mapping[str, str],
        now_s: float,
    ) -> None:
        self.observation, self.config, self.now_s = observation, config, now_s
        self.case_of, self.demand_on, self.fits, self.busy = case_of, demand_on, fits, busy
        self.source: str | None = None
        """From which moves were looked for in this tick."""
        self._told = {name for name, model in config.by_name().items() if model.gpu is not None}

    def under_way(
        self, groups: Sequence[GpuGroup], held: DecisionState
    ) -> tuple[GpuDecision | None, DecisionState]:
        """The decision for the GPUs of the moves under way, if they go on."""
        relocation = held.relocation
        if relocation is None:
            return None, held
        if any(self._elsewhere(relocation, model) for model in relocation.to):
            return None, held.without_relocation()
        sides = self._sides(groups, held, only=relocation.gpus)
        part = carried_on(relocation, sides, held, self.busy)
        if part is not None:
            return part, held
        dropped = any(
            self.observation.models[m].allocation != a
            for m, a in relocation.target.items()
            if m in self.observation.models
        )
        for gpu in relocation.gpus if dropped else ():  # what takes its place is sought at once
            held = held.with_gpu(gpu, sought_at_s=-inf)
        return None, held.without_relocation()

    def _elsewhere(self, relocation: Relocation, model: str) -> bool:
        """Whether the device number that the model is to have is another GPU by now: its server
        was started anew with others."""
        reading = self.observation.models.get(model)
        there = self.observation.devices.get(reading.triton, ()) if reading is not None else ()
        numbers = relocation.target[model].devices
        return {there[n] for n in numbers if n < len(there)} != {relocation.to[model]}

    def sought(
        self, groups: Sequence[GpuGroup], parts: Sequence[GpuDecision], held: DecisionState
    ) -> tuple[GpuDecision | None, DecisionState]:
        """Moves to begin, for a GPU in trouble or to empty one; and that they were looked for."""
        if not self.config.decide.moves or held.relocation is not None:
            return None, held
        source, every_s = self._source(groups, parts, held)
        if source is None or self.now_s - held.gpu(source).sought_at_s < every_s:
            return None, held
        held, self.source = held.with_gpu(source, sought_at_s=self.now_s), source
        sides = {side.group.name: side for side in self._sides(groups, held)}
        if source not in sides or len([g for s in sides.values() for g in s.group.gpus]) < 2:
            return None, held
        tried = {m: until_s for m, until_s in held.tried_moves.items() if until_s > self.now_s}
        shed = sides[source].case.shed
        movable = {
            m: gpu
            for side in sides.values()
            for m, gpu in self._movable(side).items()
            if shed or self._rested(m, held)
        }
        host = Host(list(sides.values()), movable, self._demand_on, set(tried))
        relieves = bool(shed) or held.gpu(source).margins != ALL
        if shed:
            found = host.relieved(source)
        elif relieves:  # it holds them, with less in hand than it should have
            found = host.relieved(source, (ALL,))
        else:
            found = self._emptied(host, sides[source], held)
        until_s = self.now_s + AGAIN_S
        tried |= {moves: until_s for moves in host.tried if moves not in tried}
        held = replace(held, tried_moves=tried)
        return self._begin(found, source, list(sides.values()), held, relieves=relieves)

    def _begin(
        self,
        found: Found | None,
        source: str,
        sides: Sequence[Side[GpuContext]],
        held: DecisionState,
        *,
        relieves: bool,
    ) -> tuple[GpuDecision | None, DecisionState]:
        if found is None:
            return None, held
        to = ", ".join(f"{model} to {gpu}" for model, gpu in sorted(found.relocation.to.items()))
        aim = "relieves" if relieves else "empties"
        relocation = replace(found.relocation, why=f"{to} {aim} {source}")
        part = carried_on(relocation, sides, held, self.busy)
        if part is None or part.outcome is not DecisionKind.MOVE:
            return None, held
        held = begun(relocation, held)
        return replace(part, served=found.served, headroom=found.headroom, held=held), held

    def _source(
        self, groups: Sequence[GpuGroup], parts: Sequence[GpuDecision], held: DecisionState
    ) -> tuple[str | None, float]:
        """The GPU that moves are looked for from, and how often."""
        shed = held.shed
        troubled = [g.name for g in groups if any(m in shed for m in g.models)]
        strained = [g.name for g in groups if held.gpu(g.name).margins != ALL]
        busy = {g.name for g in groups if self.busy.keys() & set(g.gpus)}
        for names in (troubled, strained):  # one that nothing helps stands in no other's way
            rested = {gpu: held.gpu(gpu).sought_at_s for gpu in names if gpu not in busy}
            due = [gpu for gpu, sought_s in rested.items() if self.now_s - sought_s >= SEEK_S]
            if due:
                return min(due, key=lambda gpu: (rested[gpu], gpu)), SEEK_S
        if troubled or strained:
            return None, 0.0
        quiet = all(part.outcome is DecisionKind.HOLD for part in parts) and not self.busy
        if not self.config.decide.consolidate or not quiet or len(groups) < 2:
            return None, 0.0
        latest = max(held.gpu(group.name).moved_at_s for group in groups)
        if self.now_s - latest < 2 * self.config.decide.hold_s:
            return None, 0.0
        fills = {g.name: sum(held.gpu(g.name).least.values()) for g in groups if len(g.gpus) == 1}
        if not fills:
            return None, 0.0
        rested = {gpu: held.gpu(gpu).sought_at_s for gpu in fills}
        due = [gpu for gpu in fills if self.now_s - rested[gpu] >= EMPTY_S]
        return (min(due, key=lambda gpu: (fills[gpu], gpu)) if due else None), EMPTY_S

    def _emptied(self, host: Host, source: Side[GpuContext], held: DecisionState) -> Found | None:
        if not all(self._rested(m, held) for m in source.case.here):
            return None
        return host.emptied(source.group.name)

    def _rested(self, model: str, held: DecisionState) -> bool:
        """Whether it may be moved though no SLO asks for it."""
        stays_s = STAYS * self.config.decide.hold_s
        return self.now_s - held.of(model).relocated_at_s >= stays_s

    def _sides(
        self, groups: Sequence[GpuGroup], held: DecisionState, only: frozenset[str] = frozenset()
    ) -> list[Side[GpuContext]]:
        """The GPUs that models may be moved from or to: not those of which nothing can be
        predicted, nor, unless asked for (``only``), those where a step is under way."""
        known = dict.fromkeys(gpu for gpus in self.observation.devices.values() for gpu in gpus)
        used = {gpu for group in groups for gpu in group.gpus}
        idle = [GpuGroup((gpu,)) for gpu in known if gpu not in used]
        out = []
        for group in [*groups, *idle]:
            here = set(group.gpus)
            if (only and not only & here) or (not only and here & self.busy.keys()):
                continue
            case = self.case_of(group, held)
            if case is not None:
                out.append(Side(group, case))
        return out

    def _movable(self, side: Side[GpuContext]) -> dict[str, str]:
        """The models that may be moved, with their GPU: it is known on which device number they
        are, and nobody has said that they belong there."""
        case, found = side.case, dict[str, str]()
        for name in case.here:
            reading = self.observation.models[name]
            several = len(self.observation.devices.get(reading.triton, ())) > 1
            if (
                name in case.free
                and name not in self._told
                and reading.allocation.devices
                and several
                and len(set(reading.gpus)) == 1
                and case.here[name].share is not None
            ):
                found[name] = reading.gpus[0]
        return found

    def _demand_on(self, model: str, gpu: str, margins: Margins) -> Demand | None:
        reading = self.observation.models[model]
        there = self.observation.devices.get(reading.triton, ())
        if gpu not in there or self.fits(model, gpu):
            return None
        demand = self.demand_on(model, gpu, margins)
        devices = (there.index(gpu),) * reading.allocation.instances
        return None if demand is None else replace(demand, devices=devices)
