"""The forecast of the page is what the predictor says."""

from dataclasses import replace

import pytest

from igniterd.demo.forecast import LEVEL, expected_p99_ms
from igniterd.perf import builtin_profile, load_model
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import Allocation

SLOS = {"alexnet": 15.0, "vgg19": 60.0}
RATES = {"alexnet": 100.0, "vgg19": 50.0}
GIVEN = {"alexnet": Allocation(0.4, 8), "vgg19": Allocation(0.6, 8)}


def test_it_is_what_the_predictor_expects() -> None:
    profile = builtin_profile("v100")
    found = expected_p99_ms(
        profile, slos_ms=SLOS, rates_per_s=RATES, allocations=GIVEN, bias={"vgg19": 1.1}
    )
    model = load_model(profile)
    demands = [
        Demand("alexnet", "alexnet", 100.0, 15.0, max_batch=model.max_batch("alexnet")),
        Demand("vgg19", "vgg19", 50.0, 60.0, max_batch=model.max_batch("vgg19"), bias=1.1),
    ]
    expected = LatencyPredictor(model, level=LEVEL, upper=False).together(demands, GIVEN)
    assert found == {name: pytest.approx(each.p99_ms, abs=0.01) for name, each in expected.items()}


def test_more_than_a_share_can_serve_is_overload() -> None:
    found = expected_p99_ms(
        builtin_profile("v100"),
        slos_ms=SLOS,
        rates_per_s=RATES | {"vgg19": 5000.0},
        allocations=GIVEN,
        bias={},
    )
    assert found["vgg19"] is None
    assert found["alexnet"] is not None


def test_models_on_different_gpus_do_not_slow_each_other() -> None:
    apart = {name: replace(given, devices=(n,)) for n, (name, given) in enumerate(GIVEN.items())}
    found, together = (
        expected_p99_ms(
            builtin_profile("v100"), slos_ms=SLOS, rates_per_s=RATES, allocations=each, bias={}
        )
        for each in (apart, GIVEN)
    )
    for name, slo_ms in SLOS.items():
        alone = expected_p99_ms(
            builtin_profile("v100"),
            slos_ms={name: slo_ms},
            rates_per_s=RATES,
            allocations=GIVEN,
            bias={},
        )
        assert found[name] == alone[name]
        assert (found[name] or 0) < (together[name] or 0)
