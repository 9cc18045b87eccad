"""What is learnt of service times and expected of each model, GPU by GPU: its models slow each
other. Pure.

Nothing here changes what it is given: what a group of models gives is returned, so that one whose
prediction raises can be left out, and the others asked again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from igniterd.belief import EstimatorState, Expected, ModelState, items_of, service_s
from igniterd.colocation import beside_on_busiest
from igniterd.config import Model
from igniterd.corrections import update_model_bias
from igniterd.estimators.bias import Measured, Point, pressure_of
from igniterd.estimators.live_curve import describe, points, update_curve
from igniterd.loads import LiveService
from igniterd.perf.api import Tenant
from igniterd.predict import Demand, LatencyPredictor, Neighbours, quantised
from igniterd.queueing.tail import MAX_CV, response_time
from igniterd.records import Allocation, ModelReading, ModelWindow, Observation, Window
from igniterd.trial import dispersion, measured, tried

EXPECT_AGAIN = 0.03  # change of the predicted wait, roughly, that asks for a new prediction ...
EXPECT_PAUSE_S, EXPECT_EVERY_S = 3.0, 60.0  # ... but not sooner, and not later
LIVE_EVERY_S = 15.0  # the same for models without a profile: their curves change without a word


class Predicted(NamedTuple):
    """What one GPU's window gives, by model: the state after it, and measured over predicted time
    spent executing (None: nothing to compare)."""

    states: dict[str, ModelState]
    ratios: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class GpuView:
    """What the predictions for one GPU rest on: the models ``names`` there, as read at ``at_s``.

    ``windows`` ended at ``end_s``; a model without one was not read anew. ``models`` are their
    sections of the configuration. ``profiled`` maps the names of those that have a profile to their
    names in it; without ``predictor`` nothing is profiled.
    """

    names: Sequence[str]
    readings: Mapping[str, ModelReading]
    windows: Mapping[str, ModelWindow]
    models: Mapping[str, Model]
    profiled: Mapping[str, str]
    predictor: LatencyPredictor | None
    at_s: float
    end_s: float
    gpus: tuple[str, ...] = ()  # several, where models are on more than one

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        observation: Observation,
        window: Window,
        models: Mapping[str, Model],
        profiled: Mapping[str, str],
        predictor: LatencyPredictor | None,
        gpus: tuple[str, ...] = (),
    ) -> GpuView:
        """The part of a tick that is of ``names``."""
        return cls(
            names=names,
            readings=observation.models,
            windows=window.models,
            models=models,
            profiled=profiled,
            predictor=predictor,
            at_s=observation.at_s,
            end_s=window.at_s,
            gpus=gpus,
        )

    def only(self, names: Sequence[str]) -> GpuView:
        """The same GPU with ``names`` alone on it."""
        return replace(self, names=names)

    def with_profile(self) -> list[str]:
        """The models that have a profile."""
        return [name for name in self.names if name in self.profiled]

    def modelled(self) -> list[str]:
        """The models that the performance model can speak of as they run now.

        Processes without shares take turns on the GPU, which is not what it is about: with one of
        them, it can speak of none. One that can be given none, and runs beside the others for good,
        is a neighbour with the whole GPU.
        """
        names = self.with_profile()
        return [] if any(self.readings[name].lacks_share for name in names) else names


def predict_gpu(view: GpuView, before: EstimatorState) -> Predicted:
    """The models of one GPU: what the window taught of service times, and what is predicted now."""
    learnt, ratios = dict[str, ModelState](), dict[str, float | None]()
    predicted, modelled = dict[str, ModelState](), list[str]()
    states = {name: before[name] for name in view.names}
    if view.predictor is not None:
        learnt, ratios = _update_biases(view, states, view.predictor)
        modelled = view.modelled()
        predicted = _predict_together(view, modelled, states | learnt, view.predictor)
    alone = {
        name: _predict_from_traffic(view, name, (states | learnt)[name])
        for name in view.names
        if name not in modelled
    }
    return Predicted(states | learnt | predicted | alone, ratios)


def longest_ms(view: GpuView, name: str, belief: ModelState) -> float:
    """How long the largest batch of a model takes at most, about; 0 where nothing tells."""
    allocation, predictor = view.readings[name].allocation, view.predictor
    largest = max(1, allocation.max_batch_size)
    if predictor is not None and name in view.profiled:
        profiled_as = view.profiled[name]
        largest = min(largest, predictor.model.max_batch(profiled_as))
        curve = predictor.curve_ms(
            profiled_as, max_batch=largest, share=allocation.effective_share, beside=()
        )
        return float(curve[-1]) * max(1.0, belief.bias.mean)
    known = points(belief.curve, largest, view.at_s)
    return 0.0 if known is None else float(known.mean_ms[-1])


def _update_biases(
    view: GpuView, states: EstimatorState, predictor: LatencyPredictor
) -> tuple[dict[str, ModelState], dict[str, float | None]]:
    """States with the biases that the window taught, and measured over predicted time.

    What is only watched, and runs without a share, shares the GPU like any neighbour that no
    profile tells of: the biases take it in.
    """
    names = view.with_profile()
    if not as_modelled([view.readings[name] for name in names]):
        return {}, {}
    tenants = _tenants(view, names, states)
    neighbours = _neighbours(view, tenants)
    rounded = _neighbours(view, {name: quantised(group) for name, group in tenants.items()})
    # tried beside others without shares, all would be predicted to contend, and none does
    as_named = _tenants(view, names, states, claimed=True)
    claimed = _neighbours(view, {name: quantised(group) for name, group in as_named.items()})
    out, ratios = dict[str, ModelState](), dict[str, float | None]()
    for name in tenants.keys() & view.windows.keys():
        window, reading = view.windows[name], view.readings[name]
        if not window.executions:
            continue
        state, place = states[name], (rounded[name], predictor, view.profiled[name])
        if view.end_s >= state.settled_at_s:
            trial = tried(state.trial, window, reading, claimed[name], *place[1:], view.end_s)
            state = replace(state, trial=trial)
        found = measured(window, reading, *place)
        ratios[name] = _overall_ratio(found, window)
        point = Point(reading.allocation.effective_share, pressure_of(neighbours[name]))
        out[name] = update_model_bias(
            state, found, view.end_s, point, dispersion(window, reading, *place)
        )
    return out, ratios


def _neighbours(view: GpuView, tenants: Mapping[str, Sequence[Tenant]]) -> Mapping[str, Neighbours]:
    """Whom each model feels, on the GPU where that is most of several."""
    if len(view.gpus) < 2:
        return others(tenants)
    gpus, felt = [view.readings[name].gpu_of_each for name in tenants], list(tenants.values())
    return {
        name: beside_on_busiest(i, gpus, [tuple(each) for each in felt])
        for i, name in enumerate(tenants)
    }


def _tenants(
    view: GpuView, names: Sequence[str], states: EstimatorState, *, claimed: bool = False
) -> dict[str, list[Tenant]]:
    """The neighbours others feel, as measured, one an instance; ``claimed``: with the shares that
    their configurations name, believed or not."""
    out = {}
    for name in names:
        reading, state = view.readings[name], states[name]
        applied = reading.allocation
        share = (claimed and reading.claimed_share) or applied.effective_share
        tenant = Tenant(view.profiled[name], state.mean_batch, share, state.utilisation)
        out[name] = [tenant] * applied.instances
    return out


def _predict_together(
    view: GpuView, names: Sequence[str], states: EstimatorState, predictor: LatencyPredictor
) -> dict[str, ModelState]:
    """Predictions brought up to date, at present rates and allocations; all together, as models
    slow each other. Empty where the last ones still hold."""
    readings = {name: view.readings[name] for name in names}
    if not any(_is_outdated(states[n], readings[n], view.at_s, names) for n in names):
        return {}
    allocations = {name: reading.allocation for name, reading in readings.items()}
    demands = [_demand(view, name, states[name], predictor) for name in names]
    out = {}
    for name, service in predictor.together(demands, allocations).items():
        expected = _expected_for(states[name], readings[name], view.at_s, names)
        if not service.overloaded:
            expected = replace(
                expected, mean_ms=service.mean_ms, p50_ms=service.p50_ms, p99_ms=service.p99_ms
            )
        out[name] = replace(states[name], expected=expected, live=None)
    return out


def _demand(view: GpuView, name: str, state: ModelState, predictor: LatencyPredictor) -> Demand:
    reading, profiled_as = view.readings[name], view.profiled[name]
    items = items_of(state, reading).mean
    brings = math.ceil(items - 1e-6)
    largest = max(1, brings, reading.allocation.max_batch_size)
    return Demand(
        name,
        profiled_as,
        state.rate.per_s * items,
        view.models[name].slo_p99_ms,
        brings=brings,
        max_batch=min(predictor.model.max_batch(profiled_as), largest),
        learnt=state.published_bias,
        arrival_scv=state.rate.arrival_scv,
        instances=reading.allocation.instances,
        gpus=reading.gpu_of_each if len(view.gpus) > 1 else (),
    )


def _overall_ratio(measured: Sequence[Measured], window: ModelWindow) -> float | None:
    """Measured over predicted time spent executing in all."""
    predicted_ms = sum(
        m.executions * window.service_ms[m.batch] / m.ratio for m in measured if m.ratio > 0
    )
    return 1000 * service_s(window) / predicted_ms if predicted_ms > 0 else None


def others(groups: Mapping[str, Sequence[Tenant]]) -> dict[str, Neighbours]:
    """Whom each model feels, of ``groups`` of tenants: the others, and all but one of its own, as
    an instance feels the others too."""
    everybody = tuple(tenant for group in groups.values() for tenant in group)
    out, first = dict[str, Neighbours](), 0
    for name, group in groups.items():
        out[name] = everybody[:first] + everybody[first + min(1, len(group)) :]
        first += len(group)
    return out


def as_modelled(readings: Sequence[ModelReading]) -> bool:
    """Whether a GPU is shared the way the model is about: every process with a share, no more than
    all of it granted.

    While a host is taken over some processes take turns, and some may use all of it: what is
    measured then teaches nothing.
    """
    return not any(r.lacks_share for r in readings) and all(
        sum(r.granted_on(gpu) for r in readings if r.owns_process) <= 1 + 1e-6
        for gpu in {gpu for r in readings for gpu in r.gpus}
    )


def _predict_from_traffic(view: GpuView, name: str, state: ModelState) -> ModelState:
    """``state`` of a model that the performance model cannot speak of: its own traffic says how
    long it takes as it runs now."""
    reading, at_s = view.readings[name], view.at_s
    allocation = reading.allocation
    state = _update_live_curve(state, allocation, view.windows.get(name), at_s)
    if not _is_outdated(state, reading, at_s, view.names, LIVE_EVERY_S):
        return state
    known = points(state.curve, max(1, allocation.max_batch_size), at_s)
    if known is None or state.rate.per_s <= 0:
        return replace(state, expected=None)
    live = LiveService(
        share=allocation.share,
        mean_ms=tuple(map(float, known.mean_ms)),
        error=tuple(map(float, known.error)),
        said=describe(known),
        cv=state.curve.dispersion.cv,
    )
    expected = _expected_for(state, reading, at_s, view.names)
    result = response_time(
        expected.rate_per_s * expected.items,
        known.mean_ms,
        service_cv=min(MAX_CV, live.cv),
        max_queue_delay_ms=allocation.max_queue_delay_us / 1000,
        instances=allocation.instances,
        arrival_scv=state.rate.arrival_scv,
    )
    if result.success:
        expected = replace(
            expected, mean_ms=result.mean_ms, p50_ms=result.p50_ms, p99_ms=result.p99_ms
        )
    return replace(state, live=live, expected=expected)


def _update_live_curve(
    state: ModelState, allocation: Allocation, window: ModelWindow | None, at_s: float
) -> ModelState:
    if window is None or window.restarted or at_s < state.settled_at_s:
        return state
    curve = update_curve(
        state.curve,
        at_s,
        window.executions,
        window.service_ms,
        share=allocation.share,
        instances=allocation.instances,
    )
    return replace(state, curve=curve)


def _expected_for(
    state: ModelState, reading: ModelReading, at_s: float, there: Sequence[str]
) -> Expected:
    """What a prediction is for, before it is made."""
    return Expected(
        reading.allocation,
        rate_per_s=state.rate.per_s,
        bias=state.bias.mean,
        at_s=at_s,
        beside=frozenset(there),
        items=items_of(state, reading).mean,
    )


def _is_outdated(
    state: ModelState,
    reading: ModelReading,
    at_s: float,
    there: Sequence[str],
    every_s: float = EXPECT_EVERY_S,
) -> bool:
    """Whether the prediction was for something else than what is now."""
    expected = state.expected
    if expected is None or expected.allocation != reading.allocation:
        return True
    if expected.beside != frozenset(there):
        return True
    age_s = at_s - expected.at_s
    if age_s < 0 or age_s >= every_s:
        return True
    if age_s < EXPECT_PAUSE_S:
        return False
    now = state.rate.per_s * items_of(state, reading).mean
    then = expected.rate_per_s * expected.items
    rate_moved = abs(now - then) / max(now, then, 1e-9)
    bias_moved = abs(state.bias.mean / expected.bias - 1)
    # a wait grows as busy over idle time
    wait_moved = (rate_moved + bias_moved) * state.utilisation / max(0.05, 1 - state.utilisation)
    return wait_moved > EXPECT_AGAIN
