"""A request that brings several items is executed whole: it waits and is served as one."""

import pytest

from igniterd.perf import builtin_profile, load_model
from igniterd.predict import Demand, LatencyPredictor, of_requests
from igniterd.records import Allocation

MODEL = load_model(builtin_profile("v100"))


def p99_ms(brings: int, batch: int, items_per_s: float = 20.0) -> float:
    demand = Demand("vgg19", "vgg19", items_per_s, 60.0, brings=brings)
    predictor = LatencyPredictor(MODEL, level=0.95)
    return predictor.served(demand, Allocation(0.5, batch), ()).p99_ms


@pytest.mark.parametrize("brings", [2, 8, 27])
def test_it_takes_at_least_as_long_as_its_batch_alone(brings: int) -> None:
    alone_ms = MODEL.service_curve_ms("vgg19", 0.5, (), 32, level=0.95)[1]
    assert p99_ms(brings, 32) >= alone_ms[brings - 1]
    assert p99_ms(brings, 32) > p99_ms(1, 32)


def test_a_smaller_preferred_batch_does_not_cut_it_in_two() -> None:
    assert p99_ms(16, 2) >= p99_ms(16, 16) * 0.999


def test_beyond_the_profile_it_is_in_proportion() -> None:
    known = MODEL.service_curve_ms("vgg19", 0.5, (), 32, level=0.95)[1]
    assert of_requests(known, 64)[0] == pytest.approx(2 * known[-1])
    assert list(of_requests(known, 8)) == [known[7], known[15], known[23], known[31]]
