"""One tick, in order: observe, prove, window, estimate, decide, act, report.

Two ways back, both visible here: the small :class:`Carry`, replaced whole at the end of a tick, and the world itself, read again at
the next. A stage that fails ends the tick: what is applied goes on serving, and the next tick starts from the same carry.

A reload takes seconds, and for a large model minutes; it runs beside the ticks, one at a time. Ticks go on reading and reporting
meanwhile and decide nothing; the first one after its end takes up what came of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from igniterd.act import Adopter, Reloader, SecondCopies, act
from igniterd.clients.shares import reach_of
from igniterd.config import Config
from igniterd.decide import Held, Oracles, after, decide
from igniterd.estimate import Belief, estimate
from igniterd.observe import Sources
from igniterd.prove import Proofs, planned_view, prove
from igniterd.records import Estimate, Gap, Load, Mode, Observation, Outcome, Outcomes, Plan, Step, Tick
from igniterd.window import between

STEP_ENDS_S = 3.0  # how long the end waits for a step under way


@dataclass(frozen=True, slots=True)
class Carry:
    """All that outlives a tick."""

    seen: Observation | None = None
    belief: Belief = field(default_factory=dict)
    held: Held = field(default_factory=Held)
    number: int = 0
    proofs: Proofs = field(default_factory=Proofs)
    loads: Mapping[str, Load] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What does not change while the daemon runs: profiles, as predictors."""

    profiled: Mapping[str, str] = field(default_factory=dict)  # configured name -> name in the profile
    oracles: Oracles | None = None
    identities: Mapping[str, str] = field(default_factory=dict)  # configured name -> what its profile is, in short
    board: str = ""  # the board the profiles are of
    sm_count: int | None = None
    copy_bytes: Mapping[str, int] = field(default_factory=dict)  # configured name -> device memory of one instance, where profiled

    def steerable(self, seen: Observation) -> Mapping[str, str]:
        """``profiled``, less the models that are of a kind that can only be watched."""
        return {name: of for name, of in self.profiled.items() if name not in seen.models or not seen.models[name].left_alone}


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
        knowledge: Knowledge,
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
        self.carry = Carry()
        self.shares: Path = config.shares
        self.triton_of = {model.name: model.triton for model in config.model}
        self.mode = Mode(config.loop.mode)
        self._acting: asyncio.Task[Outcome] | None = None
        self._step: Step | None = None  # of the task
        self._copies = SecondCopies(knowledge.copy_bytes)
        self._come = Outcome()  # what came of a step, until a tick has been finished with it

    async def tick(self, now_s: float) -> Tick:
        """One turn at ``now_s`` (a monotonic clock)."""
        watch, carry, knowledge = Stopwatch(), self.carry, self.knowledge
        outcome = self._arrived()
        seen = await self.sources.observe(now_s)
        watch.lap("observe")
        proofs, view = self._proven(seen, outcome)
        watch.lap("prove")
        window = between(carry.seen, seen)
        watch.lap("window")
        expects = knowledge.oracles.expects if knowledge.oracles else None
        wall_s = self.wall_clock()
        profiled = knowledge.steerable(view)
        load, belief = estimate(view, window, carry.belief, config=self.config, profiled=profiled, oracle=expects, wall_s=wall_s)
        watch.lap("estimate")
        held = after(carry.held, outcome, load.loads, self.config.decide, now_s)
        plan, held = self._decide(load, view, held, proofs.dead, now_s)
        watch.lap("decide")
        if plan.steps and self.mode is Mode.ACT:
            self._step = plan.steps[0]
            self._acting = asyncio.create_task(self._act(plan, self._step, view), name="act")
        watch.lap("act")
        shown, shares = replace(seen, gaps=view.gaps), {n: state for n, state in proofs.states.items() if n in seen.models}
        tick = Tick(carry.number, now_s, wall_s, shown, window, load, plan, outcome, dict(watch.stages), shares)
        self.carry = Carry(_merged(carry.seen, seen), belief, held, carry.number + 1, proofs, load.loads)
        self._come = Outcome()
        self.report(tick)
        return tick

    def _proven(self, seen: Observation, outcome: Outcome) -> tuple[Proofs, Observation]:
        """What is known of every share, and the host as it may be planned with.

        Where nobody looks at the processes (a simulation), configurations are believed.
        """
        if self.sources.processes is None:
            return Proofs(), seen
        proofs = prove(
            seen,
            self.carry.loads,
            self.carry.proofs,
            outcome,
            rules=self.config.mps,
            emulated=self.config.gpu.source.startswith("emulated:"),
            ports={server.name: server.port for server in self.config.triton},
        )
        return proofs, planned_view(seen, proofs)

    async def _act(self, plan: Plan, step: Step, view: Observation) -> Outcome:
        """Carry out ``step``, the first of ``plan``, unless MPS control would give its process no share by now."""
        refused = self._copies.refused(step.model, view)
        if not refused and step.after.share is not None and view.mps is not None:
            mps = await self.sources.mps_now(view.at_s)
            if isinstance(mps, Gap):
                refused = f"MPS control does not answer, and nothing is reloaded without it: {mps.reason}"
            elif mps is not None and "FAULT" in mps.states.values():
                refused = "an MPS server is in FAULT: what is started now finds no MPS and runs without a share"
        claimed = view.models[step.model].claimed_share
        reach = {server.name: reach_of(server) for server in self.config.triton}
        return await act(
            plan,
            self.reloaders,
            self.triton_of,
            self.shares,
            refused,
            reach,
            claimed=claimed,
            processes=self.sources.processes,
            adopter=self._adopter,
        )

    @property
    def acting(self) -> asyncio.Task[Outcome] | None:
        """The step under way: its end is worth a tick at once."""
        return self._acting

    def _arrived(self) -> Outcome:
        """What came of the step set going by an earlier tick; nothing while it is still under way."""
        if self._acting is not None and self._acting.done():
            task, self._acting = self._acting, None
            self._come = task.result()
        return self._come

    def _decide(self, load: Estimate, seen: Observation, held: Held, dead: frozenset[str], now_s: float) -> tuple[Plan, Held]:
        if self._acting is not None:  # one reload at a time, and no opinion about a world that is just changing
            return Plan(now_s, Outcomes.WAIT, "a model is being reloaded", feasible=not held.gone), held
        stranger = self._stranger(seen)
        if stranger:
            return Plan(now_s, Outcomes.WAIT, stranger), held
        oracles = None if self.mode is Mode.OBSERVE else self.knowledge.oracles
        profiled = self.knowledge.steerable(seen)
        return decide(load, seen, held, config=self.config, profiled=profiled, oracles=oracles, now_s=now_s, dead=dead)

    def _stranger(self, seen: Observation) -> str:
        """A board the profiles are not of: what was measured on another one must not be planned with."""
        known = self.knowledge.sm_count
        for board in seen.boards:
            if known is not None and board.sm_count is not None and board.sm_count != known:
                return (
                    f"the profiles are of {self.knowledge.board} with {known} SMs, GPU {board.index} is {board.name} "
                    f"with {board.sm_count}: profile the models on this board"
                )
        return ""

    async def close(self) -> str:
        """Let go of a step under way, if it does not end soon: Triton finishes it by itself, or keeps the old copy.

        Returns in words what is left undone, or an empty string.
        """
        left = []
        if self._acting is not None and self._step is not None:
            await asyncio.wait([self._acting], timeout=STEP_ENDS_S)
            step, done = self._step, self._acting.done()
            if not done:
                self._acting.cancel()
                await asyncio.wait([self._acting], timeout=1.0)
                left.append(f"{step.model} is being reloaded to {step.after}: Triton finishes that by itself, or keeps the old copy")
            elif not self._acting.cancelled():
                left += [
                    f"{a.step.model} {'reloaded to' if a.ok else 'kept, not'} {a.step.after}" for a in self._acting.result().actuations
                ]
            self._acting = None
        seen, target = self.carry.seen, self.carry.held.target
        readings = {} if seen is None else seen.models
        undone = [m for m, a in target.items() if m in readings and readings[m].allocation != a]
        if undone:
            left.append(f"a plan was under way; last seen otherwise than planned: {', '.join(undone)}")
        return "; ".join(left)


def _merged(before: Observation | None, seen: Observation) -> Observation | None:
    """What the next window starts from: an observation without models (Triton was silent) would lose the counts before it."""
    return before if before is not None and before.models and not seen.models else seen
