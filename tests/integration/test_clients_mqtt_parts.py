"""States in parts, and profiles, against a real mosquitto."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest
from structlog.testing import capture_logs

from igniterd.lab.services import broker_host
from igniterd.messages.profile import ProfilePart, canonical, digest_of, packed, unpacked
from tests.integration.mqtt import PATIENCE_S, PREFIX, kept_saying, listening, publishing
from tests.messages.checked import AllMessages
from tests.messages.examples import a_hint, a_model, a_state
from tests.waiting import until

pytestmark = pytest.mark.integration


async def test_a_state_in_parts_and_what_is_left_of_it_when_it_has_fewer(tmp_path: Path) -> None:
    parts = [a_state(5, part=n, parts=3, models=[a_model(f"m{n}")]) for n in (1, 2, 3)]
    async with broker_host(tmp_path) as broker, publishing(broker.url) as publisher:
        publisher.publish_state(parts, expiry_s=30)
        async with listening(broker) as listener:
            for number, topic in enumerate(("state", "state/2", "state/3"), start=1):
                _, event = await listener.next(topic, tick=5)
                assert event["data"]["models"] == [a_model(f"m{number}")]
        sent = publisher.statistics.published
        publisher.publish_state([a_state(6)], expiry_s=30)
        await until(lambda: publisher.statistics.published == sent + 3)
        async with aiomqtt.Client(
            "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5
        ) as client:
            await client.subscribe("igniterd/#", qos=1)
            publisher.publish_hint(a_hint(), expiry_s=60)
            there = [message async for message in until_topic(client, PREFIX + "hint")]
        assert {m.topic.value for m in there if m.retain} == {PREFIX + "status", PREFIX + "state"}


async def until_topic(client: aiomqtt.Client, topic: str) -> AsyncIterator[aiomqtt.Message]:
    """What comes before a message of ``topic``."""
    async with asyncio.timeout(PATIENCE_S):
        async for message in client.messages:
            if message.topic.value == topic:
                return
            yield message


DRAW = random.Random(1)
PROFILE = packed(canonical({"noise": [DRAW.random() for _ in range(9000)]}))
"""In several parts; what is in it is nothing to whoever carries it."""


async def test_profiles_come_after_the_state_and_once_in_a_connection(tmp_path: Path) -> None:
    digest = PROFILE[0]["profile"]
    async with broker_host(tmp_path) as first, publishing(first.url) as publisher:
        publisher.set_profiles({digest: PROFILE})
        counts = publisher.statistics
        await until(lambda: counts.published == 1)  # the status
        async with listening(first) as listener:
            publisher.publish_state([a_state(1)], expiry_s=30)
            publisher.publish_hint(a_hint(), expiry_s=60)
            heard = [await listener.any() for _ in range(3 + len(PROFILE))]
            assert heard[:3] == [PREFIX + kind for kind in ("status", "state", "hint")]
            assert heard[3:] == [
                f"igniterd/v1/lab/profile/{digest}/{n}" for n in range(1, 1 + len(PROFILE))
            ]
        publisher.publish_state([a_state(2)], expiry_s=30)
        await until(lambda: counts.published == 4 + len(PROFILE))
        await first.program.stop()
        async with broker_host(tmp_path, port=first.port) as second, listening(second) as again:
            texts = [
                ProfilePart.model_validate((await again.next_on(topic))[1]["data"])
                for topic in heard[3:]
            ]
            assert digest_of(unpacked(digest, texts)) == digest


async def test_a_broker_that_takes_no_profiles_gets_all_else(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text(f"topic read #\ntopic write {PREFIX}#\n")
    (tmp_path / "acl").chmod(0o600)
    digest = PROFILE[0]["profile"]
    with capture_logs() as logs:
        async with (
            broker_host(tmp_path, more=f"acl_file {tmp_path}/acl\n") as broker,
            publishing(broker.url) as publisher,
        ):
            publisher.set_profiles({digest: PROFILE})
            counts = publisher.statistics
            await kept_saying(
                publisher,
                a_state(),
                lambda: counts.refused == len(PROFILE) and counts.published > 6,
            )
            assert counts.failures == 0
    denied = [line["what"] for line in logs if line["event"] == "the broker does not take it"]
    assert denied == [f"profile {digest}"]


async def test_a_wrong_message_of_any_process_is_found_by_the_tests(
    tmp_path: Path, all_messages: AllMessages
) -> None:
    async with (
        broker_host(tmp_path) as broker,
        aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as other,
    ):
        await other.publish(PREFIX + "state", b'{"specversion": "1.0"}', qos=1)
        await until(lambda: all_messages.faults)
    assert f"{PREFIX}state: $: 'data' is a required property" in all_messages.settled()
