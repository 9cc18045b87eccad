"""What is believed of every model now: its arrival rate, how busy it is, and how far off the
predictions are. Pure.

Everything that outlives a tick is in :class:`EstimatorState`, replaced whole
(:mod:`igniterd.belief`). One model whose reading makes a prediction raise is left out and named;
the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from igniterd.belief import (
    STUCK_S,
    EstimatorState,
    Expected,
    ModelState,
    forget_other_model,
    items_of,
    notice_new_copy,
    stuck_s,
    update_traffic,
)
from igniterd.config import Config
from igniterd.estimators.arrivals import ForecastTarget
from igniterd.expect import Known, Scene
from igniterd.predict import LatencyPredictor
from igniterd.records import Estimate, Load, Observation, Window
from igniterd.window import answered_s

ENOUGH = 20  # requests seen before a rate is trusted
# how far ahead plans are made: a change takes that long from being seen to being served
HORIZON_S = 8.0

__all__ = ["EstimatorState", "Expected", "ModelState", "estimate"]


def estimate(
    observation: Observation,
    window: Window,
    belief: EstimatorState,
    *,
    config: Config,
    profiled: Mapping[str, str],
    predictor: LatencyPredictor | None,
    wall_s: float = 0.0,
) -> tuple[Estimate, dict[str, ModelState]]:
    """Update ``belief`` with ``window`` and say what holds now.

    ``profiled`` maps the configured names of the models that have a profile to their names in it;
    ``predictor`` predicts with mean service times (None: nothing is profiled, and predictions rest
    on live traffic alone). ``wall_s``: the time of day, seconds UTC.

    A model that was not read this time keeps its belief, and its load is what it was. One whose
    prediction raises keeps its belief too, has no load, and is named in ``left_out``.
    """
    scene = Scene(observation, window, config, profiled, predictor)
    left_out: dict[str, str] = {}
    known, errors = _update_states(scene, belief, wall_s, left_out)
    loads: dict[str, Load] = {}
    for name in known:
        try:
            loads[name] = _load(name, known[name], scene, errors.get(name), wall_s)
        except Exception as error:  # whatever an odd reading makes of a prediction
            left_out[name] = _describe_failure(error)
    beliefs = dict(belief)  # of a model not seen now, too: it is not forgotten
    beliefs |= {name: replace(known[name], load=load) for name, load in loads.items()}
    counted = [name for name in loads if name not in observation.unread]
    warm = bool(counted) and all(beliefs[name].seen_s >= config.decide.warmup_s for name in counted)
    for name in observation.unread:
        last = belief[name].load if name in belief else None
        if last is not None and name not in observation.models:
            loads[name] = replace(last, error_ratio=None)  # that was of a window
    return Estimate(at_s=observation.at_s, loads=loads, warm=warm, left_out=left_out), beliefs


def _describe_failure(error: Exception) -> str:
    return f"a prediction for it failed: {error!r}"


def _update_states(
    scene: Scene, belief: EstimatorState, wall_s: float, left_out: dict[str, str]
) -> Known:
    """Beliefs after the window, of every model but those added to ``left_out``."""
    beliefs: dict[str, ModelState] = {}
    for name in scene.observation.models:
        try:
            beliefs[name] = _update_state(belief.get(name) or ModelState(), name, scene, wall_s)
        except Exception as error:  # as above
            left_out[name] = _describe_failure(error)
    known, errors = dict[str, ModelState](), dict[str, float | None]()
    for there in _by_gpu(scene.observation, beliefs).values():
        (of_gpu, of_errors), odd = _leave_out_odd(
            there, lambda names: scene.expected_of(names, beliefs)
        )
        known |= of_gpu
        errors |= of_errors
        left_out |= odd
    return known, errors


def _update_state(before: ModelState, name: str, scene: Scene, wall_s: float) -> ModelState:
    observation, seen = scene.observation, scene.window.models.get(name)
    reading = observation.models[name]
    before = forget_other_model(before, reading, observation.at_s)
    before = notice_new_copy(before, reading, observation.at_s, seen is not None and seen.restarted)
    if seen is None:
        return before
    aim = ForecastTarget(scene.config.decide.rate_level, HORIZON_S)
    return update_traffic(before, seen, reading, answered_s(observation, reading), wall_s, aim)


def _leave_out_odd(
    names: Sequence[str], ask: Callable[[Sequence[str]], Known]
) -> tuple[Known, dict[str, str]]:
    """What ``ask`` gives for ``names``, less those it cannot be asked for, and why.

    Whoever makes it raise is found by asking without it: first those that raise alone, then the one
    without whom the others do not. Where that is nobody, the GPU is left out whole.
    """
    try:
        return ask(names), {}
    except Exception as error:
        reason = _describe_failure(error)
    odd: dict[str, str] = {}
    for name in names:
        try:
            ask([name])
        except Exception as error:
            odd[name] = _describe_failure(error)
    rest = [name for name in names if name not in odd]
    for without in ["", *rest] if odd else rest:
        try:
            known = ask([name for name in rest if name != without])
        except Exception:  # noqa: S112 - it was somebody else, then
            continue
        return known, odd | ({without: reason} if without else {})
    return ({}, {}), odd | dict.fromkeys(rest, reason)


def _by_gpu(observation: Observation, names: Iterable[str]) -> dict[int, list[str]]:
    out: dict[int, list[str]] = {}
    for name in names:
        out.setdefault(observation.models[name].gpu_index, []).append(name)
    return out


def _load(name: str, belief: ModelState, scene: Scene, ratio: float | None, wall_s: float) -> Load:
    reading, config = scene.observation.models[name], scene.config
    quantiles = reading.latency_quantiles_s or {}
    expected, rate, bias, daily = belief.expected, belief.rate, belief.bias, belief.daily
    per_s = rate.per_s
    upper = daily.foreseen_per_s(rate.upper_per_s, wall_s, HORIZON_S)
    waits = belief.waited_s >= STUCK_S
    return Load(
        model=name,
        rate_per_s=per_s,
        rate_upper_per_s=max(per_s, upper),
        confident=rate.seen >= ENOUGH and belief.seen_s >= config.decide.warmup_s,
        busy=belief.utilisation,
        mean_batch=belief.mean_batch,
        burstiness=rate.arrival_scv,
        watched_s=belief.seen_s,
        remembered_per_s=max(
            rate.peak_per_s, daily.usual_per_s(wall_s), daily.usual_per_s(wall_s + HORIZON_S)
        ),
        bias=bias.mean,
        bias_upper=bias.upper(config.decide.level),
        learnt=belief.published_bias,
        live=belief.live,
        share_test=belief.trial.result() if belief.trial else None,
        changed=belief.changed,
        measured_mean_ms=belief.mean_ms,
        measured_p50_ms=_quantile_ms(quantiles, 0.5),
        measured_p99_ms=_quantile_ms(quantiles, 0.99),
        predicted_mean_ms=expected.mean_ms if expected else None,
        predicted_p50_ms=expected.p50_ms if expected else None,
        predicted_p99_ms=expected.p99_ms if expected else None,
        error_ratio=None if ratio is None else ratio - 1,
        items_per_request=items_of(belief, reading).mean,
        stuck_s=stuck_s(belief, reading, scene.longest_ms(name, belief)) if waits else 0.0,
    )


def _quantile_ms(quantiles: Mapping[float, float], level: float) -> float | None:
    """A latency that Triton has measured; None for what is no latency."""
    seconds = quantiles.get(level)
    return seconds * 1000 if seconds is not None and 0 <= seconds < math.inf else None
