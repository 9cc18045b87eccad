"""What the run came to: figures a phase and model, and whether they are as they should be. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64
from igniterd.demo.recording import PhaseResult, Recording
from igniterd.lab.load.load import RequestLog

LATE_MS = 10.0
"""A generator that sends one request in a hundred later than this was short of CPU, and so were the
servers."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One model in the measured part of one phase. Latencies in ms from the scheduled time;
    ``failed`` counts the settling part too."""

    phase: str
    model: str
    rate_per_s: float  # offered
    requests: int
    p50_ms: float
    p99_ms: float
    slo_ms: float
    attainment: float
    failed: int

    @property
    def held(self) -> bool:
        return self.p99_ms <= self.slo_ms


def figures(log: RequestLog, recording: Recording) -> list[Figures]:
    """Every model in every phase, in order."""
    return [
        _figures(log, phase, model, recording.slos_ms[model])
        for phase in recording.phases
        for model in recording.models
    ]


def _figures(log: RequestLog, phase: PhaseResult, model: str, slo_ms: float) -> Figures:
    seen = log.of(model, phase.measured_s, phase.end_s)
    return Figures(
        phase=phase.key,
        model=model,
        rate_per_s=len(seen) / (phase.end_s - phase.measured_s),
        requests=len(seen),
        p50_ms=seen.quantile_ms(0.5),
        p99_ms=seen.quantile_ms(0.99),
        slo_ms=slo_ms,
        attainment=seen.attainment(slo_ms),
        failed=log.of(model, phase.begin_s, phase.end_s).failed,
    )


def problems(log: RequestLog, recording: Recording, results: Sequence[Figures]) -> list[str]:
    """What is not as it should be, in sentences; empty when all is well.

    Judged phases must hold every P99, and no request may fail anywhere but in a phase whose plan
    was frozen on purpose. With several GPUs a model must have been moved between them.
    """
    judged = {p.key: p.title for p in recording.phases if p.judged}
    missed = [
        f"{judged[f.phase]}: P99 of {f.model} is {f.p99_ms:.1f} ms, above its SLO of "
        f"{f.slo_ms:g} ms"
        for f in results
        if f.phase in judged and not f.held
    ]
    frozen = sum(f.failed for f in results if f.phase == "frozen")
    failed = log.failed - frozen
    if failed:
        reasons, counts = np.unique(log.error[~log.ok], return_counts=True)
        most = reasons[int(np.argmax(counts))]
        missed.append(f"{failed} of {len(log)} requests failed, most with: {most}")
    if len(recording.gpus) > 1 and not any(m.relocates and m.ok for m in recording.moves):
        missed.append("no model was moved to another GPU")
    return missed


def short_of_cpu(log: RequestLog, phases: Sequence[PhaseResult]) -> list[str]:
    """The phases in which the generator itself was late, so that servers and daemon were short of
    CPU too; a sentence for each."""
    said = []
    for phase in phases:
        seen = log.where((log.scheduled_s >= phase.measured_s) & (log.scheduled_s < phase.end_s))
        late_ms = (
            float(np.quantile((seen.sent_s - seen.scheduled_s) * 1e3, 0.99)) if len(seen) else 0.0
        )
        if late_ms > LATE_MS:
            said.append(
                f"{phase.title}: this machine was short of CPU: one request in a hundred was "
                f"sent more than {late_ms:.0f} ms late, "
                "which counts as its latency; with nothing else running, the figures say more"
            )
    return said


@dataclass(frozen=True, slots=True)
class Trace:
    """One model over the run. ``at_s`` are the ends of windows; ``p99_ms`` is NaN where a window
    has no request."""

    at_s: F64
    rate_per_s: F64
    p99_ms: F64


def trace(
    log: RequestLog,
    model: str,
    begin_s: float,
    end_s: float,
    *,
    window_s: float = 5.0,
    step_s: float = 1.0,
) -> Trace:
    """Rates and P99s of ``model`` in windows of ``window_s`` that end every ``step_s``; a failed
    request has an infinite latency."""
    mine = log.of(model, begin_s, end_s)
    latency = np.where(mine.ok, mine.latency_ms, np.inf)
    ends = np.arange(begin_s + window_s, end_s + step_s / 2, step_s)
    first = np.searchsorted(mine.scheduled_s, ends - window_s)
    last = np.searchsorted(mine.scheduled_s, ends)
    p99 = [_quantile(latency[a:b], 0.99) for a, b in zip(first, last, strict=True)]
    return Trace(ends, (last - first) / window_s, np.asarray(p99, dtype=np.float64))


def _quantile(values: F64, q: float) -> float:
    if not len(values):
        return float("nan")
    ordered = np.sort(values)
    return float(ordered[max(0, int(np.ceil(q * len(ordered))) - 1)])
