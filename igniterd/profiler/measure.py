"""Measure closed loops: the mean service time of each, and what the board did meanwhile.

The service time of an execution is what Triton's ``batch_stats`` give for exactly that batch size:
compute_input + compute_infer + compute_output, over the executions. It holds everything between the
moment the batch leaves the queue and the moment its answers are ready, copies in both directions
included, and no queueing. The daemon compares its predictions with the same figure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from igniterd.errors import CannotRun, IgniterdError, NotNow, Refused, Unreachable
from igniterd.perf.profile import CoRun, CoTenant, SoloPoint
from igniterd.profiler.board import Drawn, Probe, now_s
from igniterd.profiler.drive import ClosedLoop, Inferring, Source, busy
from igniterd.profiler.pairs import Run
from igniterd.profiler.steady import Mean, Slice, mean_of
from igniterd.records import BatchStat, ModelReading

POLL_S = 0.08
_COUNTED_S = 2.0
"""Triton answers a request before it counts it: on a busy host by some ms. Waited for so long."""
_TRIES = 3
_SHALLOW, _DEEP = 2, 4
_LONG_MS = 20.0  # executions longer than this leave time enough to bring the next request


class Reading(Inferring, Protocol):
    """What is asked of a Triton client."""

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]: ...


class Disturbed(IgniterdError):
    """Somebody else used the server meanwhile: the measurement is void."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: to the relative standard error ``error``, at least ``least`` executions
    and ``least_s`` seconds, and once there are that many, at most ``most_s``. ``patience_s`` is the
    longest wait for an execution to end."""

    error: float = 0.004
    least: int = 8
    warm_s: float = 0.25
    warm: int = 3
    least_s: float = 0.6
    most_s: float = 2.0
    patience_s: float = 60.0

    def expected(self, service_ms: float, cv: float) -> tuple[float, float]:
        """(seconds, relative error) of measuring executions of ``service_ms`` whose dispersion is
        ``cv``."""
        service_s = service_ms / 1e3
        count = max(
            self.least,
            min((cv / self.error) ** 2, self.most_s / service_s),
            self.least_s / service_s,
        )
        return max(self.warm_s, (self.warm + 1) * service_s) + count * service_s, cv / count**0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: the mean of each loop, in order, and the fraction of the time each
    executed."""

    means: tuple[Mean, ...]
    utilisation: tuple[float, ...]
    drawn: Drawn
    took_s: float

    def solo_point(self, batch: int, share: float) -> SoloPoint:
        """The one model that ran, as a point of a profile."""
        mean, activity = self.means[0], self.drawn.activity
        moved = activity.pcie_bytes_per_s
        return SoloPoint(
            batch=batch,
            share=share,
            latency_ms=mean.ms,
            latency_cv=min(10.0, mean.cv),
            latency_error=min(1.0, mean.error),
            dram_pct=activity.dram_pct,
            sm_pct=activity.sm_pct,
            pcie_bytes_per_ms=None if moved is None else moved / 1e3,
            power_w=self.drawn.power_w,
            clock_mhz=self.drawn.clock_mhz,
        )

    def co_run(self, run: Run) -> CoRun:
        """The two models of ``run``, as a co-run of a profile."""
        tenants = tuple(
            CoTenant(
                model=setting.model,
                batch=setting.batch,
                share=setting.share,
                latency_ms=mean.ms,
                latency_error=min(1.0, mean.error),
            )
            for setting, mean in zip(run, self.means, strict=True)
        )
        return CoRun(tenants=tenants, power_w=self.drawn.power_w, clock_mhz=self.drawn.clock_mhz)


@dataclass(slots=True)
class _Seen:
    """One loop's counters so far."""

    model: str
    batch: int
    last: dict[int, BatchStat] | None = None
    slices: list[Slice] = field(default_factory=list)
    total: int = 0
    """Executions since the first reading."""

    def update(self, reading: ModelReading) -> None:
        """Take over a reading. Raises :class:`Disturbed` for counters that somebody else moved."""
        now = {b.batch_size: b for b in reading.batches}
        last, self.last = self.last, now
        if last is None:
            return  # where the counters stood before
        odd = [
            size
            for size, stat in now.items()
            if size != self.batch and stat.count != _count(last.get(size))
        ]
        if odd:
            raise Disturbed(
                f"model {self.model}: batches of {odd[0]} were executed that igniterd did not send"
            )
        before, after = last.get(self.batch), now.get(self.batch)
        count, spent = _count(after) - _count(before), _spent_ns(after) - _spent_ns(before)
        if count < 0 or spent < 0:
            raise Disturbed(f"model {self.model} was reloaded by somebody else")
        self.total += count
        self.slices.append(Slice(count, spent))

    @property
    def count(self) -> int:
        return sum(s.count for s in self.slices)

    @property
    def busy_ns(self) -> int:
        return sum(s.total_ns for s in self.slices)


class Meter:
    """Measures on one server. ``bystanders`` are its other models: a measurement during which one
    of them worked is void."""

    def __init__(
        self, client: Reading, probe: Probe | None, bystanders: Sequence[str] = ()
    ) -> None:
        self._client, self._probe, self._bystanders = client, probe, tuple(bystanders)

    async def measure_undisturbed(
        self, loads: Sequence[tuple[Source, int]], effort: Effort, say: Callable[[str], None]
    ) -> Measured:
        """:meth:`measure`, again where somebody else used the server. Raises :class:`CannotRun`
        after the third time."""
        for _ in range(_TRIES - 1):
            try:
                return await self.measure(loads, effort)
            except Disturbed as error:
                say(f"{error}; measuring this again")
        try:
            return await self.measure(loads, effort)
        except Disturbed as error:
            raise CannotRun(f"{error}: a profile needs the server to itself") from error

    async def measure(self, loads: Sequence[tuple[Source, int]], effort: Effort) -> Measured:
        """Closed loops of ``loads`` (requests, batch) at once until each mean is known.

        Raises :class:`Disturbed`; :class:`Refused` with the server's words when a batch is refused;
        :class:`Unreachable`.
        """
        began_s = now_s()
        seen = [_Seen(requests.feed.model, batch) for requests, batch in loads]
        others = await self._read(seen, {})
        loops = [ClosedLoop(self._client, requests, batch, _SHALLOW) for requests, batch in loads]
        async with busy(loops):
            await self._warm(loops, seen, others, effort)
            for loop, each in zip(loops, seen, strict=True):
                mean_ms = each.busy_ns / max(1, each.count) / 1e6
                loop.deepen(_SHALLOW if mean_ms > _LONG_MS else _DEEP)
                each.slices.clear()
            if self._probe is None:
                means, span_s = await self._settle(loops, seen, others, effort)
                drawn = Drawn()
            else:
                async with self._probe.watch() as span:
                    means, span_s = await self._settle(loops, seen, others, effort)
                drawn = span.result
        shares = tuple(min(1.0, each.busy_ns / 1e9 / span_s) for each in seen)
        await self._counted(loops, seen)
        return Measured(means, shares, drawn, now_s() - began_s)

    async def _counted(self, loops: Sequence[ClosedLoop], seen: Sequence[_Seen]) -> None:
        """Wait until every answered request is counted: counted later, it would pass for somebody
        else's in the next measurement."""
        until_s = now_s() + _COUNTED_S
        while now_s() < until_s:
            await self._read(seen, {})
            if all(each.total >= loop.answered for loop, each in zip(loops, seen, strict=True)):
                return
            await asyncio.sleep(POLL_S)

    async def _warm(
        self,
        loops: Sequence[ClosedLoop],
        seen: Sequence[_Seen],
        others: dict[str, int],
        effort: Effort,
    ) -> None:
        """Until every loop has had its first executions: those do not count."""
        began_s = now_s()
        while True:
            await self._look(loops, seen, others, began_s, effort)
            if now_s() - began_s >= effort.warm_s and all(
                each.count >= effort.warm for each in seen
            ):
                return

    async def _settle(
        self,
        loops: Sequence[ClosedLoop],
        seen: Sequence[_Seen],
        others: dict[str, int],
        effort: Effort,
    ) -> tuple[tuple[Mean, ...], float]:
        """The means, and the seconds they were taken over."""
        began_s = now_s()
        while True:
            await self._look(loops, seen, others, began_s, effort)
            spent_s = now_s() - began_s
            means = [mean_of(each.slices) for each in seen]
            known = [m for m in means if m is not None and m.count >= effort.least]
            if len(known) < len(seen) or spent_s < effort.least_s:
                continue
            if spent_s >= effort.most_s or all(m.error <= effort.error for m in known):
                return tuple(known), spent_s

    async def _look(
        self,
        loops: Sequence[ClosedLoop],
        seen: Sequence[_Seen],
        others: dict[str, int],
        since_s: float,
        effort: Effort,
    ) -> None:
        await asyncio.sleep(POLL_S)
        for loop in loops:
            if loop.failure is not None:
                raise loop.failure
        others.update(await self._read(seen, others))
        waited_s = now_s() - since_s
        if waited_s > effort.patience_s and any(each.count == 0 for each in seen):
            slow = next(each for each in seen if each.count == 0)
            raise Unreachable(
                f"model {slow.model}: no batch of {slow.batch} was executed in {waited_s:.0f} s"
            )

    async def _read(self, seen: Sequence[_Seen], others: Mapping[str, int]) -> dict[str, int]:
        """Read the counters into ``seen``; the bystanders' counts are returned and compared with
        ``others``."""
        readings = await self._client.read_models(
            [*(each.model for each in seen), *self._bystanders]
        )
        for each in seen:
            reading = readings[each.model]
            if not isinstance(reading, ModelReading):
                raise Refused(f"model {each.model}: {reading}")
            each.update(reading)
        counts = {
            name: r.inference_count
            for name in self._bystanders
            if isinstance(r := readings[name], ModelReading)
        }
        moved = [name for name, count in counts.items() if count != others.get(name, count)]
        if moved:
            raise Disturbed(f"model {moved[0]} of the same server was used meanwhile")
        return counts


def _count(stat: BatchStat | None) -> int:
    return 0 if stat is None else stat.count


def _spent_ns(stat: BatchStat | None) -> int:
    return (
        0
        if stat is None
        else stat.compute_input_ns + stat.compute_infer_ns + stat.compute_output_ns
    )
