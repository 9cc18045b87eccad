"""What one tick hands to the next about each model, and what a window changes of it. Pure.

A window in which a model was reloaded changes no rate; nor do the first executions of a new copy,
which are slow, change what is believed of its service times. A reading seen twice is no window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from igniterd.estimators.arrivals import ForecastTarget, Rate, update_rate
from igniterd.estimators.bias import Bias
from igniterd.estimators.daily import Daily, update_daily
from igniterd.estimators.effect import ShareTrial
from igniterd.estimators.live_curve import LiveCurve
from igniterd.loads import BiasEstimate, Changed, LiveService, Load
from igniterd.records import Allocation, ModelReading, ModelWindow

SMOOTH_S = 4.0  # time constant of the smoothed measurements
SETTLE_S = 3.0  # of a new copy, before its service times count
# a mean over more than that is not the rate now: the process was stopped, or the model unread
LONGEST_S = 120.0
# time constants of the items in a request: up by the quicker, down by the slower
QUICK_S, SLOW_S = 10.0, 120.0
# of the slower mean that the quicker one starts from, so that one odd request is no trend
FEW_REQUESTS = 3.0
FORMER_REQUESTS = 10.0  # that the server's count from before is worth
MOST_ITEMS = 4096  # in a request, as ``client_batch``
# without an execution while requests wait, at least, before a model is called stuck ...
STUCK_S = 5.0
STUCK_TIMES = 10.0  # ... and so many times what its longest execution takes
STUCK_UNKNOWN_S = 60.0  # the same for a copy whose executions nobody has seen yet ...
STUCK_STREAM_S = 300.0  # ... and for one whose responses may be streams
SLOWEST_HALF_S = 1800.0  # half-life of the longest execution seen


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
    beside: frozenset[str] = frozenset()  # the models of its GPU it was said for, itself among them
    items: float = 1.0  # in a request


@dataclass(frozen=True, slots=True)
class Items:
    """How many items a request brings: sums of items and requests over two memories."""

    mean: float = 1.0
    quick: tuple[float, float] = (0.0, 0.0)
    slow: tuple[float, float] = (0.0, 0.0)

    def after(self, items: int, requests: int, span_s: float) -> Items:
        """With one more window. A mean that rises is believed sooner than one that falls."""
        quick, slow = (
            _fade(old, items, requests, span_s / tau)
            for old, tau in ((self.quick, QUICK_S), (self.slow, SLOW_S))
        )
        if requests <= 0:  # nothing came: nothing is known better
            return Items(self.mean, quick, slow)
        longer = slow[0] / slow[1]
        lately = (quick[0] + FEW_REQUESTS * longer) / (quick[1] + FEW_REQUESTS)
        return Items(max(1.0, longer, lately), quick, slow)


def _fade(old: tuple[float, float], items: int, requests: int, ages: float) -> tuple[float, float]:
    keep = math.exp(-ages)
    return keep * old[0] + items, keep * old[1] + requests


@dataclass(frozen=True, slots=True)
class ModelState:
    """What one tick hands to the next about one model."""

    rate: Rate = field(default_factory=Rate)
    daily: Daily = field(default_factory=Daily)
    bias: Bias = field(default_factory=Bias)
    # of the bias, to plans: held still until it matters, so that noise moves no plan
    published_bias: BiasEstimate | None = None
    utilisation: float = 0.0
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
    items: Items | None = None  # None before its first request is seen
    slowest_ms: float = 0.0  # longest mean service time of a window, slowly forgotten
    waited_s: float = 0.0  # how long requests have waited with nothing executed, up to now
    load: Load | None = None  # as last told


EstimatorState = Mapping[str, ModelState]


def smooth(old: float | None, new: float, span_s: float) -> float:
    """Exponential smoothing over ``SMOOTH_S``."""
    weight = 1 - math.exp(-span_s / SMOOTH_S)
    return new if old is None else old + weight * (new - old)


def service_s(window: ModelWindow) -> float:
    """Seconds spent executing, of all instances together."""
    told_ms = sum(n * window.service_ms[batch] for batch, n in window.executions.items())
    return told_ms / 1000 + window.busy_s


def on_another_board(belief: ModelState) -> ModelState:
    """``belief``, less what is measured over predicted: it says nothing of another profile."""
    return replace(belief, bias=Bias(), published_bias=None, live=None, trial=None, expected=None)


def forget_other_model(belief: ModelState, reading: ModelReading, at_s: float) -> ModelState:
    """``belief``, less what was learnt of another version or another backend."""
    copy = (reading.version, reading.backend)
    if belief.copy == copy:
        return belief
    if belief.copy is None:
        return replace(belief, copy=copy)
    what = [
        f"{name} {was} -> {now}"
        for name, was, now in zip(("version", "backend"), belief.copy, copy, strict=True)
        if was != now
    ]
    changed = Changed(
        at_s, f"{' and '.join(what)}: what was learnt of its service times is forgotten"
    )
    return replace(
        belief,
        copy=copy,
        bias=Bias(),
        published_bias=None,
        curve=LiveCurve(),
        live=None,
        changed=changed,
        expected=None,
        trial=_restart_trial(belief.trial, at_s),
        slowest_ms=0.0,
    )


def _restart_trial(trial: ShareTrial | None, now_s: float) -> ShareTrial | None:
    """The trial of the same share with a model that may take another time for the same."""
    return None if trial is None else ShareTrial(trial.share, now_s, weak=True)


def notice_new_copy(
    belief: ModelState, reading: ModelReading, at_s: float, restarted: bool
) -> ModelState:
    """``belief``, of another copy where the counts say so: they may be seen below the last only
    after some ticks without a window."""
    if not restarted and reading.success_count >= belief.success:
        return (
            belief
            if reading.success_count == belief.success
            else replace(belief, success=reading.success_count)
        )
    trial = None if belief.trial is None else belief.trial.again(belief.trial.share, at_s)
    return replace(
        belief,
        success=reading.success_count,
        settled_at_s=at_s + SETTLE_S,
        trial=trial,
        waited_s=0.0,
    )


def update_traffic(
    belief: ModelState,
    window: ModelWindow,
    reading: ModelReading,
    *,
    end_s: float,
    wall_s: float,
    aim: ForecastTarget,
) -> ModelState:
    """``belief`` after ``window``, which ended at ``end_s``, without what it says of service
    times."""
    if window.restarted or not 0 < window.span_s <= LONGEST_S:
        return replace(belief, waited_s=0.0) if belief.waited_s else belief
    span_s, seen_before = window.span_s, belief.seen_s > 0
    runs = sum(window.executions.values())
    served = sum(batch * n for batch, n in window.executions.items())
    mean_batch = belief.mean_batch
    if runs:
        mean_batch = smooth(mean_batch if seen_before else None, served / runs, span_s)
    rate = update_rate(belief.rate, end_s, span_s, window.arrivals, aim)
    utilisation = min(1.0, service_s(window) / span_s / max(1, reading.allocation.instances))
    requests = window.completed - window.failed
    return replace(
        belief,
        rate=rate,
        daily=update_daily(belief.daily, wall_s, span_s, rate.per_s),
        utilisation=smooth(belief.utilisation if seen_before else None, utilisation, span_s),
        mean_batch=mean_batch,
        mean_ms=_mean_ms(belief, window, served),
        seen_s=belief.seen_s + span_s,
        items=items_of(belief, reading).after(window.items, requests, span_s),
        slowest_ms=_slowest_ms(belief, window, end_s),
        waited_s=_waited_s(belief, window, reading),
    )


def _mean_ms(belief: ModelState, window: ModelWindow, served: int) -> float | None:
    """Smoothed queueing and service time of a request. A request is served as long as its batch:
    weighted by requests, not by executions."""
    if not served or window.queue_ms is None:
        return belief.mean_ms
    batches_ms = sum(batch * n * window.service_ms[batch] for batch, n in window.executions.items())
    return smooth(belief.mean_ms, window.queue_ms + batches_ms / served, window.span_s)


def items_of(belief: ModelState, reading: ModelReading) -> Items:
    """The items of a request; before any was seen, what its server has counted so far."""
    if belief.items is not None:
        return belief.items
    requests, items = reading.success_count, reading.inference_count or 0
    if not 0 < requests <= items <= MOST_ITEMS * requests:
        return Items()
    mean = items / requests
    return Items(mean, slow=(FORMER_REQUESTS * mean, FORMER_REQUESTS))


def _slowest_ms(belief: ModelState, window: ModelWindow, end_s: float) -> float:
    now = max(window.service_ms.values(), default=0.0) if end_s >= belief.settled_at_s else 0.0
    return max(now, belief.slowest_ms * math.exp2(-window.span_s / SLOWEST_HALF_S))


def _waited_s(belief: ModelState, window: ModelWindow, reading: ModelReading) -> float:
    """How long requests have waited with nothing executed. Those whose time in the queue ran out
    waited, too.

    While a load may be going on nothing is said: its copy may not serve yet.
    """
    executed = bool(window.executions) or window.completed > window.failed
    waits = bool(window.pending) or window.rejected > 0
    if executed or not waits or reading.loading or not reading.ready:
        return 0.0
    if window.drained:  # by a copy before this one, of which it may be all that waits
        return belief.waited_s
    return belief.waited_s + window.span_s


def stuck_s(belief: ModelState, reading: ModelReading, longest_ms: float) -> float:
    """How long requests have waited, once that is far longer than any execution of its takes; else
    0.

    ``longest_ms``: the longest it is expected to take, 0 where that is not known. Responses of what
    is only watched may be streams: they are counted when they end.
    """
    longest_ms = max(longest_ms, belief.slowest_ms)
    limit_s = (
        max(STUCK_S, STUCK_TIMES * longest_ms / 1000) + reading.allocation.max_queue_delay_us / 1e6
    )
    # a copy's first execution may compile for long
    if longest_ms <= 0 or reading.success_count == 0:
        limit_s = max(limit_s, STUCK_UNKNOWN_S)
    if reading.left_alone:
        limit_s = max(limit_s, STUCK_STREAM_S)
    return belief.waited_s if belief.waited_s >= limit_s else 0.0
