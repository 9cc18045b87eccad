"""What Triton says of one model, as a reading: the statistics of all its versions, and what its
configuration leaves to steer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import add
from typing import Any

from igniterd.clients.environments import (
    DEFAULT_SHARES,
    PLAIN,
    Own,
    Reach,
    backend_of,
    runs_in_stubs,
)
from igniterd.clients.triton.config import allocation_of, instance_names_of, kinds_of, mark_of
from igniterd.clients.triton.json_config import config_to_dict, unknown_fields
from igniterd.clients.triton.marks import rebalanced_s
from igniterd.clients.triton.metrics import ModelMetrics, ModelVersion
from igniterd.clients.triton.obstacles import (
    batching_obstacle,
    chooses_gpu,
    hands_off,
    left_alone,
    share_obstacle,
)
from igniterd.errors import Refused
from igniterd.records import Allocation, BatchStat, ModelReading

MOST_COUNTED = 2**53
LONGEST_NS = 2**60  # 36 years


@dataclass(slots=True)
class Served:
    """The ``ModelStatistics`` messages of one model.

    ``all`` has one for each version, the lowest first: a request that names no version gets the
    last. ``executed`` counts the requests executed with success: one answered from the response
    cache has put no load on the GPU.
    """

    all: tuple[Any, ...]
    versions: tuple[str, ...]
    executed: int


@dataclass(slots=True)
class Known:
    """What a configuration says, the counters that show when it must be read again, and the last
    reading's batches."""

    message: Any
    backend: str
    allocation: Allocation
    owns_process: bool
    share_fixed: str
    batching_fixed: str
    left_alone: str
    chooses_gpu: str
    on_cpu: bool
    ensemble: bool
    instance_names: frozenset[str]
    unknown: tuple[str, ...]
    mark: str
    rebalanced_s: float | None
    read_at_s: float

    def insists(self, mark: str, wanted: Allocation | None) -> None:
        """Told what the load of ``mark`` asked for: a model that it brought with other batching
        sets its own, and will again."""
        here = self.allocation
        if wanted is None or self.mark != mark or not mark:
            return
        if (here.max_batch_size, here.max_queue_delay_us) != (
            wanted.max_batch_size,
            wanted.max_queue_delay_us,
        ):
            self.batching_fixed = (
                "its own code sets its batching (auto_complete_config): loaded with largest "
                f"batch {wanted.max_batch_size} and delay "
                f"{wanted.max_queue_delay_us} us, it serves with {here.max_batch_size} and "
                f"{here.max_queue_delay_us} us"
            )

    success: int = 0
    versions: tuple[str, ...] = ()
    batches: dict[int, BatchStat] = field(default_factory=dict)
    hands_off: str = ""
    seen_at_s: float = float("-inf")  # when Triton last said so; ``read_at_s`` may be put earlier
    restarted: bool = False  # counters of its batches restarted since
    former: int | None = None  # most requests that former copies were seen to have answered

    @property
    def counts_busy(self) -> bool:
        """Whether only its time executing is told: an ensemble's is that of its members."""
        return bool(self.left_alone) and not self.ensemble

    def restarted_in(self, served: Served) -> bool:
        """Whether what is served now is not the copy that this was read of."""
        return self.restarted or served.executed < self.success or served.versions != self.versions


def known_of(
    message: Any,
    read_at_s: float,
    *,
    shares_dir: str = DEFAULT_SHARES,
    reach: Reach = PLAIN,
    own: Own = Own.UNSEEN,
) -> Known:
    """What a ``ModelConfig`` message says.

    ``own`` is what was seen of the environment the model came with.
    """
    config = config_to_dict(message)
    allocation = allocation_of(config, shares_dir)
    return Known(
        message=message,
        backend=backend_of(config),
        allocation=allocation,
        owns_process=runs_in_stubs(config),
        share_fixed=share_obstacle(config, shares_dir, reach=reach, own=own),
        batching_fixed=batching_obstacle(config),
        left_alone=left_alone(config),
        chooses_gpu=chooses_gpu(config),
        on_cpu=kinds_of(config) == {"KIND_CPU"},
        ensemble="ensemble_scheduling" in config,
        instance_names=instance_names_of(config),
        unknown=unknown_fields(message),
        mark=mark_of(config),
        rebalanced_s=rebalanced_s(config, allocation),
        hands_off=hands_off(config),
        read_at_s=read_at_s,
    )


def by_model(statistics: Iterable[Any]) -> dict[str, Served]:
    """The statistics of each model. Only what is served has any."""
    found: dict[str, Served] = {}
    for each in statistics:
        name, counts = each.name, each.inference_stats
        executed = max(0, counts.success.count - counts.cache_hit.count)
        other = found.get(name)
        found[name] = (
            Served((each,), (each.version,), executed)
            if other is None
            else _together(other, each, executed)
        )
    return found


def _together(other: Served, each: Any, executed: int) -> Served:
    versions = tuple(
        sorted(
            (*other.all, each), key=lambda one: int(one.version) if one.version.isdecimal() else -1
        )
    )
    return Served(versions, tuple(one.version for one in versions), other.executed + executed)


def reading(
    triton: str,
    served: Served,
    known: Known,
    metrics: Mapping[ModelVersion, ModelMetrics],
    *,
    loading: bool = False,
    unloadable: str = "",
    at_s: float | None = None,
) -> ModelReading:
    """The model as it is now, and ``known`` brought up to date with it.

    Several versions are counted together: each is in processes of its own, and each has the model's
    share. ``unloadable``: why no load of it may be tried.
    """
    latest, many = served.all[-1], len(served.all)
    _check(served)
    name = latest.name
    measured = [
        found for version in served.versions if (found := metrics.get((name, version))) is not None
    ]
    pending = [each.pending for each in measured if each.pending is not None]
    rejected = [each.rejected for each in measured if each.rejected is not None]
    known.former = _former(served, measured, known.former)
    known.success, known.versions = served.executed, served.versions
    if many == 1:
        known.batches, restarted = _batch_stats(latest.batch_stats, known.batches)
    else:
        known.batches, restarted = _batch_stats_together(served.all, known.batches)
    # seen at once where its counters are below the last; a warm-up may have made up for the
    # requests before it
    if restarted:
        known.read_at_s, known.restarted = float("-inf"), True
    alone, allocation = known.left_alone, known.allocation
    if many > 1:
        alone = (
            alone
            or f"it serves versions {', '.join(known.versions)} at once, whose service times are "
            "not told apart"
        )
        allocation = replace(
            allocation,
            instances=many * allocation.instances,
            devices=tuple(sorted(many * allocation.devices)),
        )
    failed, inferences, queue_ns = (
        latest.inference_stats.fail.count,
        latest.inference_count,
        latest.inference_stats.queue.ns,
    )
    for each in served.all[:-1] if many > 1 else ():
        failed, inferences = (
            failed + each.inference_stats.fail.count,
            inferences + each.inference_count,
        )
        queue_ns += each.inference_stats.queue.ns
    return ModelReading(
        model=name,
        version=latest.version,
        triton=triton,
        ready=True,  # Triton gives statistics of what it serves
        backend=known.backend,
        allocation=allocation,
        success_count=served.executed,
        failure_count=failed,
        inference_count=inferences,
        rejected_count=sum(rejected) if rejected else None,
        pending_count=sum(pending) if pending else None,
        former_count=known.former,
        queue_ns=queue_ns,
        batches=() if known.left_alone else tuple(known.batches.values()),
        busy_ns=spent_ns(known.batches.values()) if known.counts_busy else 0,
        latency_quantiles_s=_slowest(
            [m.quantiles_s for m in measured if m.quantiles_s is not None]
        ),
        share_fixed=alone or unloadable or known.share_fixed,
        batching_fixed=alone or unloadable or known.batching_fixed,
        left_alone=alone,
        chooses_gpu=known.chooses_gpu,
        on_cpu=known.on_cpu,
        owns_process=known.owns_process,
        instance_names=known.instance_names,
        loading=loading,
        hands_off=known.hands_off,
        at_s=at_s,
        rebalanced_s=known.rebalanced_s,
    )


def _former(served: Served, measured: Sequence[ModelMetrics], most: int | None) -> int | None:
    """Requests that copies before this one have answered, by what Triton's metrics count and its
    statistics have forgotten; ``None`` where that is not looked at.

    Both are read at about the same time: what goes down again was that. ``most``: of the readings
    before; more than all copies have answered was another server's.
    """
    answered = [each.answered for each in measured if each.answered is not None]
    if not answered:
        return None
    own = sum(
        int(each.inference_stats.success.count + each.inference_stats.fail.count)
        for each in served.all
    )
    return max(0, sum(answered) - own, most if most is not None and most <= sum(answered) else 0)


def _check(served: Served) -> None:
    """Raises :class:`Refused` for numbers that no server can have counted."""
    for each in served.all:
        counts = each.inference_stats
        largest = max(counts.success.count, counts.fail.count, each.inference_count)
        if largest > MOST_COUNTED or counts.queue.ns > LONGEST_NS:
            raise Refused(
                f"model {each.name!r}: Triton counts {largest} requests and {counts.queue.ns} ns "
                "of waiting, which cannot be"
            )


def spent_ns(batches: Iterable[BatchStat]) -> int:
    """The time that executions of ``batches`` took."""
    return sum(b.compute_input_ns + b.compute_infer_ns + b.compute_output_ns for b in batches)


def _slowest(all_quantiles: Sequence[Mapping[float, float]]) -> Mapping[float, float] | None:
    if len(all_quantiles) < 2:
        return all_quantiles[0] if all_quantiles else None
    return {
        q: max(each[q] for each in all_quantiles if q in each)
        for q in {q for each in all_quantiles for q in each}
    }


def _batch_stats(
    batches: Iterable[Any], before: Mapping[int, BatchStat]
) -> tuple[dict[int, BatchStat], bool]:
    """``{batch size: statistics}`` of one version, and whether any size has fewer executions than
    before.

    Statistics of a size that was not executed since are taken over: most sizes of most models, most
    ticks.
    """
    found: dict[int, BatchStat] = {}
    kept = 0  # sizes of before that have at least as many
    for batch in batches:
        size, infer = batch.batch_size, batch.compute_infer
        count, infer_ns = infer.count, infer.ns
        same = before.get(size)
        if same is None or same.count != count or same.compute_infer_ns != infer_ns:
            kept += same is not None and count >= same.count
            if not (size > 0 and count <= MOST_COUNTED and infer_ns <= LONGEST_NS):
                continue  # no batch that was executed
            same = BatchStat(size, count, batch.compute_input.ns, infer_ns, batch.compute_output.ns)
        else:
            kept += 1
        found[size] = same
    return found, kept < len(before)


def _batch_stats_together(
    versions: Iterable[Any], before: Mapping[int, BatchStat]
) -> tuple[dict[int, BatchStat], bool]:
    """The same of several versions, summed."""
    sums: dict[int, list[int]] = {}
    for each in versions:
        for batch in each.batch_stats:
            counted = (
                batch.compute_infer.count,
                batch.compute_input.ns,
                batch.compute_infer.ns,
                batch.compute_output.ns,
            )
            sums[batch.batch_size] = list(
                map(add, sums.get(batch.batch_size, (0, 0, 0, 0)), counted)
            )
    found = {size: BatchStat(size, *counted) for size, counted in sums.items()}
    return found, any(
        size not in found or found[size].count < batch.count for size, batch in before.items()
    )
