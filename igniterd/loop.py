"""One tick, in order: observe, follow, prove, window, estimate, decide, act, report.

Two ways back, both visible here: the small :class:`Carry`, replaced whole at the end of a tick, and
the world itself, read again at the next. A stage that fails ends the tick: what is applied goes on
serving, and the next tick starts from the same carry.

A reload takes seconds, and for a large model minutes; it runs beside the ticks, one at a time on
each GPU. Ticks go on reading and reporting meanwhile and decide nothing for that GPU; the first one
after its end takes up what came of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from igniterd.act import Adopter
from igniterd.acting import Acting
from igniterd.belief import on_another_board
from igniterd.clients.triton.apply import Reloader
from igniterd.config import Config
from igniterd.decide.cooldown import after, rebalanced
from igniterd.decide.decide import decide
from igniterd.decide.state import DecisionState
from igniterd.decisions import ActResult, Plan, Tick
from igniterd.edgelog import EdgeLogger
from igniterd.estimate import estimate
from igniterd.loads import Estimate
from igniterd.observe import Sources
from igniterd.profiled import Bases, Predictors, kinds_of_boards
from igniterd.prove import Proofs, planned_view, prove
from igniterd.records import Mode, Observation
from igniterd.standing import Facts, Known, followed, scene, standings, stepped, unread_as_found
from igniterd.state.carry import Carry
from igniterd.state.released import FILE, Released
from igniterd.states import Standing, State
from igniterd.window import between

TOLD = frozenset(State) - {
    State.STEERED,
    State.WATCHED,
    State.WARMING,
    State.UNREAD,
    State.UNSEEN,
    State.ABSENT,
}
"""States that are said here; the others are told of as what they come from: gaps, or kinds of
models."""
STEP_ENDS_S = 3.0  # how long the end waits for a step under way


class Stopwatch:
    """Seconds spent in each stage of one tick."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = now - self._last
        self._last = now


class Loop:
    """The control loop of one host. ``tick`` is the whole of it; pacing is the daemon's."""

    def __init__(
        self,
        config: Config,
        sources: Sources,
        reloaders: Mapping[str, Reloader],
        knowledge: Predictors,
        report: Callable[[Tick], None],
        *,
        adopter: Adopter | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``adopter`` gives models a process of their own, where their owner says so."""
        self.config = config
        self.sources = sources
        self.reloaders = reloaders
        self.knowledge = knowledge
        self.report = report
        self.wall_clock = wall_clock
        self._released = Released(config.state.directory / FILE)
        self.actor = Acting(
            config, sources, reloaders, knowledge.copy_bytes, self._released, adopter=adopter
        )
        self.carry = Carry()
        self.triton_of = {model.tenant: model.triton for model in config.model}
        self.mode = Mode(config.loop.mode)
        self._ports = {server.name: server.port for server in config.triton}
        self._said, self._told = EdgeLogger("models"), dict[str, State]()

    async def tick(self, now_s: float) -> Tick:
        """One turn at ``now_s`` (a monotonic clock)."""
        watch, carry, knowledge = Stopwatch(), self.carry, self.knowledge
        outcome = self.actor.take_results()
        seen = await self.sources.observe(now_s)
        watch.lap("observe")
        wall_s = self.wall_clock()
        known = self._followed(seen, outcome, wall_s)
        whole = scene(seen, known)
        boards = {**carry.boards, **{board.uuid: board for board in seen.boards}}
        bases = Bases(knowledge, kinds_of_boards(knowledge, boards))
        proofs, view = self._proven(seen, bases.of_one_kind(whole), outcome, known)
        watch.lap("prove")
        window = between(carry.seen, seen)
        watch.lap("window")
        mean = knowledge.predictors.mean if knowledge.predictors else None
        profiled = knowledge.steerable(view)
        moved = bases.other_kind(carry.seen, view)
        believed = {n: on_another_board(b) if n in moved else b for n, b in carry.belief.items()}
        load, belief = estimate(
            view,
            window,
            believed if moved else carry.belief,
            rules=self.config.decide,
            models=self.config.by_name(),
            profiled=profiled,
            predictor=mean,
            wall_s=wall_s,
            basis=bases.mean,
        )
        watch.lap("estimate")
        anew = {name for name, triton in self.triton_of.items() if triton in known.anew}
        held = after(
            carry.held.without_pending(anew), outcome, load.loads, self.config.decide, now_s
        )
        held = rebalanced(held, known.rebalanced, now_s)
        states = self._standings(view, known, held, load)
        plan, held = self._decide(load, view, held, proofs.dead, states, now_s, bases)
        watch.lap("decide")
        if plan.steps and self.mode is Mode.ACT:
            self.actor.begin(plan, view, known)
        watch.lap("act")
        shown, shares = (
            replace(seen, gaps=view.gaps),
            {n: state for n, state in proofs.states.items() if n in seen.models},
        )
        tick = Tick(
            carry.number,
            now_s,
            wall_s,
            shown,
            window,
            load,
            plan,
            outcome,
            dict(watch.stages),
            shares,
            states,
            known.rebalanced,
        )
        known = replace(known, standings=states)
        self.carry = Carry(
            seen=whole,
            belief=belief,
            held=held,
            number=carry.number + 1,
            proofs=proofs,
            loads=load.loads,
            known=known,
            under_way=self.actor.under_way,
            boards=boards,
        )
        self.actor.finish_tick()
        self._say(states)
        self.report(tick)
        return tick

    def _say(self, states: Mapping[str, Standing]) -> None:
        """A model that igniterd leaves as it is, and why, is said once, and once when that is
        over."""
        for name, standing in states.items():
            before = self._told.get(name)
            if before is not None and before is not standing.state:
                self._said.worked(f"{name}: {before}")
                del self._told[name]
            if standing.state in TOLD:
                self._said.failed(f"{name}: {standing.state}", standing.why)
                self._told[name] = standing.state

    def _followed(self, seen: Observation, outcome: ActResult, wall_s: float) -> Known:
        """What is known of the models after this observation, and whose hand changed them."""
        acting = [step.model for step in self.actor.steps]
        carry = self.carry
        return followed(
            unread_as_found(carry.known, self.actor.found, seen),
            seen,
            outcome,
            config=self.config,
            acting=acting,
            came=carry.held.asked,
            ports=self._ports,
            released=self._released.now(),
            wall_s=wall_s,
        )

    def _standings(
        self, view: Observation, known: Known, held: DecisionState, load: Estimate
    ) -> dict[str, Standing]:
        """The one state of every model."""
        left_out = {**load.left_out, **{name: why for name, (why, _) in held.left_out.items()}}
        facts = Facts(
            now_s=view.at_s,
            config=self.config,
            known=known,
            held=held,
            loads=load.loads,
            profiled=self.knowledge.all_profiled,
            left_out=left_out,
            released=self._released.why(),
            ports=self._ports,
            acting=frozenset(step.model for step in self.actor.steps),
        )
        return standings(view, facts)

    def _proven(
        self, seen: Observation, whole: Observation, outcome: ActResult, known: Known
    ) -> tuple[Proofs, Observation]:
        """What is known of every share, and the host as it may be planned with.

        Where nobody looks at the processes (a simulation), configurations are believed.
        """
        if self.sources.processes is None:
            return Proofs(), whole
        proofs = prove(
            seen,
            self.carry.loads,
            self.carry.proofs,
            outcome,
            rules=self.config.mps,
            emulated=self.config.gpu.source.startswith("emulated:"),
            ports=self._ports,
            loaded=known.loaded_at(seen.at_s),
        )
        return proofs, planned_view(whole, proofs)

    def _decide(
        self,
        load: Estimate,
        seen: Observation,
        held: DecisionState,
        dead: frozenset[str],
        states: Mapping[str, Standing],
        now_s: float,
        bases: Bases,
    ) -> tuple[Plan, DecisionState]:
        under_way = self.actor.under_way
        others = {gpu: bases.of(gpu).why for r in seen.models.values() for gpu in r.gpus}
        waits = {gpu: f"{gpu}: {why}" for gpu, why in others.items() if why}
        busy = {gpu: f"{step.model} is being reloaded" for gpu, step in under_way.items()}
        return decide(
            load,
            seen,
            replace(held, under_way=len(self.actor.steps)),
            config=self.config,
            profiled=self.knowledge.steerable(seen),
            predictors=None if self.mode is Mode.OBSERVE else self.knowledge.predictors,
            now_s=now_s,
            dead=dead,
            standings=states,
            began_s=self.carry.known.began_s if self.carry.known.began_s is not None else now_s,
            busy=waits | busy,
            basis=bases.pair,
            fits=lambda model, gpu: self.actor.no_memory(model, seen, gpu),
        )

    def handed_on(self) -> Carry:
        """The carry for the loop that takes this one's place: nobody waits for the steps under way
        any more, and Triton may finish them yet."""
        carry, now_s = self.carry, self.carry.seen.at_s if self.carry.seen is not None else 0.0
        why = "it was under way when the configuration was read again"
        outcome = self.actor.unanswered(why)
        held = after(carry.held, outcome, carry.loads, self.config.decide, now_s)
        return replace(carry, held=held, known=stepped(carry.known, outcome), under_way={})

    @property
    def acting(self) -> asyncio.Task[ActResult] | None:
        """A step under way, one that has ended first: its end is worth a tick at once."""
        return self.actor.task

    async def close(self) -> str:
        """End, as :meth:`Acting.close` does. Returns in words what is left undone, or an empty
        string."""
        left = await self.actor.close()
        readings, target = self.carry.known.last, self.carry.held.target
        otherwise = [m for m, a in target.items() if m in readings and readings[m].allocation != a]
        if otherwise:
            left.append(
                f"a plan was under way; last seen otherwise than planned: {', '.join(otherwise)}"
            )
        return "; ".join(filter(None, left))
