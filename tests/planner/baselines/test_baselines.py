"""The baselines do what their papers say, and no more."""

from __future__ import annotations

import pytest

from igniterd.planner.baselines.gpu_lets import GPU_LETS
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.strategies import STRATEGIES, Request, plan
from igniterd.planner.workloads import Workload


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_workload_has_one_valid_place(
    v100: GpuType, v100_workloads: tuple[Workload, ...], strategy: str
) -> None:
    answer = plan(Request(v100_workloads, (v100,)), strategy)
    placed = {}
    for gpu in answer.gpus:
        assert 0 < gpu.allocated <= 1 + 1e-9
        for seat in gpu.tenants:
            assert seat.share / 0.025 == pytest.approx(round(seat.share / 0.025))
            assert 1 <= seat.max_batch_size <= 32
            placed[seat.workload] = placed.get(seat.workload, 0.0) + seat.rate_per_s
    assert placed == pytest.approx({w.name: w.rate_per_s for w in v100_workloads})
    if strategy != "igniterd":
        assert sum(len(gpu.tenants) for gpu in answer.gpus) == 12


def test_gpus_used_are_what_the_paper_reports(
    v100: GpuType, v100_workloads: tuple[Workload, ...]
) -> None:
    """Table 3: iGniter 6, GSLICE+ 6, gpu-lets+ 8, FFD+ 5."""
    used = {
        s: len(plan(Request(v100_workloads, (v100,)), s).gpus)
        for s in ("igniter", "gslice+", "gpu-lets+", "ffd+")
    }
    assert used == {"igniter": 6, "gslice+": 6, "gpu-lets+": 8, "ffd+": 5}


def test_gpu_lets_shares_are_from_the_list_and_pairs_at_most(
    v100: GpuType, v100_workloads: tuple[Workload, ...]
) -> None:
    answer = plan(Request(v100_workloads, (v100,)), "gpu-lets+")
    for gpu in answer.gpus:
        assert len(gpu.tenants) <= 2
        for seat in gpu.tenants:
            assert seat.share in (*GPU_LETS, 1.0)
            curve = v100.published.service_curve_ms(
                seat.model, seat.share, (), seat.max_batch_size
            )[0]
            assert curve[-1] <= seat.slo_p99_ms / 2
            assert 1e3 * seat.max_batch_size / curve[-1] >= seat.rate_per_s


def test_ffd_plus_is_blind_to_neighbours(v100: GpuType) -> None:
    """Two tenants whose least shares add up to the GPU: FFD+ puts them together, FFD++ sees that
    neither would hold."""
    workloads = [Workload("a", "vgg19", 20, 300), Workload("b", "vgg19", 40, 200)]
    blind, aware = (plan(Request(workloads, (v100,)), s) for s in ("ffd+", "ffd++"))
    assert len(blind.gpus) == 1
    assert len(aware.gpus) == 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_unknown_model_is_named_and_the_rest_planned(v100: GpuType, strategy: str) -> None:
    answer = plan(
        Request([Workload("x", "bert", 50, 10), Workload("y", "ssd", 60, 10)], (v100,)), strategy
    )
    assert [entry.workload for entry in answer.infeasible] == ["x"]
    assert "bert" in answer.infeasible[0].reason
    assert "resnet50" in answer.infeasible[0].reason
    assert [seat.workload for gpu in answer.gpus for seat in gpu.tenants] == ["y"]
