"""Where the parts of a timeline go: stretches of time, lines without gaps, labels that do not
overlap."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from igniterd.demo.recording import Applied, Recording


@dataclass(frozen=True, slots=True)
class Span:
    """What was applied to a model for some time."""

    begin_s: float
    end_s: float
    applied: Applied


def spans(recording: Recording, model: str) -> list[Span]:
    """What was applied to ``model``, from the first phase to the last, as the daemon read it
    back."""
    begin_s, end_s = recording.phases[0].begin_s, recording.phases[-1].end_s
    changes = [(begin_s, recording.initial[model])]
    for sample in recording.samples:
        if (
            model in sample.applied
            and sample.applied[model] != changes[-1][1]
            and begin_s < sample.at_s < end_s
        ):
            changes.append((sample.at_s, sample.applied[model]))
    ends = [at_s for at_s, _ in changes[1:]] + [end_s]
    return [
        Span(at_s, until_s, applied) for (at_s, applied), until_s in zip(changes, ends, strict=True)
    ]


def wrap_title(text: str, most: int) -> list[str]:
    """``text`` in lines of about ``most`` characters, cut between words."""
    return textwrap.wrap(text, max(6, most), break_long_words=False) or [""]


def runs_of(seen: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Stretches without gaps (NaN); a gap in time of samples is one too."""
    run: list[tuple[float, float]] = []
    for x, value in seen:
        if math.isnan(value) or (run and x - run[-1][0] > 40):
            if len(run) > 1:
                yield run
            run = []
        if not math.isnan(value):
            run.append((x, value))
    if len(run) > 1:
        yield run


def join_batches(given: Sequence[Span]) -> list[Span]:
    """``given`` with neighbours of equal batching put together."""
    out: list[Span] = []
    for span in given:
        same = out and (out[-1].applied.max_batch_size, out[-1].applied.max_queue_delay_us) == (
            span.applied.max_batch_size,
            span.applied.max_queue_delay_us,
        )
        if same:
            out[-1] = Span(out[-1].begin_s, span.end_s, span.applied)
        else:
            out.append(span)
    return out


def apart(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Ascending places near ``wanted``, at least ``least`` apart, within [low, high] as far as they
    fit."""
    out: list[float] = []
    for x in wanted:
        out.append(max(x, out[-1] + least) if out else max(x, low))
    limit = high
    for i in range(len(out) - 1, -1, -1):
        out[i] = min(out[i], limit)
        limit = out[i] - least
    return out
