"""What a window of live traffic says of a model's service times, and of its share. Pure."""

from __future__ import annotations

from dataclasses import replace

from igniterd.estimators.bias import Measured
from igniterd.estimators.effect import ShareTrial
from igniterd.perf.api import UNCAPPED, WHOLE
from igniterd.predict import LatencyPredictor, Neighbours
from igniterd.records import ModelReading, ModelWindow


def measured(
    window: ModelWindow,
    reading: ModelReading,
    beside: Neighbours,
    predictor: LatencyPredictor,
    profiled_as: str,
) -> list[Measured]:
    """Measured over predicted service time of each batch size executed in this window; nothing
    where that says nothing of the model."""
    if window.restarted or not window.executions or reading.allocation.share is None:
        return []
    if max(window.executions) > predictor.model.max_batch(profiled_as):
        return []
    curve = predictor.curve_ms(
        profiled_as,
        max_batch=_asked(window, reading, predictor, profiled_as),
        share=reading.allocation.share,
        beside=beside,
    )
    return [
        Measured(batch, n, window.service_ms[batch] / float(curve[batch - 1]))
        for batch, n in window.executions.items()
    ]


def dispersion(
    window: ModelWindow,
    reading: ModelReading,
    beside: Neighbours,
    predictor: LatencyPredictor,
    profiled_as: str,
) -> tuple[float, float]:
    """Coefficient of variation of one service time, as profiled and what uncapped neighbours add to
    it; of what :func:`measured` compares."""
    largest = _asked(window, reading, predictor, profiled_as)
    share = reading.allocation.effective_share
    return predictor.dispersion(profiled_as, max_batch=largest, share=share, beside=beside)


def _asked(
    window: ModelWindow, reading: ModelReading, predictor: LatencyPredictor, profiled_as: str
) -> int:
    """Up to which batch a curve is asked for: one for the windows to come too."""
    most = predictor.model.max_batch(profiled_as)
    return max(*window.executions, min(most, reading.allocation.max_batch_size))


def tried(
    trial: ShareTrial | None,
    window: ModelWindow,
    reading: ModelReading,
    beside: Neighbours,
    predictor: LatencyPredictor,
    profiled_as: str,
    at_s: float,
) -> ShareTrial | None:
    """``trial`` with what this window says of the share that the model's configuration names,
    planned with or not."""
    share = reading.claimed_share or reading.allocation.share
    if share is None:
        return trial
    trial = trial or ShareTrial(share, at_s)
    if trial.share != share:
        return trial.again(share, at_s)
    if (
        trial.answer is not None
        and reading.claimed_share is not None
        and trial.answer.verdict is not None
    ):
        return trial  # it has its answer, and no prediction at this share is needed any more
    claims = replace(reading, allocation=replace(reading.allocation, share=share))
    found = measured(window, claims, beside, predictor, profiled_as)
    if not found:
        return trial
    # the gain of the whole GPU matters to the answer alone, and its curve costs three of others
    asked = (share, UNCAPPED, WHOLE) if trial.answer is None else (share, share, share)
    largest = _asked(window, reading, predictor, profiled_as)
    share_ms, whole_ms, free_ms = (
        predictor.curve_ms(profiled_as, max_batch=largest, share=s, beside=beside) for s in asked
    )
    return trial.measured(found, share_ms, whole_ms, at_s, free_ms)
