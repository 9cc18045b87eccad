"""The cuts a workload is offered."""

from __future__ import annotations

import numpy as np
import pytest

from igniterd.planner.cuts import Offer, offer_cuts
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.problem import Problem, largest_rate, pose
from igniterd.planner.workloads import Workload


def posed(workloads: list[Workload], v100: GpuType) -> Problem:
    return pose(workloads, (v100,), 1.0)


def most_of_one_gpu(v100: GpuType) -> float:
    """VGG-19 within 30 ms that one whole V100 serves, a second."""
    return largest_rate(posed([Workload("V", "vgg19", 30, 10)], v100), 0, 0)


def parts(offer: Offer, kind: int) -> list[list[float]]:
    return [[float(offer.fraction[i]) for i in pieces] for t, pieces in offer.cuts if t == kind]


@pytest.mark.parametrize("even", [False, True])
def test_a_cut_is_the_whole_workload(
    v100: GpuType, v100_workloads: tuple[Workload, ...], even: bool
) -> None:
    """Every workload has a cut. The parts of each add up, and a piece belongs to the workload whose
    cuts it is in, at its part of the rate."""
    problem = posed(list(v100_workloads), v100)
    offer = offer_cuts(problem, even)
    assert {kind for kind, _ in offer.cuts} == set(range(len(v100_workloads)))
    assert len(set(offer.cuts)) == len(offer.cuts)
    for kind, pieces in offer.cuts:
        assert sum(offer.fraction[i] for i in pieces) == pytest.approx(1.0)
        assert {int(problem.parent[i]) for i in pieces} == {kind}
        rate = 1e3 * problem.items.rate[list(pieces)].sum()
        assert rate == pytest.approx(problem.workloads[kind].rate_per_s)
    assert {i for _, pieces in offer.cuts for i in pieces} == set(range(offer.fraction.size))


def test_even_cuts_have_equal_parts(v100: GpuType, v100_workloads: tuple[Workload, ...]) -> None:
    """Some workload of the published ones is cut, and without being asked for, unevenly too."""
    evenly, freely = (offer_cuts(posed(list(v100_workloads), v100), e) for e in (True, False))
    assert all(len(set(pieces)) == 1 for _, pieces in evenly.cuts)
    assert any(len(pieces) > 1 for _, pieces in evenly.cuts)
    assert any(len(set(pieces)) > 1 for _, pieces in freely.cuts)


@pytest.mark.parametrize("times", [1.02, 2.5, 7.3])
@pytest.mark.parametrize("even", [False, True])
def test_a_workload_beyond_a_gpu_has_a_cut_that_fits(
    v100: GpuType, times: float, even: bool
) -> None:
    """No cut offered leaves it whole, and at least one has only pieces that fit a GPU."""
    problem = posed([Workload("V", "vgg19", 30, times * most_of_one_gpu(v100))], v100)
    offer = offer_cuts(problem, even)
    fits = problem.alone[0] <= v100.units
    assert min(len(pieces) for _, pieces in offer.cuts) > times
    assert any(np.all(fits[list(pieces)]) for _, pieces in offer.cuts)


def test_what_just_exceeds_a_gpu_may_leave_a_small_rest(v100: GpuType) -> None:
    """A GPU nearly full and a little beside others, as well as two halves."""
    workload = Workload("V", "vgg19", 30, 1.15 * most_of_one_gpu(v100))
    found = parts(offer_cuts(posed([workload], v100), even=False), 0)
    assert any(len(cut) == 2 and max(cut) > 0.8 for cut in found)
    assert any(cut == pytest.approx([0.5, 0.5]) for cut in found if len(cut) == 2)


def test_what_needs_next_to_nothing_is_not_cut(v100: GpuType) -> None:
    offer = offer_cuts(posed([Workload("A", "alexnet", 50, 5)], v100), even=False)
    assert parts(offer, 0) == [[1.0]]
