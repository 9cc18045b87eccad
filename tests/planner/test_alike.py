"""What counts as one type, and how hard the type is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.planner.alike import ALIKE, alike
from igniterd.planner.workloads import Workload


def workload(n: int, slo: float, rate: float, scv: float | None = None) -> Workload:
    return Workload(f"W{n}", "alexnet", slo, rate, scv)


def members(workloads: list[Workload], within: float = ALIKE) -> set[tuple[int, ...]]:
    return {tuple(sorted(one.members)) for one in alike(workloads, within)}


def test_equals_are_one_type() -> None:
    [one] = alike([workload(n, 10.0, 200.0) for n in range(3)], within=0.0)
    assert sorted(one.members) == [0, 1, 2]
    assert one.count == 3
    assert (one.workload.slo_p99_ms, one.workload.rate_per_s) == (10.0, 200.0)


def test_what_is_near_is_one_type_with_the_least_slo_and_the_largest_rate() -> None:
    """The hardest in one respect need not be it in the other."""
    [one] = alike([workload(0, 10.05, 200.0), workload(1, 10.0, 199.0)])
    assert one.count == 2
    assert (one.workload.slo_p99_ms, one.workload.rate_per_s) == (10.0, 200.0)


@pytest.mark.parametrize("other", [workload(1, 10.2, 200.0), workload(1, 10.0, 204.0)])
def test_two_per_cent_apart_are_two_types(other: Workload) -> None:
    assert members([workload(0, 10.0, 200.0), other]) == {(0,), (1,)}


def test_a_chain_of_near_ones_ends_at_the_tolerance() -> None:
    """Each is near the one before; the third is too far from the first."""
    chain = [workload(n, slo, 200.0) for n, slo in enumerate([10.0, 10.08, 10.16])]
    assert members(chain) == {(0, 1), (2,)}


def test_other_models_and_arrivals_are_other_types() -> None:
    """An arrival process that is named is not the plan's, whatever the plan's is."""
    of = [
        workload(0, 10.0, 200.0),
        workload(1, 10.0, 200.0, 0.0),
        workload(2, 10.0, 200.0, 1.0),
        Workload("W3", "vgg19", 10.0, 200.0),
        workload(4, 10.0, 200.0, 1.0),
    ]
    assert members(of) == {(0,), (1,), (2, 4), (3,)}


def test_without_tolerance_only_equals_are_put_together() -> None:
    near = [workload(0, 10.0, 200.0), workload(1, 10.0, 200.1), workload(2, 10.0, 200.0)]
    assert members(near, within=0.0) == {(0, 2), (1,)}


NEAR = st.floats(1.0, 1.05)
ANY = st.builds(
    Workload,
    st.just("W"),
    st.sampled_from(["alexnet", "vgg19"]),
    st.builds(lambda base, by: base * by, st.sampled_from([10.0, 30.0]), NEAR),
    st.builds(lambda base, by: base * by, st.sampled_from([50.0, 500.0]), NEAR),
    st.sampled_from([None, 0.0, 1.0]),
)


@given(st.lists(ANY, max_size=30), st.sampled_from([0.0, 0.01, 0.03]))
def test_a_type_is_as_hard_as_its_members_and_hardly_harder(
    workloads: list[Workload], within: float
) -> None:
    types = alike(workloads, within)
    assert sorted(n for one in types for n in one.members) == list(range(len(workloads)))
    for one in types:
        hard, slack = one.workload, (1.0 + within) * (1.0 + 1e-9)
        for member in (workloads[n] for n in one.members):
            assert (member.model, member.arrival_scv) == (hard.model, hard.arrival_scv)
            assert hard.slo_p99_ms <= member.slo_p99_ms <= hard.slo_p99_ms * slack
            assert member.rate_per_s <= hard.rate_per_s <= member.rate_per_s * slack
