import pytest

from igniterd.decide import least_batch
from igniterd.decide.search import find
from igniterd.model import builtin_profile, load_model
from igniterd.model.oracle import Demand, Oracle
from igniterd.records import Allocation, ModelReading


def reading(requests: int, items: int | None) -> ModelReading:
    return ModelReading("m", "1", "main", True, "python", Allocation(0.5, 16), success_count=requests, inference_count=items)


@pytest.mark.parametrize(("requests", "items", "each", "least"), [(0, 0, 1.0, 1), (10, None, 1.0, 1), (10, 10, 1.0, 1), (10, 40, 4.0, 16)])
def test_clients_that_batch_keep_the_limit_they_were_given(requests: int, items: int | None, each: float, least: int) -> None:
    assert reading(requests, items).items_per_request == each
    assert least_batch(reading(requests, items)) == least


def test_no_plan_lowers_the_limit_below_it() -> None:
    oracle = Oracle(load_model(builtin_profile("v100")), level=0.95)
    wanted = Demand("vgg19", "vgg19", 50.0, 60.0, min_batch=12)
    assert find(oracle, [wanted]).allocations["vgg19"].max_batch_size >= 12
