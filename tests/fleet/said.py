"""Messages of hosts, as their daemons say them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from igniterd.fleet.view import ClusterView
from igniterd.messages.event import event
from igniterd.messages.state import split_state
from igniterd.messages.topics import host_topic

CLUSTER = "c"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def applied(share: float) -> dict[str, Any]:
    """One instance on the first GPU."""
    return {"share": share, "max_batch_size": 8, "instances": 1, "devices": [0]}


def model(name: str, gpu: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "slo_p99_ms": 25.0,
        "seen": True,
        "gpus": [gpu],
        "applied": applied(0.2),
        "rate_per_s": 100.0,
        "rate_upper_per_s": 120.0,
        **more,
    }


def state(host: str = "a", *, tick: int = 1, run: str = "r", models: int = 2) -> dict[str, Any]:
    """A host of one GPU, ``GPU-<host>``."""
    gpu = f"GPU-{host}"
    return {
        "schema": 1,
        "host": host,
        "cluster": CLUSTER,
        "run": run,
        "tick": tick,
        "time_s": 1000.0 + tick,
        "decision": {"outcome": "hold", "feasible": True},
        "tritons": [{"name": "main", "gpus": [gpu]}],
        "boards": [
            {"uuid": gpu, "name": "Tesla V100-SXM2-16GB", "sm_count": 80, "memory_used_bytes": 1}
        ],
        "models": [model(f"m{i}", gpu, applied=applied(1 / (models + 1))) for i in range(models)],
    }


def changed(base: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``base`` with the value at a path such as ``models.0.rate_per_s``."""
    result: dict[str, Any] = copy.deepcopy(dict(base))
    *way, last = path.split(".")
    at: Any = result
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value
    return result


def payload(data: Mapping[str, Any], kind: str = "state") -> bytes:
    return event(kind, data, source="igniterd/c/a", id="1", at=AT)


def messages(said: Mapping[str, Any], most: int | None = None) -> list[tuple[str, bytes]]:
    """Topic and payload of every part of a state."""
    parts = split_state(said) if most is None else split_state(said, most)
    return [
        (host_topic(CLUSTER, said["host"], "state", part.get("part", 1)), payload(part))
        for part in parts
    ]


def tell(
    view: ClusterView,
    said: Mapping[str, Any],
    at_s: float = 0.0,
    *,
    left_s: float | None = None,
    retained: bool = False,
) -> None:
    """The view takes a whole state."""
    for topic, text in messages(said):
        view.take(topic, text, at_s=at_s, left_s=left_s, retained=retained)


def tell_status(view: ClusterView, host: str, status: str, at_s: float, reason: str = "") -> None:
    view.take(
        host_topic(CLUSTER, host, "status"),
        payload({"status": status, "reason": reason}, "status"),
        at_s=at_s,
        left_s=None,
        retained=False,
    )
