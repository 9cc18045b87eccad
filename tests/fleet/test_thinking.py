"""Plans in their thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from igniterd.errors import ProfileError
from igniterd.fleet.cluster import Cluster
from igniterd.fleet.thinking import Thinking
from tests.fleet.fakes import FakePlanner, Fakes
from tests.waiting import until

LAB = Cluster("lab")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def thinking(fakes: Fakes, executor: ThreadPoolExecutor, timeout_s: float = 30.0) -> Thinking:
    return Thinking("lab", fakes.parts(), executor, timeout_s=timeout_s)


async def test_a_plan_is_made_and_counted(executor: ThreadPoolExecutor) -> None:
    fakes = Fakes()
    thought = thinking(fakes, executor)
    advice = await thought.advice(LAB, {}, consolidate=True)
    assert advice is not None
    assert advice.document(speaker="s", term=1, number=1, time_s=1.0)["aim"] == "consolidate"
    assert thought.statistics.outcomes == {"made": 1}
    assert sum(thought.statistics.durations.values()) == 1


async def test_a_plan_that_raises_is_said_once_counted_and_the_next_goes_on(
    executor: ThreadPoolExecutor,
) -> None:
    fakes = Fakes()
    planner = fakes.planners["lab"] = FakePlanner("lab", fails=ZeroDivisionError("x"))
    thought = thinking(fakes, executor)
    with capture_logs() as logs:
        for _ in range(3):
            assert await thought.advice(LAB, {}, consolidate=False) is None
        assert "ZeroDivisionError" in thought.trouble
        planner.fails = None
        assert await thought.advice(LAB, {}, consolidate=False) is not None
    assert thought.statistics.outcomes == {"failed": 3, "made": 1}
    assert [line["log_level"] for line in logs] == ["error", "warning", "info"]
    assert thought.trouble == ""


async def test_a_late_plan_is_not_used_and_nobody_plans_beside_it(
    executor: ThreadPoolExecutor,
) -> None:
    fakes, gate = Fakes(), threading.Event()
    planner = fakes.planners["lab"] = FakePlanner("lab", waits_for=gate)
    thought = thinking(fakes, executor, timeout_s=0.05)
    task = asyncio.create_task(thought.advice(LAB, {}, consolidate=False))
    await until(lambda: thought.trouble)
    assert not task.done()
    assert thought.statistics.since_s is not None
    gate.set()
    assert await task is None
    assert thought.statistics.outcomes == {"late": 1}
    assert len(planner.plans) == 1


async def test_knowledge_is_built_when_the_profiles_change_and_from_what_was_known(
    executor: ThreadPoolExecutor,
) -> None:
    built: list[tuple[list[str], Any]] = []

    def build(profiles: Mapping[str, Any], previous: Any) -> Any:
        built.append((sorted(profiles), previous))
        if "bad" in profiles:
            raise ProfileError("cannot be fitted")
        return len(built)

    thought = thinking(Fakes(build=build), executor)
    profiles: Any
    for profiles in ({"p": 1}, {"p": 1}, {"p": 1, "bad": 2}, {"p": 1, "q": 2}):
        await thought.advice(LAB, profiles, consolidate=False)
    assert built == [(["p"], None), (["bad", "p"], 1), (["p", "q"], 1)]
    assert thought.statistics.outcomes == {"made": 3, "unlearnt": 1}


async def test_a_fit_that_was_unlucky_is_tried_again_after_a_while(
    executor: ThreadPoolExecutor,
) -> None:
    built: list[Any] = []

    def build(profiles: Mapping[str, Any], previous: Any) -> Any:
        built.append(previous)
        unlucky = {"p"} if len(built) == 1 else set()
        return SimpleNamespace(kinds=[SimpleNamespace(again=unlucky)])

    now_s = [0.0]
    parts = Fakes(build=build).parts()
    thought = Thinking("lab", parts, executor, timeout_s=30.0, clock=lambda: now_s[0])
    profiles: Any = {"p": 1}
    for at_s in (0.0, 599.0, 600.0, 1300.0):
        now_s[0] = at_s
        assert await thought.advice(LAB, profiles, consolidate=False) is not None
    assert len(built) == 2


async def test_what_fails_beside_the_plans_is_over_when_it_works(
    executor: ThreadPoolExecutor,
) -> None:
    """It is no plan, is said once, and a plan that is made meanwhile does not hide it."""
    thought = thinking(Fakes(), executor)
    with capture_logs() as logs:
        for _ in range(3):
            thought.stumbled("looking", KeyError("x"))
            assert await thought.advice(LAB, {}, consolidate=False) is not None
            assert thought.trouble == "looking: KeyError('x')"
        thought.worked("looking")
    assert thought.trouble == ""
    assert thought.statistics.outcomes == {"made": 3}
    assert [line["log_level"] for line in logs] == ["error", "warning", "info"]
