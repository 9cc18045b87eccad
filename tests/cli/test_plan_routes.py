"""Replicas' weights: in a plan's JSON and table, and as configurations of balancers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from igniterd.cli.plan_emit import emit
from igniterd.cli.plan_routes import whole_weights
from igniterd.cli.plan_table import summary
from igniterd.perf import builtin_profile
from igniterd.planner.plan import PlannedGpu, PlannedTenant, ProvisionPlan, plan_from_json

ODD = ("a b", "a/b", "{;}", "日本", "w")


def seat(workload: str, rate: float) -> PlannedTenant:
    return PlannedTenant(workload, "alexnet", 20.0, rate, 0.15, 4)


def a_plan() -> ProvisionPlan:
    """Two thirds of ``w`` on the second GPU, one on the first."""
    first = PlannedGpu("v100", tuple(seat(name, 10.0) for name in ODD))
    second = PlannedGpu("v100", (seat("w", 20.0),))
    return ProvisionPlan(
        "igniterd", 1.0, (first, second), lower_bound_gpus=1.5, bound_by="patterns"
    )


def test_a_replica_has_its_part_and_a_plan_with_it_is_read_back() -> None:
    document = a_plan().as_json()
    parts = [
        [t["weight"] for t in gpu["tenants"]] for gpu in json.loads(json.dumps(document))["gpus"]
    ]
    assert parts == [[1.0, 1.0, 1.0, 1.0, 0.333333], [0.666667]]
    assert plan_from_json(document, "here").gpus[1].tenants[0].rate_per_s == 20.0


def test_the_summary_says_what_bounds_the_plan_and_that_replicas_are_weighed() -> None:
    said = summary(a_plan())
    assert "lower bound 1.50 GPUs (patterns of the cuts offered), so 2; gap 0.0%" in said
    assert sum("weigh replicas" in line for line in said) == 1


def test_every_workload_is_routed_to_its_hosts_by_weight(tmp_path: Path) -> None:
    hosts = [
        made.name for made in emit(a_plan(), {"v100": builtin_profile("v100")}, tmp_path / "x")
    ]
    folder = tmp_path / "x" / "routes"
    routes = json.loads((folder / "routes.json").read_text())
    assert set(routes) == set(ODD)
    assert [(r["host"], r["weight"]) for r in routes["w"]] == [
        (hosts[0], 0.333333),
        (hosts[1], 0.666667),
    ]
    models = {name: each[0]["model"] for name, each in routes.items()}
    assert len(set(models.values())) == len(ODD)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model) for model in models.values())

    static = json.loads((folder / "envoy.json").read_text())["static_resources"]
    assert [cluster["name"] for cluster in static["clusters"]] == hosts
    (manager,) = static["listeners"][0]["filter_chains"][0]["filters"]
    (virtual,) = manager["typed_config"]["route_config"]["virtual_hosts"]
    assert {r["match"]["prefix"] for r in virtual["routes"]} == {
        f"/v2/models/{model}/" for model in models.values()
    }
    for route in virtual["routes"]:
        clusters = route["route"]["weighted_clusters"]["clusters"]
        assert sum(cluster["weight"] for cluster in clusters) == 1000

    nginx = (folder / "nginx.conf").read_text()
    assert all(f"location /v2/models/{model}/ {{" in nginx for model in models.values())
    assert f"server {hosts[1]}:8000 weight=667;" in nginx
    assert nginx.count("{") == nginx.count("}")


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [1e-9, 1.0], [0.5, 0.25, 0.25], [1e-6] * 1200])
def test_whole_weights_add_up_and_none_is_nothing(weights: list[float]) -> None:
    whole = whole_weights(weights)
    assert sum(whole) == max(1000, len(weights))
    assert min(whole) >= 1
