"""What igniterd's model says, asked in a process of its own: ``python -m igniterd.demo.forecast``,
JSON in, JSON out.

In: ``{"profile": PATH, "slos_ms": {...}, "rates_per_s": {...}, "bias": {model: 1.0}, "allocations":
{model: {"share": 0.3, "max_batch_size": 8, "max_queue_delay_us": 0}} or null}``. Out: ``{"p99_ms":
{model: ms, or null for overload}, "allocations": {...}}``; without allocations those of the best
plan.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from igniterd.decide.search import find
from igniterd.perf import Profile, load_model
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import Allocation

LEVEL = 0.95


def forecast(
    profile: Profile,
    slos_ms: Mapping[str, float],
    rates_per_s: Mapping[str, float],
    allocations: Mapping[str, Allocation] | None,
    bias: Mapping[str, float],
) -> tuple[dict[str, float | None], dict[str, Allocation]]:
    """Expected P99s (None: overload) under ``allocations``, or under the best plan, which is
    returned with them.

    ``bias`` multiplies the predicted service times of the models it names.
    """
    model = load_model(profile)
    predictor = LatencyPredictor(model, level=LEVEL, upper=False)
    demands = [
        Demand(
            name,
            name,
            rates_per_s[name],
            slo,
            max_batch=model.max_batch(name),
            bias=bias.get(name, 1.0),
        )
        for name, slo in slos_ms.items()
    ]
    planned = (
        dict(allocations) if allocations is not None else dict(find(predictor, demands).allocations)
    )
    served = predictor.together(demands, planned)
    return {
        name: None if service.overloaded else round(service.p99_ms, 2)
        for name, service in served.items()
    }, planned


def main() -> int:
    """Answer the question on standard input."""
    asked: dict[str, Any] = json.load(sys.stdin)
    given = asked["allocations"]
    allocations = (
        None if given is None else {name: Allocation(**raw) for name, raw in given.items()}
    )
    p99_ms, planned = forecast(
        Profile.load(asked["profile"]),
        asked["slos_ms"],
        asked["rates_per_s"],
        allocations,
        asked["bias"],
    )
    shown = {
        m: {
            "share": a.share,
            "max_batch_size": a.max_batch_size,
            "max_queue_delay_us": a.max_queue_delay_us,
        }
        for m, a in planned.items()
    }
    json.dump({"p99_ms": p99_ms, "allocations": shown}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
