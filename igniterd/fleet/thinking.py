"""Plans off the event loop: one at a time, each with a deadline, and what came of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from igniterd.edgelog import EdgeLogger
from igniterd.errors import IgniterdError
from igniterd.fleet.cluster import Cluster
from igniterd.fleet.parts import Advice, Parts
from igniterd.perf import Profile

T = TypeVar("T")

_FIT_AGAIN_S = 600.0
DURATIONS_S = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper ends of the histogram of durations."""


@dataclass(slots=True)
class ThinkingStatistics:
    """Since the start. ``outcomes``: made, failed, late, unlearnt (there was no knowledge)."""

    outcomes: Counter[str] = field(default_factory=Counter)
    durations: Counter[float] = field(default_factory=Counter)  # by the upper end of a bucket
    total_s: float = 0.0
    since_s: float | None = None  # when the plan under way began, by the clock


class Thinking:
    """One cluster's plans."""

    def __init__(
        self,
        cluster: str,
        parts: Parts,
        executor: Executor,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``executor`` has one thread: of all clusters one is planned at a time."""
        self.statistics = ThinkingStatistics()
        self._troubles: dict[str, str] = {}  # by what is wrong, in words
        self._build, self._planner = parts.build, parts.planner(cluster)
        self._executor, self._timeout_s, self._clock = executor, timeout_s, clock
        self._knowledge: Any = None
        self._learnt: frozenset[str] | None = None
        self._learnt_s = float("-inf")
        self._cluster = cluster
        self._once = EdgeLogger("fleet")

    @property
    def trouble(self) -> str:
        """Why no plan comes to be now; empty where one does."""
        return "; ".join(self._troubles.values())

    async def advice(
        self, cluster: Cluster, profiles: Mapping[str, Profile], *, consolidate: bool
    ) -> Advice | None:
        """What to do; None where no plan came of it, which is said once and counted."""
        if not await self._learn(profiles):
            return None
        knowledge = self._knowledge
        self.statistics.since_s = self._clock()
        try:
            return await self._planned(
                self._in_thread(
                    lambda: self._planner.plan(cluster, knowledge, consolidate=consolidate)
                )
            )
        finally:
            self.statistics.since_s = None

    async def _learn(self, profiles: Mapping[str, Profile]) -> bool:
        """Each fit has a deadline of its own, and may have been unlucky: it is tried again."""
        names = frozenset(profiles)
        again = any(kind.again for kind in getattr(self._knowledge, "kinds", ()))
        rests = not again or self._clock() - self._learnt_s < _FIT_AGAIN_S
        if names == self._learnt and rests:
            return True
        previous = self._knowledge
        try:
            self._knowledge = await self._in_thread(lambda: self._build(profiles, previous))
        except Exception as error:
            self.failed("unlearnt", "profiles", error)
            return False
        self._learnt, self._learnt_s = names, self._clock()
        self.worked("profiles")
        return True

    async def _planned(self, planning: asyncio.Future[Advice]) -> Advice | None:
        began_s = self._clock()
        await asyncio.wait({planning}, timeout=self._timeout_s)
        late = not planning.done()
        if late:
            why = f"a plan takes longer than {self._timeout_s:g} s (fleet.plan_timeout_s)"
            self._say("plan", why)
        try:
            advice = await planning  # a thread cannot be stopped, and nobody may plan beside it
        except Exception as error:
            self.failed("failed", "plan", error)
            return None
        self._count_time(self._clock() - began_s)
        if late:
            self.statistics.outcomes["late"] += 1
            return None
        self.statistics.outcomes["made"] += 1
        self.worked("plan")
        return advice

    def failed(self, outcome: str, what: str, error: Exception) -> None:
        """Count a plan that did not come to be, and say it."""
        self.statistics.outcomes[outcome] += 1
        self.stumbled(what, error)

    def stumbled(self, what: str, error: Exception) -> None:
        """Say it, and where a mistake is, once."""
        ours = isinstance(error, IgniterdError)
        if not ours and not self._once.failing(what):  # a mistake: where it is, once
            structlog.get_logger("igniterd").error(
                "a mistake in planning", source="fleet", cluster=self._cluster, exc_info=error
            )
        self._say(what, f"{what}: {error if ours else repr(error)}")

    def worked(self, what: str) -> None:
        """What was wrong with it is over."""
        self._troubles.pop(what, None)
        self._once.worked(what, cluster=self._cluster)

    def _say(self, what: str, why: str) -> None:
        self._troubles[what] = why
        self._once.failed(what, why, cluster=self._cluster)

    def _count_time(self, took_s: float) -> None:
        statistics = self.statistics
        statistics.total_s += took_s
        bucket = next((end for end in DURATIONS_S if took_s <= end), float("inf"))
        statistics.durations[bucket] += 1

    def _in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, function)
