"""One GPU's decision: when a plan is not worth its reloads."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from igniterd.config import Decide
from igniterd.decide import gpu
from igniterd.decide.gpu import LEAST_ROOM, GpuContext, GpuDecision
from igniterd.decide.search import GpuPlan
from igniterd.decide.state import HALF, NONE, DecisionState, GpuHold, Margins, ModelHold
from igniterd.decisions import DecisionKind
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import Allocation
from tests.factories import predictor_pair

PREDICTORS = predictor_pair()
SLO_MS, HERE = 40.0, Allocation(0.4, 8)


def carried(share: float) -> float:
    """The highest rate that holds the SLO of resnet50 at ``share`` with no margin, requests/s."""
    low, high = 1.0, 2000.0
    while high - low > 0.5:
        middle = (low + high) / 2
        served = PREDICTORS.mean.together(
            [Demand("m", "resnet50", middle, SLO_MS)], {"m": replace(HERE, share=share)}
        )["m"]
        low, high = (middle, high) if served.p99_ms <= SLO_MS else (low, middle)
    return low


def decided(
    monkeypatch: pytest.MonkeyPatch,
    headroom: float,
    rate: float,
    *,
    margins: Margins = HALF,
    now_s: float = 1000.0,
) -> GpuDecision:
    """``HERE`` at ``rate`` (with ``margins`` half: 5 % more), when the search finds a larger share
    with ``headroom``."""

    def demands(at: Margins) -> Sequence[Demand]:
        return [Demand("m", "resnet50", rate * (1 + 0.1 * at.kept), SLO_MS)]

    def found(
        predictor: LatencyPredictor,
        asked: Sequence[Demand],
        shed: Sequence[Demand] = (),
        reserved: float = 0.0,
    ) -> GpuPlan:
        target = {"m": replace(HERE, share=0.6)}
        feasible = asked[0].rate_per_s <= rate * 1.051  # with half of the margins, not with all
        reasons = {} if feasible else {"m": "does not fit"}
        return GpuPlan(
            target,
            predictor.together(asked, target),
            frozenset(["m"] if feasible else []),
            headroom,
            {"": 0.6},
            reasons,
        )

    monkeypatch.setattr(gpu, "find", found)
    held = DecisionState(
        {"m": ModelHold(gpu="a")}, {"a": GpuHold(margins=margins, moved_at_s=now_s - 600.0)}
    )
    return GpuContext("a", demands, {"m": HERE}, held, Decide(), PREDICTORS, now_s).decide()


def test_noise_at_the_limit_costs_margins_and_no_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """As applied it holds without its margins, and the plan that would keep half of them would be
    outgrown by the next noise."""
    part = decided(monkeypatch, 1.0, 0.98 * carried(0.4))
    assert part.steps == ()
    assert part.outcome is not DecisionKind.MOVE
    assert part.held.gpu("a").margins == NONE


def test_a_plan_with_room_is_worth_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    part = decided(monkeypatch, LEAST_ROOM, 0.98 * carried(0.4))
    assert [(step.model, step.after.share) for step in part.steps] == [("m", 0.6)]
    assert part.held.gpu("a").margins == HALF


def test_what_would_miss_without_margins_is_moved_whatever_room_that_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = decided(monkeypatch, 1.0, 1.1 * carried(0.4))
    assert [step.after.share for step in part.steps] == [0.6]


def test_margins_alone_are_not_bought_back_by_a_plan_without_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert decided(monkeypatch, 1.0, 0.98 * carried(0.4), margins=NONE).steps == ()
    assert len(decided(monkeypatch, LEAST_ROOM, 0.98 * carried(0.4), margins=NONE).steps) == 1
