"""What igniterd's model expects of traffic that was not played."""

from __future__ import annotations

from collections.abc import Mapping

from igniterd.perf import Profile, load_model
from igniterd.predict import Demand, LatencyPrediction, LatencyPredictor
from igniterd.records import Allocation

LEVEL = 0.95


def expected_p99_ms(
    profile: Profile,
    *,
    slos_ms: Mapping[str, float],
    rates_per_s: Mapping[str, float],
    allocations: Mapping[str, Allocation],
    bias: Mapping[str, float],
) -> dict[str, float | None]:
    """The P99 (ms) of each model in ``slos_ms``; ``None`` is overload.

    ``rates_per_s`` and ``allocations`` name every model; those with the same ``devices`` are on one
    GPU. ``bias`` multiplies the predicted service times of those it names. The first call compiles
    the model: it may take a minute or two.
    """
    model = load_model(profile)
    predictor = LatencyPredictor(model, level=LEVEL, upper=False)
    demands = [
        Demand(
            name,
            name,
            rates_per_s[name],
            slo_ms,
            max_batch=model.max_batch(name),
            bias=bias.get(name, 1.0),
        )
        for name, slo_ms in slos_ms.items()
    ]
    there = dict[tuple[int, ...], list[Demand]]()
    for demand in demands:
        there.setdefault(allocations[demand.model].devices, []).append(demand)
    served: dict[str, LatencyPrediction] = {}
    for each in there.values():
        served |= predictor.together(each, {d.model: allocations[d.model] for d in each})
    return {
        name: None if served[name].overloaded else round(served[name].p99_ms, 2) for name in slos_ms
    }
