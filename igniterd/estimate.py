"""What is believed of every model now: its arrival rate, how busy it is, and how far off the predictions are. Pure.

Everything that outlives a tick is in :class:`Belief`, replaced whole. A window in which a model was reloaded, or whose source was
silent, changes no belief.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from igniterd.config import Config
from igniterd.model.api import Tenant
from igniterd.model.arrivals import Rate, updated
from igniterd.model.calibrate import Bias, learnt
from igniterd.model.oracle import Demand, Oracle
from igniterd.records import Estimate, Load, ModelReading, ModelWindow, Observation, Window

SMOOTH_S = 4.0  # time constant of the smoothed measurements
ENOUGH = 20  # requests seen before a rate is trusted


@dataclass(frozen=True, slots=True)
class ModelBelief:
    """What one tick hands to the next about one model."""

    rate: Rate = field(default_factory=Rate)
    bias: Bias = field(default_factory=Bias)
    busy: float = 0.0
    mean_batch: float = 1.0
    mean_ms: float | None = None
    seen_s: float = 0.0  # traffic observed in all, seconds


Belief = Mapping[str, ModelBelief]


def _mixed(old: float | None, new: float, span_s: float) -> float:
    """Exponential smoothing over ``SMOOTH_S``."""
    weight = 1 - math.exp(-span_s / SMOOTH_S)
    return new if old is None else old + weight * (new - old)


def _service_s(window: ModelWindow) -> float:
    return sum(n * window.service_ms[batch] for batch, n in window.executions.items()) / 1000


def _followed(belief: ModelBelief, window: ModelWindow, end_s: float, instances: int) -> ModelBelief:
    """``belief`` after ``window``, without the bias."""
    if window.restarted or window.span_s <= 0:
        return belief
    runs = sum(window.executions.values())
    served = sum(batch * n for batch, n in window.executions.items())
    busy_s = _service_s(window)
    mean_ms = belief.mean_ms
    if runs and window.queue_ms is not None:
        # a request is served as long as its batch: weighted by requests, not by executions
        own_ms = sum(batch * n * window.service_ms[batch] for batch, n in window.executions.items()) / served
        mean_ms = _mixed(mean_ms, window.queue_ms + own_ms, window.span_s)
    return replace(
        belief,
        rate=updated(belief.rate, end_s, window.span_s, window.arrivals),
        busy=_mixed(belief.busy, min(1.0, busy_s / window.span_s / instances), window.span_s),
        mean_batch=_mixed(belief.mean_batch, served / runs, window.span_s) if runs else belief.mean_batch,
        mean_ms=mean_ms,
        seen_s=belief.seen_s + window.span_s,
    )


def _tenant(name: str, belief: ModelBelief, reading: ModelReading, profiled: Mapping[str, str]) -> Tenant | None:
    """The neighbour others feel, as measured; None where it is not profiled."""
    if name not in profiled:
        return None
    share = reading.allocation.share
    return Tenant(profiled[name], belief.mean_batch, share if share is not None else 1.0, belief.busy)


def _error(window: ModelWindow, reading: ModelReading, name: str, beside: list[Tenant], oracle: Oracle, profiled_as: str) -> float | None:
    """Measured over predicted time spent executing in this window; None where it says nothing of the model."""
    if window.restarted or not window.executions or reading.allocation.share is None:
        return None
    largest = max(window.executions)
    if largest > oracle.model.max_batch(profiled_as):
        return None
    demand = Demand(name, profiled_as, 0.0, 1.0, max_batch=largest)
    curve = oracle.curve_ms(demand, reading.allocation.share, beside)
    predicted_s = sum(n * float(curve[batch - 1]) for batch, n in window.executions.items()) / 1000
    return _service_s(window) / predicted_s if predicted_s > 0 else None


def estimate(
    observation: Observation, window: Window, belief: Belief, *, config: Config, profiled: Mapping[str, str], oracle: Oracle | None
) -> tuple[Estimate, dict[str, ModelBelief]]:
    """Update ``belief`` with ``window`` and say what holds now.

    ``profiled`` maps the configured names of the models that have a profile to their names in it; ``oracle`` predicts with mean
    service times (None: nothing is profiled, and nothing is predicted).
    """
    beliefs = {
        name: _followed(belief.get(name, ModelBelief()), window.models[name], window.at_s, reading.allocation.instances)
        if name in window.models
        else belief.get(name, ModelBelief())
        for name, reading in observation.models.items()
    }
    errors: dict[str, float | None] = {}
    for name, reading in observation.models.items():
        if oracle is None or name not in profiled or name not in window.models:
            continue
        tenants = [
            _tenant(other, beliefs[other], observation.models[other], profiled)
            for other in beliefs
            if other != name and observation.models[other].gpu_index == reading.gpu_index
        ]
        seen = window.models[name]
        errors[name] = _error(seen, reading, name, [t for t in tenants if t], oracle, profiled[name])
        ratio = errors[name]
        if ratio is not None:
            beliefs[name] = replace(beliefs[name], bias=learnt(beliefs[name].bias, window.at_s, ratio, sum(seen.executions.values())))
    loads = {name: _load(name, beliefs[name], observation.models[name], errors.get(name), config) for name in beliefs}
    if oracle is not None:
        loads = _predicted(loads, observation, config, profiled, oracle)
    warm = bool(loads) and all(b.seen_s >= config.decide.warmup_s for b in beliefs.values())
    return Estimate(at_s=observation.at_s, loads=loads, warm=warm), beliefs


def _load(name: str, belief: ModelBelief, reading: ModelReading, ratio: float | None, config: Config) -> Load:
    quantiles = reading.latency_quantiles_s or {}
    return Load(
        model=name,
        rate_per_s=belief.rate.per_s,
        rate_upper_per_s=belief.rate.upper_per_s(config.decide.rate_level),
        confident=belief.rate.count >= ENOUGH and belief.seen_s >= config.decide.warmup_s,
        busy=belief.busy,
        mean_batch=belief.mean_batch,
        bias=belief.bias.mean,
        bias_upper=belief.bias.upper(config.decide.level),
        measured_mean_ms=belief.mean_ms,
        measured_p50_ms=quantiles[0.5] * 1000 if 0.5 in quantiles else None,
        measured_p99_ms=quantiles[0.99] * 1000 if 0.99 in quantiles else None,
        error_ratio=None if ratio is None else ratio - 1,
    )


def _predicted(
    loads: Mapping[str, Load], observation: Observation, config: Config, profiled: Mapping[str, str], oracle: Oracle
) -> dict[str, Load]:
    """``loads`` with what the model expects of each at its present rate and allocation, GPU by GPU."""
    out = dict(loads)
    configured = config.by_name()
    for gpu in sorted({reading.gpu_index for reading in observation.models.values()}):
        there = [n for n, r in observation.models.items() if r.gpu_index == gpu and n in profiled and n in loads]
        if not there or any(observation.models[n].allocation.share is None and observation.models[n].owns_process for n in there):
            continue  # processes without shares take turns on the GPU: that is not what the model is about
        demands = [
            Demand(
                n,
                profiled[n],
                loads[n].rate_per_s,
                configured[n].slo_p99_ms,
                max_batch=min(oracle.model.max_batch(profiled[n]), max(1, observation.models[n].allocation.max_batch_size)),
                bias=loads[n].bias,
                instances=observation.models[n].allocation.instances,
            )
            for n in there
        ]
        for n, service in oracle.together(demands, {n: observation.models[n].allocation for n in there}).items():
            if not service.overloaded:
                out[n] = replace(
                    out[n], predicted_mean_ms=service.mean_ms, predicted_p50_ms=service.p50_ms, predicted_p99_ms=service.p99_ms
                )
    return out
