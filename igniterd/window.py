"""What happened between two observations: rates that are never negative, whatever restarted meanwhile. Pure."""

from __future__ import annotations

from igniterd.records import BatchStat, ModelReading, ModelWindow, Observation, Window


def _total(reading: ModelReading) -> int:
    return reading.success_count + reading.failure_count


def _restarted(before: ModelReading, after: ModelReading) -> bool:
    """Triton's statistics restart at zero when a model is reloaded: any count that went down says so."""
    if before.version != after.version or _total(after) < _total(before) or after.failure_count < before.failure_count:
        return True
    counts = {batch.batch_size: batch.count for batch in after.batches}
    return any(counts.get(batch.batch_size, 0) < batch.count for batch in before.batches)


def _service_ns(batch: BatchStat) -> int:
    return batch.compute_input_ns + batch.compute_infer_ns + batch.compute_output_ns


def _executions(before: tuple[BatchStat, ...], after: tuple[BatchStat, ...]) -> tuple[dict[int, int], dict[int, float]]:
    """Executions and their mean service time (ms) by batch size."""
    earlier = {batch.batch_size: batch for batch in before}
    count: dict[int, int] = {}
    mean_ms: dict[int, float] = {}
    for batch in after:
        old = earlier.get(batch.batch_size)
        new_count = batch.count - (old.count if old else 0)
        new_ns = _service_ns(batch) - (_service_ns(old) if old else 0)
        if new_count > 0 and new_ns >= 0:
            count[batch.batch_size] = new_count
            mean_ms[batch.batch_size] = new_ns / new_count / 1e6
    return count, mean_ms


def between_readings(before: ModelReading, after: ModelReading, span_s: float) -> ModelWindow:
    """One model between two readings ``span_s`` apart. After a restart only what the new copy counted is known."""
    restarted = _restarted(before, after)
    base_total = 0 if restarted else _total(before)
    base_failed = 0 if restarted else before.failure_count
    completed = _total(after) - base_total
    waiting = 0
    if before.pending_count is not None and after.pending_count is not None:
        waiting = after.pending_count - before.pending_count
    count, mean_ms = _executions(() if restarted else before.batches, after.batches)
    succeeded = after.success_count - (0 if restarted else before.success_count)
    queue_ns = after.queue_ns - (0 if restarted else before.queue_ns)
    return ModelWindow(
        model=after.model,
        span_s=span_s,
        arrivals=max(0, completed + waiting),
        completed=completed,
        failed=after.failure_count - base_failed,
        executions=count,
        service_ms=mean_ms,
        restarted=restarted,
        queue_ms=queue_ns / succeeded / 1e6 if succeeded > 0 and queue_ns >= 0 else None,
    )


def between(before: Observation | None, after: Observation) -> Window:
    """The window between two observations; a model that either of them lacks is left out (a gap, not a zero)."""
    if before is None or after.at_s <= before.at_s:
        return Window(at_s=after.at_s, span_s=0.0)
    span_s = after.at_s - before.at_s
    models = {
        name: between_readings(before.models[name], reading, span_s) for name, reading in after.models.items() if name in before.models
    }
    return Window(at_s=after.at_s, span_s=span_s, models=models)
