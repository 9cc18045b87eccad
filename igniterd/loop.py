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
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from igniterd.act import Adopter, SecondCopies, act
from igniterd.clients.shares import reach_of
from igniterd.clients.triton.apply import Applier, Reloader
from igniterd.config import Config
from igniterd.decide.cooldown import after, alike
from igniterd.decide.decide import decide
from igniterd.decide.gpu import PredictorPair
from igniterd.decide.state import DecisionState
from igniterd.edgelog import EdgeLogger
from igniterd.errors import NotNow
from igniterd.estimate import EstimatorState, estimate
from igniterd.observe import Sources
from igniterd.prove import Proofs, planned_view, prove
from igniterd.records import (
    ActResult,
    Actuation,
    Allocation,
    Estimate,
    Gap,
    Load,
    Mode,
    Observation,
    Plan,
    Step,
    Tick,
)
from igniterd.standing import Facts, Known, followed, scene, standings, stepped, unread_as_found
from igniterd.state.released import FILE, Released
from igniterd.states import Cause, Standing, State
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


@dataclass(frozen=True, slots=True)
class Carry:
    """All that outlives a tick."""

    seen: Observation | None = None
    belief: EstimatorState = field(default_factory=dict)
    held: DecisionState = field(default_factory=DecisionState)
    number: int = 0
    proofs: Proofs = field(default_factory=Proofs)
    loads: Mapping[str, Load] = field(default_factory=dict)
    known: Known = field(default_factory=Known)


@dataclass(frozen=True, slots=True)
class Predictors:
    """What does not change while the daemon runs: profiles, as predictors."""

    # configured name -> name in the profile
    profiled: Mapping[str, str] = field(default_factory=dict)
    predictors: PredictorPair | None = None
    # configured name -> what its profile is, in short
    identities: Mapping[str, str] = field(default_factory=dict)
    board: str = ""  # the board the profiles are of
    sm_count: int | None = None
    # configured name -> device memory of one instance, where profiled
    copy_bytes: Mapping[str, int] = field(default_factory=dict)

    def steerable(self, seen: Observation) -> Mapping[str, str]:
        """``profiled``, less the models that are of a kind that can only be watched."""
        return {
            name: of
            for name, of in self.profiled.items()
            if name not in seen.models or not seen.models[name].left_alone
        }


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A step being carried out."""

    step: Step
    task: asyncio.Task[ActResult]


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
        self._adopter = adopter
        self._released = Released(config.state.directory / FILE)
        self.carry = Carry()
        self.shares: Path = config.shares
        self.triton_of = {model.name: model.triton for model in config.model}
        self.mode = Mode(config.loop.mode)
        self._acting: dict[int, UnderWay] = {}  # by GPU
        # by GPU: why the profiles are not of its board, or an empty string
        self._odd = dict[int, str]()
        self._copies = SecondCopies(knowledge.copy_bytes)
        # applied, by a look just before a step, otherwise than was known
        self._found: dict[str, Allocation] = {}
        self._come = ActResult()  # what came of steps, until a tick has been finished with it
        self._ports = {server.name: server.port for server in config.triton}
        self._said, self._told = EdgeLogger("models"), dict[str, State]()

    async def tick(self, now_s: float) -> Tick:
        """One turn at ``now_s`` (a monotonic clock)."""
        watch, carry, knowledge = Stopwatch(), self.carry, self.knowledge
        outcome = self._arrived()
        seen = await self.sources.observe(now_s)
        watch.lap("observe")
        known = self._followed(seen, outcome)
        whole = scene(seen, known)
        proofs, view = self._proven(seen, whole, outcome)
        watch.lap("prove")
        window = between(carry.seen, seen)
        watch.lap("window")
        mean = knowledge.predictors.mean if knowledge.predictors else None
        wall_s = self.wall_clock()
        profiled = knowledge.steerable(view)
        load, belief = estimate(
            view,
            window,
            carry.belief,
            rules=self.config.decide,
            models=self.config.by_name(),
            profiled=profiled,
            predictor=mean,
            wall_s=wall_s,
        )
        watch.lap("estimate")
        anew = {name for name, triton in self.triton_of.items() if triton in known.anew}
        held = after(
            carry.held.without_pending(anew), outcome, load.loads, self.config.decide, now_s
        )
        states = self._standings(view, known, held, load)
        plan, held = self._decide(load, view, held, proofs.dead, states, now_s)
        watch.lap("decide")
        if plan.steps and self.mode is Mode.ACT:
            self._begin(plan, view, known)
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
        )
        known = replace(known, standings=states)
        self.carry = Carry(whole, belief, held, carry.number + 1, proofs, load.loads, known)
        self._come = ActResult()
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

    def _followed(self, seen: Observation, outcome: ActResult) -> Known:
        """What is known of the models after this observation, and whose hand changed them."""
        acting = [under.step.model for under in self._acting.values()]
        carry, found = self.carry, self._found
        self._found = {}
        return followed(
            unread_as_found(carry.known, found, seen),
            seen,
            outcome,
            config=self.config,
            acting=acting,
            came=carry.held.asked,
            ports=self._ports,
            released=self._released.now(),
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
            profiled=self.knowledge.profiled,
            left_out=left_out,
            released=self._released.why(),
            ports=self._ports,
            acting=frozenset(under.step.model for under in self._acting.values()),
        )
        return standings(view, facts)

    def _proven(
        self, seen: Observation, whole: Observation, outcome: ActResult
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
        )
        return proofs, planned_view(whole, proofs)

    def _begin(self, plan: Plan, view: Observation, known: Known) -> None:
        """Set going the first step of a GPU on which none is under way."""
        for step in plan.steps:
            gpu = view.models[step.model].gpu_index
            if gpu not in self._acting:
                task = asyncio.create_task(
                    self._act(replace(plan, steps=(step,)), step, view, known), name="act"
                )
                self._acting[gpu] = UnderWay(step, task)
                return

    async def _act(self, plan: Plan, step: Step, view: Observation, known: Known) -> ActResult:
        """Carry out ``step``, the first of ``plan``, if the host lets it through at this moment."""
        try:
            refused, cause = await self._gate(step, view, known)
        # an answer nobody thought of: this change is not made, and the daemon goes on
        except Exception as error:
            refused, cause = (
                f"{step.model}: what must be known before a change is not: {error!r}",
                Cause.HELD,
            )
        claimed = view.models[step.model].claimed_share
        return await act(
            plan,
            self._applier(self.triton_of[step.model]),
            refused,
            claimed=claimed,
            adopter=self._adopter,
            cause=cause,
        )

    def _applier(self, triton: str) -> Applier:
        reach = next(reach_of(server) for server in self.config.triton if server.name == triton)
        return Applier(self.reloaders[triton], self.shares, reach, self.sources.processes)

    async def _gate(self, step: Step, view: Observation, known: Known) -> tuple[str, Cause]:
        """What must be asked of the host just before any change: why it must not be made, or an
        empty string.

        What can be told from what is known already was told by ``decide.hold.why_not_now``.
        """
        if step.model in self._released.now():
            return f"{step.model}: it was given back to its owner", Cause.HELD
        refused = self._copies.refused(step.model, view)
        if refused:
            return refused, Cause.REFUSED
        if step.after.share is not None and view.mps is not None:
            mps = await self.sources.mps_now(view.at_s)
            if isinstance(mps, Gap):
                return (
                    "MPS control does not answer, and nothing is reloaded without it: "
                    f"{mps.reason}",
                    Cause.HELD,
                )
            if mps is not None and "FAULT" in mps.states.values():
                return (
                    "an MPS server is in FAULT: what is started now finds no MPS and runs "
                    "without a share",
                    Cause.HELD,
                )
        with contextlib.suppress(NotNow):  # a list that does not come is in nobody's way
            going = await self.sources.tritons[self.triton_of[step.model]].old_copy(step.model)
            if going:
                return going, Cause.HELD
        return await self._touched(step, view, known), Cause.BY_HAND

    async def _touched(self, step: Step, view: Observation, known: Known) -> str:
        """Which models of the step's GPU somebody else has changed since they were read, or an
        empty string."""
        server, gpu = self.triton_of[step.model], view.models[step.model].gpu_index
        there = {
            n: r.allocation
            for n, r in known.last.items()
            if r.triton == server and r.gpu_index == gpu and not r.left_alone
        }
        triton = self.sources.tritons[server]
        now = await triton.applied_now(there)
        # versions are counted in
        as_read = {
            name: replace(here, instances=there[name].instances) for name, here in now.items()
        }
        changed = {name: here for name, here in as_read.items() if not alike(here, there[name])}
        if changed:
            triton.read_configs_again()
            self._found |= changed  # also of models that no tick reads now
        return "; ".join(
            f"{name}: somebody else changed it to {here}; planning anew"
            for name, here in changed.items()
        )

    @property
    def acting(self) -> asyncio.Task[ActResult] | None:
        """A step under way, one that has ended first: its end is worth a tick at once."""
        tasks = [under.task for under in self._acting.values()]
        return next((task for task in tasks if task.done()), tasks[0] if tasks else None)

    def _arrived(self) -> ActResult:
        """What came of the steps set going by earlier ticks; nothing of those still under way."""
        for gpu, under in list(self._acting.items()):
            if under.task.done():
                del self._acting[gpu]
                self._come = ActResult(self._come.actuations + under.task.result().actuations)
        return self._come

    def _decide(
        self,
        load: Estimate,
        seen: Observation,
        held: DecisionState,
        dead: frozenset[str],
        states: Mapping[str, Standing],
        now_s: float,
    ) -> tuple[Plan, DecisionState]:
        busy = {gpu: f"{under.step.model} is being reloaded" for gpu, under in self._acting.items()}
        return decide(
            load,
            seen,
            replace(held, under_way=len(self._acting)),
            config=self.config,
            profiled=self.knowledge.steerable(seen),
            predictors=None if self.mode is Mode.OBSERVE else self.knowledge.predictors,
            now_s=now_s,
            dead=dead,
            standings=states,
            began_s=self.carry.known.began_s if self.carry.known.began_s is not None else now_s,
            busy=self._strange(seen) | busy,
        )

    def _strange(self, seen: Observation) -> dict[int, str]:
        """Boards the profiles are not of: what was measured on another one must not be planned
        with."""
        known = self.knowledge.sm_count
        for board in seen.boards:  # one that is not read now is as it was
            if known is None or board.sm_count is None:
                continue
            self._odd[board.index] = (
                ""
                if board.sm_count == known
                else (
                    f"the profiles are of {self.knowledge.board} with {known} SMs, GPU "
                    f"{board.index} is {board.name} "
                    f"with {board.sm_count}: profile the models on this board"
                )
            )
        return {gpu: why for gpu, why in self._odd.items() if why}

    def handed_on(self) -> Carry:
        """The carry for the loop that takes this one's place: nobody waits for the steps under way
        any more, and Triton may finish them yet."""
        carry, now_s = self.carry, self.carry.seen.at_s if self.carry.seen is not None else 0.0
        why = "it was under way when the configuration was read again"
        left = (
            Actuation(under.step, False, 0.0, why, Cause.UNANSWERED)
            for under in self._acting.values()
            if not under.task.done()
        )
        outcome = ActResult((*left, *self._arrived().actuations))
        held = after(carry.held, outcome, carry.loads, self.config.decide, now_s)
        return replace(carry, held=held, known=stepped(carry.known, outcome))

    async def close(self) -> str:
        """Let go of the steps under way, if they do not end soon: Triton finishes them by itself,
        or keeps the old copies.

        Returns in words what is left undone, or an empty string.
        """
        left = []
        tasks = [under.task for under in self._acting.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=STEP_ENDS_S)
            undone = [task for task in tasks if not task.done() and task.cancel()]
            if undone:
                await asyncio.wait(undone, timeout=1.0)
            left = [_left(under) for under in self._acting.values()]
            self._acting = {}
        readings, target = self.carry.known.last, self.carry.held.target
        otherwise = [m for m, a in target.items() if m in readings and readings[m].allocation != a]
        if otherwise:
            left.append(
                f"a plan was under way; last seen otherwise than planned: {', '.join(otherwise)}"
            )
        return "; ".join(filter(None, left))


def _left(under: UnderWay) -> str:
    """What is left of a step when the daemon ends."""
    if not under.task.done() or under.task.cancelled():
        step = under.step
        return (
            f"{step.model} is being reloaded to {step.after}: Triton finishes that by itself, "
            "or keeps the old copy"
        )
    done = under.task.result().actuations
    return "; ".join(
        f"{a.step.model} {'reloaded to' if a.ok else 'kept, not'} {a.step.after}" for a in done
    )
