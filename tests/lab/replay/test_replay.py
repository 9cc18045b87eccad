"""The replay against hand-worked schedules, against the queue's stationary distribution, and what
it refuses."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.errors import CannotRun, ConfigError
from igniterd.lab.gpu.truth import Neighbour, Truth
from igniterd.lab.replay.boards import MeasuredBoard, ModelBoard, Replica
from igniterd.lab.replay.kernels.batches import replay_gpu
from igniterd.lab.replay.replay import Arrivals, Kind, gaps_s, read_trace, replay
from igniterd.perf import load_model, resolve_profile
from igniterd.perf.api import Tenant
from igniterd.queueing.tail import response_time


def run(
    times: list[list[float]],
    solo: list[list[float]],
    excess: np.ndarray | None = None,
    delays: list[float] | None = None,
) -> tuple[list[list[float]], np.ndarray, np.ndarray]:
    """Latencies by tenant, busy times, batches; ``solo[i]`` are the times of batches 1.. of tenant
    i."""
    n = len(times)
    size = max(len(s) for s in solo) + 1
    table = np.zeros((n, size))
    for i, s in enumerate(solo):
        table[i, 1 : len(s) + 1] = s
    flat = np.concatenate([np.asarray(t, dtype=np.float64) for t in times])
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in times])]).astype(np.int64)
    largest = np.asarray([len(s) for s in solo], dtype=np.int64)
    latency, busy, batches = np.zeros(flat.size), np.zeros(n), np.zeros(n, dtype=np.int64)
    beside = np.zeros((n, n, size, size)) if excess is None else excess
    replay_gpu(
        flat,
        offsets,
        largest,
        np.asarray(delays or [0.0] * n),
        table,
        beside,
        np.zeros((n, 3)),
        1,
        math.inf,
        latency,
        busy,
        batches,
    )
    return [latency[a:b].tolist() for a, b in pairwise(offsets)], busy, batches


def test_a_batch_takes_what_is_queued_when_the_instance_is_free() -> None:
    latency, busy, batches = run([[0.0, 1.0, 2.0, 3.0, 30.0]], [[10.0, 12.0]])
    # 0 alone until 10; 1 and 2 together until 22; 3 alone until 32; 30 waits for it, until 42
    assert latency == [pytest.approx([10.0, 21.0, 20.0, 29.0, 12.0])]
    assert busy[0] == pytest.approx(42.0)
    assert batches[0] == 4


def test_a_queue_delay_waits_for_the_oldest_or_for_a_full_batch() -> None:
    latency, _, batches = run([[0.0, 2.0, 100.0, 101.0, 102.0]], [[10.0, 11.0, 12.0]], delays=[5.0])
    # 0 and 2 start at 5; the three from 100 on start as soon as they are three
    assert latency == [pytest.approx([16.0, 14.0, 14.0, 13.0, 12.0])]
    assert batches[0] == 2


def test_a_batch_whose_delay_passed_during_the_last_one_is_not_waited_for_nor_topped_up() -> None:
    latency, _, batches = run([[0.0, 6.0, 14.0]], [[10.0, 11.0, 12.0]], delays=[5.0])
    # 0 starts at 5 and ends at 15; 6 is a batch of its own from 11 on, and 14 the next, from 19 on
    assert latency == [pytest.approx([15.0, 19.0, 21.0])]
    assert batches[0] == 3


def test_progress_changes_when_a_neighbour_starts_and_stops() -> None:
    excess = np.zeros((2, 2, 2, 2))
    excess[0, 1, 1, 1], excess[1, 0, 1, 1] = 0.5, 1.0
    latency, busy, _ = run([[0.0], [4.0]], [[10.0], [6.0]], excess)
    # the first has done 4 of 10 when the second comes; the other 6 take 9; the second has done 4.5
    # of 6 by then
    assert latency[0] == [pytest.approx(13.0)]
    assert latency[1] == [pytest.approx(10.5)]
    assert busy.tolist() == [pytest.approx(13.0), pytest.approx(10.5)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.0, 200.0), min_size=1, max_size=40), min_size=1, max_size=4),
    st.integers(1, 6),
    st.floats(0.0, 20.0),
    st.floats(0.0, 0.5),
)
def test_every_request_is_served_no_sooner_than_alone(
    times: list[list[float]], largest: int, delay: float, beside: float
) -> None:
    n = len(times)
    curve = [5.0 + b for b in range(largest)]
    excess = np.full((n, n, largest + 1, largest + 1), beside)
    latency, busy, batches = run([sorted(t) for t in times], [curve] * n, excess, [delay] * n)
    for each, mine in zip(times, latency, strict=True):
        assert len(mine) == len(each)
        assert min(mine) >= 5.0 - 1e-9
    assert all(-(-len(t) // largest) <= b <= len(t) for t, b in zip(times, batches, strict=True))
    slowest = (5.0 + largest - 1) * (1.0 + beside * (n - 1))
    assert all(
        5.0 * b - 1e-6 <= t <= slowest * b + 1e-6 for t, b in zip(busy, batches, strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "arrival_scv"), [(Kind.CONSTANT, 0.0), (Kind.POISSON, 1.0), (Kind.BURSTY, 4.0)]
)
def test_one_tenant_alone_is_the_stationary_queue(kind: Kind, arrival_scv: float) -> None:
    """Two ways to the same figures that share no code: events on the measured tables, and the chain
    of the oldest request's age."""
    replica = Replica("w", "resnet50", 250.0, 0.4, 8, 0, 60.0)
    found = replay(
        [[replica]], [MeasuredBoard()], Arrivals(kind, 4.0), duration_s=3000.0, seed=3
    ).workloads[0]
    curve = [Truth.v100().solo_ms("resnet50", b, 0.4) for b in range(1, 9)]
    told = response_time(250.0, curve, service_cv=0.05, arrival_scv=arrival_scv)
    assert found.p50_ms == pytest.approx(told.p50_ms, rel=0.02)
    assert found.p99_ms == pytest.approx(told.p99_ms, rel=0.03)
    assert found.utilisation == pytest.approx(told.utilisation, rel=0.01)
    assert found.mean_batch == pytest.approx(told.mean_batch, rel=0.01)
    assert found.attainment == pytest.approx(told.attainment(60.0), abs=0.002)


def test_the_boards_tables_are_the_truth_and_the_model() -> None:
    pair = [Replica("a", "alexnet", 1.0, 0.4, 8), Replica("b", "vgg19", 1.0, 0.6, 4)]
    solo, excess = MeasuredBoard().tables(pair)
    truth = Truth.v100()
    assert solo[0, 3] * (1 + excess[0, 1, 3, 2]) == pytest.approx(
        truth.latency_ms("alexnet", 3, 0.4, [Neighbour("vgg19", 2, 0.6)])
    )
    model = load_model(resolve_profile("v100"))
    modelled = ModelBoard(model).tables(pair)
    both = model.predict([Tenant("alexnet", 4, 0.4), Tenant("vgg19", 2, 0.6)])
    assert modelled[0][0, 4] * (1 + modelled[1][0, 1, 4, 2]) == pytest.approx(both[0].latency_ms)


@pytest.mark.parametrize("shares", [(0.4, 1.0), (1.0, 0.4), (1.0, 1.0), (0.4, 0.6)])
def test_pairs_of_the_models_board_are_its_predictions_with_and_without_caps(
    shares: tuple[float, float],
) -> None:
    model = load_model(resolve_profile("v100"))
    pair = [
        Replica(name, name, 1.0, share, 8)
        for name, share in zip(("alexnet", "vgg19"), shares, strict=True)
    ]
    solo, excess = ModelBoard(model).tables(pair)
    both = model.predict([Tenant("alexnet", 4, shares[0]), Tenant("vgg19", 2, shares[1])])
    found = solo[0, 4] * (1 + excess[0, 1, 4, 2]), solo[1, 2] * (1 + excess[1, 0, 2, 4])
    assert found == pytest.approx([p.latency_ms for p in both])


def test_the_measured_tables_know_the_uncapped_alone_only() -> None:
    uncapped, other = Replica("a", "alexnet", 1.0, 1.0, 8), Replica("b", "vgg19", 1.0, 0.4, 4)
    solo, _ = MeasuredBoard().tables([uncapped])
    assert solo[0, 3] == pytest.approx(Truth.v100().solo_ms("alexnet", 3, 1.0))
    with pytest.raises(CannotRun, match="workload a: it has no share"):
        MeasuredBoard().tables([other, uncapped])


def test_the_same_seed_is_the_same_replay_on_any_number_of_threads() -> None:
    gpus = [
        [Replica("a", "alexnet", 300.0, 0.5, 8), Replica("b", "ssd", 40.0, 0.5, 4)],
        [Replica("b", "ssd", 60.0, 1.0, 4)],
    ]
    boards = [MeasuredBoard()] * 2
    one = replay(gpus, boards, duration_s=20.0, seed=5, workers=1)
    assert replay(gpus, boards, duration_s=20.0, seed=5, workers=4) == one
    other = replay(gpus, boards, duration_s=20.0, seed=6)
    assert other.workloads[0].p99_ms != one.workloads[0].p99_ms
    b = one.workloads[1]
    parts = [one.replicas[0][1], one.replicas[1][0]]
    assert b.requests == sum(p.requests for p in parts)
    assert b.utilisation == pytest.approx(sum(p.utilisation for p in parts))
    assert min(p.p99_ms for p in parts) <= b.p99_ms <= max(p.p99_ms for p in parts)


def test_a_trace_is_dealt_out_by_the_rates(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "workload,time_s\n" + "".join(f"b,{k / 100}\n" for k in range(999, -1, -1)) + "a,3.5\n"
    )
    trace = read_trace(path)
    gpus = [
        [Replica("a", "alexnet", 1.0, 0.5, 8), Replica("b", "ssd", 30.0, 0.5, 4)],
        [Replica("b", "ssd", 60.0, 1.0, 4)],
    ]
    done = replay(gpus, [MeasuredBoard()] * 2, Arrivals(Kind.TRACE, trace=trace), duration_s=9.0)
    assert [w.requests for w in done.workloads] == [1, 900]
    assert [done.replicas[0][1].requests, done.replicas[1][0].requests] == [300, 600]


@pytest.mark.parametrize("arrival_scv", [0.0, 0.4, 1.0, 4.0])
def test_gaps_have_the_rate_and_burstiness_asked_for(arrival_scv: float) -> None:
    gaps = gaps_s(np.random.default_rng(2), 400_000, 50.0, arrival_scv)
    assert gaps.mean() == pytest.approx(1 / 50.0, rel=0.02)
    assert gaps.var() * 2500.0 == pytest.approx(arrival_scv, rel=0.05, abs=1e-9)


def test_overload_shows() -> None:
    done = replay(
        [[Replica("a", "vgg19", 1000.0, 0.2, 4, slo_p99_ms=50.0)]],
        [MeasuredBoard()],
        duration_s=10.0,
    ).workloads[0]
    assert done.missed
    assert done.utilisation == pytest.approx(1.0, abs=0.01)
    assert done.served_per_s < 0.5 * done.offered_per_s


@pytest.mark.parametrize(
    ("replica", "error", "word"),
    [
        (Replica("a", "bert", 10.0, 0.5, 4), CannotRun, "'bert' was not measured"),
        (Replica("a", "ssd", 10.0, 0.5, 64), CannotRun, "batches of 64"),
        (Replica("a", "ssd", -1.0, 0.5, 4), ConfigError, "rate -1"),
        (Replica("a", "ssd", 10.0, 1.5, 4), ConfigError, "add up to at most 1"),
    ],
)
def test_what_cannot_be_replayed_is_named(
    replica: Replica, error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        replay([[replica]], [MeasuredBoard()], duration_s=1.0)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("time_s\n1\n", "columns workload and time_s"),
        ("workload,time_s\na,1\nb,soon\n", "line 3"),
        ("workload,time_s\na,-1\n", "line 2"),
    ],
)
def test_a_trace_that_is_none_is_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_trace(path)


def test_a_workload_without_requests_in_the_trace_is_named() -> None:
    with pytest.raises(ConfigError, match="no requests of workload a"):
        replay(
            [[Replica("a", "ssd", 10.0, 0.5, 4)]],
            [MeasuredBoard()],
            Arrivals(Kind.TRACE, trace={"b": np.ones(1)}),
            duration_s=1.0,
        )
