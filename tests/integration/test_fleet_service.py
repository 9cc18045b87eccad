"""``igniterd fleet`` at a real mosquitto, with parts that plan nothing."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from structlog.testing import capture_logs

from igniterd.announce import STATE_EXPIRY_S
from igniterd.errors import CannotRun
from igniterd.fleet.asking import MOST
from igniterd.fleet.desk import Desk
from igniterd.fleet.once import look
from igniterd.fleet.service import FleetService, boot_s
from igniterd.fleet.view import ClusterView
from igniterd.lab.services import BrokerHost, broker_host
from igniterd.messages.profile import canonical, digest_of, packed
from igniterd.perf import builtin_profile
from tests.fleet.fakes import FakePlanner, Fakes
from tests.fleet.said import changed, model, state
from tests.integration.fleet_service import (
    PREFIX,
    cluster_at,
    envelope,
    lab,
    serving,
    settings,
)
from tests.messages.checked import AllMessages
from tests.waiting import until

pytestmark = pytest.mark.integration


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


async def test_one_look_does_not_wait_for_profiles_that_nobody_has(tmp_path: Path) -> None:
    """More of them than are asked for at a time, on both sides of one that is there."""
    text = canonical(builtin_profile("v100").model_dump(mode="json", exclude_none=True))
    there = digest_of(text)
    gone = [f"{digit}{n:031x}" for digit in "0f" for n in range(MOST)]
    models = [model(f"m{n}", "GPU-a", applied=None, profiles=[d]) for n, d in enumerate(gone)]
    broken = {**state("a"), "cluster": "lab", "models": models}
    whole = changed({**state("b"), "cluster": "lab"}, "models.0.profiles", [there])
    kept = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    kept.MessageExpiryInterval = STATE_EXPIRY_S
    async with broker_host(tmp_path) as broker, cluster_at(broker) as cluster:
        for said in (broken, whole):
            topic, payload = f"{PREFIX}{said['host']}/state", envelope("state", said)
            await cluster.client.publish(topic, payload, 1, retain=True, properties=kept)
        for part in packed(text):
            topic = f"{PREFIX}profile/{there}/{part['part']}"
            await cluster.client.publish(topic, envelope("profile", part), 1, retain=True)
        parts = replace(Fakes().parts(), view=ClusterView)
        # the deadline is beyond that of this test
        looked = await look(settings(broker.url), "lab", parts, deadline_s=3600.0, quiet_s=0.3)
    assert list(looked.cluster.hosts) == ["b"]
    assert looked.cluster.left_out == {
        "a": f"profile {gone[0]} does not come: the broker gives no part of it"
    }
    assert looked.troubles["a"] == looked.cluster.left_out["a"]
    assert "deadline" not in looked.troubles


async def test_one_look_that_is_cut_short_says_so(tmp_path: Path) -> None:
    fakes = Fakes()

    def clock() -> float:
        """The deadline is over as soon as the host is known."""
        known = "lab" in fakes.views and fakes.views["lab"].hosts
        return boot_s() + (600.0 if known else 0.0)

    async with broker_host(tmp_path) as broker, cluster_at(broker) as cluster:
        await cluster.says("a")
        looked = await look(
            settings(broker.url),
            "lab",
            fakes.parts(),
            deadline_s=600.0,
            quiet_s=3600.0,
            clock=clock,
        )
    assert looked.troubles == {"deadline": "not all that the broker keeps was heard within 600 s"}
