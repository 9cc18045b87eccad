"""Spare units of share go to whom they speed up; a model that waits for its host gets none."""

from __future__ import annotations

import pytest

from igniterd.lab.gpu.floor import HostFloor
from igniterd.planner.evaluate import LEVEL, Placement, evaluate
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.plan import PlannedTenant
from igniterd.planner.strategies import Request, plan
from igniterd.planner.workloads import Workload
from tests.factories import profile_of_truth

FLOORS = {"alexnet": 6.0, "resnet50": 10.0}


@pytest.fixture(scope="module", params=sorted(FLOORS))
def floored(request: pytest.FixtureRequest) -> str:
    """The model that waits for its host."""
    return str(request.param)


@pytest.fixture(scope="module")
def gpu(floored: str) -> GpuType:
    return GpuType(profile_of_truth({floored: HostFloor(FLOORS[floored], 0.4)}))


def planned(gpu: GpuType, *workloads: Workload) -> dict[str, PlannedTenant]:
    """All of them on one GPU, by workload."""
    found = plan(Request(workloads, (gpu,)))
    assert (found.feasible, len(found.gpus)) == (True, 1)
    return {seat.workload: seat for seat in found.gpus[0].tenants}


def p99_ms(gpu: GpuType, seat: PlannedTenant, units: int) -> float:
    """P99 of a tenant that is alone on its GPU, on so many units."""
    placement = Placement(
        seat.model, units / gpu.units, seat.max_batch_size, 0.0, seat.rate_per_s, 1.0
    )
    evaluate([(gpu, [placement])], level=LEVEL)
    return placement.p99_ms


@pytest.mark.parametrize("slo_ms", [22.0, 40.0, 200.0])
def test_a_model_that_waits_for_its_host_gets_the_least_share_that_is_as_fast(
    gpu: GpuType, floored: str, slo_ms: float
) -> None:
    """Alone on a GPU: what it has is needed, and the rest of the GPU would speed it up by next to
    nothing."""
    seat = planned(gpu, Workload("w", floored, slo_ms, 5.0))["w"]
    units = round(seat.share * gpu.units)
    assert seat.p99_ms is not None
    assert seat.p99_ms == pytest.approx(p99_ms(gpu, seat, units))
    assert seat.p99_ms <= slo_ms
    assert units <= gpu.units // 4
    assert p99_ms(gpu, seat, units + 1) > 0.99 * seat.p99_ms
    assert p99_ms(gpu, seat, gpu.units) > 0.95 * seat.p99_ms
    assert p99_ms(gpu, seat, units - 1) > 1.1 * seat.p99_ms


def test_its_neighbour_gets_what_it_does_not_gain_by(gpu: GpuType, floored: str) -> None:
    """Though it is the nearest to its SLO."""
    seats = planned(gpu, Workload("w", floored, 25.0, 5.0), Workload("b", "vgg19", 60.0, 20.0))
    assert seats["w"].p99_ms is not None
    assert seats["b"].p99_ms is not None
    assert seats["w"].p99_ms / 25.0 > seats["b"].p99_ms / 60.0
    assert seats["w"].share <= 0.15
    assert seats["b"].share >= 0.4


def test_what_waits_for_the_gpu_gets_half_of_what_is_spare(v100: GpuType) -> None:
    seat = planned(v100, Workload("w", "resnet50", 40.0, 5.0))["w"]
    assert 0.5 < seat.share < 0.6
