import pytest

from igniterd.config import Model
from igniterd.decide.demands import batches
from igniterd.decide.search import find
from igniterd.loads import Load
from igniterd.perf import builtin_profile, load_model
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import Allocation, ModelReading


def model(**more: object) -> Model:
    return Model(name="m", slo_p99_ms=50.0, **more)  # type: ignore[arg-type]


def reading(batch: int = 16, **more: object) -> ModelReading:
    return ModelReading("m", "1", "main", True, "python", Allocation(0.5, batch), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("items", "asked", "planned"),
    [
        (1.0, {}, (1, 32)),
        (3.2, {}, (4, 32)),  # what clients bring is executed whole
        (1.0, {"client_batch": 8}, (8, 32)),
        (40.0, {}, (32, 32)),  # more than was profiled
        (1.0, {"max_batch_size": 12}, (1, 12)),
        (16.0, {"max_batch_size": 12}, (16, 16)),
    ],
)
def test_plans_are_for_the_batches_that_come(
    items: float, asked: dict[str, int], planned: tuple[int, int]
) -> None:
    load = Load("m", 10.0, 10.0, True, items_per_request=items)
    assert batches(model(**asked), reading(), load, 32) == planned


def test_batching_that_cannot_be_steered_is_kept_whatever_was_profiled() -> None:
    load = Load("m", 10.0, 10.0, True)
    assert batches(model(), reading(64, batching_fixed="its own"), load, 32) == (32, 32)
    brought = Load("m", 10.0, 10.0, True, items_per_request=8.0)
    assert batches(model(), reading(1, batching_fixed="no dynamic_batching"), brought, 32) == (
        8,
        8,
    ), "a request is executed whole"
    predictor = LatencyPredictor(load_model(builtin_profile("v100")), level=0.95)
    fixed = Demand("vgg19", "vgg19", 50.0, 60.0, min_batch=32, max_batch=32, keeps_batch=64)
    assert find(predictor, [fixed]).allocations["vgg19"].max_batch_size == 64


def test_no_plan_lowers_the_limit_below_it() -> None:
    predictor = LatencyPredictor(load_model(builtin_profile("v100")), level=0.95)
    wanted = Demand("vgg19", "vgg19", 50.0, 60.0, min_batch=12)
    assert find(predictor, [wanted]).allocations["vgg19"].max_batch_size >= 12
