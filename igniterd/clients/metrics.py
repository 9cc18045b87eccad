"""What Prometheus scrapes: the latest tick, rendered when asked for, and counters that a tick adds
to.

Names, units and labels are a contract (dashboard, alerts, other people's queries): all of them are
in :meth:`Metrics.collect`'s parts. Nothing is kept in metric objects, so no gauge can go stale:
what the latest tick does not say is not exposed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
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
from igniterd.clients.mqtt import MqttStatistics
from igniterd.config import Config
from igniterd.records import DecisionKind, Effect, Mode, ModelReading, StepKind, Tick
from igniterd.states import State

_RATIO_BUCKETS = (0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
_STAGE_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_ACTUATION_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_MODEL = ("model", "version")


class Histogram:
    """Counts by upper bound, as few operations as an observation can cost."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """``[(upper bound, observations at or below it)]``, the last bound ``+Inf``."""
        rows, below = [], 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            below += count
            rows.append(("+Inf" if math.isinf(bound) else repr(bound), float(below)))
        return rows


def _histograms(bounds: tuple[float, ...]) -> defaultdict[str, Histogram]:
    return defaultdict(lambda: Histogram(bounds))


@dataclass(slots=True)
class Counters:
    """Everything that only grows; by model, outcome, kind, stage or source."""

    ticks: int = 0
    arrivals: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    observed_s: dict[str, float] = field(default_factory=dict)
    violated_s: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DecisionKind, 0))
    actuations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    error_ratio: defaultdict[str, Histogram] = field(
        default_factory=lambda: _histograms(_RATIO_BUCKETS)
    )
    stage_s: defaultdict[str, Histogram] = field(
        default_factory=lambda: _histograms(_STAGE_BUCKETS)
    )
    actuation_s: defaultdict[str, Histogram] = field(
        default_factory=lambda: _histograms(_ACTUATION_BUCKETS)
    )
    success_at_s: dict[str, float] = field(default_factory=dict)


class Metrics(Collector):
    """:meth:`update` takes each tick, :meth:`render` gives the page. Both run in the loop's
    thread."""

    def __init__(self, config: Config, *, mqtt: MqttStatistics | None = None) -> None:
        """`mqtt` is the publisher's own, living statistics; ``None`` without a broker. It may be
        set later."""
        self.mqtt = mqtt
        self._config = config
        self._slo_ms = {model.name: model.slo_p99_ms for model in config.model}
        self._sources = tuple(sources_of(config))
        self._tick: Tick | None = None
        self._versions: dict[str, str] = {}
        self._up: dict[str, bool] = {}
        names = [model.name for model in config.model]
        self.counters = Counters(
            arrivals=dict.fromkeys(names, 0),
            failed=dict.fromkeys(names, 0),
            rejected=dict.fromkeys(names, 0),
            left_out=dict.fromkeys(names, 0),
            observed_s=dict.fromkeys(names, 0.0),
            violated_s=dict.fromkeys(names, 0.0),
        )
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def update(self, tick: Tick) -> None:
        """Add one tick to the counters and make it the one that is shown."""
        self._tick = tick
        counters = self.counters
        counters.ticks += 1
        counters.decisions[tick.plan.outcome] += 1
        for stage, seconds in tick.stage_s.items():
            counters.stage_s[stage].observe(seconds)
        for done in tick.outcome.actuations:
            counters.actuations[done.step.kind] += 1
            counters.refused[done.step.kind] += not done.ok
            counters.actuation_s[done.step.kind].observe(done.duration_s)
        for name in self._slo_ms:
            self._count_model(name, tick)
        self._up = _answering(self._sources, tick)
        counters.success_at_s |= {source: tick.wall_time_s for source, up in self._up.items() if up}

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, for a scraper that accepts `accept`."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "igniterd_build", "Version and mode of the running daemon.", self._build()
        )
        yield from self._counted()
        yield from self._timed()
        if self.mqtt is not None:
            yield from _mqtt_families(self.mqtt)
        tick = self._tick
        if tick is not None:
            yield from self._sources_seen()
            yield from _states(tick)
            yield from self._models_applied(tick)
            yield from self._models_believed(tick)
            yield from _host_planned(tick)
            yield from _boards(tick)

    # ------------------------------------------------------------ counting

    def _count_model(self, name: str, tick: Tick) -> None:
        reading, window, load = (
            tick.observation.models.get(name),
            tick.window.models.get(name),
            tick.estimate.loads.get(name),
        )
        if reading is not None:
            self._versions[name] = reading.version
        if window is not None:
            self.counters.arrivals[name] += max(0, window.arrivals)
            self.counters.failed[name] += max(0, window.failed)
            self.counters.rejected[name] += max(0, window.rejected)
        standing = tick.standings.get(name)
        odd = standing is not None and standing.state is State.UNPREDICTABLE
        self.counters.left_out[name] += odd or name in tick.estimate.left_out
        if load is None:
            return
        if load.error_ratio is not None:
            self.counters.error_ratio[name].observe(1.0 + load.error_ratio)
        if window is not None and load.measured_p99_ms is not None:
            self.counters.observed_s[name] += window.span_s
            self.counters.violated_s[name] += window.span_s * (
                load.measured_p99_ms > self._slo_ms[name]
            )

    def _build(self) -> dict[str, str]:
        return {"version": __version__, "mode": Mode(self._config.loop.mode).value}

    def _labels(self, name: str) -> tuple[str, str]:
        return name, self._versions.get(name, "")

    # ------------------------------------------------------------ families

    def _counted(self) -> Iterator[Metric]:
        counters = self.counters
        yield CounterMetricFamily(
            "igniterd_ticks", "Turns of the control loop finished.", value=counters.ticks
        )
        for family, help_text, by_model in (
            (
                "arrival_requests",
                "Requests that arrived, from Triton's statistics.",
                counters.arrivals,
            ),
            ("failed_requests", "Requests that Triton answered with an error.", counters.failed),
            (
                "observed_seconds",
                "Seconds in which the P99 latency was known.",
                counters.observed_s,
            ),
            (
                "slo_violation_seconds",
                "Seconds of igniterd_observed_seconds in which the P99 latency was above the SLO.",
                counters.violated_s,
            ),
        ):
            metric = CounterMetricFamily(f"igniterd_{family}", help_text, labels=_MODEL)
            for name, value in by_model.items():
                metric.add_metric(self._labels(name), value)
            yield metric
        for family, help_text, label, by_kind in (
            (
                "requests_rejected",
                "Requests whose time in the queue ran out, as far as Triton tells.",
                "model",
                counters.rejected,
            ),
            (
                "readings_left_out",
                "Ticks that left the model out: its reading made a prediction fail.",
                "model",
                counters.left_out,
            ),
            (
                "decisions",
                "Decisions by outcome: hold, wait, move, infeasible.",
                "outcome",
                counters.decisions,
            ),
            ("actuations", "Changes of a model tried, by kind.", "kind", counters.actuations),
            (
                "actuation_failures",
                "Changes of a model that were refused or not answered, by kind.",
                "kind",
                counters.refused,
            ),
        ):
            metric = CounterMetricFamily(f"igniterd_{family}", help_text, labels=(label,))
            for kind, value in by_kind.items():
                metric.add_metric((str(kind),), value)
            yield metric

    def _timed(self) -> Iterator[Metric]:
        counters = self.counters
        errors = HistogramMetricFamily(
            "igniterd_prediction_error_ratio",
            "Measured mean service time divided by the predicted one; 1 is right.",
            labels=_MODEL,
        )
        for name, histogram in counters.error_ratio.items():
            errors.add_metric(self._labels(name), histogram.cumulative(), histogram.total)
        yield errors
        for family, help_text, label, by_kind in (
            (
                "control_loop_duration_seconds",
                "Time a stage of one tick took.",
                "stage",
                counters.stage_s,
            ),
            (
                "actuation_duration_seconds",
                "Time one change took, from the request until the new copy served.",
                "kind",
                counters.actuation_s,
            ),
        ):
            metric = HistogramMetricFamily(f"igniterd_{family}", help_text, labels=(label,))
            for kind, histogram in by_kind.items():
                metric.add_metric((str(kind),), histogram.cumulative(), histogram.total)
            yield metric

    def _sources_seen(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "igniterd_source_up",
            "Whether the source answered at the latest tick.",
            labels=("source",),
        )
        last = GaugeMetricFamily(
            "igniterd_last_success_timestamp_seconds",
            "When the source last answered.",
            labels=("source",),
        )
        for source, answers in self._up.items():
            up.add_metric((source,), float(answers))
        for source, at_s in self.counters.success_at_s.items():
            last.add_metric((source,), at_s)
        yield from (up, last)

    def _models_applied(self, tick: Tick) -> Iterator[Metric]:
        readings = [
            (self._labels(name), reading) for name, reading in tick.observation.models.items()
        ]
        shares = [(labels, reading.allocation.share) for labels, reading in readings]
        yield _by_model(
            "model_ready",
            "Whether Triton serves the model.",
            [(self._labels(n), float(_ready(tick, n))) for n in self._slo_ms],
        )
        yield _by_model(
            "mps_active_thread_ratio",
            "The model's own MPS share as applied; absent without one.",
            shares,
        )
        yield from self._shares_shown(tick)
        yield _by_model(
            "max_batch_size",
            "Largest batch formed, as applied.",
            [(key, r.allocation.max_batch_size) for key, r in readings],
        )
        delays = [(key, r.allocation.max_queue_delay_us / 1e6) for key, r in readings]
        yield _by_model(
            "max_queue_delay_seconds", "Longest wait for a fuller batch, as applied.", delays
        )
        yield _by_model(
            "instances",
            "Instances of the model, as applied.",
            [(key, r.allocation.instances) for key, r in readings],
        )
        info = GaugeMetricFamily(
            "igniterd_model_info",
            "Where the model runs; always 1.",
            labels=(*_MODEL, "triton", "backend", "gpu_uuid"),
        )
        for labels, reading in readings:
            info.add_metric((*labels, reading.triton, reading.backend, _uuid(tick, reading)), 1.0)
        yield info

    def _shares_shown(self, tick: Tick) -> Iterator[Metric]:
        """A share that nothing shows to have an effect is 0, whatever the configuration says."""
        shown = [
            (self._labels(n), float(share.effect is Effect.PROVEN))
            for n, share in tick.shares.items()
        ]
        yield _by_model(
            "share_effective",
            "Whether the share is shown to have an effect; absent without one.",
            shown,
        )
        info = GaugeMetricFamily(
            "igniterd_share_state",
            "State of the model's share; always 1.",
            labels=(*_MODEL, "state"),
        )
        for name, share in tick.shares.items():
            info.add_metric((*self._labels(name), share.effect.value), 1.0)
        yield info

    def _models_believed(self, tick: Tick) -> Iterator[Metric]:
        slos = [(self._labels(name), slo_ms / 1e3) for name, slo_ms in self._slo_ms.items()]
        yield _by_model("slo_latency_seconds", "The SLO: P99 latency to stay at or below.", slos)
        yield self._latencies(tick)
        yield self._predictions(tick)
        loads = [(self._labels(name), load) for name, load in tick.estimate.loads.items()]
        yield _by_model(
            "arrival_rate",
            "Requests a second, best estimate for now.",
            [(key, load.rate_per_s) for key, load in loads],
        )
        yield _by_model(
            "planned_arrival_rate",
            "Requests a second that plans are made for.",
            [(key, load.rate_upper_per_s) for key, load in loads],
        )
        yield _by_model(
            "busy_ratio",
            "Fraction of the time spent executing.",
            [(key, load.utilisation) for key, load in loads],
        )
        yield _by_model(
            "bias_ratio",
            "Learnt ratio of measured to predicted service time.",
            [(key, load.bias) for key, load in loads],
        )
        uppers = [(key, load.bias_upper if load.published_bias else None) for key, load in loads]
        yield _by_model(
            "bias_upper_ratio",
            "Upper bound of the learnt ratio; absent before anything is learnt.",
            uppers,
        )
        yield _by_model(
            "arrival_burstiness_ratio",
            "Squared coefficient of variation of the times between arrivals.",
            [(key, load.arrival_scv) for key, load in loads],
        )
        changed = [
            (key, tick.wall_time_s + load.changed.at_s - tick.at_s if load.changed else None)
            for key, load in loads
        ]
        yield _by_model(
            "model_changed_timestamp_seconds",
            "When the model was last found to have become another.",
            changed,
        )
        verdicts = [
            (self._labels(name), float(verdict.feasible))
            for name, verdict in tick.plan.verdicts.items()
        ]
        yield _by_model("model_feasible", "Whether the plan keeps the model's SLO.", verdicts)

    def _latencies(self, tick: Tick) -> Metric:
        """Measured by Triton (``source="triton"``) and as the loop takes it for its decisions
        (``source="estimate"``)."""
        metric = Metric("igniterd_latency_seconds", "Latency of requests.", "summary")
        for name, reading in tick.observation.models.items():
            for quantile, seconds in (reading.latency_quantiles_s or {}).items():
                metric.add_sample(
                    metric.name,
                    self._quantile(name, f"{quantile:g}") | {"source": "triton"},
                    seconds,
                )
        for name, load in tick.estimate.loads.items():
            for label, latency_ms in (
                ("0.5", load.measured_p50_ms),
                ("0.99", load.measured_p99_ms),
            ):
                if latency_ms is not None:
                    metric.add_sample(
                        metric.name,
                        self._quantile(name, label) | {"source": "estimate"},
                        latency_ms / 1e3,
                    )
        return metric

    def _predictions(self, tick: Tick) -> Metric:
        metric = Metric(
            "igniterd_predicted_latency_seconds",
            "Latency that the performance model predicts for now.",
            "summary",
        )
        for name, load in tick.estimate.loads.items():
            for label, latency_ms in (
                ("0.5", load.predicted_p50_ms),
                ("0.99", load.predicted_p99_ms),
            ):
                if latency_ms is not None:
                    metric.add_sample(metric.name, self._quantile(name, label), latency_ms / 1e3)
        return metric

    def _quantile(self, name: str, quantile: str) -> dict[str, str]:
        model, version = self._labels(name)
        return {"model": model, "version": version, "quantile": quantile}


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


def _by_model(
    name: str, help_text: str, rows: Iterable[tuple[tuple[str, str], float | None]]
) -> Metric:
    metric = GaugeMetricFamily(f"igniterd_{name}", help_text, labels=_MODEL)
    for labels, value in rows:
        if value is not None:
            metric.add_metric(labels, float(value))
    return metric


def _states(tick: Tick) -> Iterator[Metric]:
    """Each model's state, one series a state as Prometheus wants an enum; what is not known of a
    model is absent."""
    state = GaugeMetricFamily(
        "igniterd_model_state",
        "Whether the model is in the state: 1 or 0.",
        labels=("model", "state"),
    )
    for name, standing in tick.standings.items():
        for each in State:
            state.add_metric((name, each.value), float(standing.state is each))
    stuck = GaugeMetricFamily(
        "igniterd_model_stuck_seconds",
        "For how long requests have waited with nothing executed; 0 where not.",
        labels=("model",),
    )
    for name, load in tick.estimate.loads.items():
        stuck.add_metric((name,), load.stuck_s)
    yield from (state, stuck)


def _ready(tick: Tick, name: str) -> bool:
    reading = tick.observation.models.get(name)
    return reading is not None and reading.ready


def _uuid(tick: Tick, reading: ModelReading) -> str:
    return next(
        (board.uuid for board in tick.observation.boards if board.index == reading.gpu_index), ""
    )


def _host_planned(tick: Tick) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "igniterd_feasible",
        "Whether every SLO can be kept on this host.",
        value=float(tick.plan.feasible),
    )
    allocated = GaugeMetricFamily(
        "igniterd_gpu_allocated_ratio",
        "Sum of the MPS shares on the GPU, whoever gave them.",
        labels=("gpu_uuid",),
    )
    headroom = GaugeMetricFamily(
        "igniterd_gpu_headroom_ratio",
        "Factor by which every arrival rate may grow with all SLOs kept; 1 is none.",
        labels=("gpu_uuid",),
    )
    for board in tick.observation.boards:
        shares = [
            reading.allocation.granted or 0.0
            for reading in tick.observation.models.values()
            if reading.gpu_index == board.index
        ]
        allocated.add_metric(
            (board.uuid,), sum(shares) + tick.observation.foreign.get(board.index, 0.0)
        )
        if tick.plan.headroom is not None:
            headroom.add_metric((board.uuid,), tick.plan.headroom)
    yield from (allocated, headroom)


def _boards(tick: Tick) -> Iterator[Metric]:
    for name, help_text, attribute, unit in (
        ("power_watts", "Power drawn.", "power_w", 1.0),
        ("power_limit_watts", "Power limit enforced.", "power_limit_w", 1.0),
        ("sm_clock_hertz", "SM clock.", "sm_clock_mhz", 1e6),
        ("memory_used_bytes", "Memory in use.", "memory_used_bytes", 1.0),
        ("memory_total_bytes", "Memory of the board.", "memory_total_bytes", 1.0),
        ("temperature_celsius", "Temperature of the GPU.", "temperature_c", 1.0),
    ):
        metric = GaugeMetricFamily(f"igniterd_gpu_{name}", help_text, labels=("gpu_uuid",))
        for board in tick.observation.boards:
            value = getattr(board, attribute)
            if value is not None:
                metric.add_metric((board.uuid,), value * unit)
        yield metric


def _mqtt_families(statistics: MqttStatistics) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "igniterd_mqtt_connected",
        "Whether the broker is connected.",
        value=float(statistics.connected),
    )
    yield CounterMetricFamily(
        "igniterd_mqtt_published", "Messages the broker took.", value=statistics.published
    )
    yield CounterMetricFamily(
        "igniterd_mqtt_replaced",
        "Messages a newer one replaced before they were sent.",
        value=statistics.replaced,
    )
    yield CounterMetricFamily(
        "igniterd_mqtt_dropped",
        "Messages dropped because too many waited.",
        value=statistics.dropped,
    )
    yield CounterMetricFamily(
        "igniterd_mqtt_refused", "Messages the broker did not take.", value=statistics.refused
    )
    yield CounterMetricFamily(
        "igniterd_mqtt_failures", "Connections that failed or were lost.", value=statistics.failures
    )
