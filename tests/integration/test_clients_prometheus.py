"""What goes to Prometheus and Grafana, checked by Prometheus' own promtool."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from igniterd.clients.fleet_metrics import ClusterReading, FleetMetrics
from igniterd.clients.metrics import Metrics
from igniterd.clients.mqtt import MqttStatistics
from igniterd.lab.programs import programs
from tests.clients.ticks import a_config, a_tick

pytestmark = pytest.mark.integration

DATA = Path(__file__).parents[2] / "igniterd" / "data"
DASHBOARD = json.loads((DATA / "grafana" / "igniterd.json").read_text())
ALERTS = DATA / "alerts.yml"


def promtool(*arguments: str, standard_input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = programs.required(programs.promtool(), "promtool")
    return subprocess.run(
        [str(program.path), *arguments],
        input=standard_input,
        env=os.environ | program.environment(),
        capture_output=True,
        timeout=120,
        check=False,
    )


def a_page() -> bytes:
    metrics = Metrics(a_config(), mqtt=MqttStatistics())
    metrics.update(a_tick())
    return metrics.render()[0]


def a_fleet_page() -> bytes:
    cluster = ClusterReading(
        "lab",
        hosts={"used": 1},
        messages={("state", "taken"): 1},
        plans={"made": 1},
        durations={1.0: 1},
        buckets=(1.0,),
        moves=1,
        feasible=True,
        unsolved=0,
        answered_s=1.0,
        published={"rebalance": 1},
    )
    return FleetMetrics(lambda: [cluster]).render()[0]


def exposed() -> set[str]:
    """Every name a query may use, and the families that texts speak of."""
    pages = a_page().decode(), a_fleet_page().decode()
    families = [family for page in pages for family in text_string_to_metric_families(page)]
    found = {sample.name for family in families for sample in family.samples} | {
        family.name for family in families
    }
    # board readings the example board does not give
    return found | {
        f"igniterd_gpu_{name}"
        for name in ("power_limit_watts", "memory_total_bytes", "temperature_celsius")
    }


def expressions() -> list[str]:
    """Every query of the dashboard, its variables filled in as Grafana does."""
    queries = [
        target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
    ]
    queries += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    values = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*", "$model": ".*"}
    for variable, value in values.items():
        queries = [query.replace(variable, value) for query in queries]
    return queries


def used(queries: str) -> set[str]:
    return set(re.findall(r"(?<![:\w])((?:igniterd|process)_[a-z0-9_]+)(?![:\w])", queries))


def test_promtool_finds_nothing_to_say_about_the_metrics() -> None:
    done = promtool("check", "metrics", standard_input=a_page())
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    fleet = promtool("check", "metrics", standard_input=a_fleet_page())
    assert (fleet.returncode, fleet.stdout + fleet.stderr) == (0, b"")


def test_the_alert_rules_are_rules() -> None:
    done = promtool("check", "rules", str(ALERTS))
    assert done.returncode == 0, done.stderr


def test_the_dashboard_asks_in_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": query} for number, query in enumerate(expressions())
    ]
    path = tmp_path / "dashboard.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", str(path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "queries",
    ["\n".join(expressions()), re.sub(r"#.*", "", ALERTS.read_text())],
    ids=["dashboard", "alerts"],
)
def test_only_metrics_that_exist_are_asked_for(queries: str) -> None:
    names = {name for name in used(queries) if not name.startswith("igniterd_slo_violation:")}
    assert len(names) > 10
    assert names <= exposed()


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}", "no data source of the author's"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


MODEL = '{instance="gpu-a", model="vgg19", version="1"}'
PLAIN = '{instance="gpu-a", model="vgg19"}'
MUTE = '{instance="gpu-a", model="vgg19", state="not_answering"}'
OLD = '{instance="gpu-a", model="vgg19", state="old_copy"}'


def _ready_on(host: str) -> str:
    return f'igniterd_model_ready{{instance="{host}", model="vgg19", version="1"}}'


def _of_cluster(host: str, cluster: str, more: str = "", tenant: str = "vgg19") -> str:
    named = f'{more}, exported_cluster="{cluster}"' if more else f'cluster="{cluster}"'
    of_model = f'model="{tenant}", version="1", served_as="vgg19"'
    return f'igniterd_model_cluster_ready{{instance="{host}", {of_model}, {named}}}'


def fires(
    tmp_path: Path, series: dict[str, str], *, at: str, alert: str, **labels: str
) -> subprocess.CompletedProcess[bytes]:
    """Promtool's opinion on whether `alert` fires once, with `labels`, after `series`; no labels:
    that it does not fire."""
    by = ", ".join(["alertname", *sorted(labels)])
    expected = [{"labels": _selector({"alertname": alert} | labels), "value": 1}] if labels else []
    firing = f'count by ({by}) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    test = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": name, "values": values} for name, values in series.items()
                ],
                "promql_expr_test": [{"expr": firing, "eval_time": at, "exp_samples": expected}],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(test))
    return promtool("test", "rules", str(path))


def _selector(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


OBSERVED, VIOLATED = (
    f"igniterd_observed_seconds_total{MODEL}",
    f"igniterd_slo_violation_seconds_total{MODEL}",
)


@pytest.mark.parametrize(
    ("alert", "series", "at", "labels"),
    [
        (
            "IgniterdSloBurningFast",
            {OBSERVED: "0+15x300", VIOLATED: "0+5x300"},
            "70m",
            {"model": "vgg19", "severity": "critical"},
        ),
        ("IgniterdSloBurningFast", {OBSERVED: "0+15x300", VIOLATED: "0+0.1x300"}, "70m", {}),
        # no traffic any more
        (
            "IgniterdSloBurningFast",
            {OBSERVED: "0+15x200 3000x100", VIOLATED: "0+5x200 1000x100"},
            "70m",
            {},
        ),
        (
            "IgniterdSloBurningSlowly",
            {OBSERVED: "0+15x1600", VIOLATED: "0+1.2x1600"},
            "395m",
            {"model": "vgg19", "severity": "warning"},
        ),
        (
            "IgniterdInfeasible",
            {'igniterd_feasible{instance="gpu-a"}': "0x40"},
            "5m",
            {"instance": "gpu-a"},
        ),
        (
            "IgniterdFleetNobodySpeaks",
            {
                'igniterd_fleet_speaker{instance="a", cluster="lab"}': "0x40",
                'igniterd_fleet_speaker{instance="b", cluster="lab"}': "0x40",
                'igniterd_fleet_speaker{instance="b", cluster="hall"}': "1x40",
            },
            "5m",
            {"cluster": "lab"},
        ),
        # the other one follows
        (
            "IgniterdFleetNobodySpeaks",
            {
                'igniterd_fleet_speaker{instance="a", cluster="lab"}': "1x10 0x30",
                'igniterd_fleet_speaker{instance="b", cluster="lab"}': "0x11 1x29",
            },
            "5m",
            {},
        ),
        (
            "IgniterdFleetInfeasible",
            {'igniterd_fleet_feasible{instance="a", cluster="lab"}': "0x100"},
            "20m",
            {"cluster": "lab"},
        ),
        # a passing minute
        ("IgniterdInfeasible", {'igniterd_feasible{instance="gpu-a"}': "1x10 0x4 1x20"}, "5m", {}),
        (
            "IgniterdModelNotServed",
            {f"igniterd_model_ready{MODEL}": "0x40"},
            "5m",
            {"model": "vgg19"},
        ),
        # another host serves it: each is to, and has its own requests
        (
            "IgniterdModelNotServed",
            {f"igniterd_model_ready{MODEL}": "0x40", _ready_on("gpu-b"): "1x40"},
            "5m",
            {"instance": "gpu-a"},
        ),
        # any host of the cluster may serve it, and one does, while it moves too
        *[
            (
                alert,
                {
                    _ready_on("gpu-a"): "1x20 0x20",
                    _of_cluster("gpu-a", "lab"): "1x20 0x20",
                    _ready_on("gpu-b"): "0x20 1x20",
                    _of_cluster("gpu-b", "lab"): "0x20 1x20",
                },
                at,
                {},
            )
            for alert in ("IgniterdModelNotServed", "IgniterdModelNotServedByCluster")
            for at in ("4m", "9m")
        ],
        # a host of another cluster serves one of that name
        (
            "IgniterdModelNotServedByCluster",
            {
                _ready_on("gpu-a"): "0x40",
                _of_cluster("gpu-a", "lab"): "0x40",
                _ready_on("gpu-b"): "1x40",
                _of_cluster("gpu-b", "hall"): "1x40",
            },
            "5m",
            {"cluster": "lab", "model": "vgg19"},
        ),
        # some hosts share the model, and one is to serve it whatever they do
        (
            "IgniterdModelNotServed",
            {
                _ready_on("gpu-a"): "0x40",
                _of_cluster("gpu-a", "lab"): "0x40",
                _ready_on("gpu-b"): "1x40",
                _of_cluster("gpu-b", "lab"): "1x40",
                _ready_on("gpu-c"): "0x40",
            },
            "5m",
            {"instance": "gpu-c"},
        ),
        # the scrape names clusters too, and a host has the model in two Tritons
        (
            "IgniterdModelNotServedByCluster",
            {
                _of_cluster("gpu-a", "lab", 'cluster="eu"', tenant="one/vgg19"): "0x40",
                _of_cluster("gpu-a", "lab", 'cluster="eu"', tenant="two/vgg19"): "0x40",
            },
            "5m",
            {"cluster": "eu", "exported_cluster": "lab", "model": "vgg19"},
        ),
        (
            "IgniterdModelNotServed",
            {
                'igniterd_model_ready{cluster="eu", instance="gpu-a", model="vgg19"}': "0x40",
                _of_cluster("gpu-a", "lab", 'cluster="eu"').replace('version="1", ', ""): "0x40",
            },
            "5m",
            {},
        ),
        (
            "IgniterdShareWithoutEffect",
            {f"igniterd_share_effective{MODEL}": "0x40"},
            "3m",
            {"model": "vgg19", "severity": "critical"},
        ),
        # while one is proven anew
        (
            "IgniterdShareWithoutEffect",
            {f"igniterd_share_effective{MODEL}": "1x4 0x2 1x40"},
            "3m",
            {},
        ),
        (
            "IgniterdModelNotAnswering",
            {f"igniterd_model_stuck_seconds{PLAIN}": "0x4 15+15x40"},
            "3m",
            {"model": "vgg19"},
        ),
        (
            "IgniterdModelNotAnswering",
            {f"igniterd_model_state{MUTE}": "0x4 1x40"},
            "3m",
            {"model": "vgg19", "severity": "critical"},
        ),
        (
            "IgniterdModelNotAnswering",  # told in both ways: one alert
            {
                f"igniterd_model_stuck_seconds{PLAIN}": "0x4 15+15x40",
                f"igniterd_model_state{MUTE}": "0x6 1x40",
            },
            "3m",
            {"model": "vgg19"},
        ),
        (
            "IgniterdModelNotAnswering",
            {f"igniterd_model_stuck_seconds{PLAIN}": "0x40", f"igniterd_model_state{MUTE}": "0x40"},
            "3m",
            {},
        ),
        (
            "IgniterdRequestsRejected",
            {f"igniterd_requests_rejected_total{PLAIN}": "0+5x60"},
            "8m",
            {"model": "vgg19"},
        ),
        (
            "IgniterdRequestsRejected",
            {f"igniterd_requests_rejected_total{PLAIN}": "7x60"},
            "8m",
            {},
        ),
        (
            "IgniterdModelUnpredictable",
            {f"igniterd_readings_left_out_total{PLAIN}": "0+15x60"},
            "8m",
            {"model": "vgg19"},
        ),
        (
            "IgniterdModelUnpredictable",
            {f"igniterd_readings_left_out_total{PLAIN}": "7x60"},
            "8m",
            {},
        ),
        (
            "IgniterdModelCannotBeChanged",
            {f"igniterd_model_state{OLD}": "1x40"},
            "8m",
            {"model": "vgg19", "state": "old_copy"},
        ),
        ("IgniterdModelCannotBeChanged", {f"igniterd_model_state{OLD}": "0x40"}, "8m", {}),
        ("IgniterdModelCannotBeChanged", {f"igniterd_model_state{MUTE}": "1x40"}, "8m", {}),
        (
            "IgniterdDown",
            {'up{job="igniterd", instance="gpu-a"}': "0x40"},
            "5m",
            {"instance": "gpu-a"},
        ),
        (
            "IgniterdStalled",
            {'igniterd_ticks_total{instance="gpu-a"}': "7x60"},
            "8m",
            {"instance": "gpu-a"},
        ),
        ("IgniterdStalled", {'igniterd_ticks_total{instance="gpu-a"}': "0+15x60"}, "8m", {}),
        (
            "IgniterdSlowTicks",
            {
                'igniterd_ticks_total{instance="gpu-a"}': "0+15x100",
                'igniterd_control_loop_duration_seconds_sum{instance="gpu-a", '
                'stage="decide"}': "0+12x100",
                'igniterd_control_loop_duration_seconds_sum{instance="gpu-a", '
                'stage="act"}': "0+0x100",
            },
            "20m",
            {"instance": "gpu-a"},
        ),
        (
            "IgniterdSourceSilent",
            {'igniterd_source_up{instance="gpu-a", source="triton:main"}': "0x40"},
            "5m",
            {"source": "triton:main"},
        ),
        (
            "IgniterdBrokerLost",
            {'igniterd_mqtt_connected{instance="gpu-a"}': "0x100"},
            "20m",
            {"severity": "info"},
        ),
        (
            "IgniterdChangesRefused",
            {'igniterd_actuation_failures_total{instance="gpu-a", kind="grow"}': "0+1x40"},
            "5m",
            {"instance": "gpu-a"},
        ),
        (
            "IgniterdRestless",
            {'igniterd_actuations_total{instance="gpu-a", kind="grow"}': "0+1x400"},
            "80m",
            {"instance": "gpu-a"},
        ),
        (
            "IgniterdGpuOvercommitted",
            {'igniterd_gpu_allocated_ratio{instance="gpu-a", gpu_uuid="GPU-a"}': "1.1x40"},
            "5m",
            {"gpu_uuid": "GPU-a"},
        ),
        (
            "IgniterdGpuOvercommitted",
            {'igniterd_gpu_allocated_ratio{instance="gpu-a", gpu_uuid="GPU-a"}': "1x40"},
            "5m",
            {},
        ),
        (
            "IgniterdPredictionsOff",
            {
                'igniterd_prediction_error_ratio_bucket{model="vgg19", le="0.75"}': "0+0x300",
                'igniterd_prediction_error_ratio_bucket{model="vgg19", le="1.25"}': "0+3x300",
                'igniterd_prediction_error_ratio_count{model="vgg19"}': "0+15x300",
            },
            "60m",
            {"model": "vgg19"},
        ),
    ],
)
def test_alerts_fire_when_they_should_and_only_then(
    tmp_path: Path, alert: str, series: dict[str, str], at: str, labels: dict[str, str]
) -> None:
    done = fires(tmp_path, series, at=at, alert=alert, **labels)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_every_alert_is_tried() -> None:
    marks: Any = test_alerts_fire_when_they_should_and_only_then
    tried = {
        case[0] for mark in marks.pytestmark if mark.name == "parametrize" for case in mark.args[1]
    }
    assert set(re.findall(r"alert: (\w+)", ALERTS.read_text())) == tried
