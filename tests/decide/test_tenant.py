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
    """A tenant beside one neighbour once the queue has agreed to it; None if no share holds."""
    tenant = TenantSearch(PREDICTOR, demand)
    tenant.start(growth)
    if tenant.guess(BESIDE, True) is None:
        tenant.position = type(tenant.position)(tenant.high, 0)
    while (moved := tenant.check(BESIDE, True)) is True:
        pass
    return None if moved is None else tenant


@settings(max_examples=30, deadline=None)
@given(st.floats(20.0, 500.0), st.floats(12.0, 120.0), st.floats(1.0, 8.0))
def test_what_is_settled_holds_by_the_queue_and_half_of_it_does_not(
    rate: float, slo: float, arrival_scv: float
) -> None:
    demand = Demand("r", "resnet50", rate, slo, min_share=0.025, arrival_scv=arrival_scv)
    tenant = settled(demand)
    if tenant is None:
        best = min(
            PREDICTOR.served(demand, Allocation(1.0, int(b)), BESIDE).p99_ms
            for b in (1, 2, 4, 8, 16, 32)
        )
        assert best > slo
        return
    assert PREDICTOR.served(demand, tenant.allocation, BESIDE).p99_ms <= slo
    assert tenant.service is not None
    assert math.isfinite(tenant.service.mean_ms)  # the queue's answer, not a guess
    half = tenant.share(tenant.position.units // 2)
    if half > 0:
        assert (
            min(
                PREDICTOR.served(demand, Allocation(half, int(b)), BESIDE).p99_ms
                for b in tenant.sizes
            )
            > slo
        )


def test_more_traffic_takes_more_share() -> None:
    demand = Demand("r", "resnet50", 80.0, 50.0, min_share=0.025)
    seats = [settled(demand, growth) for growth in (1.0, 1.5, 2.0, 3.0)]
    units = [tenant.position.units for tenant in seats if tenant is not None]
    assert len(units) == 4
    assert units == sorted(units)
    assert units[0] < units[-1]


@pytest.mark.parametrize(
    ("model", "rate"), [("alexnet", 20.0), ("vgg19", 60.0), ("resnet50", 120.0)]
)
def test_a_larger_limit_is_taken_only_where_it_costs_next_to_nothing(
    model: str, rate: float
) -> None:
    tenant = TenantSearch(PREDICTOR, Demand("m", model, rate, 200.0))
    tenant.start(1.0)
    tenant.place(Allocation(0.5, 2))
    before = PREDICTOR.served(tenant.demand, Allocation(0.5, 2), BESIDE).p99_ms
    tenant.enlarge_batch(BESIDE, largest=True)
    assert tenant.allocation.max_batch_size > 2
    assert PREDICTOR.served(tenant.demand, tenant.allocation, BESIDE).p99_ms <= before * 1.05


def test_a_model_let_go_sits_where_it_is_put() -> None:
    tenant = TenantSearch(PREDICTOR, Demand("a", "alexnet", 20.0, 100.0))
    service = PREDICTOR.served(tenant.demand, Allocation(0.1, 32), ())
    tenant.start(1.0, (Allocation(0.1, 32), service))
    assert tenant.fixed
    assert tenant.allocation == Allocation(0.1, 32)
    assert tenant.as_neighbours[0].share == pytest.approx(0.1)
