"""What a changed configuration leaves of what was known."""

from dataclasses import fields, replace

from igniterd.config import Config, parse_config
from igniterd.decide.state import (
    HALF,
    CachedVerdict,
    DecisionState,
    GpuHold,
    ModelHold,
    Pause,
    Probation,
    Underway,
)
from igniterd.estimate import Expected, ModelState
from igniterd.estimators.arrivals import Rate, update_rate
from igniterd.estimators.bias import Bias, Measured, Point
from igniterd.estimators.bias_filter import update_bias
from igniterd.profiled import Predictors
from igniterd.records import Allocation, ModelReading, Observation
from igniterd.state.carry import Carry
from igniterd.state.carry_over import resumed


def settings(models: str, url: str = "127.0.0.1:8001") -> Config:
    return parse_config(f'[[triton]]\nurl = "{url}"\n{models}', source="test")


def model(name: str, slo_ms: float = 20.0, more: str = "") -> str:
    return f'[[model]]\nname = "{name}"\nslo_p99_ms = {slo_ms}\n{more}\n'


def a_carry() -> Carry:
    rate, bias = Rate(), Bias()
    for second in range(20):
        rate = update_rate(rate, second + 1.0, 1.0, 100)
        bias, _ = update_bias(bias, second + 1.0, [Measured(4, 50, 1.2)], Point(0.4, 0.3))
    here = Allocation(0.4, 8)
    known = ModelState(
        rate=rate,
        bias=bias,
        published_bias=bias.estimate,
        seen_s=20.0,
        expected=Expected(here, 100.0, 1.2, 19.0),
    )
    readings = {name: ModelReading(name, "1", "main", True, "python", here) for name in ("a", "b")}
    held = DecisionState(
        {
            "a": ModelHold(gpu="a", refused_until_s=75.0, refusals=1),
            "b": ModelHold(gpu="a", shed_why="no room", refused_until_s=80.0, refusals=2),
        },
        {
            "a": GpuHold(
                moved_at_s=15.0, plan=Underway({"a": here}, made_for={"a": 100.0}), margins=HALF
            )
        },
        reloads=(3.0, 15.0),
    )
    return Carry(Observation(20.0, models=readings), {"a": known, "b": known}, held, 20)


OLD, KNOWN = settings(model("a") + model("b")), Predictors(identities={"a": "1", "b": "1"})


def test_of_a_model_that_stays_traffic_and_service_times_stay_known() -> None:
    before = a_carry()
    after = resumed(
        before,
        OLD,
        KNOWN,
        settings(model("a", slo_ms=50) + model("c")),
        Predictors(identities={"a": "1", "c": "1"}),
    )
    assert after.belief.keys() == {"a"}
    assert (after.belief["a"].rate, after.belief["a"].bias, after.belief["a"].seen_s) == (
        before.belief["a"].rate,
        before.belief["a"].bias,
        20.0,
    )
    assert after.belief["a"].expected is None, "predictions are made anew"
    assert after.number == 20
    assert after.seen is not None
    assert after.seen.models.keys() == {"a"}, "the next window goes on from the last look"


def test_what_was_done_stays_known_and_what_was_decided_does_not() -> None:
    held = resumed(a_carry(), OLD, KNOWN, settings(model("a")), KNOWN).held
    assert held == DecisionState(
        {"a": ModelHold(gpu="a", refused_until_s=75.0, refusals=1)},
        {"a": GpuHold(moved_at_s=15.0)},
        reloads=(3.0, 15.0),
    )


DECIDED = {"shed_why", "shed", "needs_share", "left_out"}
"""Of a model: what is decided anew under another configuration."""
PLANNED = {"plan", "searched_at_s", "held_until_s", "sought_at_s", "least", "margins", "verdict"}
"""Of a GPU."""


def test_every_field_of_what_is_kept_is_either_carried_over_or_decided_anew() -> None:
    """A field that is new must be put into one of the sets, or it stays."""
    whole = ModelHold(
        gpu="a",
        shed_why="no room",
        shed=Pause(1, 9.0),
        needs_share=0.5,
        probation=Probation(Allocation(0.4, 8), 1.0, 2.0, 3.0),
        refused_until_s=75.0,
        refusals=1,
        refused_why="no",
        asked=Allocation(0.4, 8),
        pending_share=0.4,
        unhosted=Pause(1, 9.0),
        revived=Pause(2, 9.0),
        left_out=("odd", 9.0),
        relocated_at_s=3.0,
    )
    for field in fields(ModelHold):
        assert getattr(whole, field.name) != getattr(ModelHold(), field.name), field.name
    board = GpuHold(
        Underway({}),
        15.0,
        16.0,
        17.0,
        18.0,
        {"a": 0.5},
        HALF,
        CachedVerdict(1, {}, {}, {}, {}, {}, 1),
    )
    for field in fields(GpuHold):
        assert getattr(board, field.name) != getattr(GpuHold(), field.name), field.name
    before = replace(a_carry(), held=DecisionState({"a": whole}, {"a": board}))
    after = resumed(before, OLD, KNOWN, settings(model("a")), KNOWN).held
    for field in fields(ModelHold):
        kept = getattr(after.of("a"), field.name) == getattr(whole, field.name)
        assert kept == (field.name not in DECIDED), field.name
    for field in fields(GpuHold):
        kept = getattr(after.gpu("a"), field.name) == getattr(board, field.name)
        assert kept == (field.name not in PLANNED), field.name


def test_another_profile_forgets_the_bias_and_keeps_the_traffic() -> None:
    before = a_carry()
    after = resumed(before, OLD, KNOWN, OLD, Predictors(identities={"a": "2", "b": "1"}))
    assert after.belief["a"].rate == before.belief["a"].rate
    assert (after.belief["a"].bias, after.belief["a"].published_bias) == (Bias(), None)
    assert after.belief["b"].bias == before.belief["b"].bias


def test_a_model_elsewhere_is_another_model() -> None:
    assert (
        resumed(a_carry(), OLD, KNOWN, settings(model("a"), url="127.0.0.1:9001"), KNOWN).belief
        == {}
    )
    assert resumed(a_carry(), OLD, KNOWN, settings(model("a", more="gpu = 1")), KNOWN).belief == {}
