from dataclasses import replace

import numpy as np
import pytest

from igniterd.colocation import beside_on_busiest
from igniterd.loads import BiasEstimate
from igniterd.perf import Profile, builtin_profile, load_model
from igniterd.perf.api import Tenant
from igniterd.predict import Demand, LatencyPredictor, as_tenants, quantised
from igniterd.queueing.tail import MAX_CV, SERVICE_CV
from igniterd.records import Allocation

MODEL = load_model(builtin_profile("v100"))
DEMANDS = [
    Demand("a", "alexnet", 300.0, 20.0),
    Demand("r", "resnet50", 150.0, 60.0),
    Demand("v", "vgg19", 60.0, 90.0),
]
ALLOCATIONS = {"a": Allocation(0.3, 8), "r": Allocation(0.35, 8), "v": Allocation(0.35, 8)}


def test_neighbours_are_felt_in_steps_and_never_less_busy_than_they_are() -> None:
    (near,) = quantised([Tenant("alexnet", 3.3, 0.2, 0.42), Tenant("vgg19", 1.0, 0.5, 0.001)])
    assert near == Tenant("alexnet", 3.5, 0.2, pytest.approx(0.45))
    assert quantised([Tenant("alexnet", 0.4, 0.2, 1.0)]) == (Tenant("alexnet", 1.0, 0.2, 1.0),)


CAPPED_OTHERS = Tenant("vgg19", 4, 0.5), Tenant("ssd", 4, 0.2)


@pytest.mark.parametrize(
    ("own", "uncapped", "slower"),
    [
        (0.3, 0.4, "b"),  # it executes on all SMs, where shares kept 0.7 busy of others
        (0.3, 0.1, "a"),
        (1.0, 0.4, "a"),  # who has no share meets everybody on the same SMs
    ],
)
def test_of_several_gpus_the_one_is_felt_whose_tenants_slow_most(
    own: float, uncapped: float, slower: str
) -> None:
    me = Tenant("resnet50", 4, own)
    groups = [(me, me), *((t,) for t in CAPPED_OTHERS), (Tenant("vgg19", 4, 1.0, uncapped),)]
    beside = beside_on_busiest(0, [("a", "b"), ("a",), ("a",), ("b",)], groups)
    assert beside == (CAPPED_OTHERS if slower == "a" else groups[3])
    slowed = {
        gpu: MODEL.predict([me, *near])[0].latency_ms
        for gpu, near in (("a", CAPPED_OTHERS), ("b", groups[3]))
    }
    assert max(slowed, key=slowed.__getitem__) == slower


def test_the_same_is_found_from_anywhere_near() -> None:
    predictor = LatencyPredictor(MODEL, level=0.95)
    served = predictor.together(DEMANDS, ALLOCATIONS)
    again = predictor.together(DEMANDS, ALLOCATIONS, near=served)
    for name, service in served.items():
        assert again[name].p99_ms == pytest.approx(service.p99_ms, rel=0.02)
        assert again[name].utilisation == pytest.approx(service.utilisation, abs=0.05)


def test_neighbours_and_traffic_only_ever_slow() -> None:
    predictor = LatencyPredictor(MODEL, level=0.95)
    together, more = (
        predictor.together(DEMANDS, ALLOCATIONS),
        predictor.together(DEMANDS, ALLOCATIONS, growth=1.3),
    )
    for demand in DEMANDS:
        alone = predictor.together([demand], ALLOCATIONS)[demand.model]
        assert alone.p99_ms <= together[demand.model].p99_ms <= more[demand.model].p99_ms


def test_curves_alone_are_those_of_every_share() -> None:
    predictor = LatencyPredictor(MODEL, level=0.95)
    demand = Demand("r", "resnet50", 1.0, 100.0, max_batch=8)
    alone = predictor.alone_ms(demand)
    assert alone.shape == (40, 8)
    np.testing.assert_allclose(
        alone[11], predictor.curve_ms("resnet50", max_batch=8, share=0.3, beside=()), rtol=1e-9
    )
    np.testing.assert_allclose(predictor.corrected_ms(demand, 0.3, ()), alone[11])
    assert (LatencyPredictor(MODEL, level=0.95, upper=False).alone_ms(demand) < alone).all()


def test_instances_of_one_model_slow_each_other() -> None:
    predictor = LatencyPredictor(MODEL, level=0.95)
    two = Demand("r", "resnet50", 200.0, 100.0, instances=2)
    served = predictor.together([two], {"r": Allocation(0.3, 8, instances=2)})["r"]
    undisturbed = predictor.served(two, Allocation(0.3, 8, instances=2), ())
    assert served.p99_ms > 1.02 * undisturbed.p99_ms
    tenants = as_tenants(two, Allocation(0.3, 8, instances=2), served)
    assert len(tenants) == 2
    assert tenants[0].utilisation == served.utilisation


def test_a_measured_dispersion_counts_and_an_unmeasured_one_is_the_usual() -> None:
    def with_cv(cv: float | None) -> float:
        data = builtin_profile("v100").model_dump()
        for point in data["models"]["resnet50"]["solo"]:
            point["latency_cv"] = cv
        predictor = LatencyPredictor(load_model(Profile.model_validate(data)), level=0.95)
        return predictor.served(DEMANDS[1], Allocation(0.5, 8), ()).p99_ms

    steady, usual, unsteady = with_cv(0.0), with_cv(SERVICE_CV), with_cv(0.4)
    assert steady < usual < unsteady
    assert with_cv(None) == usual
    assert with_cv(5.0) == pytest.approx(with_cv(MAX_CV))


def test_an_uncapped_neighbour_that_comes_and_goes_spreads_the_service_times() -> None:
    """By hand: a batch that meets it takes what it takes beside one that never rests."""
    predictor = LatencyPredictor(MODEL, level=0.95, upper=False, exact=True)
    alone = MODEL.service_curve_ms("resnet50", 0.4, (), 5)[0][4]

    def met_cv(d: float, share: float) -> float:
        beside = (Tenant("vgg19", 4, share, d),)
        own, met = predictor.dispersion("resnet50", max_batch=8, share=0.4, beside=beside)
        assert own == SERVICE_CV
        return met

    met = MODEL.service_curve_ms("resnet50", 0.4, [Tenant("vgg19", 4)], 5)[0][4]
    half = MODEL.service_curve_ms("resnet50", 0.4, [Tenant("vgg19", 4, 1.0, 0.5)], 5)[0][4]
    more = 0.25 * ((met - alone) / half) ** 2
    assert met_cv(0.5, 1.0) == pytest.approx(more**0.5)
    assert met_cv(0.5, 1.0) > 0.8 * SERVICE_CV
    assert met_cv(1.0, 1.0) == met_cv(0.5, 0.6) == 0.0


@pytest.mark.parametrize("exact", [False, True])
def test_a_dispersion_from_live_traffic_counts_instead_of_the_profiles(exact: bool) -> None:
    predictor = LatencyPredictor(MODEL, level=0.95, exact=exact)

    def p99_ms(cv: float | None, *beside: Tenant) -> float:
        learnt = BiasEstimate(0.5, 1.0, 0.0, 0.0, 0.02, cv)
        demand = Demand("r", "resnet50", 50.0, 100.0, learnt=learnt, max_batch=8)
        return predictor.served(demand, Allocation(0.5, 8), beside).p99_ms

    assert p99_ms(0.02) < p99_ms(SERVICE_CV) < p99_ms(0.4)
    assert p99_ms(None) == pytest.approx(p99_ms(SERVICE_CV), rel=0.01)
    # what an uncapped neighbour adds is on top of it
    comes_and_goes = Tenant("vgg19", 4, 1.0, 0.5)
    own, met = predictor.dispersion("resnet50", max_batch=8, share=0.5, beside=(comes_and_goes,))
    assert p99_ms(0.0, comes_and_goes) < p99_ms(own, comes_and_goes)
    assert met > 0


@pytest.mark.parametrize(("pressure", "kept"), [(1.0, True), (0.5, False)])
def test_a_bound_learnt_elsewhere_does_not_count_beside_an_uncapped_neighbour(
    pressure: float, kept: bool
) -> None:
    predictor = LatencyPredictor(MODEL, level=0.95, exact=True)
    learnt = BiasEstimate(0.5, pressure, 0.0, 0.0, 0.02)
    demand = Demand("r", "resnet50", 50.0, 100.0, learnt=learnt, max_batch=8)
    beside = (Tenant("vgg19", 4),)
    mean, upper = MODEL.service_curve_ms("resnet50", 0.5, beside, 8)
    found = predictor.corrected_ms(demand, 0.5, beside)
    assert (found < upper).all() if kept else found == pytest.approx(upper)
    assert (found > mean).all()


@pytest.mark.parametrize("exact", [False, True])
def test_a_rate_that_is_no_number_is_not_taken_for_none(exact: bool) -> None:
    predictor = LatencyPredictor(MODEL, level=0.95, exact=exact)
    odd = replace(DEMANDS[0], rate_per_s=float("nan"))
    with pytest.raises(ValueError, match="nan"):
        predictor.served(odd, Allocation(0.5, 8), ())
