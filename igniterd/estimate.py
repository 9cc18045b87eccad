"""What is believed of every model now: its arrival rate, how busy it is, and how far off the predictions are. Pure.

Everything that outlives a tick is in :class:`Belief`, replaced whole. A window in which a model was reloaded, or whose source was
silent, changes no belief; nor do the first executions of a new copy, which are slow, change what is believed of its service times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from igniterd.config import Config
from igniterd.model.api import Tenant
from igniterd.model.arrivals import Aim, Rate, updated
from igniterd.model.calibrate import Bias, Measured, Point, learnt, pressure_of
from igniterd.model.daily import Daily, lived
from igniterd.model.effect import ShareTrial
from igniterd.model.livecurve import LiveCurve, followed, points, said
from igniterd.model.oracle import Beside, Demand, Oracle, felt
from igniterd.model.tail import response_time
from igniterd.model.trial import measured, tried
from igniterd.records import Allocation, Changed, Estimate, Learnt, LiveService, Load, ModelReading, ModelWindow, Observation, Window

SMOOTH_S = 4.0  # time constant of the smoothed measurements
ENOUGH = 20  # requests seen before a rate is trusted
HORIZON_S = 8.0  # how far ahead plans are made: a change takes that long from being seen to being served
TOLD_LEVEL, TOLD_TILT, TOLD_SD = 0.01, 0.01, 0.75  # smallest change of what was learnt that plans are told of
SETTLE_S = 3.0  # of a new copy, before its service times count
EXPECT_AGAIN = 0.03  # change of the predicted wait, roughly, that asks for a new prediction ...
EXPECT_PAUSE_S, EXPECT_EVERY_S = 3.0, 60.0  # ... but not sooner, and not later
LIVE_EVERY_S = 15.0  # the same for models without a profile: their curves change without a word
SERVICE_CV = 0.1  # of one execution, where nothing is profiled


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model said of one model, and for what: asked again when that has changed."""

    allocation: Allocation
    rate_per_s: float
    bias: float
    at_s: float
    mean_ms: float | None = None  # None in overload
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ModelBelief:
    """What one tick hands to the next about one model."""

    rate: Rate = field(default_factory=Rate)
    daily: Daily = field(default_factory=Daily)
    bias: Bias = field(default_factory=Bias)
    told: Learnt | None = None  # of the bias, to plans: held still until it matters, so that noise moves no plan
    busy: float = 0.0
    mean_batch: float = 1.0
    mean_ms: float | None = None
    seen_s: float = 0.0  # traffic observed in all, seconds
    copy: tuple[str, str] | None = None  # version and backend that all this is of
    curve: LiveCurve = field(default_factory=LiveCurve)
    live: LiveService | None = None
    settled_at_s: float = 0.0  # when the present copy's first executions are over
    changed: Changed | None = None
    expected: Expected | None = None
    trial: ShareTrial | None = None  # of the share that its configuration names
    success: int = 0  # its count at the last reading: below it, another copy serves


Belief = Mapping[str, ModelBelief]


def _mixed(old: float | None, new: float, span_s: float) -> float:
    """Exponential smoothing over ``SMOOTH_S``."""
    weight = 1 - math.exp(-span_s / SMOOTH_S)
    return new if old is None else old + weight * (new - old)


def _service_s(window: ModelWindow) -> float:
    return sum(n * window.service_ms[batch] for batch, n in window.executions.items()) / 1000


def _same_model(belief: ModelBelief, reading: ModelReading, at_s: float) -> ModelBelief:
    """``belief``, less what was learnt of another version or another backend."""
    copy = (reading.version, reading.backend)
    if belief.copy == copy:
        return belief
    if belief.copy is None:
        return replace(belief, copy=copy)
    what = [f"{name} {was} -> {now}" for name, was, now in zip(("version", "backend"), belief.copy, copy, strict=True) if was != now]
    changed = Changed(at_s, f"{' and '.join(what)}: what was learnt of its service times is forgotten")
    return replace(
        belief,
        copy=copy,
        bias=Bias(),
        told=None,
        curve=LiveCurve(),
        live=None,
        changed=changed,
        expected=None,
        trial=_afresh(belief.trial, at_s),
    )


def _afresh(trial: ShareTrial | None, now_s: float) -> ShareTrial | None:
    """The trial of the same share with a model that may take another time for the same."""
    return None if trial is None else ShareTrial(trial.share, now_s, weak=True)


def _same_copy(belief: ModelBelief, reading: ModelReading, at_s: float, restarted: bool) -> ModelBelief:
    """``belief``, of another copy where the counts say so: they may be seen below the last only after some ticks without a window."""
    if not restarted and reading.success_count >= belief.success:
        return belief if reading.success_count == belief.success else replace(belief, success=reading.success_count)
    trial = None if belief.trial is None else belief.trial.again(belief.trial.share, at_s)
    return replace(belief, success=reading.success_count, settled_at_s=at_s + SETTLE_S, trial=trial)


def _followed(belief: ModelBelief, window: ModelWindow, end_s: float, wall_s: float, instances: int, aim: Aim) -> ModelBelief:
    """``belief`` after ``window``, without what it says of service times."""
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
    rate = updated(belief.rate, end_s, window.span_s, window.arrivals, aim)
    return replace(
        belief,
        rate=rate,
        daily=lived(belief.daily, wall_s, window.span_s, rate.per_s),
        busy=_mixed(belief.busy if belief.seen_s else None, min(1.0, busy_s / window.span_s / instances), window.span_s),
        mean_batch=_mixed(belief.mean_batch if belief.seen_s else None, served / runs, window.span_s) if runs else belief.mean_batch,
        mean_ms=mean_ms,
        seen_s=belief.seen_s + window.span_s,
    )


def _tenants(names: Sequence[str], beliefs: Belief, observation: Observation, profiled: Mapping[str, str]) -> dict[str, list[Tenant]]:
    """The neighbours others feel, as measured, of ``names``, one an instance; those not profiled are left out."""
    out = {}
    for name in names:
        if name in profiled:
            applied, belief = observation.models[name].allocation, beliefs[name]
            share = applied.share if applied.share is not None else 1.0
            out[name] = [Tenant(profiled[name], belief.mean_batch, share, belief.busy)] * applied.instances
    return out


def _overall(measured: Sequence[Measured], window: ModelWindow) -> float | None:
    """Measured over predicted time spent executing in all."""
    predicted_ms = sum(m.executions * window.service_ms[m.batch] / m.ratio for m in measured if m.ratio > 0)
    return 1000 * _service_s(window) / predicted_ms if predicted_ms > 0 else None


def _calibrated(belief: ModelBelief, measured: Sequence[Measured], at_s: float, point: Point) -> ModelBelief:
    if at_s < belief.settled_at_s or not measured:
        return belief
    bias, factor = learnt(belief.bias, at_s, measured, point)
    changed = belief.changed
    if factor is not None:
        changed = Changed(at_s, f"its service times became {factor:.2f} times what they were: what was learnt of them is forgotten")
    return replace(belief, bias=bias, told=_told(belief.told, bias.learnt), changed=changed)


def _told(told: Learnt | None, now: Learnt | None) -> Learnt | None:
    """What plans are told: what they were told before, unless it has become something else."""
    if told is None or now is None or told.share != now.share or told.pressure != now.pressure:
        return now
    level, tilt, sd = abs(now.level - told.level), abs(now.tilt - told.tilt), now.sd / told.sd
    return told if level < TOLD_LEVEL and tilt < TOLD_TILT and TOLD_SD < sd < 1 / TOLD_SD else now


def estimate(
    observation: Observation,
    window: Window,
    belief: Belief,
    *,
    config: Config,
    profiled: Mapping[str, str],
    oracle: Oracle | None,
    wall_s: float = 0.0,
) -> tuple[Estimate, dict[str, ModelBelief]]:
    """Update ``belief`` with ``window`` and say what holds now.

    ``profiled`` maps the configured names of the models that have a profile to their names in it; ``oracle`` predicts with mean
    service times (None: nothing is profiled, and predictions rest on live traffic alone). ``wall_s``: the time of day, seconds UTC.
    """
    aim = Aim(config.decide.rate_level, HORIZON_S)
    beliefs = dict(belief)  # of a model not seen now, too: it is not forgotten
    for name, reading in observation.models.items():
        seen = window.models.get(name)
        before = _same_model(belief.get(name) or ModelBelief(), reading, observation.at_s)
        before = _same_copy(before, reading, observation.at_s, seen is not None and seen.restarted)
        beliefs[name] = before if seen is None else _followed(before, seen, window.at_s, wall_s, reading.allocation.instances, aim)
    errors: dict[str, float | None] = {}
    for there in _by_gpu(observation).values():
        modelled = _modelled(there, observation, profiled) if oracle is not None else []
        if oracle is not None:
            _calibrate(there, beliefs, errors, observation, window, profiled, oracle)
            _expect(modelled, beliefs, observation, config, profiled, oracle)
        for name in there:
            if name not in modelled:
                beliefs[name] = _lived(beliefs[name], observation.models[name], window.models.get(name), observation.at_s)
    loads = {name: _load(name, beliefs[name], observation.models[name], errors.get(name), config, wall_s) for name in observation.models}
    warm = bool(loads) and all(beliefs[name].seen_s >= config.decide.warmup_s for name in loads)
    return Estimate(at_s=observation.at_s, loads=loads, warm=warm), beliefs


def _calibrate(
    there: Sequence[str],
    beliefs: dict[str, ModelBelief],
    errors: dict[str, float | None],
    observation: Observation,
    window: Window,
    profiled: Mapping[str, str],
    oracle: Oracle,
) -> None:
    """Learn the biases of the models of one GPU."""
    # what is only watched, and runs without a share, shares the GPU like any neighbour that no profile tells of: the biases take it in
    steered = [name for name in there if name in profiled]
    tenants = _tenants(steered, beliefs, observation, profiled) if _as_modelled(steered, observation) else {}
    besides, arounds = _others(tenants), _others({name: felt(group) for name, group in tenants.items()})
    for name in tenants.keys() & window.models.keys():
        seen, reading = window.models[name], observation.models[name]
        if not seen.executions:
            continue
        if window.at_s >= beliefs[name].settled_at_s:
            trial = tried(beliefs[name].trial, seen, reading, arounds[name], oracle, profiled[name], window.at_s)
            beliefs[name] = replace(beliefs[name], trial=trial)
        found = measured(seen, reading, arounds[name], oracle, profiled[name])
        errors[name] = _overall(found, seen)
        point = Point(reading.allocation.share or 1.0, pressure_of(besides[name]))
        beliefs[name] = _calibrated(beliefs[name], found, window.at_s, point)


def _others(groups: Mapping[str, Sequence[Tenant]]) -> dict[str, Beside]:
    """Whom each model feels, of ``groups`` of tenants: the others, and all but one of its own, as an instance feels the others too."""
    everybody = tuple(tenant for group in groups.values() for tenant in group)
    out, first = dict[str, Beside](), 0
    for name, group in groups.items():
        out[name] = everybody[:first] + everybody[first + min(1, len(group)) :]
        first += len(group)
    return out


def _modelled(there: Sequence[str], observation: Observation, profiled: Mapping[str, str]) -> list[str]:
    """The models of one GPU that the performance model can speak of as they run now.

    Processes without shares take turns on the GPU, which is not what it is about: with one of them, it can speak of none. One that can be
    given none, and runs beside the others for good, is a neighbour with the whole GPU.
    """
    names = [name for name in there if name in profiled]
    return [] if any(observation.models[name].bare for name in names) else names


def _as_modelled(names: Sequence[str], observation: Observation) -> bool:
    """Whether a GPU is shared the way the model is about: every process with a share, no more than all of it granted.

    While a host is taken over some processes take turns, and some may use all of it: what is measured then teaches nothing.
    """
    readings = [observation.models[name] for name in names]
    return not any(r.bare for r in readings) and sum(r.allocation.granted or 0.0 for r in readings if r.owns_process) <= 1 + 1e-6


def _by_gpu(observation: Observation) -> dict[int, list[str]]:
    out: dict[int, list[str]] = {}
    for name, reading in observation.models.items():
        out.setdefault(reading.gpu_index, []).append(name)
    return out


def _load(name: str, belief: ModelBelief, reading: ModelReading, ratio: float | None, config: Config, wall_s: float) -> Load:
    quantiles = reading.latency_quantiles_s or {}
    expected, rate, bias, daily = belief.expected, belief.rate, belief.bias, belief.daily
    per_s = rate.per_s
    upper = daily.foreseen_per_s(rate.upper_per_s, wall_s, HORIZON_S)
    return Load(
        model=name,
        rate_per_s=per_s,
        rate_upper_per_s=max(per_s, upper),
        confident=rate.seen >= ENOUGH and belief.seen_s >= config.decide.warmup_s,
        busy=belief.busy,
        mean_batch=belief.mean_batch,
        burstiness=rate.burstiness,
        watched_s=belief.seen_s,
        remembered_per_s=max(rate.peak_per_s, daily.usual_per_s(wall_s), daily.usual_per_s(wall_s + HORIZON_S)),
        bias=bias.mean,
        bias_upper=bias.upper(config.decide.level),
        learnt=belief.told,
        live=belief.live,
        share_test=belief.trial.result() if belief.trial else None,
        changed=belief.changed,
        measured_mean_ms=belief.mean_ms,
        measured_p50_ms=quantiles[0.5] * 1000 if 0.5 in quantiles else None,
        measured_p99_ms=quantiles[0.99] * 1000 if 0.99 in quantiles else None,
        predicted_mean_ms=expected.mean_ms if expected else None,
        predicted_p50_ms=expected.p50_ms if expected else None,
        predicted_p99_ms=expected.p99_ms if expected else None,
        error_ratio=None if ratio is None else ratio - 1,
    )


# ---------------------------------------------------------------- what the model expects now


def _expect(
    names: Sequence[str],
    beliefs: dict[str, ModelBelief],
    observation: Observation,
    config: Config,
    profiled: Mapping[str, str],
    oracle: Oracle,
) -> None:
    """Bring the predictions for one GPU up to date, at present rates and allocations; all together, as its models slow each other."""
    allocations = {name: observation.models[name].allocation for name in names}
    if not any(_outdated(beliefs[n], allocations[n], observation.at_s) for n in names):
        return
    configured = config.by_name()
    demands = [
        Demand(
            n,
            profiled[n],
            beliefs[n].rate.per_s * observation.models[n].items_per_request,
            configured[n].slo_p99_ms,
            max_batch=min(oracle.model.max_batch(profiled[n]), max(1, allocations[n].max_batch_size)),
            learnt=beliefs[n].told,
            burstiness=beliefs[n].rate.burstiness,
            instances=allocations[n].instances,
        )
        for n in names
    ]
    for n, service in oracle.together(demands, allocations).items():
        at = Expected(allocations[n], beliefs[n].rate.per_s, beliefs[n].bias.mean, observation.at_s)
        if not service.overloaded:
            at = replace(at, mean_ms=service.mean_ms, p50_ms=service.p50_ms, p99_ms=service.p99_ms)
        beliefs[n] = replace(beliefs[n], expected=at, live=None)


def _lived(belief: ModelBelief, reading: ModelReading, window: ModelWindow | None, at_s: float) -> ModelBelief:
    """``belief`` of a model that the performance model cannot speak of: its own traffic says how long it takes as it runs now."""
    allocation = reading.allocation
    if window is not None and not window.restarted and at_s >= belief.settled_at_s:
        curve = followed(belief.curve, at_s, window.executions, window.service_ms, share=allocation.share, instances=allocation.instances)
        belief = replace(belief, curve=curve)
    if not _outdated(belief, allocation, at_s, LIVE_EVERY_S):
        return belief
    known = points(belief.curve, max(1, allocation.max_batch_size), at_s)
    if known is None or belief.rate.per_s <= 0:
        return replace(belief, expected=None)
    live = LiveService(allocation.share, tuple(map(float, known.mean_ms)), tuple(map(float, known.error)), said(known))
    at = Expected(allocation, belief.rate.per_s, belief.bias.mean, at_s)
    result = response_time(
        belief.rate.per_s * reading.items_per_request,
        known.mean_ms,
        service_cv=SERVICE_CV,
        max_queue_delay_ms=allocation.max_queue_delay_us / 1000,
        instances=allocation.instances,
        burstiness=belief.rate.burstiness,
    )
    if result.success:
        at = replace(at, mean_ms=result.mean_ms, p50_ms=result.p50_ms, p99_ms=result.p99_ms)
    return replace(belief, live=live, expected=at)


def _outdated(belief: ModelBelief, allocation: Allocation, at_s: float, every_s: float = EXPECT_EVERY_S) -> bool:
    """Whether the prediction was for something else than what is now."""
    expected = belief.expected
    if expected is None or expected.allocation != allocation or at_s - expected.at_s >= every_s:
        return True
    if at_s - expected.at_s < EXPECT_PAUSE_S:
        return False
    rate = belief.rate.per_s
    moved = abs(rate - expected.rate_per_s) / max(rate, expected.rate_per_s, 1e-9) + abs(belief.bias.mean / expected.bias - 1)
    return moved * belief.busy / max(0.05, 1 - belief.busy) > EXPECT_AGAIN  # a wait goes with busy / idle time
