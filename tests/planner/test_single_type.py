"""igniterd's strategy: every P99 held, nothing overcommitted, what cannot be planned named with
what could."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from igniterd.cli.simulate import replicas_of
from igniterd.lab.replay.boards import MeasuredBoard
from igniterd.lab.replay.replay import Arrivals, Kind, replay
from igniterd.planner.evaluate import assess
from igniterd.planner.gpu_types import GpuType, parse_gpu
from igniterd.planner.plan import ProvisionPlan
from igniterd.planner.strategies import Request, plan
from igniterd.planner.workloads import Workload

REPLAY_SEEDS = (11, 12)


def served(answer: ProvisionPlan) -> dict[str, float]:
    rates: dict[str, float] = {}
    for gpu in answer.gpus:
        for seat in gpu.tenants:
            rates[seat.workload] = rates.get(seat.workload, 0.0) + seat.rate_per_s
    return rates


def check(answer: ProvisionPlan, workloads: list[Workload], gpu: GpuType) -> None:
    """What must be true of every plan."""
    left_out = {entry.workload for entry in answer.infeasible}
    assert served(answer) == pytest.approx(
        {w.name: w.rate_per_s for w in workloads if w.name not in left_out}
    )
    for host in answer.gpus:
        assert 0 < host.allocated <= 1 + 1e-9
        assert len({seat.workload for seat in host.tenants}) == len(host.tenants)
        for seat in host.tenants:
            assert seat.share * gpu.units == pytest.approx(round(seat.share * gpu.units))
            assert 1 <= seat.max_batch_size <= gpu.model.max_batch(seat.model)
            assert seat.max_queue_delay_us >= 0
            assert seat.p99_ms is not None
            assert seat.p99_ms <= seat.slo_p99_ms * (1 + 1e-9)
    assert answer.lower_bound_gpus is not None
    assert len(answer.gpus) >= answer.lower_bound_gpus - 1e-9


@pytest.mark.parametrize(
    ("arrival_scv", "kind", "most"), [(0.0, Kind.CONSTANT, 6), (1.0, Kind.POISSON, 8)]
)
def test_the_papers_workloads_hold_in_replay(
    v100: GpuType, v100_workloads: tuple[Workload, ...], arrival_scv: Any, kind: Any, most: Any
) -> None:
    """Against the measured tables, which the plan's model has never seen, on seeds that nothing was
    chosen by."""
    answer = plan(Request(v100_workloads, (v100,), arrival_scv))
    check(answer, list(v100_workloads), v100)
    assert len(answer.gpus) <= most
    gpus = replicas_of(answer)
    for seed in REPLAY_SEEDS:
        result = replay(
            gpus, [MeasuredBoard()] * len(gpus), Arrivals(kind), duration_s=60.0, seed=seed
        )
        assert [(w.workload, w.p99_ms) for w in result.missed] == []


def test_the_same_seed_gives_the_same_plan(
    v100: GpuType, v100_workloads: tuple[Workload, ...]
) -> None:
    one, other = (plan(Request(v100_workloads, (v100,), 1.0, seed=3)) for _ in range(2))
    assert one == other


def test_what_is_predicted_is_what_the_model_and_the_queue_say(
    v100: GpuType, v100_workloads: tuple[Workload, ...]
) -> None:
    """Assessed from nothing, a plan comes to the P99s it was made with (up to where the fixed point
    was stopped)."""
    answer = plan(Request(v100_workloads, (v100,), 1.0))
    again = assess(answer, (v100,), {})
    for host, checked in zip(answer.gpus, again.gpus, strict=True):
        for seat, new in zip(host.tenants, checked.tenants, strict=True):
            assert new.p99_ms == pytest.approx(seat.p99_ms, rel=0.02)


@pytest.mark.parametrize("slo", [6, 7, 8])
def test_ssd_at_an_slo_near_its_fastest(v100: GpuType, slo: Any) -> None:
    workloads = [Workload("S", "ssd", slo, 10), Workload("ok", "alexnet", 15, 200)]
    answer = plan(Request(workloads, (v100,), 1.0))
    check(answer, workloads, v100)
    assert served(answer)["ok"] == pytest.approx(200)
    for entry in answer.infeasible:
        assert entry.workload == "S"
        assert entry.least_slo_ms is not None
        assert f"{entry.least_slo_ms:.2f}" in entry.reason
        eased = plan(Request([Workload("S", "ssd", entry.least_slo_ms * 1.1, 10)], (v100,), 1.0))
        assert eased.feasible


def test_an_slo_no_share_can_meet_is_named(v100: GpuType) -> None:
    answer = plan(Request([Workload("S", "ssd", 4.0, 10)], (v100,), 1.0))
    assert not answer.feasible
    assert answer.gpus == ()
    assert "no number of replicas" in answer.infeasible[0].reason


def test_vgg19_beyond_one_gpu_is_split(v100: GpuType) -> None:
    workloads = [Workload("V", "vgg19", 20, 2000)]
    answer = plan(Request(workloads, (v100,), 1.0))
    check(answer, workloads, v100)
    assert answer.feasible
    assert len(answer.gpus) >= 4


def test_alexnet_beyond_the_profiled_batches(v100: GpuType) -> None:
    workloads = [Workload("A", "alexnet", 100, 2000)]
    answer = plan(Request(workloads, (v100,), 1.0))
    check(answer, workloads, v100)
    assert len(answer.gpus) == 1


def test_a_rate_beyond_all_replicas_says_the_largest(v100: GpuType) -> None:
    answer = plan(Request([Workload("V", "vgg19", 20, 1e6)], (v100,), 1.0))
    assert answer.infeasible[0].largest_rate_per_s is not None
    assert 0 < answer.infeasible[0].largest_rate_per_s < 1e6
    assert "replicas" in answer.infeasible[0].reason


def test_random_sets_are_planned_whole(v100: GpuType, v100_workloads: tuple[Workload, ...]) -> None:
    rng = np.random.default_rng(5)
    for count in (1, 7, 40):
        workloads = [
            replace(
                v100_workloads[int(i)],
                name=f"R{n}",
                slo_p99_ms=v100_workloads[int(i)].slo_p99_ms * s,
                rate_per_s=v100_workloads[int(i)].rate_per_s * r,
            )
            for n, (i, s, r) in enumerate(
                zip(
                    rng.integers(0, 12, count),
                    rng.uniform(1, 1.5, count),
                    rng.uniform(0.2, 1.5, count),
                    strict=True,
                )
            )
        ]
        answer = plan(Request(workloads, (v100,), 1.0))
        check(answer, workloads, v100)
        assert answer.feasible


def test_mending_does_not_scatter_tenants(
    v100: GpuType, v100_workloads: tuple[Workload, ...]
) -> None:
    """With constant arrivals, where the tables are worst, hardly more GPUs are taken than the
    shares needed fill."""
    rng = np.random.default_rng((2, 60))
    chosen = zip(
        rng.integers(0, 12, 60), rng.uniform(1, 1.5, 60), rng.uniform(0.4, 1.0, 60), strict=True
    )
    of = v100_workloads
    workloads = [
        replace(
            of[i], name=f"R{n}", slo_p99_ms=of[i].slo_p99_ms * s, rate_per_s=of[i].rate_per_s * r
        )
        for n, (i, s, r) in enumerate(chosen)
    ]
    answer = plan(Request(workloads, (v100,), 0.0))
    check(answer, workloads, v100)
    assert len(answer.gpus) <= answer.needed_gpus + 2


def test_arrivals_of_their_own(v100: GpuType) -> None:
    """Bursty traffic needs more than Poisson, and Poisson more than constant."""
    needed = []
    for arrival_scv in (0.0, 1.0, 4.0):
        answer = plan(Request([Workload("A", "resnet50", 30, 300, arrival_scv)], (v100,), 1.0))
        needed.append(answer.needed_gpus)
    assert needed[0] < needed[1] < needed[2]


def scaled_v100(
    v100: GpuType,
    factor: float,
    name: str,
    price: float,
    most: int | None = None,
    memory: int | None = None,
) -> GpuType:
    """The V100 with every time ``factor`` times as long, under another name."""
    profile = v100.profile.time_scaled(factor)
    board = profile.board.model_copy(
        update={"name": name, **({"memory_bytes": memory} if memory else {})}
    )
    models = profile.models
    if memory:
        models = {
            key: model.model_copy(update={"memory_bytes": memory // 2 + 1})
            for key, model in models.items()
        }
    return GpuType(profile.model_copy(update={"board": board, "models": models}), price, most)


def test_kinds_are_mixed_where_that_is_cheaper(
    v100: GpuType, v100_workloads: tuple[Workload, ...]
) -> None:
    """A GPU half as fast at a fifth of the price takes what is not in a hurry; what only the fast
    one can hold stays there."""
    slow = scaled_v100(v100, 2.0, "slow", 0.6)
    hurried = Workload("H", "vgg19", 6, 100)
    answer = plan(Request([*v100_workloads, hurried], (v100, slow), 1.0))
    check_kinds = {gpu.gpu for gpu in answer.gpus}
    assert check_kinds == {"v100", "slow"}
    assert all(seat.p99_ms <= seat.slo_p99_ms for gpu in answer.gpus for seat in gpu.tenants)
    alone = plan(Request([*v100_workloads, hurried], (v100,), 1.0))
    assert answer.cost_per_hour < alone.cost_per_hour
    assert answer.cost_per_hour >= answer.lower_bound_cost_per_hour


def test_a_kind_runs_out(v100: GpuType, v100_workloads: tuple[Workload, ...]) -> None:
    few = GpuType(v100.profile, 3.06, 2)
    answer = plan(Request(v100_workloads, (few,), 1.0))
    assert len(answer.gpus) == 2
    assert not answer.feasible
    assert "beyond the 2" in answer.infeasible[0].reason


def test_memory_keeps_tenants_apart(v100: GpuType) -> None:
    """Two instances do not fit the memory of this board, small as their shares are."""
    tight = scaled_v100(v100, 1.0, "tight", 1.0, memory=8 * 2**30)
    workloads = [Workload(f"A{i}", "alexnet", 50, 50) for i in range(3)]
    assert len(plan(Request(workloads, (tight,), 1.0)).gpus) == 3
    assert len(plan(Request(workloads, (v100,), 1.0)).gpus) == 1


def test_two_kinds_of_one_name_are_refused(v100: GpuType) -> None:
    with pytest.raises(Exception, match="given twice"):
        plan(Request([Workload("A", "alexnet", 50, 50)], (v100, parse_gpu("v100")), 1.0))
