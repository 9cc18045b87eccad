import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.decide.tenant import TenantSearch
from igniterd.perf import builtin_profile, load_model
from igniterd.perf.api import Tenant
from igniterd.predict import Demand, LatencyPredictor, quantised
from igniterd.records import Allocation

PREDICTOR = LatencyPredictor(load_model(builtin_profile("v100")), level=0.95)
BESIDE = quantised([Tenant("vgg19", 2.0, 0.3, 0.6)])


def settled(demand: Demand, growth: float = 1.0) -> TenantSearch | None:
    """A seat beside one neighbour once the queue has agreed to it; None if no share holds."""
    seat = TenantSearch(PREDICTOR, demand)
    seat.sit(growth)
    if seat.guess(BESIDE, True) is None:
        seat.position = type(seat.position)(seat.high, 0)
    while (moved := seat.check(BESIDE, True)) is True:
        pass
    return None if moved is None else seat


@settings(max_examples=30, deadline=None)
@given(st.floats(20.0, 500.0), st.floats(12.0, 120.0), st.floats(1.0, 8.0))
def test_what_is_settled_holds_by_the_queue_and_half_of_it_does_not(
    rate: float, slo: float, burstiness: float
) -> None:
    demand = Demand("r", "resnet50", rate, slo, min_share=0.025, burstiness=burstiness)
    seat = settled(demand)
    if seat is None:
        best = min(
            PREDICTOR.served(demand, Allocation(1.0, int(b)), BESIDE).p99_ms
            for b in (1, 2, 4, 8, 16, 32)
        )
        assert best > slo
        return
    assert PREDICTOR.served(demand, seat.allocation, BESIDE).p99_ms <= slo
    assert seat.service is not None
    assert math.isfinite(seat.service.mean_ms)  # the queue's answer, not a guess
    half = seat.share(seat.position.units // 2)
    if half > 0:
        assert (
            min(
                PREDICTOR.served(demand, Allocation(half, int(b)), BESIDE).p99_ms
                for b in seat.sizes
            )
            > slo
        )


def test_more_traffic_takes_more_share() -> None:
    demand = Demand("r", "resnet50", 80.0, 50.0, min_share=0.025)
    seats = [settled(demand, growth) for growth in (1.0, 1.5, 2.0, 3.0)]
    units = [seat.position.units for seat in seats if seat is not None]
    assert len(units) == 4
    assert units == sorted(units)
    assert units[0] < units[-1]


@pytest.mark.parametrize(
    ("model", "rate"), [("alexnet", 20.0), ("vgg19", 60.0), ("resnet50", 120.0)]
)
def test_a_larger_limit_is_taken_only_where_it_costs_next_to_nothing(
    model: str, rate: float
) -> None:
    seat = TenantSearch(PREDICTOR, Demand("m", model, rate, 200.0))
    seat.sit(1.0)
    seat.place(Allocation(0.5, 2))
    before = PREDICTOR.served(seat.demand, Allocation(0.5, 2), BESIDE).p99_ms
    seat.widen(BESIDE, largest=True)
    assert seat.allocation.max_batch_size > 2
    assert PREDICTOR.served(seat.demand, seat.allocation, BESIDE).p99_ms <= before * 1.05


def test_a_model_let_go_sits_where_it_is_put() -> None:
    seat = TenantSearch(PREDICTOR, Demand("a", "alexnet", 20.0, 100.0))
    service = PREDICTOR.served(seat.demand, Allocation(0.1, 32), ())
    seat.sit(1.0, (Allocation(0.1, 32), service))
    assert seat.fixed
    assert seat.allocation == Allocation(0.1, 32)
    assert seat.as_neighbours[0].share == pytest.approx(0.1)
