"""Replay of a plan in virtual time: every request of every workload, batch by batch, against
measured service times.

Each GPU is replayed event by event (:mod:`igniterd.lab.replay.kernels.batches`). Service times come
from a board of
:mod:`igniterd.lab.replay.boards`: the measured tables, which know nothing of the equations that made the plan, or a performance model.

A replica with the share ``UNCAPPED`` (1) beside others is held by no cap. Only the performance model
answers for it: what it runs at with the whole GPU allowed, times what the model says that each
neighbour adds. The measured tables refuse such a GPU.

Replicas of one workload on several GPUs get streams of their own, at the rates the plan gives them;
a trace is dealt out to them in proportion to those rates, as evenly as whole requests allow.
"""  # noqa: E501

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from igniterd.arrays import F64
from igniterd.errors import ConfigError
from igniterd.lab.replay.boards import Board, Replica
from igniterd.lab.replay.kernels.batches import replay_gpu
from igniterd.perf.api import capped_total

BURSTY = 4.0
"""Squared coefficient of variation of the gaps of bursty arrivals, where none is given."""


class Kind(StrEnum):
    """Arrival processes."""

    CONSTANT = "constant"
    POISSON = "poisson"
    BURSTY = "bursty"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How requests come. ``arrival_scv`` is the squared coefficient of variation of the gaps of
    ``bursty`` arrivals: hyperexponential with two phases of balanced means. ``trace`` has the
    arrival times (s, from 0) of each workload."""

    kind: Kind = Kind.POISSON
    arrival_scv: float = BURSTY
    trace: Mapping[str, F64] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one replica's requests, or of one workload's over all its replicas (``gpu`` is
    then -1)."""

    workload: str
    model: str
    gpu: int
    slo_p99_ms: float
    requests: int
    offered_per_s: float
    served_per_s: float  # answered before the end of the arrivals
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    attainment: float  # fraction answered within the SLO; NaN without one
    utilisation: float  # fraction of the time executing; summed over the replicas of a workload
    mean_batch: float

    @property
    def missed(self) -> bool:
        """Whether its P99 is above its SLO."""
        return self.p99_ms > self.slo_p99_ms


@dataclass(frozen=True, slots=True)
class Replayed:
    """A whole replay. ``replicas[g]`` are those of GPU g, in the order given; ``workloads`` in
    order of first appearance."""

    duration_s: float
    replicas: tuple[tuple[Served, ...], ...]
    workloads: tuple[Served, ...]

    @property
    def missed(self) -> tuple[Served, ...]:
        """Workloads whose P99 is above their SLO."""
        return tuple(w for w in self.workloads if w.missed)


@dataclass(frozen=True, slots=True)
class _Raw:
    """One replica's requests: latencies (ms), completions before the end, time executing (s),
    batches."""

    replica: Replica
    gpu: int
    latency_ms: F64
    in_time: int
    busy_s: float
    batches: int


def replay(
    gpus: Sequence[Sequence[Replica]],
    boards: Sequence[Board],
    arrivals: Arrivals | None = None,
    *,
    duration_s: float = 120.0,
    seed: int = 1,
    workers: int | None = None,
) -> Replayed:
    """Replay ``gpus``, each a sequence of replicas with its board, for ``duration_s`` of arrivals
    and until the last is answered.

    The same arguments and seed give the same result, on any number of ``workers`` (threads; all
    processors when not given). Raises :class:`ConfigError` for arguments without sense,
    :class:`~igniterd.errors.CannotRun` where a board does not know a model.
    """
    process = arrivals or Arrivals()
    _check(gpus, boards, process, duration_s)
    dealt = _deal(gpus, process.trace, duration_s) if process.kind is Kind.TRACE else {}

    def one(g: int) -> list[_Raw]:
        return _replay_one(g, gpus[g], boards[g], process, dealt, duration_s, seed)

    busy = [g for g in range(len(gpus)) if gpus[g]]
    most = workers or len(os.sched_getaffinity(0))
    if most == 1 or len(busy) == 1:
        done = {g: one(g) for g in busy}
    else:
        with ThreadPoolExecutor(min(most, 16)) as pool:
            done = dict(zip(busy, pool.map(one, busy), strict=True))
    raws = [done.get(g, []) for g in range(len(gpus))]
    by_workload: dict[str, list[_Raw]] = {}
    for raw in (r for rows in raws for r in rows):
        by_workload.setdefault(raw.replica.workload, []).append(raw)
    return Replayed(
        duration_s,
        tuple(tuple(_served([r], duration_s, r.gpu) for r in rows) for rows in raws),
        tuple(
            _served(rows, duration_s, -1 if len(rows) > 1 else rows[0].gpu)
            for rows in by_workload.values()
        ),
    )


def read_trace(path: Path) -> dict[str, F64]:
    """Arrival times (s from 0, ascending) of each workload, from a CSV with the columns
    ``workload`` and ``time_s``.

    Raises :class:`ConfigError` naming the line that is wrong.
    """
    found: dict[str, list[float]] = {}
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            if not rows.fieldnames or not {"workload", "time_s"} <= set(rows.fieldnames):
                raise ConfigError(str(path), ["a trace has the columns workload and time_s"])
            for row in rows:
                try:
                    at_s = float(row["time_s"])
                except (TypeError, ValueError):
                    at_s = math.nan
                if not (math.isfinite(at_s) and at_s >= 0.0 and row["workload"]):
                    problem = (
                        f"line {rows.line_num}: workload {row['workload']!r}, time_s "
                        f"{row['time_s']!r}; give a name and seconds from 0 on"
                    )
                    raise ConfigError(str(path), [problem])
                found.setdefault(row["workload"], []).append(at_s)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(str(path), [f"cannot be read: {exc}"]) from exc
    return {name: np.sort(np.asarray(times)) for name, times in found.items()}


def gaps_s(rng: np.random.Generator, count: int, rate_per_s: float, arrival_scv: float) -> F64:
    """Times (s) between arrivals whose squared coefficient of variation is ``arrival_scv``: 0
    constant, below 1 gamma, 1 Poisson, above 1 hyperexponential with two phases of balanced means.
    Shape (count,)."""
    if arrival_scv == 0.0:
        return np.full(count, 1.0 / rate_per_s)
    if arrival_scv <= 1.0:
        return rng.gamma(1.0 / arrival_scv, arrival_scv / rate_per_s, count)
    p = 0.5 * (1.0 + math.sqrt((arrival_scv - 1.0) / (arrival_scv + 1.0)))
    scale = np.where(rng.random(count) < p, 0.5 / p, 0.5 / (1.0 - p)) / rate_per_s
    return scale * rng.standard_exponential(count)


def _check(
    gpus: Sequence[Sequence[Replica]], boards: Sequence[Board], process: Arrivals, duration_s: float
) -> None:
    problems = []
    if len(gpus) != len(boards):
        problems.append(f"{len(gpus)} GPUs and {len(boards)} boards: give a board for each")
    if not (math.isfinite(duration_s) and duration_s > 0.0):
        problems.append(f"duration {duration_s} s: give a positive number of seconds")
    if process.kind is Kind.BURSTY and not 1.0 < process.arrival_scv <= 1000.0:
        problems.append(f"burstiness {process.arrival_scv}: give a number above 1 (1 is Poisson)")
    problems += [
        f"workload {r.workload}: rate {r.rate_per_s}/s, largest batch {r.max_batch_size}, delay "
        f"{r.max_queue_delay_us} us: "
        "the rate must be above 0, the batch at least 1, the delay not negative"
        for gpu in gpus
        for r in gpu
        if not (
            math.isfinite(r.rate_per_s)
            and r.rate_per_s > 0.0
            and r.max_batch_size >= 1
            and r.max_queue_delay_us >= 0
        )
    ]
    for g, gpu in enumerate(gpus):
        total = capped_total(r.share for r in gpu)
        if total > 1.0 + 1e-6 or not all(0.0 < r.share <= 1.0 for r in gpu):
            problems.append(
                f"gpus[{g}]: shares must be above 0 and at most 1, and those below 1 add up to at "
                f"most 1, not {total:g}"
            )
    if process.kind is Kind.TRACE:
        unknown = {r.workload for gpu in gpus for r in gpu} - process.trace.keys()
        problems += [f"the trace has no requests of workload {name}" for name in sorted(unknown)]
    if problems:
        raise ConfigError("replay", problems)


def _deal(
    gpus: Sequence[Sequence[Replica]], trace: Mapping[str, F64], duration_s: float
) -> dict[tuple[int, int], F64]:
    """The trace's times of each replica (GPU, place): request k goes where the rates' due is
    furthest ahead of what was given."""
    seats: dict[str, list[tuple[int, int, float]]] = {}
    for g, gpu in enumerate(gpus):
        for place, r in enumerate(gpu):
            seats.setdefault(r.workload, []).append((g, place, r.rate_per_s))
    dealt: dict[tuple[int, int], F64] = {}
    for name, where in seats.items():
        times = trace[name][trace[name] < duration_s]
        weights = np.asarray([rate for *_, rate in where]) / sum(rate for *_, rate in where)
        # each replica's j-th request is due at (j + 1/2) / weight; requests go to replicas in the
        # order of those
        counts = np.maximum(1, np.ceil(weights * times.size).astype(np.int64) + 1)
        due = np.concatenate(
            [(np.arange(c) + 0.5) / w for c, w in zip(counts, weights, strict=True)]
        )
        owner = np.repeat(np.arange(len(where)), counts)[np.argsort(due, kind="stable")][
            : times.size
        ]
        for k, (g, place, _) in enumerate(where):
            dealt[g, place] = times[owner == k]
    return dealt


def _times_ms(
    replica: Replica,
    process: Arrivals,
    dealt: Mapping[tuple[int, int], F64],
    at: tuple[int, int],
    duration_s: float,
    seed: int,
) -> F64:
    if process.kind is Kind.TRACE:
        return dealt[at] * 1e3
    rng = np.random.default_rng((seed, *at))
    arrival_scv = {Kind.CONSTANT: 0.0, Kind.POISSON: 1.0}.get(process.kind, process.arrival_scv)
    expected = replica.rate_per_s * duration_s
    count = int(expected + 8.0 * math.sqrt(expected * max(1.0, arrival_scv))) + 16
    times = np.cumsum(gaps_s(rng, count, replica.rate_per_s, arrival_scv))
    while times[-1] < duration_s:
        more = np.cumsum(gaps_s(rng, count, replica.rate_per_s, arrival_scv)) + times[-1]
        times = np.concatenate([times, more])
    # tenants do not march in step
    times -= rng.random() / replica.rate_per_s if process.kind is Kind.CONSTANT else 0.0
    return times[times < duration_s] * 1e3


def _replay_one(
    g: int,
    gpu: Sequence[Replica],
    board: Board,
    process: Arrivals,
    dealt: Mapping[tuple[int, int], F64],
    duration_s: float,
    seed: int,
) -> list[_Raw]:
    solo, excess = board.tables(gpu)
    streams = [
        _times_ms(r, process, dealt, (g, place), duration_s, seed) for place, r in enumerate(gpu)
    ]
    times = np.concatenate(streams)
    offsets = np.concatenate([[0], np.cumsum([s.size for s in streams])]).astype(np.int64)
    largest = np.asarray([r.max_batch_size for r in gpu], dtype=np.int64)
    delays = np.asarray([r.max_queue_delay_us / 1e3 for r in gpu])
    latency, busy, batches = (
        np.zeros(times.size),
        np.zeros(len(gpu)),
        np.zeros(len(gpu), dtype=np.int64),
    )
    chance = int(np.random.SeedSequence((seed, g)).generate_state(1)[0])
    replay_gpu(
        times,
        offsets,
        largest,
        delays,
        solo,
        excess,
        np.asarray(board.dispersion(gpu)),
        chance,
        duration_s * 1e3,
        latency,
        busy,
        batches,
    )
    raws = []
    for i, r in enumerate(gpu):
        mine = slice(offsets[i], offsets[i + 1])
        in_time = int(np.count_nonzero(times[mine] + latency[mine] <= duration_s * 1e3))
        raws.append(_Raw(r, g, latency[mine], in_time, float(busy[i]) / 1e3, int(batches[i])))
    return raws


def _served(raws: Sequence[_Raw], duration_s: float, gpu: int) -> Served:
    latency = raws[0].latency_ms if len(raws) == 1 else np.concatenate([r.latency_ms for r in raws])
    first = raws[0].replica
    n = latency.size
    if n:
        ranks = [max(0, math.ceil(q * n) - 1) for q in (0.5, 0.95, 0.99)]
        ordered = np.partition(latency, ranks)
        p50, p95, p99 = (float(ordered[k]) for k in ranks)
        mean = float(latency.mean())
        held = (
            float(np.mean(latency <= first.slo_p99_ms))
            if math.isfinite(first.slo_p99_ms)
            else math.nan
        )
    else:
        p50 = p95 = p99 = mean = held = math.nan
    return Served(
        workload=first.workload,
        model=first.model,
        gpu=gpu,
        slo_p99_ms=first.slo_p99_ms,
        requests=n,
        offered_per_s=n / duration_s,
        served_per_s=sum(r.in_time for r in raws) / duration_s,
        mean_ms=mean,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        attainment=held,
        utilisation=sum(r.busy_s for r in raws) / duration_s,
        mean_batch=n / max(1, sum(r.batches for r in raws)),
    )
