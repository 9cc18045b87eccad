"""Parts of a fleet that plan nothing, and say what they were asked."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from igniterd.fleet.cluster import Cluster, HostView
from igniterd.fleet.parts import Parts
from igniterd.messages.rebalance import Rebalance
from igniterd.messages.state import HostState
from igniterd.messages.topics import parse_topic
from igniterd.perf import Profile


def a_state(host: str, cluster: str = "lab", tick: int = 1) -> dict[str, Any]:
    return {"schema": 1, "host": host, "cluster": cluster, "run": "r", "tick": tick, "time_s": 1.0}


def a_move(number: int, source: str = "a", to: str = "b", words: int = 0) -> dict[str, Any]:
    return {
        "number": number,
        "kind": "move",
        "model": f"m{number}",
        "served_as": f"m{number}",
        "from": {"host": source, "gpu_uuid": "GPU-1"},
        "to": {"host": to, "gpu_uuid": "GPU-2"},
        "share": 0.5,
        "max_batch_size": 4,
        "replicas": 1,
        "rate_per_s": 10.0,
        "slo_p99_ms": 50.0,
        "at_source": [],
        "at_target": [
            {
                "model": f"m{number}",
                "slo_p99_ms": 50.0,
                "before_p99_ms": None,
                "after_p99_ms": 31.5,
            }
        ],
        "frees": {"share": 0.5, "gpu": True},
        "why": "its SLO does not hold" + "." * words,
    }


def a_step(number: int, move: int, action: str = "load") -> dict[str, Any]:
    return {
        "number": number,
        "move": move,
        "action": action,
        "host": "b",
        "gpu_uuid": "GPU-2",
        "model": f"m{move}",
    }


def a_rebalance(**more: Any) -> dict[str, Any]:
    found = {
        "cluster": "lab",
        "speaker": "s",
        "term": 1,
        "number": 1,
        "time_s": 1.0,
        "aim": "feasible",
        "feasible": True,
        "why": "why",
        "hosts": {"known": 2, "used": 2, "troubled": 1},
        "moves": [],
        "steps": [],
        "freed": [],
        "unsolved": [],
        "left_out": [],
        "rests_on": [],
        **more,
    }
    Rebalance.model_validate_json(json.dumps(found))
    return found


class FakeView:
    """Knows the hosts whose state can be read."""

    def __init__(self, cluster: str) -> None:
        self.name = cluster
        self.counts: Counter[tuple[str, str]] = Counter()
        self.hosts: dict[str, HostView] = {}
        self.wanted: frozenset[str] = frozenset()
        self.given_up: set[str] = set()
        self._changed = False

    def take(
        self, topic: str, payload: bytes, *, at_s: float, left_s: float | None, retained: bool
    ) -> None:
        found = parse_topic(topic)
        kind = "other" if found is None else found.kind
        try:
            state = HostState.model_validate(json.loads(payload)["data"])
        except (ValueError, KeyError, TypeError):
            self.counts[kind, "malformed"] += 1
            return
        self.counts[kind, "taken"] += 1
        self._changed |= self.hosts.get(state.host) != HostView.of(state)
        self.hosts[state.host] = HostView.of(state)

    def wanted_profiles(self) -> frozenset[str]:
        return self.wanted

    def give_up(self, digests: Iterable[str], at_s: float) -> None:
        self.given_up |= set(digests)

    def profiles(self) -> Mapping[str, Profile]:
        return {}

    def cluster(self, at_s: float) -> Cluster:
        return Cluster(self.name, dict(self.hosts))

    def troubles(self, at_s: float) -> Mapping[str, str]:
        return {}

    def changed(self) -> bool:
        changed, self._changed = self._changed, False
        return changed


@dataclass
class FakeAdvice:
    data: dict[str, Any]
    unfinished: bool = False

    def document(self, *, speaker: str, term: int, number: int, time_s: float) -> dict[str, Any]:
        about = {"speaker": speaker, "term": term, "number": number, "time_s": time_s}
        return self.data | about


@dataclass
class FakePlanner:
    """A move for every host but the first; ``fails`` and ``waits_for`` make it hard."""

    cluster: str
    plans: list[Cluster] = field(default_factory=list)
    fails: Exception | None = None
    waits_for: threading.Event | None = None
    goes_on: int = 0  # plans after which there is more to be found

    def plan(self, cluster: Cluster, knowledge: Any, *, consolidate: bool = False) -> FakeAdvice:
        self.plans.append(cluster)
        if self.waits_for is not None:
            self.waits_for.wait(20)
        if self.fails is not None:
            raise self.fails
        hosts = sorted(cluster.hosts)
        moves = [a_move(n, hosts[n], hosts[0]) for n in range(1, len(hosts))]
        seen = [{"host": h, "run": v.run, "tick": v.tick} for h, v in cluster.hosts.items()]
        counted = {"known": len(hosts), "used": len(hosts), "troubled": len(moves)}
        return FakeAdvice(
            a_rebalance(
                cluster=cluster.name,
                moves=moves,
                hosts=counted,
                aim="consolidate" if consolidate else "feasible",
                rests_on=seen,
            ),
            unfinished=len(self.plans) <= self.goes_on,
        )


@dataclass
class Fakes:
    """Parts of which one can ask afterwards."""

    views: dict[str, FakeView] = field(default_factory=dict)
    planners: dict[str, FakePlanner] = field(default_factory=dict)
    build: Callable[[Mapping[str, Profile], Any], Any] = lambda profiles, previous: None

    def parts(self) -> Parts:
        def view(cluster: str) -> FakeView:
            return self.views.setdefault(cluster, FakeView(cluster))

        def planner(cluster: str) -> FakePlanner:
            return self.planners.setdefault(cluster, FakePlanner(cluster))

        return Parts(view, self.build, planner)
