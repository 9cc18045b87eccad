"""A cluster of simulated hosts over a day, with and without following what ``igniterd fleet``
advises; and what that costs.

The messages are real, and so are their reader, the search and the planner; the hosts are simulated
(``bench/fleet_world.py``). Every ``--step`` minutes each host says its state, a plan is made, and
where hints are followed all of its moves are done within ``FOLLOWED_MIN`` minutes. Until then a
workload whose daemon cannot hold its SLO misses it, and after that who is still in trouble does.

    python bench/fleet.py [--hosts 300] [--step 15] [--hours 24]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import dataclass, field

from bench.fleet_world import GPUS, STATE_EVERY_S, World, digest, payload_of, profile
from igniterd.fleet.knowledge import Knowledge, build
from igniterd.fleet.planning import Planner
from igniterd.fleet.view import ClusterView
from igniterd.jsontext import dumps
from igniterd.messages.profile import canonical, packed
from igniterd.messages.topics import host_topic, profile_topic
from igniterd.perf import load_model

SEED = 1
FILL = 0.75
TROUBLES = 40
FOLLOWED_MIN = 5.0


@dataclass(slots=True)
class Day:
    """What one day came to. ``plan_s``: from the last state of a step to the advice."""

    name: str
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


@dataclass(slots=True)
class Fleet:
    """What ``igniterd fleet`` has of the cluster."""

    knowledge: Knowledge
    view: ClusterView = field(default_factory=lambda: ClusterView("sim"))
    planner: Planner = field(default_factory=lambda: Planner("sim", anywhere=True))
    at_s: float = 0.0

    def hear(self, payload: bytes, host: str) -> None:
        topic = host_topic("sim", host, "state")
        self.view.take(topic, payload, at_s=self.at_s, left_s=None, retained=False)

    def hear_profile(self) -> None:
        """As if its messages had come."""
        text = canonical(profile().model_dump(mode="json", exclude_none=True))
        for part in packed(text):
            event = {"specversion": "1.0", "id": "1", "source": "igniterd/sim/a", "data": part}
            event |= {"type": "igniterd.profile", "time": "2026-01-01T00:00:00+00:00"}
            topic = profile_topic("sim", digest(), part["part"])
            self.view.take(topic, dumps(event).encode(), at_s=0.0, left_s=None, retained=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=300)
    parser.add_argument("--step", type=float, default=15.0, help="minutes")
    parser.add_argument("--hours", type=float, default=24.0)
    told = parser.parse_args()
    knowledge = build({digest(): profile()}, fit=load_model, previous=None)
    days = [Day("no hints"), Day("hints followed"), Day("and GPUs freed")]
    for number, day in enumerate(days):
        fleet = None if number == 0 else Fleet(knowledge)
        world = World.begin(told.hosts, SEED, FILL)
        live(world, day, fleet, told.step, told.hours, consolidate=number == 2)
        say(day, world)
    if fleet is not None:
        trouble(world, fleet)


def live(
    world: World, day: Day, fleet: Fleet | None, step: float, hours: float, *, consolidate: bool
) -> None:
    """One day in steps of so many minutes."""
    for tick in range(round(hours * 60 / step)):
        world.advance(step * 60)
        day.workload_min += step * len(world.workloads)
        before = after = world.missed()
        if fleet is not None:
            payloads = [payload_of(world.state(h, tick + 1)) for h in range(world.hosts)]
            follow(world, day, fleet, payloads, consolidate=consolidate)
            after = world.missed()
        day.missed_min += FOLLOWED_MIN * before + (step - FOLLOWED_MIN) * after
        day.used.append(world.used_gpus())


def follow(
    world: World, day: Day, fleet: Fleet, payloads: list[bytes], *, consolidate: bool
) -> None:
    """All hosts say their state, and what is advised is done."""
    fleet.at_s += STATE_EVERY_S
    began = time.perf_counter()
    for host, payload in enumerate(payloads):
        fleet.hear(payload, f"host-{host:05d}")
    day.take_s += time.perf_counter() - began
    if fleet.view.wanted_profiles():
        fleet.hear_profile()
    day.messages += len(payloads)
    day.bytes += sum(map(len, payloads))
    day.largest = max(day.largest, *map(len, payloads))
    began = time.perf_counter()
    advice = fleet.planner.plan(
        fleet.view.cluster(fleet.at_s), fleet.knowledge, consolidate=consolidate
    )
    document = advice.document(speaker="bench", term=1, number=1, time_s=world.now_s)
    day.plan_s.append(time.perf_counter() - began)
    day.longest_advice = max(day.longest_advice, len(dumps(document)))
    world.follow(document["moves"])
    for move in document["moves"]:
        day.moves += move["kind"] == "move"
        day.replicas += move["kind"] == "replicate"
    day.unsolved.append(len(advice.unsolved))


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
    print(f"  workloads without a solution: mean {statistics.mean(day.unsolved):.1f} a plan")
    print(f"  a state: mean {each:.0f} bytes, largest {day.largest}")
    print(
        f"  at the broker, a state every {STATE_EVERY_S:g} s: {rate:.0f} messages/s, "
        f"{rate * each / 1e6:.2f} MB/s"
    )
    print(f"  read and judged: {day.messages / day.take_s:.0f} states/s on one core")
    plans = sorted(day.plan_s)
    middle = statistics.median(plans)
    print(f"  a plan of everything: median {middle:.2f} s, longest {plans[-1]:.2f} s")
    print(f"  longest advice, whole: {day.longest_advice} bytes")
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"  resident memory, simulation and all: {rss:.0f} MB at most")


def trouble(world: World, fleet: Fleet) -> None:
    """One host's trouble: from its state to the advice, everybody else as before."""
    fleet.planner.plan(fleet.view.cluster(fleet.at_s), fleet.knowledge)
    took: list[float] = []
    solved = 0
    for number in range(TROUBLES):
        host, name = (number * 7919) % world.hosts, f"host-{(number * 7919) % world.hosts:05d}"
        busiest = max(world.tenants[host], key=len)
        surging = busiest[0].origin or busiest[0]
        while all(plan.least < 1.0 for plan in world.decisions(host)):
            surging.drift += 0.1
        payload = payload_of(world.state(host, 10_000 + number))
        began = time.perf_counter()
        fleet.hear(payload, name)
        advice = fleet.planner.plan(fleet.view.cluster(fleet.at_s), fleet.knowledge)
        dumps(advice.document(speaker="bench", term=1, number=1, time_s=world.now_s))
        took.append(time.perf_counter() - began)
        solved += all(each.host != name for each in advice.unsolved)
    took.sort()
    print(
        f"\none host more in trouble, {len(took)} times, {solved} of them solved; from its state "
        f"to the advice: median {statistics.median(took):.3f} s, longest {took[-1]:.3f} s"
    )


if __name__ == "__main__":
    main()
