"""Who may say and hear what on a broker with the files that are shipped in ``systemd/``."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import aiomqtt
import pytest

from igniterd.clients.mqtt_client import until_lost
from tests.integration.secured_broker import (
    FLEET,
    OPERATOR,
    SecuredBroker,
    hearing,
    secured_broker,
    until_heard,
)
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

LAB = "igniterd/v1/lab"
PROFILE = f"{LAB}/profile/{'0' * 32}/1"
GPU_A = (
    f"{LAB}/gpu-a/status",
    f"{LAB}/gpu-a/state",
    f"{LAB}/gpu-a/state/2",
    f"{LAB}/gpu-a/hint",
)
FLEETS = (f"{LAB}/rebalance", f"{LAB}/speaker")
OTHERS = (f"{LAB}/gpu-b/state", f"{LAB}/gpu-b/state/2", f"{LAB}/gpu-b/hint", "igniterd/x", "other")


async def says(broker: SecuredBroker, user: str, topics: tuple[str, ...]) -> None:
    """On each topic, whether the broker takes it or not: it may end the connection."""
    message = json.dumps({"data": {"by": user}})
    for topic in topics:
        with contextlib.suppress(aiomqtt.MqttError):
            async with broker.client(user) as client:
                ended = asyncio.ensure_future(until_lost(client))
                try:
                    await client.publish(topic, message, 1, retain=True)
                finally:
                    await asyncio.wait({ended}, timeout=0.1)
                    ended.cancel()
                    await asyncio.gather(ended, return_exceptions=True)


async def test_a_host_says_what_is_of_itself_and_nothing_else(tmp_path: Path) -> None:
    hosts = ("gpu-a", "gpu-b", "rebalance")
    async with secured_broker(tmp_path, hosts) as broker, hearing(broker) as operator:
        for user in (*hosts, OPERATOR, FLEET):
            await says(broker, user, (*GPU_A, *OTHERS, *FLEETS, PROFILE))
        await until_heard(operator, PROFILE, len(hosts) + 2)
        rights: dict[str, set[str]] = {}
        for _, topic, event in operator.heard:
            assert event is not None
            rights.setdefault(event["data"]["by"], set()).add(topic)
        assert rights == {
            "gpu-a": {PROFILE, *GPU_A},
            "gpu-b": {PROFILE, *OTHERS[:3]},
            "rebalance": {PROFILE},  # a name is no way to the cluster's own topics
            FLEET: {PROFILE, *FLEETS},
            OPERATOR: {PROFILE},
        }


async def test_a_host_hears_nothing_and_a_stranger_is_not_let_in(tmp_path: Path) -> None:
    async with (
        secured_broker(tmp_path, ("gpu-a", "gpu-b")) as broker,
        hearing(broker, FLEET) as fleet,
        broker.client("gpu-b") as spy,
    ):
        await spy.subscribe("#", qos=1)
        await says(broker, "gpu-a", (*GPU_A, PROFILE))
        await until_heard(fleet, PROFILE)
        await spy.subscribe("igniterd/#", qos=1)  # what came before is here when this is answered
        assert len(spy.messages) == 0
        for user, password in (("gpu-a", "wrong"), ("nobody", "secret of gpu-a")):
            with pytest.raises(aiomqtt.MqttError):
                async with asyncio.timeout(20.0), broker.client(user, password):
                    pass


async def test_a_listener_that_fails_fails_who_relies_on_it(tmp_path: Path) -> None:
    async with secured_broker(tmp_path, ("gpu-a",)) as broker:
        # one that is not let in, who asks what it heard
        with pytest.raises(AssertionError, match=r"the listener has failed: .*Not authorized"):
            async with hearing(broker, "nobody") as nobody:
                await until_heard(nobody, PROFILE)
        # one that breaks, who does not ask
        with pytest.raises(AssertionError, match="the listener has failed: KeyError"):
            async with hearing(broker) as operator:
                operator.listen = broken  # type: ignore[method-assign]
                await until(lambda: operator.failure)
        # across a restart nothing fails
        async with hearing(broker) as operator:
            await broker.stop()
            await broker.start()
            await says(broker, "gpu-a", (PROFILE,))
            await until_heard(operator, PROFILE)


async def broken(client: aiomqtt.Client) -> None:
    raise KeyError
