from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from igniterd.clients.metric_counters import Histogram
from igniterd.clients.metrics import Metrics, sources_of
from igniterd.clients.mqtt import MqttStatistics
from igniterd.config import parse_config
from igniterd.decisions import DecisionKind, Tick
from igniterd.loads import Estimate, Load
from igniterd.records import ModelWindow, Window
from igniterd.states import Standing, State
from tests.clients.ticks import CONFIG, a_config, a_tick

RESNET = {"model": "resnet50", "version": "1"}
VGG = {"model": "vgg19", "version": "1"}

CONTRACT = {
    "slo_latency_seconds",
    "latency_seconds",
    "predicted_latency_seconds",
    "prediction_error_ratio",
    "arrival_requests",
    "slo_violation_seconds",
    "observed_seconds",
    "mps_active_thread_ratio",
    "max_batch_size",
    "max_queue_delay_seconds",
    "gpu_allocated_ratio",
    "gpu_headroom_ratio",
    "gpu_reserved_ratio",
    "feasible",
    "decisions",
    "actuations",
    "actuation_failures",
    "actuation_duration_seconds",
    "control_loop_duration_seconds",
    "source_up",
    "last_success_timestamp_seconds",
    "build_info",
    "model_state",
    "model_stuck_seconds",
    "requests_rejected",
    "readings_left_out",
}


class Page:
    """The exposition as a scraper understands it."""

    def __init__(self, metrics: Metrics) -> None:
        self.families = {
            family.name: family
            for family in text_string_to_metric_families(metrics.render()[0].decode())
        }

    def value(self, sample: str, **labels: str) -> float:
        found = [
            each.value
            for family in self.families.values()
            for each in family.samples
            if each.name == sample and each.labels == labels
        ]
        assert len(found) == 1, f"{sample}{labels}: {found}"
        return found[0]

    def has(self, sample: str, **labels: str) -> bool:
        return any(
            each.name == sample and labels.items() <= each.labels.items()
            for family in self.families.values()
            for each in family.samples
        )


def after(*ticks: object) -> Page:
    metrics = Metrics(a_config())
    for tick in ticks:
        metrics.update(tick)  # type: ignore[arg-type]
    return Page(metrics)


def test_every_name_of_the_contract_is_there() -> None:
    names = {
        name.removeprefix("igniterd_")
        for name in after(a_tick()).families
        if name.startswith("igniterd_")
    }
    assert names >= CONTRACT
    assert all(family.documentation for family in after(a_tick()).families.values())


def test_a_model_that_any_host_may_serve_is_shown_with_the_cluster() -> None:
    config = CONFIG.replace('name = "vgg19"', 'name = "vgg19"\nserved_by = "cluster"')
    config = config.replace('name = "gpu-a"', 'name = "gpu-a"\ncluster = "lab"')
    metrics = Metrics(parse_config(config, source="test"))
    tick = a_tick()
    metrics.update(tick)
    key = VGG | {"cluster": "lab", "served_as": "vgg19"}
    assert Page(metrics).value("igniterd_model_cluster_ready", **key) == 1.0
    assert not Page(metrics).has("igniterd_model_cluster_ready", model="resnet50")
    gone = {n: r for n, r in tick.observation.models.items() if n != "vgg19"}
    metrics.update(replace(tick, observation=replace(tick.observation, models=gone)))
    assert Page(metrics).value("igniterd_model_cluster_ready", **key) == 0.0
    assert Page(metrics).value("igniterd_model_ready", **VGG) == 0.0


def test_each_gpu_has_a_headroom_of_its_own() -> None:
    now = a_tick()
    boards = [replace(now.observation.boards[0], uuid=f"GPU-{each}") for each in "abc"]
    page = after(replace(now, observation=replace(now.observation, boards=tuple(boards))))
    assert page.value("igniterd_gpu_headroom_ratio", gpu_uuid="GPU-a") == 1.2
    assert page.value("igniterd_gpu_headroom_ratio", gpu_uuid="GPU-b") == 1.5
    assert not page.has("igniterd_gpu_headroom_ratio", gpu_uuid="GPU-c")


def test_the_latest_tick_is_shown() -> None:
    page = after(a_tick(0), a_tick(1))
    assert page.value("igniterd_slo_latency_seconds", **RESNET) == 0.040
    assert (
        page.value("igniterd_latency_seconds", **RESNET, quantile="0.99", source="triton") == 0.05
    )
    assert (
        page.value("igniterd_latency_seconds", **RESNET, quantile="0.99", source="estimate") == 0.05
    )
    assert (
        page.value("igniterd_latency_seconds", **RESNET, quantile="0.5", source="estimate") == 0.02
    )
    assert page.value("igniterd_predicted_latency_seconds", **RESNET, quantile="0.99") == 0.044
    assert page.value("igniterd_mps_active_thread_ratio", **RESNET) == 0.3
    assert page.value("igniterd_max_batch_size", **RESNET) == 8
    assert page.value("igniterd_max_queue_delay_seconds", **RESNET) == 0.0015
    assert page.value("igniterd_gpu_allocated_ratio", gpu_uuid="GPU-a") == 0.3
    assert page.value("igniterd_gpu_headroom_ratio", gpu_uuid="GPU-a") == 1.2
    assert page.value("igniterd_gpu_reserved_ratio", gpu_uuid="GPU-a") == 0.15
    assert page.value("igniterd_gpu_sm_clock_hertz", gpu_uuid="GPU-a") == 1.38e9
    assert page.value("igniterd_feasible") == 0
    assert page.value("igniterd_model_feasible", **VGG) == 0
    assert (
        page.value(
            "igniterd_model_info", **RESNET, triton="main", backend="python", gpu_uuid="GPU-a"
        )
        == 1
    )


def test_what_is_not_known_is_absent_not_zero() -> None:
    page = after(a_tick())
    assert not page.has("igniterd_mps_active_thread_ratio", model="vgg19")
    assert not page.has("igniterd_latency_seconds", model="vgg19")
    assert not page.has("igniterd_gpu_temperature_celsius")
    before = Page(Metrics(a_config()))
    assert not before.has("igniterd_feasible")
    assert before.value("igniterd_arrival_requests_total", model="resnet50", version="") == 0, (
        "counters are there from the start"
    )


def test_counters_add_up_and_never_go_back() -> None:
    page = after(
        a_tick(0),
        a_tick(1),
        a_tick(2, p99_ms=30.0),
        a_tick(3, p99_ms=None, outcome=DecisionKind.HOLD),
    )
    assert page.value("igniterd_arrival_requests_total", **RESNET) == 1200
    assert page.value("igniterd_arrival_requests_total", **VGG) == 0
    assert page.value("igniterd_failed_requests_total", **RESNET) == 8
    assert page.value("igniterd_observed_seconds_total", **RESNET) == 3
    assert page.value("igniterd_slo_violation_seconds_total", **RESNET) == 2
    assert page.value("igniterd_decisions_total", outcome="move") == 3
    assert page.value("igniterd_decisions_total", outcome="hold") == 1
    assert page.value("igniterd_decisions_total", outcome="wait") == 0
    assert page.value("igniterd_actuations_total", kind="grow") == 4
    assert page.value("igniterd_actuation_failures_total", kind="grow") == 0
    assert page.value("igniterd_actuation_failures_total", kind="batching") == 4
    assert page.value("igniterd_ticks_total") == 4


def test_histograms_are_cumulative() -> None:
    page = after(a_tick(0), a_tick(1))
    assert page.value("igniterd_prediction_error_ratio_bucket", **RESNET, le="1.05") == 0
    assert page.value("igniterd_prediction_error_ratio_bucket", **RESNET, le="1.1") == 2
    assert page.value("igniterd_prediction_error_ratio_count", **RESNET) == 2
    assert page.value("igniterd_prediction_error_ratio_sum", **RESNET) == pytest.approx(2.16)
    assert page.value("igniterd_control_loop_duration_seconds_count", stage="observe") == 2
    assert page.value("igniterd_actuation_duration_seconds_sum", kind="grow") == 3.0


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]


def test_a_silent_source_is_down_and_keeps_its_last_success() -> None:
    page = after(a_tick(0), a_tick(5, gaps=("triton:main", "mps")))
    assert page.value("igniterd_source_up", source="nvml") == 1
    assert page.value("igniterd_source_up", source="mps") == 0
    assert page.value("igniterd_source_up", source="triton:main") == 0
    assert page.value("igniterd_source_up", source="metrics:main") == 0, (
        "a page is not asked for while its server is silent"
    )
    assert page.value("igniterd_last_success_timestamp_seconds", source="nvml") == 1_700_000_005
    assert (
        page.value("igniterd_last_success_timestamp_seconds", source="triton:main") == 1_700_000_000
    )


def test_a_board_in_trouble_does_not_take_nvml_down() -> None:
    page = after(a_tick(0), a_tick(5, gaps=("nvml:GPU-b",)))
    assert page.value("igniterd_source_up", source="nvml") == 1
    assert page.value("igniterd_last_success_timestamp_seconds", source="nvml") == 1_700_000_005


def test_only_sources_that_are_configured_count() -> None:
    assert list(sources_of(a_config())) == [
        "nvml",
        "mps",
        "processes",
        "triton:main",
        "metrics:main",
    ]
    bare = CONFIG.replace("[mqtt]", '[gpu]\nsource = "none"\n[mps]\nenabled = false\n[mqtt]')
    assert list(sources_of(parse_config(bare, source="test"))) == ["triton:main", "metrics:main"]


def test_the_broker_is_shown_when_there_is_one() -> None:
    assert not after(a_tick()).has("igniterd_mqtt_connected")
    metrics = Metrics(a_config(), mqtt=MqttStatistics(connected=True, published=9, failures=1))
    page = Page(metrics)
    assert page.value("igniterd_mqtt_connected") == 1
    assert page.value("igniterd_mqtt_published_total") == 9
    assert page.value("igniterd_mqtt_failures_total") == 1


def test_a_scraper_that_wants_openmetrics_gets_it() -> None:
    body, content_type = Metrics(a_config()).render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert Metrics(a_config()).render()[1].startswith("text/plain")


def test_the_state_of_a_model_is_an_enum_and_goes_with_the_model() -> None:
    hangs = {
        "vgg19": Standing(State.NOT_ANSWERING, "it hangs"),
        "resnet50": Standing(State.STEERED),
    }
    page = after(replace(a_tick(), standings=hangs))
    for state in State:
        assert page.value("igniterd_model_state", model="vgg19", state=state.value) == (
            state is State.NOT_ANSWERING
        )
    assert page.value("igniterd_model_state", model="resnet50", state="steered") == 1
    gone = after(
        replace(a_tick(), standings=hangs),
        replace(a_tick(1), standings={"resnet50": hangs["resnet50"]}),
    )
    assert not gone.has("igniterd_model_state", model="vgg19")


def odd(number: int, stuck_s: float, rejected: int, **left_out: str) -> Tick:
    windows = {"vgg19": ModelWindow("vgg19", 1.0, 0, 0, 0, rejected=rejected)}
    loads = {"vgg19": Load("vgg19", 1.0, 1.0, True, stuck_s=stuck_s)}
    return replace(
        a_tick(number),
        window=Window(0.0, 1.0, windows),
        estimate=Estimate(0.0, loads, left_out=left_out),
    )


def test_what_is_stuck_refused_and_left_out() -> None:
    page = after(
        odd(0, 0.0, 3), odd(1, 12.0, 4, resnet50="it failed"), odd(2, 13.0, 0, resnet50="it failed")
    )
    assert page.value("igniterd_model_stuck_seconds", model="vgg19") == 13
    assert page.value("igniterd_requests_rejected_total", model="vgg19") == 7
    assert page.value("igniterd_requests_rejected_total", model="resnet50") == 0
    assert page.value("igniterd_readings_left_out_total", model="resnet50") == 2
    assert not page.has("igniterd_model_stuck_seconds", model="resnet50")
    unpredictable = replace(
        a_tick(), standings={"vgg19": Standing(State.UNPREDICTABLE, "a plan with it failed")}
    )
    assert after(unpredictable).value("igniterd_readings_left_out_total", model="vgg19") == 1


def test_shares_that_nobody_configured_count_on_their_gpu() -> None:
    now = a_tick()
    page = after(
        replace(now, observation=replace(now.observation, foreign={"GPU-a": 0.45, "GPU-b": 0.2}))
    )
    assert page.value("igniterd_gpu_allocated_ratio", gpu_uuid="GPU-a") == pytest.approx(0.75)
