"""Everything the metrics page counts: what only grows, tick by tick."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from igniterd.clients.metric_families import MODEL, Labels
from igniterd.decisions import DecisionKind, StepKind, Tick
from igniterd.states import State

_RATIO_BUCKETS = (0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
_STAGE_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_ACTUATION_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


class Histogram:
    """Counts by upper bound, as few operations as an observation can cost."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """``[(upper bound, observations at or below it)]``, the last bound ``+Inf``."""
        rows, below = [], 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            below += count
            rows.append(("+Inf" if math.isinf(bound) else repr(bound), float(below)))
        return rows


def _histograms(bounds: tuple[float, ...]) -> defaultdict[str, Histogram]:
    return defaultdict(lambda: Histogram(bounds))


@dataclass(slots=True)
class Counters:
    """Everything that only grows; by model, outcome, kind, stage or source."""

    ticks: int = 0
    arrivals: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    observed_s: dict[str, float] = field(default_factory=dict)
    violated_s: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DecisionKind, 0))
    actuations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    error_ratio: defaultdict[str, Histogram] = field(
        default_factory=lambda: _histograms(_RATIO_BUCKETS)
    )
    stage_s: defaultdict[str, Histogram] = field(
        default_factory=lambda: _histograms(_STAGE_BUCKETS)
    )
    actuation_s: defaultdict[str, Histogram] = field(
        default_factory=lambda: _histograms(_ACTUATION_BUCKETS)
    )
    success_at_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_models(cls, names: Iterable[str]) -> Counters:
        """Counters that show every model from the start, at zero."""
        models = tuple(names)
        return cls(
            arrivals=dict.fromkeys(models, 0),
            failed=dict.fromkeys(models, 0),
            rejected=dict.fromkeys(models, 0),
            left_out=dict.fromkeys(models, 0),
            observed_s=dict.fromkeys(models, 0.0),
            violated_s=dict.fromkeys(models, 0.0),
        )

    def count(self, tick: Tick, slo_ms: Mapping[str, float]) -> None:
        """Add one tick; ``slo_ms`` is the SLO of each configured model, ms."""
        self.ticks += 1
        self.decisions[tick.plan.outcome] += 1
        for stage, seconds in tick.stage_s.items():
            self.stage_s[stage].observe(seconds)
        for done in tick.outcome.actuations:
            self.actuations[done.step.kind] += 1
            self.refused[done.step.kind] += not done.ok
            self.actuation_s[done.step.kind].observe(done.duration_s)
        for name, limit_ms in slo_ms.items():
            self._count_model(name, limit_ms, tick)

    def _count_model(self, name: str, slo_ms: float, tick: Tick) -> None:
        window, load = tick.window.models.get(name), tick.estimate.loads.get(name)
        if window is not None:
            self.arrivals[name] += max(0, window.arrivals)
            self.failed[name] += max(0, window.failed)
            self.rejected[name] += max(0, window.rejected)
        standing = tick.standings.get(name)
        odd = standing is not None and standing.state is State.UNPREDICTABLE
        self.left_out[name] += odd or name in tick.estimate.left_out
        if load is None:
            return
        if load.error_ratio is not None:
            self.error_ratio[name].observe(1.0 + load.error_ratio)
        if window is not None and load.measured_p99_ms is not None:
            self.observed_s[name] += window.span_s
            self.violated_s[name] += window.span_s * (load.measured_p99_ms > slo_ms)

    def count_families(self, labels: Labels) -> Iterator[Metric]:
        """Counts, and seconds that grow."""
        yield CounterMetricFamily(
            "igniterd_ticks", "Turns of the control loop finished.", value=self.ticks
        )
        for family, help_text, by_model in (
            (
                "arrival_requests",
                "Requests that arrived, from Triton's statistics.",
                self.arrivals,
            ),
            ("failed_requests", "Requests that Triton answered with an error.", self.failed),
            (
                "observed_seconds",
                "Seconds in which the P99 latency was known.",
                self.observed_s,
            ),
            (
                "slo_violation_seconds",
                "Seconds of igniterd_observed_seconds in which the P99 latency was above the SLO.",
                self.violated_s,
            ),
        ):
            metric = CounterMetricFamily(f"igniterd_{family}", help_text, labels=MODEL)
            for name, value in by_model.items():
                metric.add_metric(labels(name), value)
            yield metric
        for family, help_text, label, by_kind in (
            (
                "requests_rejected",
                "Requests whose time in the queue ran out, as far as Triton tells.",
                "model",
                self.rejected,
            ),
            (
                "readings_left_out",
                "Ticks that left the model out: its reading made a prediction fail.",
                "model",
                self.left_out,
            ),
            (
                "decisions",
                "Decisions by outcome: hold, wait, move, infeasible.",
                "outcome",
                self.decisions,
            ),
            ("actuations", "Changes of a model tried, by kind.", "kind", self.actuations),
            (
                "actuation_failures",
                "Changes of a model that were refused or not answered, by kind.",
                "kind",
                self.refused,
            ),
        ):
            metric = CounterMetricFamily(f"igniterd_{family}", help_text, labels=(label,))
            for kind, value in by_kind.items():
                metric.add_metric((str(kind),), value)
            yield metric

    def time_families(self, labels: Labels) -> Iterator[Metric]:
        """Histograms: errors of predictions, and times of stages and changes."""
        errors = HistogramMetricFamily(
            "igniterd_prediction_error_ratio",
            "Measured mean service time divided by the predicted one; 1 is right.",
            labels=MODEL,
        )
        for name, histogram in self.error_ratio.items():
            errors.add_metric(labels(name), histogram.cumulative(), histogram.total)
        yield errors
        for family, help_text, label, by_kind in (
            (
                "control_loop_duration_seconds",
                "Time a stage of one tick took.",
                "stage",
                self.stage_s,
            ),
            (
                "actuation_duration_seconds",
                "Time one change took, from the request until the new copy served.",
                "kind",
                self.actuation_s,
            ),
        ):
            metric = HistogramMetricFamily(f"igniterd_{family}", help_text, labels=(label,))
            for kind, histogram in by_kind.items():
                metric.add_metric((str(kind),), histogram.cumulative(), histogram.total)
            yield metric
