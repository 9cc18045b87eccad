"""What Prometheus scrapes of ``igniterd fleet``: read when asked for, so that no gauge goes stale.

Names, units and labels are a contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from igniterd import __version__


@dataclass(frozen=True, slots=True)
class ClusterReading:
    """One cluster now. ``durations``: plans by the upper end (s) of their bucket; ``feasible``,
    ``moves``, ``unsolved`` are of the last rebalance that this process published, with the moves
    that did not fit in its message."""

    cluster: str
    hosts: Mapping[str, int] = field(default_factory=dict)
    messages: Mapping[tuple[str, str], int] = field(default_factory=dict)
    received_bytes: int = 0
    plans: Mapping[str, int] = field(default_factory=dict)
    durations: Mapping[float, int] = field(default_factory=dict)
    buckets: Sequence[float] = ()
    duration_s: float = 0.0
    moves: int | None = None
    unsolved: int | None = None
    feasible: bool | None = None
    speaks: bool = False
    term: int = 0
    connected: bool = False
    connection_failures: int = 0
    published: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    answered_s: float | None = None
    profiles: int = 0
    troubles: int = 0


class FleetMetrics(Collector):
    """:meth:`render` gives the page. Runs in the loop's thread."""

    def __init__(self, read: Callable[[], Sequence[ClusterReading]]) -> None:
        self._read = read
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, for a scraper that accepts ``accept``."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "igniterd_build",
            "Version and mode of the running process.",
            {"version": __version__, "mode": "fleet"},
        )
        clusters = self._read()
        yield from _counters(clusters)
        yield from _gauges(clusters)
        yield _durations(clusters)


def _counters(clusters: Sequence[ClusterReading]) -> Iterator[Metric]:
    messages = CounterMetricFamily(
        "igniterd_fleet_messages",
        "Messages received, by kind and what became of them.",
        labels=("cluster", "kind", "outcome"),
    )
    received = CounterMetricFamily(
        "igniterd_fleet_received_bytes", "Bytes of messages received.", labels=("cluster",)
    )
    plans = CounterMetricFamily(
        "igniterd_fleet_plans",
        "Plans, by outcome: made, failed, late, unlearnt.",
        labels=("cluster", "outcome"),
    )
    published = CounterMetricFamily(
        "igniterd_fleet_published",
        "Own messages, by kind and whether the broker took them.",
        labels=("cluster", "kind", "outcome"),
    )
    failures = CounterMetricFamily(
        "igniterd_fleet_connection_failures",
        "Connections to the broker that failed or ended.",
        labels=("cluster",),
    )
    for each in clusters:
        for (kind, outcome), count in sorted(each.messages.items()):
            messages.add_metric((each.cluster, kind, outcome), count)
        received.add_metric((each.cluster,), each.received_bytes)
        for outcome, count in sorted(each.plans.items()):
            plans.add_metric((each.cluster, outcome), count)
        for outcome, counts in (("taken", each.published), ("refused", each.refused)):
            for kind, count in sorted(counts.items()):
                published.add_metric((each.cluster, kind, outcome), count)
        failures.add_metric((each.cluster,), each.connection_failures)
    yield from (messages, received, plans, published, failures)


def _gauges(clusters: Sequence[ClusterReading]) -> Iterator[Metric]:
    hosts = GaugeMetricFamily(
        "igniterd_fleet_hosts",
        "Hosts known: used in plans, offline (the broker lost them, or they left), or left_out.",
        labels=("cluster", "state"),
    )
    for each in clusters:
        for state, count in sorted(each.hosts.items()):
            hosts.add_metric((each.cluster, state), count)
    yield hosts
    for name, said, value in _GAUGES:
        family = GaugeMetricFamily(f"igniterd_fleet_{name}", said, labels=("cluster",))
        for each in clusters:
            if (found := value(each)) is not None:
                family.add_metric((each.cluster,), float(found))
        yield family


_GAUGES: tuple[tuple[str, str, Callable[[ClusterReading], float | None]], ...] = (
    ("connected", "Whether the broker is reached, and listened to.", lambda c: c.connected),
    ("speaker", "Whether this process speaks for the cluster.", lambda c: c.speaks),
    ("speaker_term", "The last term in which this process spoke.", lambda c: c.term),
    ("profiles", "Profiles known.", lambda c: c.profiles),
    ("troubles", "Hosts and topics with something odd about them.", lambda c: c.troubles),
    ("moves", "Moves advised now, those too that did not fit; of the speaker.", lambda c: c.moves),
    (
        "feasible",
        "Whether every SLO that was judged holds after all these moves; of the speaker.",
        lambda c: c.feasible,
    ),
    ("unsolved_models", "Models that no move helps; of the speaker.", lambda c: c.unsolved),
    (
        "answer_seconds",
        "From the first change to the rebalance that followed it, the last time.",
        lambda c: c.answered_s,
    ),
)


def _durations(clusters: Sequence[ClusterReading]) -> Metric:
    family = HistogramMetricFamily(
        "igniterd_fleet_plan_duration_seconds", "Time taken by plans.", labels=("cluster",)
    )
    for each in clusters:
        count, buckets = 0, []
        for end in (*each.buckets, float("inf")):
            count += each.durations.get(end, 0)
            buckets.append(("+Inf" if end == float("inf") else str(end), float(count)))
        family.add_metric((each.cluster,), buckets, each.duration_s)
    return family
