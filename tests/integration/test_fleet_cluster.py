"""A cluster from trouble to its end, all of it real programs but the silicon and the route.

No latency is judged here (see test_daemon.py), and no time but a tick's beside the interval of
ticks; what was measured is printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from igniterd.lab.load.load import RequestLog
from tests.integration.fleet_hosts import (
    CALM,
    CLUSTER,
    HOME,
    LIKE,
    SLOS,
    TROUBLE,
    FleetCluster,
    OneHost,
    fleet_cluster,
)
from tests.integration.fleet_hosts import (
    HOSTS as NAMES,
)
from tests.waiting import cancelled, until, until_answer

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

HOSTS = set(NAMES)
PREFIX = f"igniterd/v1/{CLUSTER}/"
HINT_TICKS = 3
INTERVAL_S = 1.0  # of ticks: those that waited for the broker would not keep it
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
        await cancelled(task)


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


async def check_taken_over(cluster: FleetCluster) -> None:
    """No daemon takes what the rebalance changed for somebody's change by hand."""
    for one in cluster.hosts.values():
        state = await one.state()
        assert not [m["name"] for m in state["models"] if m["state"] == "by_hand"]
        assert one.daemon
        said = [line.get("reason", "") for line in one.daemon.said()]
        assert not [each for each in said if "somebody else changed it" in each]
    moves = (await cluster.hosts["gpu-b"].state())["last_moves"]
    assert [m["model"] for m in moves if m["kind"] == "rebalance"] == ["near"]


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
    assert moves_of(rebalance) == [("medium", "gpu-a", "gpu-b")]
    # a look at the same says the same

    async def looked() -> list[tuple[str, str, str]]:
        status, said, wrong = await cluster.command(
            "--config", str(cluster.config), "--once", "--format", "json"
        )
        assert status == 0, wrong
        return moves_of(json.loads(said))

    await until_answer(looked, lambda moves: moves == moves_of(rebalance), LONG_S)
    # carried out at once, while the daemon of gpu-a is still bringing its models to its plan
    began_s = time.monotonic()
    status, said, wrong = await cluster.command("apply", "--config", str(cluster.config), "--yes")
    tell(f"carried out in {time.monotonic() - began_s:.1f} s")
    assert status == 0, said + wrong
    assert "all is done" in said
    after = await until_all_hold(cluster)
    assert after["gpu-a"] == {"heavy", "tiny"}
    assert after["gpu-b"] == {"near", "medium"}
    await check_taken_over(cluster)

    def nothing_more() -> bool:
        last = heard.of(f"{PREFIX}rebalance")[-1][1]
        return moves_of(last) == [] and bool(last["feasible"])

    await until(nothing_more, LONG_S)
    log = RequestLog.read(cluster.traffic.log)
    assert log.failed == 0, set(log.error)
    assert len(log) > 2000


# ------------------------------------------------------------ what goes wrong, on the same hosts


def is_at(tick: int, state: dict[str, Any]) -> bool:
    return bool(state["tick"] >= tick)


async def some_ticks(cluster: FleetCluster, count: int = 5) -> None:
    """Wait until every daemon has made so many."""
    before = {one.name: (await one.state())["tick"] for one in cluster.hosts.values()}
    for one in cluster.hosts.values():
        assert one.daemon
        await one.daemon.until(partial(is_at, before[one.name] + count), LONG_S)


async def tick_time(one: OneHost) -> tuple[float, float]:
    """Seconds spent in ticks, all stages, and how many ticks, since its start."""
    assert one.daemon
    _, page = await one.daemon.text("/metrics")
    spent_s = ticks = 0.0
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("igniterd_control_loop_duration_seconds_sum{"):
            spent_s += float(value)
        elif name.startswith("igniterd_control_loop_duration_seconds_count{"):
            ticks = max(ticks, float(value))
    return spent_s, ticks


async def until_known(
    cluster: FleetCluster, condition: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Wait until ``igniterd fleet`` knows what is asked."""
    return await until_answer(cluster.known, lambda k: k and condition(k), LONG_S, every_s=0.2)


def all_used(known: dict[str, Any], since: dict[str, int] | None = None) -> bool:
    """Whether every host is planned with, by a newer tick than ``since`` says."""
    hosts = known["hosts"]
    return hosts.keys() == HOSTS and all(
        hosts[name]["tick"] > tick for name, tick in (since or {}).items()
    )


async def ticks_now(cluster: FleetCluster) -> dict[str, int]:
    return {one.name: (await one.state())["tick"] for one in cluster.hosts.values()}


async def test_ticks_go_on_whatever_the_broker_does_and_all_is_said_again(
    cluster: FleetCluster,
) -> None:
    line, heard = cluster.to_broker, cluster.heard
    before = {name: await tick_time(one) for name, one in cluster.hosts.items()}
    line.delay_s = 0.7
    await some_ticks(cluster)
    line.delay_s = 0.0
    line.passed.clear()  # a partition: nobody is told
    known = await until_known(cluster, lambda k: not k["hosts"])
    assert known["left_out"].keys() == HOSTS
    assert {why.partition(":")[0] for why in known["left_out"].values()} == {"offline"}
    await some_ticks(cluster)
    line.passed.set()
    await until_known(cluster, partial(all_used, since=await ticks_now(cluster)))
    await cluster.broker.stop()
    await some_ticks(cluster)
    count = len(heard.heard)
    await cluster.broker.start()
    await until_known(cluster, partial(all_used, since=await ticks_now(cluster)))
    for name in HOSTS:
        await until(partial(heard.of, f"{PREFIX}{name}/state", count), LONG_S)
    await until(lambda: heard.of(f"{PREFIX}rebalance", count), LONG_S)
    for name, one in cluster.hosts.items():
        spent_s, ticks = (b - a for a, b in zip(before[name], await tick_time(one), strict=True))
        tell(f"{name}: {1e3 * spent_s / ticks:.0f} ms a tick, of {ticks:.0f}")
        assert spent_s / ticks < INTERVAL_S


async def test_a_daemon_that_is_killed_is_left_out_and_what_it_says_then_replaces_all(
    cluster: FleetCluster,
) -> None:
    """It comes back with one model, whose new SLO no GPU holds."""
    one, heard = cluster.hosts["gpu-c"], cluster.heard
    assert one.daemon
    run = (await until_known(cluster, all_used))["hosts"]["gpu-c"]["run"]
    count = len(heard.heard)
    os.kill(one.daemon.program.pid, signal.SIGKILL)
    known = await until_known(cluster, lambda k: "gpu-c" in k["left_out"])
    assert known["left_out"]["gpu-c"].startswith("offline")

    def advised() -> dict[str, Any]:
        said = heard.of(f"{PREFIX}rebalance", count)
        return said[-1][1] if said else {}

    await until(lambda: "gpu-c" in [h["host"] for h in advised().get("left_out", ())], LONG_S)
    await one.stop()
    config = one.config.read_text()
    head, *models = config.split("[[model]]")
    (far,) = (m for m in models if 'name = "far"' in m)
    slo_ms = SLOS[LIKE["far"]]
    one.config.write_text(
        f"{head}[[model]]{far.replace(f'slo_p99_ms = {slo_ms}', f'slo_p99_ms = {slo_ms / 5}')}"
    )
    await one.start()
    known = await until_known(cluster, lambda k: k["hosts"].get("gpu-c", {}).get("run") != run)
    await until(
        lambda: any(
            (each["host"], each["model"]) == ("gpu-c", "far")
            for each in advised().get("unsolved", ())
        ),
        LONG_S,
    )
    last = heard.of(f"{PREFIX}gpu-c/state")[-1][1]
    assert [m["name"] for m in last["models"]] == ["far"]


async def test_without_broker_and_fleet_daemons_decide_and_no_request_fails(
    cluster: FleetCluster,
) -> None:
    assert cluster.traffic
    assert cluster.fleet
    one = cluster.hosts["gpu-a"]
    assert one.daemon
    await cluster.broker.stop()
    await cluster.fleet.stop()

    def of_tiny(state: dict[str, Any]) -> Any:
        return next(m["applied"] for m in state["models"] if m["name"] == "tiny")

    # one that holds wherever the tests before have left the models
    await cluster.load("calm again", CALM)
    before = of_tiny(await one.daemon.until(all_hold, LONG_S))
    await cluster.load("shift", CALM | {"heavy": 96.0, "tiny": 320.0})
    await one.daemon.until(lambda s: all_hold(s) and of_tiny(s) != before, LONG_S)
    log = await cluster.traffic.stop()
    assert log.failed == 0, set(log.error)
