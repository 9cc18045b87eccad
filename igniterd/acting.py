"""Steps beside the ticks: the gate just before each, the tasks that carry them out, their end.

A reload takes seconds, and for a large model minutes. One is under way at a time on each GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from igniterd.act import Adopter, SecondCopies, act
from igniterd.clients.shares import reach_of
from igniterd.clients.triton.apply import Applier, Reloader
from igniterd.config import Config
from igniterd.decide.cooldown import alike
from igniterd.decisions import ActResult, Actuation, Plan, Step
from igniterd.errors import NotNow
from igniterd.observe import Sources
from igniterd.records import Allocation, Gap, Observation
from igniterd.standing import Known
from igniterd.state.released import Released
from igniterd.states import Cause

STEP_ENDS_S = 3.0  # how long the end waits for a step under way


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A step being carried out, and the GPUs that it changes."""

    step: Step
    gpus: frozenset[str]
    task: asyncio.Task[ActResult]


class Acting:
    """The steps of one host."""

    def __init__(
        self,
        config: Config,
        sources: Sources,
        reloaders: Mapping[str, Reloader],
        copy_bytes: Mapping[str, int],
        released: Released,
        *,
        adopter: Adopter | None = None,
    ) -> None:
        """``copy_bytes``: device memory of one instance, by model; ``adopter`` gives models a
        process of their own."""
        self.config = config
        self.sources = sources
        self.reloaders = reloaders
        self.triton_of = {model.tenant: model.triton for model in config.model}
        self.names = {model.tenant: model.name for model in config.model}
        """As Triton has them."""
        self.found: dict[str, Allocation] = {}
        """Applied otherwise than was known, by a look just before a step; until a tick has taken it
        up."""
        self._adopter = adopter
        self._released = released
        self._copies = SecondCopies(copy_bytes)
        self._tasks: list[UnderWay] = []
        self._results = ActResult()  # what came of steps, until a tick has been finished with it

    def begin(self, plan: Plan, view: Observation, known: Known) -> None:
        """Set going the first step of a GPU on which none is under way."""
        for step in plan.steps:
            gpus = gpus_of_step(step, view)
            if not gpus & self.under_way.keys():
                task = asyncio.create_task(
                    self._carry_out(replace(plan, steps=(step,)), step, view, known), name="act"
                )
                self._tasks.append(UnderWay(step, gpus, task))
                return

    async def _carry_out(
        self, plan: Plan, step: Step, view: Observation, known: Known
    ) -> ActResult:
        """Carry out ``step``, the first of ``plan``, if the host lets it through at this moment."""
        try:
            refused, cause = await self.gate(step, view, known)
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
            name=self.names[step.model],
        )

    def _applier(self, triton: str) -> Applier:
        reach = next(reach_of(server) for server in self.config.triton if server.name == triton)
        return Applier(self.reloaders[triton], self.config.shares, reach, self.sources.processes)

    def no_memory(self, model: str, view: Observation, gpu: str) -> str:
        """Why all instances of ``model`` find no memory on ``gpu``, or an empty string."""
        instances = max(1, view.models[model].allocation.instances)
        return self._copies.refused(model, view, (gpu,) * instances)

    async def gate(self, step: Step, view: Observation, known: Known) -> tuple[str, Cause]:
        """What must be asked of the host just before any change: why it must not be made, or an
        empty string.

        What can be told from what is known already was told by ``decide.cooldown.why_not_now``.
        """
        if step.model in self._released.now():
            return f"{step.model}: it was given back to its owner", Cause.HELD
        refused = self._copies.refused(step.model, view, gpus_after(step, view))
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
            triton = self.sources.tritons[self.triton_of[step.model]]
            going = await triton.old_copy(self.names[step.model])
            if going:
                return going, Cause.HELD
        return await self._touched(step, view, known), Cause.BY_HAND

    async def _touched(self, step: Step, view: Observation, known: Known) -> str:
        """Which models of the step's GPU somebody else has changed since they were read, or an
        empty string."""
        server, gpus = self.triton_of[step.model], gpus_of_step(step, view)
        there = {
            n: r.allocation
            for n, r in known.last.items()
            if r.triton == server and gpus & set(r.gpus) and not r.left_alone
        }
        triton = self.sources.tritons[server]
        found = await triton.applied_now([self.names[name] for name in there])
        now = {name: found[raw] for name in there if (raw := self.names[name]) in found}
        # versions are counted in
        as_read = {
            name: replace(here, instances=there[name].instances) for name, here in now.items()
        }
        changed = {name: here for name, here in as_read.items() if not alike(here, there[name])}
        if changed:
            triton.read_configs_again()
            self.found |= changed  # also of models that no tick reads now
        return "; ".join(
            f"{name}: somebody else changed it to {here}; planning anew"
            for name, here in changed.items()
        )

    @property
    def task(self) -> asyncio.Task[ActResult] | None:
        """A step under way, one that has ended first: its end is worth a tick at once."""
        tasks = [under.task for under in self._tasks]
        return next((task for task in tasks if task.done()), tasks[0] if tasks else None)

    @property
    def steps(self) -> list[Step]:
        """The steps whose end was not taken up yet."""
        return [under.step for under in self._tasks]

    @property
    def under_way(self) -> dict[str, Step]:
        """The same, by GPU that they change."""
        return {gpu: under.step for under in self._tasks for gpu in under.gpus}

    def take_results(self) -> ActResult:
        """What came of the steps set going by earlier ticks; nothing of those still under way."""
        for under in list(self._tasks):
            if under.task.done():
                self._tasks.remove(under)
                self._results = ActResult(self._results.actuations + under.task.result().actuations)
        return self._results

    def finish_tick(self) -> None:
        """What came of steps, and what was found before them, has been taken up by a whole tick."""
        self._results, self.found = ActResult(), {}

    def unanswered(self, why: str) -> ActResult:
        """The steps that nobody waits for any more, and what came of the others."""
        left = tuple(
            Actuation(under.step, False, 0.0, why, Cause.UNANSWERED)
            for under in self._tasks
            if not under.task.done()
        )
        return ActResult((*left, *self.take_results().actuations))

    async def close(self) -> list[str]:
        """Let go of the steps under way, if they do not end soon: Triton finishes them by itself,
        or keeps the old copies.

        Returns in words what is left undone.
        """
        left = []
        tasks = [under.task for under in self._tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=STEP_ENDS_S)
            undone = [task for task in tasks if not task.done() and task.cancel()]
            if undone:
                await asyncio.wait(undone, timeout=1.0)
            left = [_left(under) for under in self._tasks]
            self._tasks = []
        return left


def gpus_after(step: Step, view: Observation) -> tuple[str, ...]:
    """The GPU of each instance once the step is made; those of now where it moves none."""
    reading = view.models[step.model]
    there = view.devices.get(reading.triton, ())
    if step.after.devices == reading.allocation.devices or not step.after.devices:
        return reading.gpu_of_each
    return tuple(there[device] for device in step.after.devices if device < len(there))


def gpus_of_step(step: Step, view: Observation) -> frozenset[str]:
    """The GPUs on which the step's model is, and will be."""
    return frozenset(gpus_after(step, view)) | set(view.models[step.model].gpus)


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
