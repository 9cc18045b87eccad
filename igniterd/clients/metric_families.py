"""Families of the metrics page that tell of one tick. Names, units and labels are a contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from igniterd.clients.mqtt import MqttStatistics
from igniterd.decisions import Tick
from igniterd.records import Effect, ModelReading
from igniterd.states import State

MODEL = ("model", "version")
Named = Mapping[str, str]
Labels = Callable[[str], tuple[str, str]]
"""Values of the labels ``MODEL`` for a model of that name."""


def sources_seen(up_now: Mapping[str, bool], success_at_s: Mapping[str, float]) -> Iterator[Metric]:
    """Whether each source answers, and when it last did (s since 1970)."""
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
    for source, answers in up_now.items():
        up.add_metric((source,), float(answers))
    for source, at_s in success_at_s.items():
        last.add_metric((source,), at_s)
    yield from (up, last)


def models_applied(tick: Tick, labels: Labels, models: Iterable[str]) -> Iterator[Metric]:
    """What is applied to each model, as Triton says."""
    readings = [(labels(name), reading) for name, reading in tick.observation.models.items()]
    shares = [(key, reading.allocation.share) for key, reading in readings]
    yield _by_model(
        "model_ready",
        "Whether Triton serves the model.",
        [(labels(n), float(_ready(tick, n))) for n in models],
    )
    yield _by_model(
        "mps_active_thread_ratio",
        "The model's own MPS share as applied; absent without one.",
        shares,
    )
    yield from _shares_shown(tick, labels)
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
        labels=(*MODEL, "triton", "backend", "gpu_uuid"),
    )
    for key, reading in readings:
        info.add_metric((*key, reading.triton, reading.backend, _uuid(tick, reading)), 1.0)
    yield info


def served_by_cluster(tick: Tick, labels: Labels, cluster: str, models: Named) -> Iterator[Metric]:
    """``model_ready`` of the models that any host of the cluster may serve; ``models``: their names
    as Triton has them, by tenant."""
    ready = GaugeMetricFamily(
        "igniterd_model_cluster_ready",
        "Whether Triton serves a model here that any host of the cluster may serve.",
        labels=(*MODEL, "cluster", "served_as"),
    )
    for name, served_as in models.items():
        ready.add_metric((*labels(name), cluster, served_as), float(_ready(tick, name)))
    yield ready


def _shares_shown(tick: Tick, labels: Labels) -> Iterator[Metric]:
    """A share that nothing shows to have an effect is 0, whatever the configuration says."""
    shown = [(labels(n), float(share.effect is Effect.PROVEN)) for n, share in tick.shares.items()]
    yield _by_model(
        "share_effective",
        "Whether the share is shown to have an effect; absent without one.",
        shown,
    )
    info = GaugeMetricFamily(
        "igniterd_share_state",
        "State of the model's share; always 1.",
        labels=(*MODEL, "state"),
    )
    for name, share in tick.shares.items():
        info.add_metric((*labels(name), share.effect.value), 1.0)
    yield info


def models_believed(tick: Tick, labels: Labels, slo_ms: Mapping[str, float]) -> Iterator[Metric]:
    """What the daemon measures, estimates and predicts of each model."""
    slos = [(labels(name), limit_ms / 1e3) for name, limit_ms in slo_ms.items()]
    yield _by_model("slo_latency_seconds", "The SLO: P99 latency to stay at or below.", slos)
    yield _latencies(tick, labels)
    yield _predictions(tick, labels)
    loads = [(labels(name), load) for name, load in tick.estimate.loads.items()]
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
    told = [(key, load.live or load.published_bias) for key, load in loads]
    yield _by_model(
        "service_dispersion_ratio",
        "Learnt coefficient of variation of one service time; absent before anything is learnt.",
        [(key, known.cv if known else None) for key, known in told],
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
        (labels(name), float(verdict.feasible)) for name, verdict in tick.plan.verdicts.items()
    ]
    yield _by_model("model_feasible", "Whether the plan keeps the model's SLO.", verdicts)


def _latencies(tick: Tick, labels: Labels) -> Metric:
    """Measured by Triton (``source="triton"``) and as the loop takes it for its decisions
    (``source="estimate"``)."""
    metric = Metric("igniterd_latency_seconds", "Latency of requests.", "summary")
    for name, reading in tick.observation.models.items():
        for q, seconds in (reading.latency_quantiles_s or {}).items():
            metric.add_sample(
                metric.name,
                _quantile(labels, name, f"{q:g}") | {"source": "triton"},
                seconds,
            )
    for name, load in tick.estimate.loads.items():
        for quantile, latency_ms in (
            ("0.5", load.measured_p50_ms),
            ("0.99", load.measured_p99_ms),
        ):
            if latency_ms is not None:
                metric.add_sample(
                    metric.name,
                    _quantile(labels, name, quantile) | {"source": "estimate"},
                    latency_ms / 1e3,
                )
    return metric


def _predictions(tick: Tick, labels: Labels) -> Metric:
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
                metric.add_sample(metric.name, _quantile(labels, name, label), latency_ms / 1e3)
    return metric


def _quantile(labels: Labels, name: str, quantile: str) -> dict[str, str]:
    model, version = labels(name)
    return {"model": model, "version": version, "quantile": quantile}


def _by_model(
    name: str, help_text: str, rows: Iterable[tuple[tuple[str, str], float | None]]
) -> Metric:
    metric = GaugeMetricFamily(f"igniterd_{name}", help_text, labels=MODEL)
    for labels, value in rows:
        if value is not None:
            metric.add_metric(labels, float(value))
    return metric


def states(tick: Tick) -> Iterator[Metric]:
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
    """The GPU it is on; of several, all, as one label."""
    known = {board.uuid for board in tick.observation.boards}
    return ",".join(gpu for gpu in dict.fromkeys(reading.gpus) if gpu in known)


def host_planned(tick: Tick) -> Iterator[Metric]:
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
        "Factor by which every arrival rate there may grow with all SLOs kept; 1 is none.",
        labels=("gpu_uuid",),
    )
    reserved = GaugeMetricFamily(
        "igniterd_gpu_reserved_ratio",
        "Part of the GPU that plans leave free for what is not planned with.",
        labels=("gpu_uuid",),
    )
    for gpu, part in tick.plan.reserved.items():
        reserved.add_metric((gpu,), part)
    for board in tick.observation.boards:
        held = sum(r.granted_on(board.uuid) for r in tick.observation.models.values())
        others = tick.observation.foreign.get(board.uuid, 0.0)
        allocated.add_metric((board.uuid,), held + others)
        if board.uuid in tick.plan.headroom_by_gpu:
            headroom.add_metric((board.uuid,), tick.plan.headroom_by_gpu[board.uuid])
    yield from (allocated, headroom, reserved)


def boards(tick: Tick) -> Iterator[Metric]:
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


def mqtt_published(statistics: MqttStatistics) -> Iterator[Metric]:
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
