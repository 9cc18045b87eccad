"""A cluster from trouble to its end, all of it real programs but the silicon and the route.

No latency is judged here (see test_daemon.py), and times only generously; what was measured is
printed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.fleet_hosts import (
    CLUSTER,
    HOME,
    TROUBLE,
    FleetCluster,
    OneHost,
    fleet_cluster,
)
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

PREFIX = f"igniterd/v1/{CLUSTER}/"
HINT_TICKS = 3
ANSWER_S = 15.0  # aimed at are 5; this machine has other work too
LONG_S = 90.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FleetCluster]:
    async with fleet_cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@asynccontextmanager
async def ticks_of(one: OneHost) -> AsyncIterator[dict[int, dict[str, Any]]]:
    """Every state of a host that is seen meanwhile, by its tick."""
    seen: dict[int, dict[str, Any]] = {}

    async def look() -> None:
        while True:
            if state := await one.state():
                seen.setdefault(state["tick"], state)
            await asyncio.sleep(0.2)

    task = asyncio.create_task(look())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def tell(words: str) -> None:
    """What was measured: pytest -rP shows it."""
    sys.stdout.write(f"{words}\n")


def all_hold(state: dict[str, Any]) -> bool:
    """Whether the daemon has settled, with a share for all and every SLO held."""
    here = [m for m in state["models"] if m["seen"]]
    return (
        state["decision"]["outcome"] == "hold"
        and bool(here)
        and all(m.get("feasible") and m["applied"]["share"] is not None for m in here)
    )


def served(state: dict[str, Any]) -> set[str]:
    return {m["name"] for m in state["models"] if m["seen"]}


async def until_all_hold(cluster: FleetCluster) -> dict[str, set[str]]:
    """Wait for that of every host; the models of each."""
    found = {}
    for one in cluster.hosts.values():
        assert one.daemon
        found[one.name] = served(await one.daemon.until(all_hold, LONG_S))
    return found


def moves_of(rebalance: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What moves from where to where."""
    return [(m["model"], m["from"]["host"], m["to"]["host"]) for m in rebalance.get("moves", ())]


def tick_at(ticks: dict[int, dict[str, Any]], time_s: float) -> int:
    """The tick that was the last at a time (Unix)."""
    return max(number for number, state in ticks.items() if state["time_s"] <= time_s + 1e-3)


async def test_a_host_that_cannot_hold_an_slo_is_relieved_and_no_request_fails(
    cluster: FleetCluster,
) -> None:
    assert cluster.traffic
    heard, overloaded = cluster.heard, cluster.hosts["gpu-a"]
    before = await until_all_hold(cluster)
    assert before == {h: {m for m in HOME if HOME[m] == h} for h in cluster.hosts}
    await until(lambda: heard.of(f"{PREFIX}rebalance"))
    assert moves_of(heard.of(f"{PREFIX}rebalance")[-1][1]) == []
    async with ticks_of(overloaded) as ticks:
        await cluster.load("trouble", TROUBLE)
        hints = f"{PREFIX}gpu-a/hint"

        def sheds() -> list[dict[str, Any]]:
            return [
                event
                for _, topic, event in heard.heard
                if topic == hints and event and event["data"]["kind"] == "shed"
            ]

        def rebalances() -> list[tuple[float, dict[str, Any]]]:
            return [(at, d) for at, d in heard.of(f"{PREFIX}rebalance") if d.get("moves")]

        await until(lambda: sheds() and rebalances(), LONG_S)
        hint, (answered_s, rebalance) = sheds()[0], rebalances()[0]
        said_s = datetime.fromisoformat(hint["time"]).timestamp()
        await until(lambda: ticks and max(s["time_s"] for s in ticks.values()) > said_s)
    # its own decision, the hint
    decided = min(n for n, state in ticks.items() if not state["decision"]["feasible"])
    hinted = tick_at(ticks, said_s)
    assert hint["data"]["model"] == "heavy"
    assert hinted - decided <= HINT_TICKS
    # the state that shows it, the rebalance
    shown_s = next(
        at_s
        for at_s, state in heard.of(f"{PREFIX}gpu-a/state")
        if not state.get("decision", {}).get("feasible", True)
    )
    tell(f"hint after {hinted - decided} ticks, rebalance after {answered_s - shown_s:.1f} s")
    assert answered_s - shown_s <= ANSWER_S
    assert moves_of(rebalance) == [("medium", "gpu-a", "gpu-b")]
    # a look at the same says the same
    status, said, wrong = await cluster.command(
        "--config", str(cluster.config), "--once", "--format", "json"
    )
    assert status == 0, wrong
    once = json.loads(said)
    assert moves_of(once) == moves_of(rebalance)
    # carried out at once, while the daemon of gpu-a is still bringing its models to its plan
    began_s = time.monotonic()
    status, said, wrong = await cluster.command("apply", "--config", str(cluster.config), "--yes")
    tell(f"carried out in {time.monotonic() - began_s:.1f} s")
    assert status == 0, said + wrong
    assert "all is done" in said
    after = await until_all_hold(cluster)
    assert after["gpu-a"] == {"heavy", "tiny"}
    assert after["gpu-b"] == {"near", "medium"}
    await until(lambda: moves_of(heard.of(f"{PREFIX}rebalance")[-1][1]) == [], LONG_S)
    assert heard.of(f"{PREFIX}rebalance")[-1][1]["feasible"]
    log = await cluster.traffic.stop()
    assert log.failed == 0, set(log.error)
    assert len(log) > 2000
