"""What happened between two observations: rates that are never negative, whatever restarted
meanwhile. Pure.

A model's span is from answer to answer, not from tick to tick: an answer that comes late counts
what came meanwhile. What is no count (negative, a jump that no server could serve) is no window.
"""

from __future__ import annotations

import math

from igniterd.records import BatchStat, ModelReading, ModelWindow, Observation, Window

LEAST_SPAN = 0.1  # of a tick: of a shorter one a count tells nothing
MOST_PER_S = 1e6  # requests: what counts more was another server's counter, or no counter
MOST_PENDING = 10**9
MOST_ITEMS = 4096  # a request, as ``client_batch``
OVERLAP = 10.0  # executions of one instance may overlap, copies in and out; not more than so often


def _total(reading: ModelReading) -> int:
    return reading.success_count + reading.failure_count


def _items(reading: ModelReading) -> int:
    return reading.inference_count or 0


def _restarted(before: ModelReading, after: ModelReading) -> bool:
    """Triton's statistics restart at zero when a model is reloaded: any count that went down says
    so."""
    if before.version != after.version or before.triton != after.triton:
        return True
    if (
        _total(after) < _total(before)
        or after.failure_count < before.failure_count
        or _items(after) < _items(before)
    ):
        return True
    counts = {batch.batch_size: batch.count for batch in after.batches}
    return any(counts.get(batch.batch_size, 0) < batch.count for batch in before.batches)


def _counts(reading: ModelReading) -> tuple[object, ...]:
    waits = reading.pending_count, reading.rejected_count
    return (
        reading.success_count,
        reading.failure_count,
        reading.inference_count,
        reading.batches,
        reading.busy_ns,
        *waits,
    )


def _sound(reading: ModelReading) -> bool:
    """Whether its counts can be counts."""
    counts = (
        reading.success_count,
        reading.failure_count,
        _items(reading),
        *(batch.count for batch in reading.batches),
    )
    return all(0 <= count < math.inf for count in (*counts, reading.busy_ns))


def _pending(reading: ModelReading) -> int | None:
    """Its requests waiting; None where that is not told, or no such number."""
    count = reading.pending_count
    return count if count is not None and 0 <= count <= MOST_PENDING else None


def _drained(before: ModelReading, after: ModelReading) -> int:
    """Requests answered meanwhile by copies that this one has replaced: its own counts do not have
    them.

    Such a copy gets no new ones: more than were pending, or being executed, was a page of metrics
    that came late.
    """
    was, former, now = _pending(before), before.former_count, after.former_count
    if was is None or _pending(after) is None or former is None or now is None:
        return 0
    of = after.allocation
    return min(max(0, now - former), was + max(1, of.instances) * max(1, of.max_batch_size))


def _service_ns(batch: BatchStat) -> int:
    return batch.compute_input_ns + batch.compute_infer_ns + batch.compute_output_ns


def _executions(
    before: tuple[BatchStat, ...], after: tuple[BatchStat, ...]
) -> tuple[dict[int, int], dict[int, float]]:
    """Executions and their mean service time (ms) by batch size."""
    earlier = {batch.batch_size: batch for batch in before}
    count: dict[int, int] = {}
    mean_ms: dict[int, float] = {}
    for batch in after:
        old = earlier.get(batch.batch_size)
        new_count = batch.count - (old.count if old else 0)
        new_ns = _service_ns(batch) - (_service_ns(old) if old else 0)
        if batch.batch_size > 0 and new_count > 0 and 0 <= new_ns < math.inf:
            count[batch.batch_size] = new_count
            mean_ms[batch.batch_size] = new_ns / new_count / 1e6
    return count, mean_ms


def _could_be(
    count: dict[int, int], mean_ms: dict[int, float], span_s: float, instances: int
) -> bool:
    """Whether so many instances can have executed so long: all but the first ones began in the
    window."""
    if not count:
        return True
    instances, longest_s = max(1, instances), max(mean_ms.values()) / 1000
    within_s = (
        sum(n * mean_ms[batch] for batch, n in count.items()) / 1000 - 2 * instances * longest_s
    )
    return within_s <= OVERLAP * instances * span_s


def between_readings(before: ModelReading, after: ModelReading, span_s: float) -> ModelWindow:
    """One model between two readings ``span_s`` apart. After a restart only what the new copy
    counted is known."""
    restarted = _restarted(before, after)
    base = None if restarted else before
    failed = after.failure_count - (base.failure_count if base else 0)
    succeeded = max(0, after.success_count - (base.success_count if base else 0))
    completed = _total(after) - (_total(base) if base else 0)
    was, pending = _pending(before), _pending(after)
    waiting = pending - was if was is not None and pending is not None else 0
    waiting = waiting if abs(waiting) <= MOST_PER_S * max(1.0, span_s) else 0
    drained = 0 if restarted else _drained(before, after)
    count, mean_ms = _executions(base.batches if base else (), after.batches)
    if not _could_be(count, mean_ms, span_s, after.allocation.instances):
        count, mean_ms = {}, {}
    queue_ns = after.queue_ns - (base.queue_ns if base else 0)
    items = _items(after) - (_items(base) if base else 0)
    rejected = (
        (after.rejected_count or 0) - (before.rejected_count or 0)
        if before.rejected_count is not None
        else 0
    )
    return ModelWindow(
        model=after.model,
        span_s=span_s,
        arrivals=max(0, completed + drained + waiting),
        completed=completed,
        failed=failed,
        executions=count,
        service_ms=mean_ms,
        restarted=restarted or before.gpus != after.gpus,
        queue_ms=queue_ns / succeeded / 1e6 if succeeded > 0 and 0 <= queue_ns < math.inf else None,
        items=items if succeeded <= items <= MOST_ITEMS * succeeded else succeeded,
        pending=pending,
        drained=drained,
        rejected=rejected if 0 <= rejected <= MOST_PER_S * max(1.0, span_s) else 0,
        busy_s=max(0, after.busy_ns - (base.busy_ns if base else 0)) / 1e9,
    )


def answered_s(seen: Observation, reading: ModelReading) -> float:
    """When the counts of ``reading`` were answered; with the observation, unless it says."""
    return reading.at_s if reading.at_s is not None and math.isfinite(reading.at_s) else seen.at_s


def _model(name: str, before: Observation, after: Observation) -> ModelWindow | None:
    """The window of one model; None where it was not read anew, or its counts cannot be."""
    was, now = before.models[name], after.models[name]
    if name in after.unread or (name in before.unread and was.at_s is None):
        return None  # what stands for it was answered earlier, or nobody knows when
    span_s = answered_s(after, now) - answered_s(before, was)
    if span_s == 0 and _counts(was) != _counts(now):
        span_s = after.at_s - before.at_s  # another answer, whatever its stamp says
    if not LEAST_SPAN * (after.at_s - before.at_s) <= span_s < math.inf or not (
        _sound(was) and _sound(now)
    ):
        return None
    window = between_readings(was, now, span_s)
    return window if window.completed <= MOST_PER_S * max(1.0, span_s) else None


def between(before: Observation | None, after: Observation) -> Window:
    """The window between two observations; a model that either of them lacks is left out (a gap,
    not a zero)."""
    if before is None or not 0 < after.at_s - before.at_s < math.inf:
        return Window(at_s=after.at_s, span_s=0.0)
    windows = {name: _model(name, before, after) for name in after.models if name in before.models}
    known = {name: window for name, window in windows.items() if window is not None}
    return Window(at_s=after.at_s, span_s=after.at_s - before.at_s, models=known)
