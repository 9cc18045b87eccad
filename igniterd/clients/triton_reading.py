"""What Triton says of one model, as a reading: the statistics of all its versions, and what its configuration leaves to steer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from igniterd.clients.triton_config import (
    allocation_of,
    backend_of,
    batching_obstacle,
    config_to_dict,
    gpu_index_of,
    left_alone,
    several_gpus,
    share_obstacle,
)
from igniterd.clients.triton_metrics import ModelMetrics, ModelVersion
from igniterd.records import Allocation, BatchStat, ModelReading

Versions = Sequence[Any]
"""``ModelStatistics`` messages of one model, the lowest version first: a request that names no version gets the last."""


@dataclass(slots=True)
class Known:
    """What a configuration says, the counters that show when it must be read again, and the last reading's batches."""

    message: Any
    backend: str
    allocation: Allocation
    gpu_index: int
    share_fixed: str
    batching_fixed: str
    left_alone: str
    several_gpus: str
    read_at_s: float
    success: int = 0
    versions: tuple[str, ...] = ()
    batches: dict[int, BatchStat] = field(default_factory=dict)


def known_of(message: Any, read_at_s: float) -> Known:
    """What a ``ModelConfig`` message says."""
    config = config_to_dict(message)
    return Known(
        message=message,
        backend=backend_of(config),
        allocation=allocation_of(config),
        gpu_index=gpu_index_of(config),
        share_fixed=share_obstacle(config),
        batching_fixed=batching_obstacle(config),
        left_alone=left_alone(config),
        several_gpus=several_gpus(config),
        read_at_s=read_at_s,
    )


def by_model(statistics: Iterable[Any]) -> dict[str, Versions]:
    """The statistics of each model's versions. Only what is served has any."""
    found: dict[str, list[Any]] = {}
    for each in statistics:
        found.setdefault(each.name, []).append(each)
    for versions in found.values():
        if len(versions) > 1:
            versions.sort(key=lambda each: int(each.version) if each.version.isdecimal() else -1)
    return dict(found)


def executed(versions: Versions) -> int:
    """Requests that were executed with success. One answered from the response cache has put no load on the GPU."""
    return sum(int(each.inference_stats.success.count - each.inference_stats.cache_hit.count) for each in versions)


def names_of(versions: Versions) -> tuple[str, ...]:
    return tuple(each.version for each in versions)


def reading(
    triton: str,
    versions: Versions,
    known: Known,
    metrics: Mapping[ModelVersion, ModelMetrics],
    *,
    least_batch: int = 1,
    loading: bool = False,
) -> ModelReading:
    """The model as it is now, and ``known`` brought up to date with it.

    Several versions are counted together: each is in processes of its own, and each has the model's share.
    """
    latest, many = versions[-1], len(versions)
    measured = [metrics[key] for each in versions if (key := (latest.name, each.version)) in metrics]
    known.success, known.versions = executed(versions), names_of(versions)
    before, known.batches = known.batches, _batch_stats(_batches(versions), known.batches)
    if any(known.batches.get(size) is not batch and _fewer(known.batches.get(size), batch) for size, batch in before.items()):
        known.read_at_s = float("-inf")  # another copy, whose warm-up made up for the requests of the one before
    alone, allocation = known.left_alone, known.allocation
    if many > 1:
        alone = alone or f"it serves versions {', '.join(known.versions)} at once, whose service times are not told apart"
        allocation = replace(allocation, instances=many * allocation.instances)
    return ModelReading(
        model=latest.name,
        version=latest.version,
        triton=triton,
        ready=True,  # Triton gives statistics of what it serves
        backend=known.backend,
        allocation=allocation,
        success_count=known.success,
        failure_count=sum(each.inference_stats.fail.count for each in versions),
        inference_count=sum(each.inference_count for each in versions),
        pending_count=sum(m.pending or 0 for m in measured) if any(m.pending is not None for m in measured) else None,
        queue_ns=sum(each.inference_stats.queue.ns for each in versions),
        batches=() if known.left_alone else tuple(known.batches.values()),
        latency_quantiles_s=_slowest([m.quantiles_s for m in measured if m.quantiles_s is not None]),
        gpu_index=known.gpu_index,
        share_fixed=alone or known.share_fixed,
        batching_fixed=alone or known.batching_fixed,
        left_alone=alone,
        several_gpus=known.several_gpus,
        least_batch=least_batch,
        loading=loading,
    )


def _fewer(now: BatchStat | None, before: BatchStat) -> bool:
    return now is None or now.count < before.count


def _slowest(all_quantiles: Sequence[Mapping[float, float]]) -> Mapping[float, float] | None:
    if len(all_quantiles) < 2:
        return all_quantiles[0] if all_quantiles else None
    return {q: max(each[q] for each in all_quantiles if q in each) for q in {q for each in all_quantiles for q in each}}


def _batches(versions: Versions) -> Iterable[Any]:
    """The batch statistics of all versions; of one, the usual case, as they are."""
    return versions[0].batch_stats if len(versions) == 1 else (batch for each in versions for batch in each.batch_stats)


def _batch_stats(batches: Iterable[Any], before: Mapping[int, BatchStat]) -> dict[int, BatchStat]:
    """``{batch size: statistics}``; those of a size that was not executed since are taken over: most sizes of most models, most ticks."""
    found: dict[int, BatchStat] = {}
    for batch in batches:
        size, infer = batch.batch_size, batch.compute_infer
        count, infer_ns = infer.count, infer.ns
        twice = found.get(size)
        if twice is not None:  # of another version
            infer_ns, count = infer_ns + twice.compute_infer_ns, count + twice.count
            inputs, outputs = twice.compute_input_ns + batch.compute_input.ns, twice.compute_output_ns + batch.compute_output.ns
            found[size] = BatchStat(size, count, inputs, infer_ns, outputs)
            continue
        same = before.get(size)
        if same is None or same.count != count or same.compute_infer_ns != infer_ns:
            same = BatchStat(size, count, batch.compute_input.ns, infer_ns, batch.compute_output.ns)
        found[size] = same
    return found
