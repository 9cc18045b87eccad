"""The decision for one GPU, on demands made up."""

from igniterd.config import Decide
from igniterd.decide.gpu import Case, Oracles
from igniterd.decide.hold import Held
from igniterd.model import builtin_profile, load_model
from igniterd.model.oracle import Demand, Oracle
from igniterd.records import Allocation, Outcomes

MODEL = load_model(builtin_profile("v100"))
ORACLES = Oracles(promises=Oracle(MODEL, level=0.95), expects=Oracle(MODEL, level=0.95, upper=False))
RATES = {"alexnet": 200.0, "resnet50": 100.0}
WAITING_MS = 20


def case(slo_ms: float) -> Case:
    """Both models on half of the GPU, with a queue delay that somebody has set."""
    demands = [Demand(name, name, rate, slo_ms, max_batch=8) for name, rate in RATES.items()]
    here = {name: Allocation(0.5, 8, 1000 * WAITING_MS) for name in RATES}
    return Case(0, lambda _: demands, here, Held(), Decide(), ORACLES, 100.0)


def test_a_delay_that_somebody_set_stays_where_every_slo_holds_with_it() -> None:
    part = case(200.0).decide()
    assert part.outcome is Outcomes.HOLD
    assert not part.steps
    assert all(service.p99_ms > WAITING_MS for service in part.served.values())  # what it costs is counted


def test_a_delay_that_costs_an_slo_is_taken_away() -> None:
    part = case(25.0).decide()
    assert part.outcome is Outcomes.MOVE
    assert {step.after.max_queue_delay_us for step in part.steps} == {0}
    assert all(part.served[name].p99_ms <= 25.0 for name in RATES)
