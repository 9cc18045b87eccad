"""Of several ``igniterd fleet`` at a real mosquitto one speaks for a cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from igniterd.fleet.service import FleetService
from igniterd.lab.programs.process import Running, running
from igniterd.lab.services import broker_host
from tests.fleet.fakes import Fakes, a_state
from tests.integration.fleet_service import (
    HINT,
    Cluster,
    cluster_at,
    envelope,
    lab,
    serving,
    settings,
)
from tests.integration.secured_broker import line_to
from tests.waiting import cancelled, until, until_ended

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

SCRIPT = """
import asyncio, sys
from igniterd.fleet.service import FleetService
from tests.fleet.fakes import Fakes
from tests.integration.fleet_service import settings
from tests.waiting import until
async def main():
    service = FleetService(settings(sys.argv[1], sys.argv[2]), Fakes().parts())
    running = asyncio.create_task(service.run())
    await until(lambda: "lab" in service.desks and service.desks["lab"].speakership.holder)
    print("KNOWS WHO SPEAKS", flush=True)
    await running
asyncio.run(main())
"""


def knows_who_speaks(program: Running) -> bool:
    """Whether it has heard a claim: one that was only then started would begin with the first."""
    return "KNOWS WHO SPEAKS" in program.log.read_text()


@asynccontextmanager
async def processes(folder: Path, url: str, *names: str) -> AsyncIterator[dict[str, Running]]:
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(
                running(
                    name,
                    [sys.executable, "-c", SCRIPT, url, name],
                    log=folder / f"{name}.log",
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                )
            )
            for name in names
        }


def who(claim: dict[str, Any]) -> str:
    """The process of a claim: igniterd-fleet-<cluster>-<name>-…"""
    return str(claim["speaker"]).split("-")[3]


async def settled(cluster: Cluster) -> str:
    """Who speaks once three claims in a row are of one speaker."""

    def same() -> bool:
        last = cluster.claims[-3:]
        return len(last) == 3 and len({(c["speaker"], c["term"], c["until"]) for c in last}) == 1

    await until(same, 60.0)
    return who(cluster.claims[-1])


async def test_of_two_started_at_once_one_speaks_and_the_other_follows_a_kill(
    tmp_path: Path,
) -> None:
    async with (
        broker_host(tmp_path) as broker,
        cluster_at(broker) as cluster,
        processes(tmp_path, broker.url, "one", "two") as both,
    ):
        first = await settled(cluster)
        await cluster.says("a")
        await cluster.says("b")
        await until(lambda: cluster.moved() == ["b"])
        assert {who(said) for said in cluster.rebalances} == {first}
        (other,) = both.keys() - {first}
        await until(lambda: knows_who_speaks(both[other]))
        both[first]._process.kill()
        await until(lambda: who(cluster.rebalances[-1]) == other)
        assert cluster.rebalances[-1]["term"] > cluster.rebalances[0]["term"]
        assert cluster.moved() == ["b"]
        assert any(c["until"] == "released" and who(c) == first for c in cluster.claims)


async def test_one_that_was_stopped_and_wakes_says_nothing_more(tmp_path: Path) -> None:
    async with (
        broker_host(tmp_path) as broker,
        cluster_at(broker) as cluster,
        processes(tmp_path, broker.url, "one", "two") as both,
    ):
        first = await settled(cluster)
        os.kill(both[first].pid, signal.SIGSTOP)
        try:
            (other,) = both.keys() - {first}
            await until(lambda: cluster.rebalances and who(cluster.rebalances[-1]) == other)
            heard = len(cluster.claims)
        finally:
            os.kill(both[first].pid, signal.SIGCONT)
        await cluster.says("a")
        await cluster.says("b")
        await until(lambda: len(cluster.claims) >= heard + 10)
        assert await settled(cluster) == other
        assert {who(said) for said in cluster.rebalances[-1:]} == {other}
        terms = [said["term"] for said in cluster.rebalances]
        assert terms == sorted(terms)


async def test_a_clean_stop_hands_over(tmp_path: Path) -> None:
    async with lab(tmp_path) as (broker, cluster, first, _):
        await until(lambda: first.desks["lab"].speaks)
        async with serving(settings(broker.url, "two"), Fakes()) as second:
            await until(lambda: second.desks["lab"].speakership.holder)
            assert not second.desks["lab"].speaks
            first.stopping.set()
            await until(lambda: second.desks["lab"].speaks)
            assert [c["until"] for c in cluster.claims].count("released") == 1


async def test_sigterm_ends_it_with_a_last_word(tmp_path: Path) -> None:
    async with (
        broker_host(tmp_path) as broker,
        cluster_at(broker) as cluster,
        processes(tmp_path, broker.url, "one") as started,
    ):
        await settled(cluster)
        started["one"]._process.terminate()
        assert await until_ended(started["one"]) is not None
        assert started["one"]._process.returncode == 0
        await until(lambda: cluster.claims[-1]["until"] == "released")
        assert cluster.claims[-1]["term"] == 1, "its own word: the broker's has no term"


async def test_behind_a_partition_it_steps_down_before_the_other_speaks(tmp_path: Path) -> None:
    async with broker_host(tmp_path) as broker, line_to(broker.port) as line:
        fakes = Fakes()
        async with serving(settings(f"mqtt://127.0.0.1:{line.port}"), fakes) as first:
            one = first.desks["lab"]
            await until(lambda: one.speaks)
            async with serving(settings(broker.url, "two"), Fakes()) as second:
                two = second.desks["lab"]
                await until(lambda: two.speakership.holder == one.speakership.name)
                line.passed.clear()
                both = []

                def followed() -> bool:
                    both.append(one.speaks and two.speaks)
                    return two.speaks

                await until(followed)
                assert not any(both)
                assert two.speakership.term == 2
                line.passed.set()
                await until(lambda: one.speakership.holder == two.speakership.name, 60.0)
                assert (one.speaks, two.speaks) == (False, True)


# ------------------------------------------------------------ a pool


async def test_a_pool_shares_clusters_and_takes_over_those_of_one_that_is_gone(
    tmp_path: Path,
) -> None:
    names = [f"c{number}" for number in range(6)]

    async def hints() -> None:
        """As from the hosts of every cluster."""
        while True:
            for name in names:
                await cluster.client.publish(f"igniterd/v1/{name}/a/hint", HINT)
                for host in "ab":
                    payload = envelope("state", a_state(host, name))
                    await cluster.client.publish(f"igniterd/v1/{name}/{host}/state", payload)
            await asyncio.sleep(0.3)

    def speaks(service: FleetService) -> set[str]:
        return {name for name, desk in service.desks.items() if desk.speaks and desk.said}

    async with broker_host(tmp_path) as broker, cluster_at(broker) as cluster:
        hinting = asyncio.create_task(hints())
        pool = {"clusters": ["+"], "most_clusters": 6}
        first = serving(settings(broker.url, "one", **pool), Fakes(), pooled=True)
        second = serving(settings(broker.url, "two", **pool), Fakes(), pooled=True)
        try:
            async with second as two:
                async with first as one:
                    # two that took the same one settle it
                    await until(
                        lambda: (
                            speaks(one) | speaks(two) == set(names)
                            and not speaks(one) & speaks(two)
                        ),
                        60.0,
                    )
                await until(lambda: speaks(two) == set(names), 60.0)
        finally:
            await cancelled(hinting)
