"""What Prometheus scrapes: the latest tick, rendered when asked for, and counters that a tick adds
to.

Names, units and labels are a contract (dashboard, alerts, other people's queries): all of them are
in :mod:`igniterd.clients.metric_families` and :mod:`igniterd.clients.metric_counters`. Nothing is
kept in metric objects, so no gauge can go stale: what the latest tick does not say is not exposed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from igniterd import __version__
from igniterd.clients.metric_counters import Counters
from igniterd.clients.metric_families import (
    boards,
    host_planned,
    models_applied,
    models_believed,
    mqtt_published,
    served_by_cluster,
    sources_seen,
    states,
)
from igniterd.clients.mqtt import MqttStatistics
from igniterd.config import Config
from igniterd.decisions import Tick
from igniterd.records import Mode


class Metrics(Collector):
    """:meth:`update` takes each tick, :meth:`render` gives the page. Both run in the loop's
    thread."""

    def __init__(self, config: Config, *, mqtt: MqttStatistics | None = None) -> None:
        """`mqtt` is the publisher's own, living statistics; ``None`` without a broker. It may be
        set later."""
        self.mqtt = mqtt
        self._config = config
        self._slo_ms = {model.tenant: model.slo_p99_ms for model in config.model}
        self._of_cluster = {m.tenant: m.name for m in config.model if m.served_by == "cluster"}
        self._sources = tuple(sources_of(config))
        self._tick: Tick | None = None
        self._versions: dict[str, str] = {}
        self._up: dict[str, bool] = {}
        self.counters = Counters.of_models(self._slo_ms)
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def update(self, tick: Tick) -> None:
        """Add one tick to the counters and make it the one that is shown."""
        self._tick = tick
        for name in self._slo_ms:
            reading = tick.observation.models.get(name)
            if reading is not None:
                self._versions[name] = reading.version
        self.counters.count(tick, self._slo_ms)
        self._up = _answering(self._sources, tick)
        self.counters.success_at_s |= {
            source: tick.wall_time_s for source, up in self._up.items() if up
        }

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, for a scraper that accepts `accept`."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "igniterd_build", "Version and mode of the running daemon.", self._build()
        )
        yield from self.counters.count_families(self._labels)
        yield from self.counters.time_families(self._labels)
        if self.mqtt is not None:
            yield from mqtt_published(self.mqtt)
        tick = self._tick
        if tick is not None:
            yield from sources_seen(self._up, self.counters.success_at_s)
            yield from states(tick)
            yield from models_applied(tick, self._labels, self._slo_ms)
            host = self._config.host
            yield from served_by_cluster(tick, self._labels, host.cluster, self._of_cluster)
            yield from models_believed(tick, self._labels, self._slo_ms)
            yield from host_planned(tick)
            yield from boards(tick)

    def _build(self) -> dict[str, str]:
        return {"version": __version__, "mode": Mode(self._config.loop.mode).value}

    def _labels(self, name: str) -> tuple[str, str]:
        return name, self._versions.get(name, "")


def sources_of(config: Config) -> Iterator[str]:
    """Every source a tick asks, by the names that gaps carry."""
    if config.gpu.source != "none":
        yield "nvml"
    if config.mps.enabled:
        yield "mps"
        yield "processes"
    for server in config.triton:
        yield f"triton:{server.name}"
        if server.metrics_url is not None:
            yield f"metrics:{server.name}"


def _answering(sources: Iterable[str], tick: Tick) -> dict[str, bool]:
    """A Triton that is silent is not asked for its metrics page's sake: that source is down with
    it."""
    silent = {gap.source for gap in tick.observation.gaps}
    return {
        source: source not in silent and source.replace("metrics:", "triton:") not in silent
        for source in sources
    }
