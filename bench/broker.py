"""What a broker pays for a cluster's states: a real mosquitto, retained states of the size that
``bench/fleet.py`` has, one reader or two.

Publishers are a few connections that take turns at the hosts' topics, as fast as they are
acknowledged (QoS 1, retained, expiring: as daemons send). What is reported is the processor time
of the broker a message, which does not depend on how fast this machine's publishers are; and its
memory.

    python bench/broker.py [--hosts 10000] [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import aiomqtt

from bench.fleet_world import STATE_EVERY_S, World, payload_of
from igniterd.clients.mqtt_client import publish_properties
from igniterd.lab.services import BrokerHost, broker_host
from igniterd.messages.topics import host_topic

PUBLISHERS = 8
MODELS_OF = 40  # simulated hosts, whose states the others repeat
TICKS = os.sysconf("SC_CLK_TCK")
V5 = aiomqtt.ProtocolVersion.V5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    told = parser.parse_args()
    world = World.begin(MODELS_OF, 1, 0.75)
    payloads = [payload_of(world.state(host, 1)) for host in range(MODELS_OF)]
    mean = sum(map(len, payloads)) / len(payloads)
    print(f"{told.hosts} hosts, a state of {mean:.0f} bytes in the mean")
    for readers in (1, 2):
        asyncio.run(measured(payloads, told.hosts, told.seconds, readers))


async def measured(payloads: list[bytes], hosts: int, seconds: float, readers: int) -> None:
    topics = [host_topic("sim", f"host-{host:05d}", "state") for host in range(hosts)]
    with tempfile.TemporaryDirectory() as folder:
        more = "max_queued_messages 100000\n"
        async with broker_host(Path(folder), more=more) as broker:
            await published(broker, topics, payloads, 1e9, len(topics))  # all are retained
            kept_mb = resident_mb(broker)
            reading = [asyncio.create_task(read(broker)) for _ in range(readers)]
            await asyncio.sleep(5.0)  # what is retained has been passed on
            before_s, began = cpu_s(broker), time.perf_counter()
            count = await published(broker, topics, payloads, seconds, 10**9)
            took_s, cpu = time.perf_counter() - began, cpu_s(broker) - before_s
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
    most = count / cpu
    print(f"\n{readers} reader{'s' * (readers > 1)}:")
    print(f"  {count} messages in {took_s:.0f} s, {1e6 * cpu / count:.0f} us of the broker each")
    print(f"  one core of it carries {most:.0f} states/s: {most * STATE_EVERY_S:.0f} hosts")
    print(f"  resident with all states retained: {kept_mb:.0f} MB")


async def published(
    broker: BrokerHost, topics: list[str], payloads: list[bytes], seconds: float, most: int
) -> int:
    """Publish for so long, at most so many; returns how many were acknowledged."""
    end = time.perf_counter() + seconds
    shares = [list(islice(topics, n, None, PUBLISHERS)) for n in range(PUBLISHERS)]
    return sum(
        await asyncio.gather(
            *(one(broker, mine, payloads, end, most // PUBLISHERS) for mine in shares)
        )
    )


async def one(
    broker: BrokerHost, topics: list[str], payloads: list[bytes], end: float, most: int
) -> int:
    count = 0
    properties = publish_properties(30)
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=V5) as client:
        for topic, payload in zip(cycle(topics), cycle(payloads), strict=False):
            if count >= most or time.perf_counter() > end:
                break
            await client.publish(topic, payload, 1, True, properties)
            count += 1
    return count


async def read(broker: BrokerHost) -> None:
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=V5) as client:
        await client.subscribe("igniterd/v1/sim/+/state", qos=0)
        async for _ in client.messages:
            continue


def cpu_s(broker: BrokerHost) -> float:
    fields = Path(f"/proc/{broker.program.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(broker: BrokerHost) -> float:
    lines = Path(f"/proc/{broker.program.pid}/status").read_text("utf-8").splitlines()
    kb = next(line for line in lines if line.startswith("VmRSS"))
    return int(kb.split()[1]) / 1e3


if __name__ == "__main__":
    main()
