"""``igniterd fleet`` at a real mosquitto, with parts that plan nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from structlog.testing import capture_logs

from igniterd.errors import CannotRun
from igniterd.fleet.config import FleetConfig
from igniterd.fleet.desk import Desk
from igniterd.fleet.once import look
from igniterd.fleet.service import FleetService
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.lab.services import BrokerHost, broker_host
from igniterd.messages.event import Event, event, read_event
from igniterd.messages.rebalance import Rebalance, Speaker
from tests.fleet.fakes import FakePlanner, Fakes, a_state
from tests.messages.checked import AllMessages
from tests.waiting import until, until_ended

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PREFIX = "igniterd/v1/lab/"
LEASE_S = 2.0


def settings(url: str, name: str = "one", **more: Any) -> FleetConfig:
    fleet = {
        "name": name,
        "clusters": ["lab"],
        "settle_s": 0.05,
        "least_interval_s": 0.05,
        "lease_s": LEASE_S,
        **more,
    }
    return FleetConfig.model_validate(
        {"broker": {"url": url}, "fleet": fleet, "metrics": {"listen": "127.0.0.1:0"}}
    )


@asynccontextmanager
async def serving(
    config: FleetConfig, fakes: Fakes, *, pooled: bool = False
) -> AsyncIterator[FleetService]:
    service = FleetService(config, fakes.parts())
    task = asyncio.create_task(service.run())
    try:
        if pooled:
            await until(lambda: task.done() or service.ready()[0])
        else:
            await until(lambda: task.done() or list(service.desks) == config.fleet.clusters)
        yield service
    finally:
        service.stopping.set()
        await asyncio.wait_for(task, 20.0)


def envelope(kind: str, data: dict[str, Any]) -> bytes:
    return event(kind, data, source="igniterd/lab/x", id="1", at=datetime.now(UTC))


HINT = envelope(
    "hint.offer",
    {"kind": "offer", "gpu_uuid": "GPU-1", "gpu": None, "share": 0.5, "memory_free_bytes": None},
)


class Cluster:
    """The hosts and an operator, on one connection."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.rebalances: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self.expiries: list[int] = []

    async def says(self, host: str, tick: int = 1) -> None:
        payload = envelope("state", a_state(host, tick=tick))
        await self.client.publish(f"{PREFIX}{host}/state", payload, 1, retain=True)

    async def listen(self) -> None:
        async for message in self.client.messages:
            payload = bytes(message.payload)
            if message.topic.value.endswith("/rebalance"):
                read_event(payload, "rebalance", Event[Rebalance])
                self.rebalances.append(json.loads(payload)["data"])
                self.expiries.append(getattr(message.properties, "MessageExpiryInterval", 0))
            elif b'"igniterd.speaker"' in payload and b'"until"' in payload:  # no garbage
                read_event(payload, "speaker", Event[Speaker])
                self.claims.append(json.loads(payload)["data"])

    def moved(self) -> list[str] | None:
        """The hosts that models are to leave, by the latest rebalance."""
        if not self.rebalances:
            return None
        return [move["from"]["host"] for move in self.rebalances[-1]["moves"]]


@asynccontextmanager
async def cluster_at(broker: BrokerHost) -> AsyncIterator[Cluster]:
    async with aiomqtt.Client(
        "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5
    ) as client:
        cluster = Cluster(client)
        await client.subscribe([(f"{PREFIX}rebalance", 1), (f"{PREFIX}speaker", 1)])
        task = asyncio.create_task(cluster.listen())
        try:
            yield cluster
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def lab(folder: Path, more: str = "", **fleet: Any) -> AsyncIterator[Any]:
    """A broker, its hosts, and one service: ``(broker, cluster, service, fakes)``."""
    async with AsyncExitStack() as stack:
        fakes = Fakes()
        broker = await stack.enter_async_context(broker_host(folder, more=more))
        cluster = await stack.enter_async_context(cluster_at(broker))
        service = await stack.enter_async_context(serving(settings(broker.url, **fleet), fakes))
        yield broker, cluster, service, fakes


async def test_states_in_and_a_rebalance_out_that_expires(tmp_path: Path) -> None:
    async with lab(tmp_path) as (_, cluster, service, _):
        await until(lambda: cluster.moved() == [])
        await cluster.says("a")
        await cluster.says("b")
        await until(lambda: cluster.moved() == ["b"])
        last = cluster.rebalances[-1]
        desk = service.desks["lab"]
        assert (last["speaker"], last["term"]) == (desk.speakership.name, 1)
        assert {basis["host"] for basis in last["rests_on"]} == {"a", "b"}
        assert 0 < cluster.expiries[-1] <= 60
        assert desk.statistics.answered_s is not None
        assert service.health() == (True, [])
        assert service.ready() == (True, [])
        async with cluster_at(await _same(service)) as later:
            await until(lambda: later.moved() == ["b"])


async def _same(service: FleetService) -> BrokerHost:
    port = int(service.config.broker.url.rpartition(":")[2])
    return BrokerHost(port, None)  # type: ignore[arg-type]


async def test_the_same_advice_is_said_again_only_before_it_would_expire(tmp_path: Path) -> None:
    async with lab(tmp_path, expiry_s=6) as (_, cluster, _, fakes):
        await cluster.says("a")
        await cluster.says("b")
        await until(lambda: cluster.moved() == ["b"])
        said, plans = len(cluster.rebalances), len(fakes.planners["lab"].plans)
        for tick in range(2, 6):
            await cluster.says("b", tick)
            await until(lambda: len(fakes.planners["lab"].plans) > plans)  # noqa: B023
            plans = len(fakes.planners["lab"].plans)
        assert len(cluster.rebalances) <= said + 1, "of newer ticks, but it says the same"
        await until(lambda: len(cluster.rebalances) >= said + 2)
        newest = {basis["host"]: basis["tick"] for basis in cluster.rebalances[-1]["rests_on"]}
        assert newest["b"] == 5


async def test_a_plan_that_is_unfinished_is_gone_on_with(tmp_path: Path) -> None:
    """Though no host says anything new."""
    async with lab(tmp_path) as (broker, cluster, _, fakes):
        planner = fakes.planners["lab"]
        await until(lambda: cluster.moved() == [])
        planner.goes_on = len(planner.plans) + 3
        await cluster.says("a")
        await until(lambda: len(planner.plans) > planner.goes_on)
        again = Fakes()
        again.planners["lab"] = FakePlanner("lab", goes_on=3)
        await look(settings(broker.url), "lab", again.parts(), quiet_s=0.5)
        assert len(again.planners["lab"].plans) == 4


async def test_a_burst_of_states_is_one_plan_and_what_comes_meanwhile_the_next(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path, settle_s=1.0) as (_, cluster, _, fakes):
        await until(lambda: cluster.moved() == [])
        planner = fakes.planners["lab"]
        planner.plans.clear()
        planner.waits_for = threading.Event()
        for host in "abcdefgh":
            await cluster.says(host)
        await until(lambda: planner.plans)
        await cluster.says("i")
        await until(lambda: "i" in fakes.views["lab"].hosts)
        assert [len(plan.hosts) for plan in planner.plans] == [8]
        planner.waits_for.set()
        await until(lambda: (cluster.moved() or [])[-1:] == ["i"])
        assert [len(plan.hosts) for plan in planner.plans] == [8, 9]


async def test_garbage_on_the_topics_is_counted_and_nothing_else(
    tmp_path: Path, all_messages: AllMessages
) -> None:
    junk = [b"\xff\x00", b"{}", b"[" * 5000, b"null", envelope("speaker", {"term": -1}), b""]
    async with broker_host(tmp_path) as broker, cluster_at(broker) as cluster:
        for number, payload in enumerate(junk):
            await cluster.client.publish(f"{PREFIX}x{number}/state", payload, 1, retain=True)
            await cluster.client.publish(f"{PREFIX}speaker", payload, 1, retain=True)
        other = envelope(
            "speaker", {"cluster": "hall", "speaker": "x", "term": 99, "until": "renewed"}
        )
        await cluster.client.publish(f"{PREFIX}speaker", other, 1, retain=True)
        fakes = Fakes()
        with capture_logs() as logs:
            async with serving(settings(broker.url), fakes) as service:
                await cluster.says("a")
                await cluster.says("b")
                await until(lambda: cluster.moved() == ["b"])
                for payload in junk:
                    await cluster.client.publish(f"{PREFIX}speaker", payload, 1)
                desk = service.desks["lab"]
                await until(lambda: desk.statistics.claims_refused >= len(junk))
                assert desk.speaks
        assert desk.speakership.term == 1
        assert fakes.views["lab"].counts["state", "malformed"] >= 4
        assert desk.listener.statistics.mistakes >= 1, "the view itself stumbled over one"
        assert desk.listener.statistics.failures == 0
        said = [line for line in logs if line["event"] == "is not understood"]
        assert len(said) <= 2
    assert not [fault for fault in all_messages.settled() if "rebalance" in fault]


async def test_a_broker_that_forgot_everything_is_told_again(tmp_path: Path) -> None:
    async with lab(tmp_path) as (broker, cluster, service, _):
        await cluster.says("a")
        await cluster.says("b")
        await until(lambda: cluster.moved() == ["b"])
        desk: Desk = service.desks["lab"]
        await broker.program.stop()
        await until(lambda: not desk.listener.statistics.connected)
        assert not desk.speaks
        async with broker_host(tmp_path, port=broker.port) as second, cluster_at(second) as again:
            await until(lambda: again.moved() == ["b"], 60.0)
            assert desk.speaks, "what was known is known still"
            await again.says("c")
            await until(lambda: again.moved() == ["b", "c"])


async def test_profiles_are_listened_to_while_they_are_wanted(tmp_path: Path) -> None:
    async with lab(tmp_path) as (_, cluster, service, fakes):
        view, desk = fakes.views["lab"], service.desks["lab"]
        digest, other = "0" * 32, "1" * 32

        async def brings(one: str, part: int) -> None:
            data = {"profile": one, "part": part, "parts": 2, "encoding": "gzip+base64"}
            payload = envelope("profile", data | {"content": "x"})
            await cluster.client.publish(f"{PREFIX}profile/{one}/{part}", payload, 1, retain=True)

        for one in (digest, other):
            await brings(one, 1)
        await until(lambda: desk.listener.statistics.connected)
        assert view.counts["profile", "malformed"] == 0
        view.wanted = frozenset({digest})
        await until(lambda: view.counts["profile", "malformed"] == 1)
        view.wanted = frozenset({other})
        await until(lambda: view.counts["profile", "malformed"] == 2)
        await brings(digest, 1)
        await brings(other, 2)
        await until(lambda: view.counts["profile", "malformed"] == 3)


async def test_a_plan_that_raises_does_not_end_it(tmp_path: Path) -> None:
    async with lab(tmp_path) as (_, cluster, service, fakes):
        await until(lambda: cluster.moved() == [])
        fakes.planners["lab"].fails = KeyError("no such host")
        await cluster.says("a")
        desk: Desk = service.desks["lab"]
        await until(lambda: desk.thinking.statistics.outcomes["failed"])
        assert not service.ready()[0]
        assert service.health()[0]
        assert "KeyError" in desk.troubles()["plan"]
        assert desk.speaks


async def test_its_pages(tmp_path: Path) -> None:
    import aiohttp

    async with lab(tmp_path) as (_, cluster, service, _), aiohttp.ClientSession() as web:
        await cluster.says("a")
        await cluster.says("b")
        await until(lambda: cluster.moved() == ["b"])
        host, port = service.admin.address
        async with web.get(f"http://{host}:{port}/metrics") as answer:
            page = await answer.text()
        assert 'igniterd_fleet_moves{cluster="lab"} 1.0' in page
        assert 'igniterd_fleet_speaker{cluster="lab"} 1.0' in page
        assert 'igniterd_fleet_hosts{cluster="lab",state="used"} 2.0' in page
        async with web.get(f"http://{host}:{port}/state") as answer:
            shown = (await answer.json())["clusters"]["lab"]
        assert [move["from"]["host"] for move in shown["rebalance"]["moves"]] == ["b"]
        async with web.get(f"http://{host}:{port}/livez") as answer:
            assert answer.status == 200
        async with web.get(f"http://{host}:{port}/") as answer:
            assert answer.status == 404


# ------------------------------------------------------------ two of them

SCRIPT = """
import asyncio, sys
from igniterd.fleet.once import look
from igniterd.fleet.service import FleetService
from tests.fleet.fakes import Fakes
from tests.integration.test_fleet_service import settings
async def main():
    await FleetService(settings(sys.argv[1], sys.argv[2]), Fakes().parts()).run()
asyncio.run(main())
"""


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
        both[first]._process.kill()
        (other,) = both.keys() - {first}
        await until(lambda: who(cluster.rebalances[-1]) == other)
        assert cluster.rebalances[-1]["term"] > cluster.rebalances[0]["term"]
        assert cluster.moved() == ["b"]
        assert any(c["until"] == "released" and who(c) == first for c in cluster.claims)


async def test_one_that_was_stopped_and_wakes_says_nothing_more(tmp_path: Path) -> None:
    import signal

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
            await until(lambda: second.desks["lab"].speaks, LEASE_S + 5)
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


@asynccontextmanager
async def a_line(port: int) -> AsyncIterator[Any]:
    """A way to the broker that can go silent: ``(port, event)``; set, nothing passes."""
    cut = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not cut.is_set():
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        for one in (carry(reader, there[1]), carry(there[0], writer)):
            tasks.add(asyncio.create_task(one))

    here = free_ports(1)[0]
    server = await asyncio.start_server(serve, "127.0.0.1", here)
    try:
        yield here, cut
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_behind_a_partition_it_steps_down_before_the_other_speaks(tmp_path: Path) -> None:
    async with broker_host(tmp_path) as broker, a_line(broker.port) as (port, cut):
        fakes = Fakes()
        async with serving(settings(f"mqtt://127.0.0.1:{port}"), fakes) as first:
            one = first.desks["lab"]
            await until(lambda: one.speaks)
            async with serving(settings(broker.url, "two"), Fakes()) as second:
                two = second.desks["lab"]
                await until(lambda: two.speakership.holder == one.speakership.name)
                cut.set()
                both = []

                def followed() -> bool:
                    both.append(one.speaks and two.speaks)
                    return two.speaks

                await until(followed)
                assert not any(both)
                assert two.speakership.term == 2
                cut.clear()
                await until(lambda: one.speakership.holder == two.speakership.name, 60.0)
                assert (one.speaks, two.speaks) == (False, True)


async def test_planner_that_is_late_is_not_published(tmp_path: Path) -> None:
    fakes = Fakes()
    gate = threading.Event()
    fakes.planners["lab"] = FakePlanner("lab", waits_for=gate)
    async with broker_host(tmp_path) as broker, cluster_at(broker) as cluster:
        config = settings(broker.url, plan_timeout_s=0.1)
        async with serving(config, fakes) as service:
            desk = service.desks["lab"]
            await until(lambda: desk.thinking.trouble)
            gate.set()
            await until(lambda: desk.thinking.statistics.outcomes["late"])
            assert cluster.rebalances == []


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
                    await until(lambda: speaks(one) | speaks(two) == set(names), 60.0)
                    assert not speaks(one) & speaks(two)
                await until(lambda: speaks(two) == set(names), 60.0)
        finally:
            hinting.cancel()
            await asyncio.gather(hinting, return_exceptions=True)


# ------------------------------------------------------------ one look


async def test_one_look_plans_what_is_retained_and_says_nothing(tmp_path: Path) -> None:
    async with broker_host(tmp_path) as broker, cluster_at(broker) as cluster:
        for host in "abc":
            await cluster.says(host)
        looked = await look(settings(broker.url), "lab", Fakes().parts(), quiet_s=0.5)
        assert sorted(looked.cluster.hosts) == ["a", "b", "c"]
        assert [move["from"]["host"] for move in looked.document["moves"]] == ["b", "c"]
        assert (cluster.rebalances, cluster.claims) == ([], [])


async def test_one_look_at_a_cluster_of_nobody(tmp_path: Path) -> None:
    async with broker_host(tmp_path) as broker:
        with pytest.raises(CannotRun, match="cluster lab: no host has said anything"):
            await look(settings(broker.url), "lab", Fakes().parts(), quiet_s=0.2)


async def test_one_look_whose_plan_raises_says_why(tmp_path: Path) -> None:
    fakes = Fakes()
    fakes.planners["lab"] = FakePlanner("lab", fails=KeyError("x"))
    async with broker_host(tmp_path) as broker, cluster_at(broker) as cluster:
        await cluster.says("a")
        with pytest.raises(CannotRun, match="plan: KeyError"):
            await look(settings(broker.url), "lab", fakes.parts(), quiet_s=0.5)
