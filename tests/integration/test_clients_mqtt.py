"""The publisher against a real mosquitto."""

import asyncio
import contextlib
import gc
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from structlog.testing import capture_logs

from igniterd.clients.mqtt_client import BrokerClient, Message, size_of, until_lost
from igniterd.lab.programs.process import free_ports, running
from igniterd.lab.services import broker_host
from igniterd.messages.event import event
from tests.integration.mqtt import PREFIX, kept_saying, listening, publishing
from tests.messages.examples import a_hint, a_model, a_state
from tests.waiting import until

pytestmark = pytest.mark.integration


async def test_events_arrive_in_their_envelope(tmp_path: Path) -> None:
    async with (
        broker_host(tmp_path) as broker,
        listening(broker) as listener,
        publishing(broker.url) as publisher,
    ):
        _, online = await listener.next("status")
        assert online["data"] == {"status": "online"}
        decision = {"outcome": "hold", "feasible": True, "headroom": float("nan")}
        publisher.publish_state([a_state(7, decision=decision)], expiry_s=30)
        message, event = await listener.next("state")
        assert event["data"] == a_state(7, decision=decision | {"headroom": None})
        assert {
            key: event[key] for key in ("specversion", "source", "type", "datacontenttype")
        } == {
            "specversion": "1.0",
            "source": "igniterd/lab/gpu-a",
            "type": "igniterd.state",
            "datacontenttype": "application/json",
        }
        assert event["id"] != online["id"]
        assert message.qos == 1
        assert message.properties is not None
        assert message.properties.ContentType == "application/cloudevents+json"
        assert 0 < message.properties.MessageExpiryInterval <= 30
        async with listening(broker) as later:
            assert (await later.next("state"))[0].retain, (
                "a listener that comes later is given the state"
            )
            assert (await later.next("status", status="online"))[0].retain


async def test_status_follows_the_daemon(tmp_path: Path) -> None:
    async with broker_host(tmp_path) as broker, listening(broker) as listener:
        async with publishing(broker.url) as publisher:
            await listener.next("status", status="online")
            publisher.set_status("degraded", "Triton 'main' does not answer")
            _, event = await listener.next("status", status="degraded")
            assert event["data"]["reason"] == "Triton 'main' does not answer"
            publisher.set_status("online")
            await listener.next("status", status="online")
        _, event = await listener.next("status", status="offline")
        assert event["data"]["reason"] == "the daemon was stopped"


async def test_the_broker_says_offline_when_the_daemon_is_killed(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from igniterd.clients.mqtt import MqttPublisher
from igniterd.clients.mqtt_broker import Broker
async def main():
    publisher = MqttPublisher(Broker(sys.argv[1]), cluster="lab", host="gpu-a")
    await publisher.start()
    await asyncio.Event().wait()
asyncio.run(main())
"""
    async with broker_host(tmp_path) as broker, listening(broker) as listener:
        command = [sys.executable, "-c", script, broker.url]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
        async with running(
            "publisher", command, log=tmp_path / "publisher.log", env=environment
        ) as daemon:
            await listener.next("status", status="online")
            daemon._process.kill()
            _, event = await listener.next("status", status="offline")
            assert event["data"]["reason"] == "the connection was lost"


async def test_a_broker_that_dies_and_returns(tmp_path: Path) -> None:
    unseen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    with capture_logs() as logs:
        async with (
            broker_host(tmp_path) as first,
            listening(first) as listener,
            publishing(first.url) as publisher,
        ):
            await listener.next("status", status="online")
            publisher.publish_state([a_state(1)], expiry_s=30)
            await listener.next("state", tick=1)
            await first.program.stop()
            await until(lambda: publisher.statistics.failures >= 2)
            assert not publisher.statistics.connected
            for tick in range(2, 50):
                publisher.publish_state([a_state(tick)], expiry_s=30)
                for model in ("vgg19", "alexnet"):
                    publisher.publish_hint(a_hint(model, f"at tick {tick}"), expiry_s=60)
            async with broker_host(tmp_path, port=first.port) as second, listening(second) as again:
                _, event = await again.next("state")
                assert event["data"]["tick"] == 49, "only the newest state is sent"
                hints = [(await again.next("hint"))[1]["data"] for _ in range(2)]
                assert hints == [a_hint(m, "at tick 49") for m in ("vgg19", "alexnet")]
                assert publisher.statistics.connected
                assert publisher.statistics.replaced == 3 * 47
    told = [(entry["log_level"], entry["event"]) for entry in logs if entry.get("source") == "mqtt"]
    assert told[:2] == [("warning", "failing"), ("info", "recovered")], (
        "a failure is told once, its recovery once"
    )
    gc.collect()
    assert unseen == [], "and not once more by asyncio"


async def test_a_broker_without_memory_is_told_the_retained_state_again(tmp_path: Path) -> None:
    async with broker_host(tmp_path) as first, publishing(first.url) as publisher:
        publisher.publish_state([a_state(1)], expiry_s=30)
        await until(lambda: publisher.statistics.published >= 2)
        await first.program.stop()
        async with broker_host(tmp_path, port=first.port) as second, listening(second) as listener:
            await listener.next("state", tick=1)


async def test_without_any_broker_nothing_waits_and_memory_is_bounded() -> None:
    async with publishing(f"mqtt://127.0.0.1:{free_ports(1)[0]}") as publisher:
        for number in range(1000):
            publisher.publish_hint(a_hint(f"m{number}"), expiry_s=60)
        assert publisher.statistics.dropped == 1000 - 256
        await until(lambda: publisher.statistics.failures >= 2)
        assert publisher.statistics.published == 0


@pytest.mark.parametrize("topics", ["hint", "status", "state"])
async def test_what_the_broker_denies_is_no_success_and_is_said_once(
    tmp_path: Path, topics: str
) -> None:
    granted = [topic for topic in ("hint", "status", "state") if topic != topics]
    (tmp_path / "acl").write_text(
        "topic read #\n" + "".join(f"topic write {PREFIX}{topic}\n" for topic in granted)
    )
    (tmp_path / "acl").chmod(0o600)
    with capture_logs() as logs:
        async with (
            broker_host(tmp_path, more=f"acl_file {tmp_path}/acl\n") as broker,
            publishing(broker.url) as publisher,
        ):
            counts = publisher.statistics
            await until(lambda: counts.connected)
            if topics == "status":
                publisher.set_status("degraded", "why")
            await kept_saying(
                publisher,
                a_state(),
                lambda: (
                    counts.refused >= (2 if topics == "status" else 4) and counts.published >= 4
                ),
            )
            assert counts.failures == 0, "the connection stays"
    denied = [line for line in logs if line["event"] == "the broker does not take it"]
    assert [(line["what"], "Not authorized" in line["reason"]) for line in denied] == [
        (topics, True)
    ]


async def test_a_state_above_the_brokers_limit_holds_up_no_hint_and_no_status(
    tmp_path: Path,
) -> None:
    large = a_state(models=[a_model(f"model-{n}") for n in range(200)])
    with capture_logs() as logs:
        async with (
            broker_host(tmp_path, more="max_packet_size 2048\n") as broker,
            listening(broker) as listener,
            publishing(broker.url) as publisher,
        ):
            await listener.next("status", status="online")
            counts = publisher.statistics
            await kept_saying(
                publisher, large, lambda: counts.refused >= 3 and counts.published >= 5
            )
            await listener.next("hint", model="vgg19")
            publisher.set_status("degraded", "x" * 5000)
            await listener.next("status", status="degraded")
            publisher.publish_state([a_state()], expiry_s=30)
            await listener.next("state", models=[])
            assert counts.failures == 0
    said = [
        (line["event"], line["what"]) for line in logs if line["event"].startswith("the broker")
    ]
    assert said == [
        ("the broker does not take it", "state"),
        ("the broker takes it again", "state"),
    ]


@pytest.mark.parametrize("over", [0, 8])
async def test_the_size_of_a_packet_is_the_brokers(tmp_path: Path, over: int) -> None:
    about = {"source": "igniterd/lab/gpu-a", "id": "1", "at": datetime.now(UTC)}
    payload = event("status", {"status": "degraded", "reason": "x" * 1900}, **about)
    message = Message(PREFIX + "status", payload, 1, True, 30)
    limit = size_of(message) - over
    async with (
        broker_host(tmp_path, more=f"max_packet_size {limit}\n") as broker,
        BrokerClient("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        assert client.largest == limit
        lost: asyncio.Future[Any] = asyncio.ensure_future(until_lost(client))
        try:
            if over:
                with pytest.raises(aiomqtt.MqttError):
                    await client.send(message, lost, 5.0)
            else:
                await client.send(message, lost, 5.0)
        finally:
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)


class Touchy:
    """A broker that answers what it does not take by ending the connection, as some clouds' do, and
    says nothing before."""

    def __init__(self, topic: bytes) -> None:
        self.topic, self.got, self.cuts = topic, list[bytes](), 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind = (await reader.readexactly(1))[0]
                length, shift = 0, 0
                while True:
                    (byte,) = await reader.readexactly(1)
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                body = await reader.readexactly(length)
                if kind >> 4 == 1:
                    writer.write(b"\x20\x03\x00\x00\x00")
                elif kind >> 4 == 3:
                    size = int.from_bytes(body[:2])
                    topic = body[2 : 2 + size].rpartition(b"/")[2]
                    if topic == self.topic:
                        self.cuts += 1
                        break
                    self.got.append(topic)
                    writer.write(b"\x40\x02" + body[2 + size : 4 + size])
        writer.close()


@pytest.mark.parametrize("topic", ["state", "hint", "status"])
async def test_a_broker_that_ends_the_connection_over_one_topic_gets_the_others(topic: str) -> None:
    broker = Touchy(topic.encode())
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    others = {"state", "hint", "status"} - {topic} - {"status"}
    try:
        async with publishing(f"mqtt://127.0.0.1:{port}") as publisher:
            await kept_saying(
                publisher,
                a_state(),
                lambda: all(broker.got.count(other.encode()) > 5 for other in others),
            )
            assert broker.cuts == 2
            assert publisher.statistics.refused > 0
    finally:
        server.close()
