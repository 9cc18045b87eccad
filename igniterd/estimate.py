"""What is believed of every model now: its arrival rate, how busy it is, and how far off the
predictions are. Pure.

Everything that outlives a tick is in :class:`EstimatorState`, replaced whole
(:mod:`igniterd.belief`). One model whose reading makes a prediction raise is left out and named;
the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from igniterd.config import Decide, Model
from igniterd.estimators.arrivals import ForecastTarget
from igniterd.expect import GpuView, Predicted, longest_ms, predict_gpu
from igniterd.loads import Estimate, Load
from igniterd.placement import groups_of
from igniterd.predict import LatencyPredictor
from igniterd.records import ModelWindow, Observation, Window
from igniterd.window import answered_s

BasisOf = Callable[[tuple[str, ...]], tuple[Mapping[str, str], LatencyPredictor | None]]
"""What predictions on GPUs rest on: ``profiled`` and ``predictor`` of their kind of board."""

ENOUGH = 20  # requests seen before a rate is trusted
# how far ahead plans are made: a change takes that long from being seen to being served
HORIZON_S = 8.0

__all__ = ["EstimatorState", "Expected", "ModelState", "estimate"]


def estimate(
    observation: Observation,
    window: Window,
    belief: EstimatorState,
    *,
    rules: Decide,
    models: Mapping[str, Model],
    profiled: Mapping[str, str],
    predictor: LatencyPredictor | None,
    wall_s: float = 0.0,
    basis: BasisOf | None = None,
) -> tuple[Estimate, dict[str, ModelState]]:
    """What holds now, and ``belief`` after ``window``.

    ``rules`` and ``models`` are sections of the configuration, the latter by name. ``profiled``
    maps the configured names of the models that have a profile to their names in it; ``predictor``
    predicts with mean service times (None: nothing is profiled, and predictions rest on live
    traffic alone). ``wall_s``: the time of day, seconds UTC. ``basis``: what predictions on some
    GPUs rest on; without it, on ``profiled`` and ``predictor`` everywhere.

    A model that was not read this time keeps its belief, and its load is what it was. One whose
    prediction raises keeps its belief too, has no load, and is named in ``left_out``.
    """
    states, no_state = _update_states(observation, window, belief, rules, wall_s)
    known, loads = dict[str, ModelState](), dict[str, Load]()
    no_prediction, no_load = dict[str, str](), dict[str, str]()
    basis = basis or (lambda _: (profiled, predictor))
    for gpus, names in _by_gpu(observation, states):
        view = GpuView.of(names, observation, window, models, *basis(gpus), gpus)
        predicted, odd = _leave_out_odd(view, states)
        loads_here, failed = _loads(view, predicted, rules, wall_s)
        known |= predicted.states
        loads |= loads_here
        no_prediction |= odd
        no_load |= failed
    # a model that is not seen now is not forgotten
    after = {**belief, **{name: replace(known[name], load=load) for name, load in loads.items()}}
    estimated = Estimate(
        at_s=observation.at_s,
        loads=loads | _kept_loads(observation, belief),
        warm=_is_warm(loads.keys() - observation.unread, after, rules.warmup_s),
        left_out=no_state | no_prediction | no_load,
    )
    return estimated, after


def _is_warm(names: Collection[str], states: EstimatorState, warmup_s: float) -> bool:
    return bool(names) and all(states[name].seen_s >= warmup_s for name in names)


def _kept_loads(observation: Observation, belief: EstimatorState) -> dict[str, Load]:
    """The last loads of the models that were not read. Their error was of another window."""
    out = {}
    for name in observation.unread:
        last = belief[name].load if name in belief else None
        if last is not None and name not in observation.models:
            out[name] = replace(last, error_ratio=None)
    return out


def _describe_failure(error: Exception) -> str:
    return f"a prediction for it failed: {error!r}"


def _update_states(
    observation: Observation,
    window: Window,
    belief: EstimatorState,
    rules: Decide,
    wall_s: float,
) -> tuple[dict[str, ModelState], dict[str, str]]:
    """States after the window's traffic; the models that raise, and why."""
    aim = ForecastTarget(rules.rate_level, HORIZON_S)
    states, failed = dict[str, ModelState](), dict[str, str]()
    for name in observation.models:
        before = belief.get(name) or ModelState()
        try:
            states[name] = _update_state(
                before, name, observation, window.models.get(name), wall_s, aim
            )
        except Exception as error:  # whatever an odd reading makes of it
            failed[name] = _describe_failure(error)
    return states, failed


def _update_state(
    state: ModelState,
    name: str,
    observation: Observation,
    window: ModelWindow | None,
    wall_s: float,
    aim: ForecastTarget,
) -> ModelState:
    reading = observation.models[name]
    restarted = window is not None and window.restarted
    state = forget_other_model(state, reading, observation.at_s)
    state = notice_new_copy(state, reading, observation.at_s, restarted)
    if window is None:
        return state
    end_s = answered_s(observation, reading)
    return update_traffic(state, window, reading, end_s=end_s, wall_s=wall_s, aim=aim)


def _leave_out_odd(view: GpuView, states: EstimatorState) -> tuple[Predicted, dict[str, str]]:
    """:func:`predict_gpu` of ``view``, less the models it cannot be asked for; these, and why.

    Whoever makes it raise is found by asking without it: first those that raise alone, then the one
    without whom the others do not. Where that is nobody, the GPU is left out whole.
    """
    try:
        return predict_gpu(view, states), {}
    except Exception as error:
        reason = _describe_failure(error)
    odd: dict[str, str] = {}
    for name in view.names:
        try:
            predict_gpu(view.only([name]), states)
        except Exception as error:
            odd[name] = _describe_failure(error)
    rest = [name for name in view.names if name not in odd]
    for without in ["", *rest] if odd else rest:
        try:
            predicted = predict_gpu(view.only([n for n in rest if n != without]), states)
        except Exception:  # noqa: S112 - it was somebody else, then
            continue
        return predicted, odd | ({without: reason} if without else {})
    return Predicted({}, {}), odd | dict.fromkeys(rest, reason)


def _by_gpu(
    observation: Observation, names: Iterable[str]
) -> Iterator[tuple[tuple[str, ...], Sequence[str]]]:
    """GPUs that share models, and the models there; last, those that are on none."""
    wanted = list(names)
    for group in groups_of(observation.models, wanted):
        yield group.gpus, group.models
    nowhere = [name for name in wanted if not observation.models[name].gpus]
    if nowhere:
        yield (), nowhere


def _loads(
    view: GpuView, predicted: Predicted, rules: Decide, wall_s: float
) -> tuple[dict[str, Load], dict[str, str]]:
    """Loads of the models predicted; those that raise, and why."""
    loads, failed = dict[str, Load](), dict[str, str]()
    for name, state in predicted.states.items():
        try:
            loads[name] = _load(name, state, view, rules, predicted.ratios.get(name), wall_s)
        except Exception as error:  # whatever an odd reading makes of it
            failed[name] = _describe_failure(error)
    return loads, failed


def _load(
    name: str, belief: ModelState, view: GpuView, rules: Decide, ratio: float | None, wall_s: float
) -> Load:
    reading = view.readings[name]
    quantiles = reading.latency_quantiles_s or {}
    expected, rate, bias, daily = belief.expected, belief.rate, belief.bias, belief.daily
    per_s = rate.per_s
    upper = daily.foreseen_per_s(rate.upper_per_s, wall_s, HORIZON_S)
    waits = belief.waited_s >= STUCK_S
    return Load(
        model=name,
        rate_per_s=per_s,
        rate_upper_per_s=max(per_s, upper),
        confident=rate.seen >= ENOUGH and belief.seen_s >= rules.warmup_s,
        utilisation=belief.utilisation,
        mean_batch=belief.mean_batch,
        arrival_scv=rate.arrival_scv,
        watched_s=belief.seen_s,
        remembered_per_s=max(
            rate.peak_per_s, daily.usual_per_s(wall_s), daily.usual_per_s(wall_s + HORIZON_S)
        ),
        bias=bias.mean,
        bias_upper=bias.upper(rules.level),
        published_bias=belief.published_bias,
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
        stuck_s=stuck_s(belief, reading, longest_ms(view, name, belief)) if waits else 0.0,
    )


def _quantile_ms(quantiles: Mapping[float, float], level: float) -> float | None:
    """A latency that Triton has measured; None for what is no latency."""
    seconds = quantiles.get(level)
    return seconds * 1000 if seconds is not None and 0 <= seconds < math.inf else None
