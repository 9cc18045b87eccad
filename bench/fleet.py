"""Clusters of simulated hosts over a day, with and without following what ``igniterd fleet``
advises; and what that costs.

The messages are real, and so are their reader, the search and the planner; the hosts are simulated
(``bench/fleet_world.py``). Every ``--step`` minutes each host says its state. Where hints are
followed, each cluster's advice is carried out and asked for again, up to ``ROUNDS`` times, all of
it within ``FOLLOWED_MIN`` minutes. Until then a workload whose daemon cannot hold its SLO misses
it, and after that who is still in trouble does. In the end ``--single`` hosts are one cluster, in
which nobody is in trouble at first, and one host after the other gets into it. ``--hours 0``: only
that.

    python bench/fleet.py [--hosts 250] [--cluster 250] [--step 30] [--freed 250] [--single 250]

Times are of the processor, which this machine shares with other work.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bench.fleet_world import (
    GPUS,
    STATE_EVERY_S,
    World,
    digest,
    payload_of,
    place_of,
    profile,
)
from igniterd.fleet.fitting import in_one_message
from igniterd.fleet.knowledge import Knowledge, build
from igniterd.fleet.planning import Planner
from igniterd.fleet.view import ClusterView
from igniterd.jsontext import dumps
from igniterd.messages.event import event
from igniterd.messages.profile import canonical, packed
from igniterd.messages.topics import host_topic, profile_topic
from igniterd.perf import load_model
from igniterd.resident import collect_rarely

CLUSTER = "sim"
SEED = 1
FILL = 0.75
TROUBLES = 40
FOLLOWED_MIN = 5.0
ROUNDS = 6
NO_HINTS, FREED = "no hints", "hints followed, and GPUs freed"


@dataclass(slots=True)
class Day:
    """What one day came to. ``plan_s``: from the last state of a step to the advice."""

    name: str
    hosts: int
    missed_min: float = 0.0
    workload_min: float = 0.0
    moves: int = 0
    replicas: int = 0
    unsolved: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    plan_s: list[float] = field(default_factory=list)
    take_s: float = 0.0
    messages: int = 0
    bytes: int = 0
    largest: int = 0
    longest_advice: int = 0


class Fleet:
    """What ``igniterd fleet`` has of one cluster: the hosts from ``first`` on, ``count`` of
    them."""

    def __init__(self, knowledge: Knowledge, first: int, count: int) -> None:
        self.knowledge, self.hosts = knowledge, range(first, first + count)
        self.view, self.planner = ClusterView(CLUSTER), Planner(CLUSTER, anywhere=True)
        self.at_s, self.tick = 0.0, 0

    def hear(self, payload: bytes, host: int) -> None:
        topic = host_topic(CLUSTER, f"host-{host:05d}", "state")
        self.view.take(topic, payload, at_s=self.at_s, left_s=None, retained=False)

    def hear_profile(self) -> None:
        """As if its messages had come."""
        text = canonical(profile().model_dump(mode="json", exclude_none=True))
        for part in packed(text):
            said = event("profile", part, source="bench", id="1", at=datetime.now(UTC))
            topic = profile_topic(CLUSTER, digest(), part["part"])
            self.view.take(topic, said, at_s=self.at_s, left_s=None, retained=True)

    def hear_all(self, world: World, day: Day, hosts: Iterable[int]) -> None:
        """These hosts say their state."""
        self.at_s, self.tick = self.at_s + STATE_EVERY_S, self.tick + 1
        payloads = [(host, payload_of(world.state(host, self.tick))) for host in hosts]
        began = time.process_time()
        for host, payload in payloads:
            self.hear(payload, host)
        day.take_s += time.process_time() - began
        day.messages += len(payloads)
        day.bytes += sum(len(payload) for _, payload in payloads)
        day.largest = max(day.largest, *(len(payload) for _, payload in payloads))
        if self.view.wanted_profiles():
            self.hear_profile()

    def advice(self, now_s: float, *, consolidate: bool = False) -> dict[str, Any]:
        """The document, as it is sent."""
        cluster = self.view.cluster(self.at_s)
        found = self.planner.plan(cluster, self.knowledge, consolidate=consolidate)
        return in_one_message(found.document(speaker="bench", term=1, number=1, time_s=now_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=250)
    parser.add_argument("--cluster", type=int, default=250, help="hosts of a cluster")
    parser.add_argument("--step", type=float, default=30.0, help="minutes")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument(
        "--freed", type=int, help="hosts of the third day, which takes longest; as --hosts"
    )
    parser.add_argument("--single", type=int, help="hosts of the last part; as --hosts")
    told = parser.parse_args()
    collect_rarely()
    knowledge = build({digest(): profile()}, fit=load_model, previous=None)
    freed = told.freed or told.hosts
    third = (FREED, freed) if freed == told.hosts else (f"{FREED} (fewer hosts)", freed)
    days = (third, (NO_HINTS, told.hosts), ("hints followed", told.hosts))
    for name, hosts in days if told.hours > 0 else ():
        day, world = Day(name, hosts), World.begin(hosts, SEED, FILL)
        firsts = range(0, hosts, told.cluster) if name != NO_HINTS else ()
        fleets = [Fleet(knowledge, at, min(told.cluster, hosts - at)) for at in firsts]
        live(world, day, fleets, told.step, told.hours, consolidate=name.startswith(FREED))
        say(day, world)
    single = told.single or told.hosts
    trouble(World.begin(single, SEED, FILL), Fleet(knowledge, 0, single))


def live(
    world: World, day: Day, fleets: list[Fleet], step: float, hours: float, *, consolidate: bool
) -> None:
    """One day in steps of so many minutes."""
    for _ in range(round(hours * 60 / step)):
        world.advance(step * 60)
        day.workload_min += step * len(world.workloads)
        before = after = world.missed()
        for fleet in fleets:
            follow(world, day, fleet, consolidate=consolidate)
        if fleets:
            after = world.missed()
        day.missed_min += FOLLOWED_MIN * before + (step - FOLLOWED_MIN) * after
        day.used.append(world.used_gpus())


def follow(world: World, day: Day, fleet: Fleet, *, consolidate: bool) -> None:
    """All hosts say their state, and what is advised is done, until nothing more is."""
    said: Iterable[int] = fleet.hosts
    for number in range(ROUNDS):
        fleet.hear_all(world, day, said)
        began = time.process_time()
        document = fleet.advice(world.now_s, consolidate=consolidate)
        day.plan_s.append(time.process_time() - began)
        day.longest_advice = max(day.longest_advice, len(dumps(document)))
        if number == 0:
            day.unsolved.append(len(document["unsolved"]) + document["more_unsolved"])
        if not document["moves"]:
            return
        world.follow(document["moves"])
        kinds = [move["kind"] for move in document["moves"]]
        day.moves += kinds.count("move")
        day.replicas += kinds.count("replicate")
        said = {place_of(s["gpu_uuid"])[0] for s in document["steps"]}


def say(day: Day, world: World) -> None:
    gpus = world.hosts * GPUS
    print(f"\n{day.name}: {world.hosts} hosts, {gpus} GPUs, {len(world.workloads)} workloads")
    part = day.missed_min / day.workload_min
    print(f"  SLO missed: {day.missed_min:.0f} workload minutes, {part:.3%} of all")
    print(f"  GPUs in use: mean {statistics.mean(day.used):.0f}, least {min(day.used)}")
    if not day.messages:
        return
    each = day.bytes / day.messages
    rate = world.hosts / STATE_EVERY_S
    print(f"  followed: {day.moves} moves and {day.replicas} replicas")
    print(f"  workloads without a solution at first: {statistics.mean(day.unsolved):.2f} a plan")
    print(f"  a state: mean {each:.0f} bytes, largest {day.largest}")
    print(
        f"  at the broker, a state every {STATE_EVERY_S:g} s: {rate:.0f} messages/s, "
        f"{rate * each / 1e6:.2f} MB/s"
    )
    print(f"  read and judged: {day.messages / day.take_s:.0f} states/s on one core")
    plans = sorted(day.plan_s)
    middle = statistics.median(plans)
    print(f"  a plan of one cluster: median {middle:.2f} s, longest {plans[-1]:.2f} s")
    print(f"  longest advice: {day.longest_advice} bytes")
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"  resident memory, simulation and all: {rss:.0f} MB at most")


def trouble(world: World, fleet: Fleet) -> None:
    """One host's trouble in a cluster of all: from its state to the advice."""
    day = Day("all in one", world.hosts)
    fleet.hear_all(world, day, fleet.hosts)
    began = time.process_time()
    fleet.advice(world.now_s)
    first_s = time.process_time() - began
    took: list[float] = []
    solved = 0
    for number in range(TROUBLES):
        host = next(
            at % world.hosts
            for at in range(number * 7919, number * 7919 + world.hosts)
            if any(world.tenants[at % world.hosts])
        )
        busiest = max(world.tenants[host], key=len)
        surging = busiest[0].origin or busiest[0]
        while all(plan.least < 1.0 for plan in world.decisions(host)):
            surging.drift += 0.1
        payload = payload_of(world.state(host, 1000 + number))
        began = time.process_time()
        fleet.hear(payload, host)
        document = fleet.advice(world.now_s)
        dumps(document)
        took.append(time.process_time() - began)
        solved += all(each["host"] != f"host-{host:05d}" for each in document["unsolved"])
    took.sort()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"\nall {world.hosts} hosts as one cluster: read, and planned for the first time")
    print(f"  states: {day.take_s:.1f} s, the plan: {first_s:.1f} s; {rss:.0f} MB at most")
    print(
        f"  one host more in trouble, {len(took)} times, {solved} of them solved; from its state "
        f"to the advice: median {statistics.median(took):.3f} s, longest {took[-1]:.3f} s"
    )


if __name__ == "__main__":
    main()
