"""What is learnt of service times and expected of each model, GPU by GPU: its models slow each
other. Pure.

Nothing here changes what it is given: what a group of models gives is returned, so that one whose
prediction raises can be left out, and the others asked again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from igniterd.belief import EstimatorState, Expected, ModelState, items_of, service_s
from igniterd.config import Config
from igniterd.estimators.bias import Measured, Point, pressure_of, update_bias
from igniterd.estimators.live_curve import describe, points, update_curve
from igniterd.perf.api import Tenant
from igniterd.predict import Beside, Demand, LatencyPredictor, felt
from igniterd.queueing.tail import response_time
from igniterd.records import (
    BiasEstimate,
    Changed,
    LiveService,
    ModelReading,
    ModelWindow,
    Observation,
    Window,
)
from igniterd.trial import measured, tried

# smallest changes of a bias estimate that are published to plans
PUBLISH_LEVEL, PUBLISH_TILT, PUBLISH_SD = 0.01, 0.01, 0.75
EXPECT_AGAIN = 0.03  # change of the predicted wait, roughly, that asks for a new prediction ...
EXPECT_PAUSE_S, EXPECT_EVERY_S = 3.0, 60.0  # ... but not sooner, and not later
LIVE_EVERY_S = 15.0  # the same for models without a profile: their curves change without a word
SERVICE_CV = 0.1  # of one execution, where nothing is profiled

Known = tuple[dict[str, ModelState], dict[str, float | None]]
"""Beliefs, and measured over predicted time spent executing, by model."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the predictions of one tick rest on.

    ``profiled`` maps the configured names of the models that have a profile to their names in it;
    without ``predictor`` nothing is profiled.
    """

    observation: Observation
    window: Window
    config: Config
    profiled: Mapping[str, str]
    predictor: LatencyPredictor | None

    def expected_of(self, there: Sequence[str], beliefs: EstimatorState) -> Known:
        """The models ``there`` on one GPU: what was learnt in the window, and what is expected
        now."""
        known, errors = {name: beliefs[name] for name in there}, dict[str, float | None]()
        modelled: list[str] = []
        if self.predictor is not None:
            modelled = self._modelled(there)
            learnt_now, errors = self._update_biases(there, known, self.predictor)
            known |= learnt_now
            known |= self._expected(modelled, known, self.predictor)
        for name in there:
            if name not in modelled:
                reading, at_s = self.observation.models[name], self.observation.at_s
                known[name] = _with_own_traffic(
                    known[name], reading, self.window.models.get(name), at_s, there
                )
        return known, errors

    def longest_ms(self, name: str, belief: ModelState) -> float:
        """How long the largest batch of a model takes at most, about; 0 where nothing tells."""
        reading = self.observation.models[name]
        largest = max(1, reading.allocation.max_batch_size)
        if self.predictor is not None and name in self.profiled:
            largest = min(largest, self.predictor.model.max_batch(self.profiled[name]))
            curve = self.predictor.curve_ms(
                self.profiled[name], largest, reading.allocation.share or 1.0, ()
            )
            return float(curve[-1]) * max(1.0, belief.bias.mean)
        known = points(belief.curve, largest, self.observation.at_s)
        return 0.0 if known is None else float(known.mean_ms[-1])

    def _update_biases(
        self, there: Sequence[str], beliefs: EstimatorState, predictor: LatencyPredictor
    ) -> Known:
        """Beliefs with the biases that the window taught."""
        out, errors = dict[str, ModelState](), dict[str, float | None]()
        # what is only watched, and runs without a share, shares the GPU like any neighbour that no
        # profile tells of: the biases take it in
        steered = [name for name in there if name in self.profiled]
        tenants = self._tenants(steered, beliefs) if as_modelled(steered, self.observation) else {}
        besides, arounds = (
            others(tenants),
            others({name: felt(group) for name, group in tenants.items()}),
        )
        end_s = self.window.at_s
        for name in tenants.keys() & self.window.models.keys():
            seen, reading = self.window.models[name], self.observation.models[name]
            if not seen.executions:
                continue
            belief, of = beliefs[name], self.profiled[name]
            if end_s >= belief.settled_at_s:
                belief = replace(
                    belief,
                    trial=tried(belief.trial, seen, reading, arounds[name], predictor, of, end_s),
                )
            found = measured(seen, reading, arounds[name], predictor, of)
            errors[name] = _overall_ratio(found, seen)
            point = Point(reading.allocation.share or 1.0, pressure_of(besides[name]))
            out[name] = _update_model_bias(belief, found, end_s, point)
        return out, errors

    def _tenants(self, names: Sequence[str], beliefs: EstimatorState) -> dict[str, list[Tenant]]:
        """The neighbours others feel, as measured, of ``names``, one an instance."""
        out = {}
        for name in names:
            applied, belief = self.observation.models[name].allocation, beliefs[name]
            share = applied.share if applied.share is not None else 1.0
            out[name] = [
                Tenant(self.profiled[name], belief.mean_batch, share, belief.utilisation)
            ] * applied.instances
        return out

    def _modelled(self, there: Sequence[str]) -> list[str]:
        """The models of one GPU that the performance model can speak of as they run now.

        Processes without shares take turns on the GPU, which is not what it is about: with one of
        them, it can speak of none. One that can be given none, and runs beside the others for good,
        is a neighbour with the whole GPU.
        """
        names = [name for name in there if name in self.profiled]
        return [] if any(self.observation.models[name].bare for name in names) else names

    def _expected(
        self, names: Sequence[str], beliefs: EstimatorState, predictor: LatencyPredictor
    ) -> dict[str, ModelState]:
        """Predictions brought up to date, at present rates and allocations; all together, as models
        slow each other."""
        readings, at_s = (
            {name: self.observation.models[name] for name in names},
            self.observation.at_s,
        )
        if not any(_is_outdated(beliefs[n], readings[n], at_s, names) for n in names):
            return {}
        allocations = {name: reading.allocation for name, reading in readings.items()}
        demands = [self._demand(n, beliefs[n], readings[n], predictor) for n in names]
        out = {}
        for n, service in predictor.together(demands, allocations).items():
            at = _now(beliefs[n], readings[n], at_s, names)
            if not service.overloaded:
                at = replace(
                    at, mean_ms=service.mean_ms, p50_ms=service.p50_ms, p99_ms=service.p99_ms
                )
            out[n] = replace(beliefs[n], expected=at, live=None)
        return out

    def _demand(
        self, name: str, belief: ModelState, reading: ModelReading, predictor: LatencyPredictor
    ) -> Demand:
        allocation, of = reading.allocation, self.profiled[name]
        items = items_of(belief, reading).mean
        brings = math.ceil(items - 1e-6)
        return Demand(
            name,
            of,
            belief.rate.per_s * items,
            self.config.by_name()[name].slo_p99_ms,
            brings=brings,
            max_batch=min(predictor.model.max_batch(of), max(1, brings, allocation.max_batch_size)),
            learnt=belief.published_bias,
            burstiness=belief.rate.arrival_scv,
            instances=allocation.instances,
        )


def _overall_ratio(measured: Sequence[Measured], window: ModelWindow) -> float | None:
    """Measured over predicted time spent executing in all."""
    predicted_ms = sum(
        m.executions * window.service_ms[m.batch] / m.ratio for m in measured if m.ratio > 0
    )
    return 1000 * service_s(window) / predicted_ms if predicted_ms > 0 else None


def _update_model_bias(
    belief: ModelState, measured: Sequence[Measured], at_s: float, point: Point
) -> ModelState:
    if at_s < belief.settled_at_s or not measured:
        return belief
    bias, factor = update_bias(belief.bias, at_s, measured, point)
    changed = belief.changed
    if factor is not None:
        changed = Changed(
            at_s,
            f"its service times became {factor:.2f} times what they were: what was learnt of "
            "them is forgotten",
        )
    return replace(
        belief,
        bias=bias,
        published_bias=_publish(belief.published_bias, bias.estimate),
        changed=changed,
    )


def _publish(published: BiasEstimate | None, now: BiasEstimate | None) -> BiasEstimate | None:
    """The estimate that plans read: ``published``, until ``now`` differs from it enough."""
    if published is None or now is None:
        return now
    if (published.share, published.pressure) != (now.share, now.pressure):
        return now
    sd_ratio = now.sd / published.sd
    still = (
        abs(now.level - published.level) < PUBLISH_LEVEL
        and abs(now.tilt - published.tilt) < PUBLISH_TILT
        and PUBLISH_SD < sd_ratio < 1 / PUBLISH_SD
    )
    return published if still else now


def others(groups: Mapping[str, Sequence[Tenant]]) -> dict[str, Beside]:
    """Whom each model feels, of ``groups`` of tenants: the others, and all but one of its own, as
    an instance feels the others too."""
    everybody = tuple(tenant for group in groups.values() for tenant in group)
    out, first = dict[str, Beside](), 0
    for name, group in groups.items():
        out[name] = everybody[:first] + everybody[first + min(1, len(group)) :]
        first += len(group)
    return out


def as_modelled(names: Sequence[str], observation: Observation) -> bool:
    """Whether a GPU is shared the way the model is about: every process with a share, no more than
    all of it granted.

    While a host is taken over some processes take turns, and some may use all of it: what is
    measured then teaches nothing.
    """
    readings = [observation.models[name] for name in names]
    return (
        not any(r.bare for r in readings)
        and sum(r.allocation.granted or 0.0 for r in readings if r.owns_process) <= 1 + 1e-6
    )


def _with_own_traffic(
    belief: ModelState,
    reading: ModelReading,
    window: ModelWindow | None,
    at_s: float,
    there: Sequence[str],
) -> ModelState:
    """``belief`` of a model that the performance model cannot speak of: its own traffic says how
    long it takes as it runs now."""
    allocation = reading.allocation
    if window is not None and not window.restarted and at_s >= belief.settled_at_s:
        curve = update_curve(
            belief.curve,
            at_s,
            window.executions,
            window.service_ms,
            share=allocation.share,
            instances=allocation.instances,
        )
        belief = replace(belief, curve=curve)
    if not _is_outdated(belief, reading, at_s, there, LIVE_EVERY_S):
        return belief
    known = points(belief.curve, max(1, allocation.max_batch_size), at_s)
    if known is None or belief.rate.per_s <= 0:
        return replace(belief, expected=None)
    live = LiveService(
        allocation.share,
        tuple(map(float, known.mean_ms)),
        tuple(map(float, known.error)),
        describe(known),
    )
    at = _now(belief, reading, at_s, there)
    result = response_time(
        at.rate_per_s * at.items,
        known.mean_ms,
        service_cv=SERVICE_CV,
        max_queue_delay_ms=allocation.max_queue_delay_us / 1000,
        instances=allocation.instances,
        burstiness=belief.rate.arrival_scv,
    )
    if result.success:
        at = replace(at, mean_ms=result.mean_ms, p50_ms=result.p50_ms, p99_ms=result.p99_ms)
    return replace(belief, live=live, expected=at)


def _now(belief: ModelState, reading: ModelReading, at_s: float, there: Sequence[str]) -> Expected:
    """What a prediction is for, before it is made."""
    items = items_of(belief, reading).mean
    return Expected(
        reading.allocation,
        belief.rate.per_s,
        belief.bias.mean,
        at_s,
        beside=frozenset(there),
        items=items,
    )


def _is_outdated(
    belief: ModelState,
    reading: ModelReading,
    at_s: float,
    there: Sequence[str],
    every_s: float = EXPECT_EVERY_S,
) -> bool:
    """Whether the prediction was for something else than what is now."""
    expected, allocation = belief.expected, reading.allocation
    if expected is None or expected.allocation != allocation or expected.beside != frozenset(there):
        return True
    age_s = at_s - expected.at_s
    if age_s < 0 or age_s >= every_s:
        return True
    if age_s < EXPECT_PAUSE_S:
        return False
    now, then = (
        belief.rate.per_s * items_of(belief, reading).mean,
        expected.rate_per_s * expected.items,
    )
    moved = abs(now - then) / max(now, then, 1e-9) + abs(belief.bias.mean / expected.bias - 1)
    # a wait goes with busy / idle time
    return moved * belief.utilisation / max(0.05, 1 - belief.utilisation) > EXPECT_AGAIN
