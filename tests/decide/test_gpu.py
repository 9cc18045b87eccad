"""The decision for one GPU, on demands made up."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from igniterd.config import Decide
from igniterd.decide.gpu import GpuContext
from igniterd.decide.judge import JUDGE_APART_S, JUDGE_EVERY_S, PredictorPair
from igniterd.decide.search import GROWTHS
from igniterd.decide.state import (
    ALL,
    CROWDED,
    CachedVerdict,
    DecisionState,
    GpuHold,
    ModelHold,
    Pause,
)
from igniterd.decisions import DecisionKind
from igniterd.predict import Demand, LatencyPrediction
from igniterd.records import ROUNDING, Allocation
from tests.factories import predictor_pair

PREDICTORS = predictor_pair()
RATES = {"alexnet": 200.0, "resnet50": 100.0}
WAITING_MS = 20


def case(slo_ms: float) -> GpuContext:
    """Both models on half of the GPU, with a queue delay that somebody has set."""
    demands = [Demand(name, name, rate, slo_ms, max_batch=8) for name, rate in RATES.items()]
    here = {name: Allocation(0.5, 8, 1000 * WAITING_MS) for name in RATES}
    return GpuContext("a", lambda _: demands, here, DecisionState(), Decide(), PREDICTORS, 100.0)


def test_a_delay_that_somebody_set_stays_where_every_slo_holds_with_it() -> None:
    part = case(200.0).decide()
    assert part.outcome is DecisionKind.HOLD
    assert not part.steps
    # what it costs is counted
    assert all(service.p99_ms > WAITING_MS for service in part.served.values())


def test_a_delay_that_costs_an_slo_is_taken_away() -> None:
    part = case(25.0).decide()
    assert part.outcome is DecisionKind.MOVE
    assert {step.after.max_queue_delay_us for step in part.steps} == {0}
    assert all(part.served[name].p99_ms <= 25.0 for name in RATES)


def test_what_is_only_seen_to_be_taken_is_given_up_before_a_model_is() -> None:
    beside = replace(case(25.0), reserved=0.9, takes={"other": 0.9})
    part = replace(beside, bound=0.0).decide()
    assert part.outcome is DecisionKind.MOVE
    assert part.held.gpu("a").margins == CROWDED[0]
    assert all(part.served[name].p99_ms <= 25.0 for name in RATES)
    # what is held by shares is nobody's to give away
    held = replace(beside, bound=0.9).decide()
    assert held.outcome is DecisionKind.INFEASIBLE
    assert (
        (part.reserved, part.takes) == (held.reserved, held.takes) == ({"a": 0.9}, {"other": 0.9})
    )


def test_a_model_let_go_comes_back_though_a_neighbour_is_always_busy() -> None:
    held = DecisionState({"alexnet": ModelHold(gpu="a", shed_why="no room", shed=Pause(1, 50.0))})
    part = replace(case(25.0), reserved=0.9, bound=0.0, held=held).decide()
    assert part.held.shed == {}
    assert part.served["alexnet"].p99_ms <= 25.0


def test_what_is_seen_to_be_taken_is_left_free_where_that_costs_no_slo() -> None:
    part = replace(case(40.0), reserved=0.3, bound=0.0).decide()
    assert part.outcome is DecisionKind.MOVE
    assert part.held.gpu("a").margins is ALL
    assert sum(a.granted or 0.0 for a in part.target.values()) <= 0.7 + ROUNDING


def test_gpus_with_room_are_judged_again_in_time_and_not_all_in_one_tick() -> None:
    gpus = [replace(case(200.0), gpu=f"GPU-{gpu}") for gpu in range(8)]
    held, judged = DecisionState(), dict.fromkeys((gpu.gpu for gpu in gpus), 0)
    for second in range(200):
        before, again = held, 0
        for gpu in gpus:
            part = replace(gpu, held=held, now_s=100.0 + second).decide()
            assert part.outcome is DecisionKind.HOLD
            held = part.held
            new = held.gpu(gpu.gpu).verdict is not before.gpu(gpu.gpu).verdict
            again += new
            judged[gpu.gpu] += new
        verdicts = [hold.verdict for hold in held.gpus.values() if hold.verdict is not None]
        ends = sorted(verdict.until_s for verdict in verdicts)
        assert ends[-1] <= 100.0 + second + JUDGE_EVERY_S
        assert all(later - earlier >= JUDGE_APART_S for earlier, later in pairwise(ends))
        assert again == 8 if second == 0 else again <= 1
    assert min(judged.values()) >= 4  # at 0, within 60, 120 and 180 s


class UpTo:
    """An predictor that finds every SLO held up to one growth of the rates."""

    def __init__(self, most: float) -> None:
        self.most = most

    def together(
        self, demands: list[Demand], _: object, *, growth: float = 1.0
    ) -> dict[str, LatencyPrediction]:
        return {
            d.model: LatencyPrediction(
                d.slo_ms * (1.0 if growth <= self.most else 1.1), 1.0, 1.0, 0.5, 1.0
            )
            for d in demands
        }


@given(most=st.floats(0.9, 5.0), before=st.none() | st.sampled_from([1.0, *GROWTHS]))
def test_the_room_found_is_the_same_wherever_it_was_before(
    most: float, before: float | None
) -> None:
    held = (
        DecisionState()
        if before is None
        else DecisionState(
            gpus={"a": GpuHold(verdict=CachedVerdict(0.0, {}, {}, {}, {}, {}, before))}
        )
    )
    asked = replace(case(100.0), held=held, predictors=PredictorPair(UpTo(most), UpTo(most)))  # type: ignore[arg-type]
    assert asked.room(asked.here) == max((g for g in GROWTHS if g <= most), default=1.0)
