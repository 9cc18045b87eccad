"""The order of a profile: board, every model alone, pairs; the server put back in the end, whatever
happened.

After every point the partial file is written, so that nothing is measured twice.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from igniterd.clients.environments import PLAIN, Reach
from igniterd.errors import CannotRun, Refused
from igniterd.perf.profile import CoRun
from igniterd.profiler.board import Probe, board_of, check_quiet, now_s
from igniterd.profiler.choice import Choice
from igniterd.profiler.measure import Effort, Measured, Meter
from igniterd.profiler.model import Client, Model, check_inputs, prepare_model
from igniterd.profiler.pairs import Run, co_runs
from igniterd.profiler.partial import Partial
from igniterd.profiler.points import Point, most_out_of_order
from igniterd.profiler.server import ProcessSource, Server, originals_of, restore

# points this far out of order are measured again, before the profile's own check would refuse them
SLACK = 0.05
PAIRS_PART = 0.35  # of a budget
RESTORE_S = 60.0
# a loop that executes less of the time than this does not slow its neighbours as it should
_IDLE_PART = 0.9


class Listener(Protocol):
    """Who watches."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def progress(self, done: int, total: int, left_s: float, now: str) -> None:
        """``now`` is about to be measured; ``left_s`` seconds are expected to remain."""


class Session:
    """One run of ``igniterd profile``."""

    def __init__(
        self,
        client: Client,
        probe: Probe | None,
        partial: Partial,
        path: Path,
        listener: Listener,
        *,
        index: int = 0,
        measure_link: bool = False,
        budget_s: float | None = None,
        effort: Effort | None = None,
        reach: Reach = PLAIN,
        processes: ProcessSource | None = None,
    ) -> None:
        """``partial`` is what was asked and what is known already; it is written to ``path``;
        ``reach``: how shares reach the models; ``processes``: where they can be seen, nothing is
        measured with a share that none of them has."""
        self.partial, self._path, self._listener = partial, path, listener
        self._client, self._probe = client, probe
        self._index, self._measure_link = index, measure_link
        self._effort, self._reach, self._processes = effort or Effort(), reach, processes
        self._budget_s = float("inf") if budget_s is None else budget_s
        self._deadline_s = float("inf")
        self._expected = 0
        self._did = 0

    async def run(self) -> None:
        """Measure what is missing. Raises :class:`igniterd.errors.IgniterdError`.

        Whatever happens, the server is put back; models that could not be are left in
        ``partial.originals``, in the file too.
        """
        settings, self._deadline_s = self.partial.settings, now_s() + self._budget_s
        loaded = {e.name for e in await self._client.index() if e.state == "READY"}
        if absent := [m for m in settings.models if m not in loaded]:
            raise CannotRun(
                f"{', '.join(absent)}: not loaded on Triton at {settings.triton}; loaded are "
                f"{', '.join(sorted(loaded)) or 'none'}"
            )
        await check_quiet(self._client, sorted(loaded))
        if not self.partial.originals:
            self.partial.originals = await originals_of(self._client, settings.models)
        originals = self.partial.originals
        check_inputs(self.partial)
        server = Server(
            self._client,
            originals,
            settings.shares,
            self._probe,
            mps=settings.mps,
            reach=self._reach,
            processes=self._processes,
            run=self.partial.run,
        )
        meter = Meter(self._client, self._probe, sorted(loaded - set(settings.models)))
        await self._survey()
        async with AsyncExitStack() as stack:
            models = [
                await prepare_model(
                    name, self.partial, self._client, stack, steerable=server.steerable(name)
                )
                for name in settings.models
            ]
            self._write()
            try:
                await self._measure(models, server, meter)
            finally:
                for name, size in server.copy_bytes.items():
                    self.partial.models[name].memory_bytes = size
                await asyncio.shield(self._restore())

    async def _survey(self) -> None:
        settings = self.partial.settings
        if self.partial.board is None:
            self._listener.progress(0, 1, 0.0, "the board, idle")
            self.partial.board, self.partial.notes = await board_of(
                self._probe,
                index=self._index,
                name=settings.board_name,
                sm_count=settings.sm_count,
                measure_link=self._measure_link,
            )

    async def _measure(self, models: list[Model], server: Server, meter: Meter) -> None:
        self._expected = len(models) * self.partial.settings.points
        if self.partial.settings.pairs:
            self._expected += len(models) * (len(models) - 1)
        self._did = sum(len(d.solo) for d in self.partial.models.values()) + len(
            self.partial.co_runs
        )
        with_pairs = self.partial.settings.pairs and len(models) > 1
        start_s = now_s()
        self._deadline_s -= len(models) * server.reload_s  # to put them back
        alone_until_s = start_s + (self._deadline_s - start_s) * (
            1 - PAIRS_PART if with_pairs else 1.0
        )
        choice = Choice(self.partial, self._effort, server)
        for place, model in enumerate(models):
            start_s = now_s()
            until_s = start_s + (alone_until_s - start_s) / (len(models) - place)
            await self._alone(model, server, meter, choice, until_s)
        if with_pairs:
            await self._beside(models, server, meter, choice)

    # ------------------------------------------------------------ alone

    async def _alone(
        self, model: Model, server: Server, meter: Meter, choice: Choice, until_s: float
    ) -> None:
        """The solo points of one model that are still missing."""
        done, began_s = self.partial.models[model.name], now_s()
        while (point := choice.next(model, until_s, self._deadline_s)) is not None:
            self._tell(f"{model.name} alone: batch {point[0]}, share {point[1]:.3g}")
            try:
                await self._point(model, point, server, meter, self._effort)
            except Refused as error:
                if point[0] == 1:
                    raise
                model = self._shrunk(model, point[0], error)
                continue
            self._did += 1
        self._expected -= max(0, self.partial.settings.points - len(done.solo))
        await self._put_in_order(model, server, meter)
        done.spent_s += now_s() - began_s
        self._write()

    async def _put_in_order(self, model: Model, server: Server, meter: Meter) -> None:
        """Measure points that contradict others again, with more care; leave out those that still
        do."""
        done, again = self.partial.models[model.name], set[Point]()
        careful = replace(
            self._effort, most_s=2 * self._effort.most_s, error=self._effort.error / 2
        )
        while done.solo and (point := most_out_of_order(done.measured(), SLACK)) is not None:
            where = f"{model.name}: batch {point[0]}, share {point[1]:.3g} contradicts other points"
            if point in again:
                self._listener.say(f"{where} again; leaving it out")
                done.solo = [p for p in done.solo if (p.batch, p.share) != point]
            else:
                self._listener.say(f"{where}; measuring it again")
                again.add(point)
                await self._point(model, point, server, meter, careful)

    def _shrunk(self, model: Model, refused: int, error: Refused) -> Model:
        """The model without batches from ``refused`` on."""
        done = self.partial.models[model.name]
        done.most_batch = most = max(b for b in model.span.batches if b < refused)
        done.solo = [p for p in done.solo if p.batch <= most]
        self._listener.say(
            f"{model.name}: a batch of {refused} was refused ({error}); profiling up to {most}"
        )
        return self._allowed(model)

    def _allowed(self, model: Model) -> Model:
        """The model without the batches that it refused."""
        most = self.partial.models[model.name].most_batch or model.span.max_batch
        return replace(model, span=model.span.within(most))

    async def _point(
        self, model: Model, point: Point, server: Server, meter: Meter, effort: Effort
    ) -> None:
        """Measure one point and keep it, in place of an earlier measurement of the same."""
        batch, share = point
        await server.apply(
            model.name, share if server.steerable(model.name) else None, model.span.max_batch
        )
        loads = [(model.requests, batch)]
        measured = await meter.measure_undisturbed(loads, effort, self._listener.say)
        found = measured.solo_point(batch, share)
        done = self.partial.models[model.name]
        done.solo = [p for p in done.solo if (p.batch, p.share) != point] + [found]
        self._write()

    # ------------------------------------------------------------ beside others

    async def _beside(
        self, models: list[Model], server: Server, meter: Meter, choice: Choice
    ) -> None:
        """The co-runs of pairs that are still missing, while there is time."""
        named = {m.name: m for m in models if server.steerable(m.name)}
        board = self.partial.board
        if left_out := [m.name for m in models if m.name not in named]:
            why = (
                "runs inside tritonserver, without a share of its own"
                if self.partial.settings.mps
                else "no share without MPS"
            )
            self._listener.say(f"{', '.join(left_out)}: {why}; its pairs are not measured")
        if board is None or len(named) < 2:
            return
        points = {name: choice.settings(self._allowed(m)) for name, m in named.items()}
        wanted = co_runs(points, even=bool(self.partial.even))
        have = {_key(run) for run in self.partial.co_runs}
        todo = [
            run for run in wanted if frozenset((t.model, t.batch, t.share) for t in run) not in have
        ]
        self._expected = self._did + len(todo)
        began_s, longest_s = (
            now_s(),
            self._effort.warm_s + self._effort.most_s + 2 * server.reload_s,
        )
        for run in todo:
            if now_s() + longest_s > self._deadline_s:
                self._listener.say(
                    f"out of time: {len(wanted) - len(self.partial.co_runs)} of {len(wanted)} "
                    "co-runs are missing"
                )
                break
            start_s = now_s()
            self._tell(
                "together: "
                + " | ".join(f"{t.model} batch {t.batch} share {t.share:.3g}" for t in run)
            )
            await self._together(run, named, server, meter)
            self._did += 1
            longest_s = max(longest_s, now_s() - start_s)
        self.partial.pairs_spent_s += now_s() - began_s
        self._write()

    async def _together(
        self, run: Run, named: dict[str, Model], server: Server, meter: Meter
    ) -> None:
        for tenant in sorted(run, key=lambda t: t.share):  # who shrinks goes first
            await server.apply(tenant.model, tenant.share, named[tenant.model].span.max_batch)
        loads = [(named[t.model].requests, t.batch) for t in run]
        measured = await meter.measure_undisturbed(loads, self._effort, self._listener.say)
        if self._faster_beside(run, measured):
            measured = await meter.measure_undisturbed(
                loads, replace(self._effort, most_s=2 * self._effort.most_s), self._listener.say
            )
        if helped := self._faster_beside(run, measured):
            self._listener.say(
                f"{helped} was faster beside another than alone, twice: this co-run is left out"
            )
            return
        for tenant, part in zip(run, measured.utilisation, strict=True):
            if part < _IDLE_PART:
                self._listener.say(
                    f"{tenant.model} executed only {100 * part:.0f} % of the time: requests do "
                    "not reach it fast enough, and what it "
                    "costs its neighbour is measured too low"
                )
        self.partial.co_runs.append(measured.co_run(run))
        self._write()

    def _faster_beside(self, run: Run, measured: Measured) -> str:
        """The tenant that was faster than alone by more than noise, if any: something was measured
        wrong."""
        for tenant, mean in zip(run, measured.means, strict=True):
            alone = [
                p.latency_ms
                for p in self.partial.models[tenant.model].solo
                if (p.batch, p.share) == (tenant.batch, tenant.share)
            ]
            if alone and mean.ms < alone[0] * (1 - SLACK):
                return tenant.model
        return ""

    # ------------------------------------------------------------ around it

    async def _restore(self) -> None:
        """Everything back as it was; what could not be stays in the partial file."""
        self._listener.progress(
            self._did, max(1, self._expected), 0.0, "putting the server back as it was"
        )
        failed = await restore(
            self._client,
            self.partial.originals,
            run=self.partial.run,
            shares=self.partial.settings.shares,
            patience_s=RESTORE_S,
            say=self._listener.say,
        )
        self.partial.originals = {
            name: config for name, config in self.partial.originals.items() if name in failed
        }
        self._write()
        for name, why in failed.items():
            self._listener.say(f"{name} could not be put back: {why}")

    def _tell(self, now: str) -> None:
        spent = [
            d.spent_s / len(d.solo) for d in self.partial.models.values() if d.spent_s and d.solo
        ]
        each_s = sum(spent) / len(spent) if spent else 3.0
        left_s = min(each_s * (self._expected - self._did), self._deadline_s - now_s())
        self._listener.progress(self._did, max(1, self._expected), max(0.0, left_s), now)

    def _write(self) -> None:
        self.partial.write(self._path)


def _key(run: CoRun) -> frozenset[tuple[str, int, float]]:
    return frozenset((t.model, t.batch, t.share) for t in run.tenants)
