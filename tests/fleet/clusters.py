"""Clusters for the planner's tests: hosts of V100s that serve the four models of the shipped
profile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from igniterd.fleet.cluster import Cluster, HostView
from igniterd.fleet.knowledge import Knowledge, build
from igniterd.fleet.planning import Planner
from igniterd.messages.profile import canonical, digest_of
from igniterd.messages.rebalance import Rebalance
from igniterd.messages.state import HostState
from igniterd.perf import Profile, builtin_profile, load_model

MODELS = ("alexnet", "resnet50", "vgg19", "ssd")
GIB = 2**30


@cache
def profile() -> tuple[str, Profile]:
    """The shipped profile, where every model takes a GiB, and its hash."""
    shipped = builtin_profile("v100")
    sized = {n: m.model_copy(update={"memory_bytes": GIB}) for n, m in shipped.models.items()}
    found = shipped.model_copy(update={"models": sized})
    return digest_of(canonical(found.model_dump(mode="json", exclude_none=True))), found


@cache
def slow_profile() -> tuple[str, Profile]:
    """The same on a board that takes twice as long for everything."""
    slow = profile()[1].time_scaled(2.0)
    board = slow.board.model_copy(update={"name": "slow", "sm_count": 40, "memory_bytes": None})
    found = slow.model_copy(update={"board": board})
    return digest_of(canonical(found.model_dump(mode="json", exclude_none=True))), found


@cache
def knowledge() -> Knowledge:
    known = dict([profile(), slow_profile()])
    return build(known, fit=load_model, previous=None)


def absent(name: str, slo_p99_ms: float, *profiles: str) -> dict[str, Any]:
    """A model that a host's configuration names, and its Triton does not serve."""
    return {
        "name": name,
        "slo_p99_ms": slo_p99_ms,
        "seen": False,
        "absent": True,
        "gpus": [],
        "feasible": True,
        "profiles": list(profiles),
    }


def tenant(
    name: str,
    rate_per_s: float,
    slo_p99_ms: float,
    share: float | None,
    *,
    gpu: int = 0,
    batch: int = 8,
    shed: str = "",
    **more: Any,
) -> dict[str, Any]:
    """One model of a host; ``gpu`` is the number of its GPU there. ``shed``: why its host says that
    its SLO does not hold."""
    return {
        "name": name,
        "slo_p99_ms": slo_p99_ms,
        "seen": True,
        "gpus": [gpu],
        "applied": {
            **({} if share is None else {"share": share}),
            "max_batch_size": batch,
            "devices": [gpu],
        },
        "rate_per_s": rate_per_s,
        "rate_upper_per_s": rate_per_s * 1.1,
        "busy": 0.4,
        "feasible": not shed,
        "reason": shed,
        "profiles": [profile()[0]],
        **more,
    }


def host(
    name: str,
    *tenants: Mapping[str, Any],
    gpus: int = 1,
    loadable: Iterable[str] | None = None,
    board: Mapping[str, Any] | None = None,
    **more: Any,
) -> HostView:
    """A host. It can load every model that it does not serve, unless ``loadable`` says which."""
    uuids = [f"GPU-{name}-{number}" for number in range(gpus)]
    models = [{**t, "gpus": [uuids[g] for g in t["gpus"]]} for t in tenants]
    served = {t.get("model", t["name"]) for t in tenants if t["seen"]}
    free = [m for m in MODELS if m not in served] if loadable is None else list(loadable)
    least: dict[str, float] = {}
    for model in models:
        for gpu in model["gpus"]:
            held = 0.8 * (model["applied"].get("share") or 0.0)
            least[gpu] = least.get(gpu, 0.0) + held
    state = {
        "schema": 1,
        "host": name,
        "cluster": "c",
        "run": "r1",
        "tick": 7,
        "time_s": 1000.0,
        "mode": "act",
        "decision": {
            "outcome": "hold",
            "feasible": all(t["feasible"] for t in tenants),
            "least_by_gpu": least,
        },
        "boards": [
            {
                "uuid": uuid,
                "name": "Tesla V100-SXM2-16GB",
                "sm_count": 80,
                "memory_total_bytes": 16 * GIB,
                "memory_used_bytes": 2 * GIB,
                "reserved": 0.0,
                **(board or {}),
            }
            for uuid in uuids
        ],
        "models": models,
        "tritons": [{"name": "main", "gpus": uuids, "loadable": free}],
        **more,
    }
    return HostView.of(HostState.model_validate_json(json.dumps(state)))


def cluster(*hosts: HostView, **left_out: str) -> Cluster:
    return Cluster("c", {each.name: each for each in hosts}, left_out)


SHED = "does not fit"


CROWD = (
    tenant("alexnet", 600, 15, 0.3),
    tenant("resnet50", 300, 40, 0.4, shed=SHED),
    tenant("vgg19", 200, 60, 0.3),
)
"""Three models that do not hold their SLOs on one GPU, and any two of them do."""


def crowded(name: str = "hot") -> HostView:
    return host(name, *CROWD)


def advised(where: Cluster, *, consolidate: bool = False, planner: Planner | None = None) -> Any:
    """The document, which is checked as its readers check it."""
    advice = (planner or Planner("c")).plan(where, knowledge(), consolidate=consolidate)
    document = advice.document(speaker="me", term=1, number=1, time_s=1000.0)
    return Rebalance.model_validate_json(json.dumps(document))


def moved(found: Any) -> list[tuple[str, str, str]]:
    return [(m.model, m.source.host, m.to.host) for m in found.moves]
