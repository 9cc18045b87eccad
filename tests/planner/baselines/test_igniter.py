"""The published strategy, to the letter of its printed plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.perf.api import Tenant
from igniterd.planner.baselines import igniter as published
from igniterd.planner.gpu_types import GpuType, parse_gpu
from igniterd.planner.kernels import igniter as kernels
from igniterd.planner.strategies import Request, plan
from igniterd.planner.workloads import Workload

PRINTED = {
    "W1": (6, 20.0),
    "W2": (3, 7.5),
    "W3": (8, 12.5),
    "W4": (4, 32.5),
    "W5": (9, 45.0),
    "W6": (4, 15.0),
    "W7": (3, 60.0),
    "W8": (6, 75.0),
    "W9": (4, 37.5),
    "W10": (2, 60.0),
    "W11": (1, 15.0),
    "W12": (8, 92.5),
}
"""Batch and share in percent of the greedy algorithm on the published profile."""


def test_the_printed_plan_comes_out(v100: GpuType, v100_workloads: tuple[Workload, ...]) -> None:
    answer = plan(Request(v100_workloads, (v100,)), "igniter")
    seats = {
        seat.workload: (seat.max_batch_size, round(100 * seat.share, 6))
        for gpu in answer.gpus
        for seat in gpu.tenants
    }
    assert seats == PRINTED
    assert len(answer.gpus) == 6
    assert sum(share for _, share in seats.values()) == pytest.approx(472.5)
    assert answer.feasible


def test_theorem_1_by_hand(v100: GpuType) -> None:
    """W2 (alexnet, 15 ms, 400/s): b = ceil(15 * 0.4 / 2 / (1 + 0.4 * 602112 / 1e7)) = ceil(2.93) =
    3."""
    theorem = published.Theorem1(v100.published)
    need = theorem(np.array([theorem.index["alexnet"]]), np.array([15.0]), np.array([400.0]))
    assert need.batch.tolist() == [3]
    c = v100.published.coefficients["alexnet"]
    gamma = c.k1 * 9 + c.k2 * 3 + c.k3
    delta = 7.5 - 606112 * 3 / 1e7 - c.k5 - c.k_sch * 20
    assert need.units.tolist() == [int(np.ceil((gamma / delta - c.k4) / 2.5))]


def rows(v100, workloads):
    return published.demand_of(v100.published, workloads)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.floats(1.0, 2.0), st.floats(0.2, 1.0)),
        min_size=1,
        max_size=25,
    ),
    st.booleans(),
)
def test_every_gpu_holds_what_algorithm_2_says(cases: Any, first_fit: Any) -> None:
    v100 = parse_gpu("v100")
    base = [("alexnet", 10, 1200), ("resnet50", 20, 400), ("vgg19", 30, 400), ("ssd", 40, 50)]
    workloads = [
        Workload(f"w{n}", base[i % 4][0], base[i % 4][1] * s, base[i % 4][2] * r)
        for n, (i, s, r) in enumerate(cases)
    ]
    demand = rows(v100, workloads)
    placed = published.place(v100.published, demand, first_fit=first_fit)
    board = published.board_of(v100.published)
    for g in range(placed.gpus):
        members = np.flatnonzero(placed.gpu_of == g)
        units = placed.units[members]
        assert members.size > 0
        assert units.sum() <= 40
        assert (units >= demand.lower[members]).all()
        out = np.empty(members.size)
        kernels.latencies_ms.py_func(demand.coef, board, members, units, members.size, out)
        if members.size > 1:
            assert (out <= demand.coef[members, kernels.LIMIT_MS] * (1 + 1e-9)).all()


def provisioned(v100, demand, kernel):
    n = len(demand.workloads)
    gpu_of, units = np.zeros(n, np.int64), np.zeros(n, np.int64)
    case = kernels.Case(
        demand.coef, published.board_of(v100.published), demand.lower, 40, False, True
    )
    return kernel(case, demand.order, gpu_of, units), gpu_of.tolist(), units.tolist()


def test_the_compiled_kernel_says_what_its_python_says(
    v100: GpuType, v100_workloads: tuple[Workload, ...]
) -> None:
    demand = rows(v100, v100_workloads)
    one, other = (
        provisioned(v100, demand, kernel)
        for kernel in (kernels.provision, kernels.provision.py_func)
    )
    assert one == other


@pytest.mark.parametrize("slo", [6, 7, 8])
def test_an_slo_below_what_is_possible_is_named(v100: GpuType, slo: Any) -> None:
    answer = plan(Request([Workload("S", "ssd", slo, 10)], (v100,)), "igniter")
    assert not answer.feasible
    assert answer.gpus == ()
    entry = answer.infeasible[0]
    assert entry.workload == "S"
    assert entry.least_slo_ms is not None
    again = plan(Request([Workload("S", "ssd", entry.least_slo_ms, 10)], (v100,)), "igniter")
    assert again.feasible
    barely = plan(
        Request([Workload("S", "ssd", entry.least_slo_ms * 0.99, 10)], (v100,)), "igniter"
    )
    assert not barely.feasible


def test_a_rate_one_gpu_cannot_serve_is_named_with_the_largest_it_can(v100: GpuType) -> None:
    answer = plan(Request([Workload("V", "vgg19", 20, 2000)], (v100,)), "igniter")
    largest = answer.infeasible[0].largest_rate_per_s
    assert largest is not None
    assert plan(Request([Workload("V", "vgg19", 20, largest)], (v100,)), "igniter").feasible
    assert not plan(
        Request([Workload("V", "vgg19", 20, largest * 1.05)], (v100,)), "igniter"
    ).feasible


def test_batches_stay_within_the_profile(v100: GpuType) -> None:
    answer = plan(Request([Workload("A", "alexnet", 100, 2000)], (v100,)), "igniter")
    seat = answer.gpus[0].tenants[0]
    assert seat.max_batch_size == 32
    assert 0 < seat.share <= 1
    (prediction,) = v100.published.predict([Tenant("alexnet", 32, seat.share)])
    assert prediction.throughput_per_s >= 2000 * (1 - 1e-6)
