"""Documents on disk and on the wire: the same bytes as ever, and read again as they were."""

import json
import math

import pytest

from igniterd.belief import ModelState
from igniterd.errors import ConfigError
from igniterd.estimators.bias import Bias, Point
from igniterd.estimators.daily import BINS, Bin, Daily
from igniterd.estimators.dispersion import Dispersion
from igniterd.estimators.live_curve import LiveCurve, Size
from igniterd.lab.load.load import Arrivals, LoadSpec, Phase
from igniterd.planner.plan import PlannedGpu, PlannedTenant, ProvisionPlan, plan_from_json
from igniterd.planner.workloads import Infeasible
from igniterd.state.checkpoint import plain, recalled

PLAN = ProvisionPlan(
    strategy="igniterd",
    arrival_scv=1.0,
    gpus=(
        PlannedGpu(
            "v100",
            (
                PlannedTenant("W1", "alexnet", 10.0, 1200.0, 0.25, 4, 250, 3.14159, 8.5, 0.75),
                PlannedTenant("W2", "ssd", 25.0, 150.5, 0.5, 2),
            ),
            3.06,
        ),
    ),
    infeasible=(Infeasible("W9", "too fast", least_slo_ms=4.0),),
    lower_bound_gpus=0.61,
    planning_s=0.125,
    notes=("a note",),
)
PLAN_TEXT = (
    '{"feasible": false, "strategy": "igniterd", "burstiness": 1.0, "gpus": [{"gpu": "v100", '
    '"price_per_hour": 3.06, "tenants": [{"workload": "W1", "model": "alexnet", "slo_p99_ms": '
    '10.0, "rate_per_s": 1200.0, "weight": 1.0, "share": 0.25, "max_batch_size": 4, '
    '"max_queue_delay_us": 250, '
    '"utilisation": 0.75, "predicted": {"mean_ms": 3.1416, "p99_ms": 8.5}}, {"workload": "W2", '
    '"model": "ssd", "slo_p99_ms": 25.0, "rate_per_s": 150.5, "weight": 1.0, "share": 0.5, '
    '"max_batch_size": 2, '
    '"max_queue_delay_us": 0, "utilisation": null, "predicted": {"mean_ms": null, "p99_ms": '
    'null}}]}], "cost_per_hour": 3.06, "lower_bound_gpus": 0.61, "lower_bound_cost_per_hour": '
    'null, "lower_bound_by": "least shares", "needed_gpus": null, "planning_s": 0.125, '
    '"infeasible": [{"workload": "W9", "reason": '
    '"too fast", "least_slo_ms": 4.0}], "moves": [], "notes": ["a note"], "advice": []}'
)
SPEC = LoadSpec(
    "127.0.0.1:8001",
    (Phase("steady", 2.5, {"a": 3.0}, Arrivals.BURSTY), Phase("on", None, {"a": 1.5})),
    seed=9,
    requests={"a": "AAEC"},
)
SPEC_TEXT = (
    '{"url": "127.0.0.1:8001", "phases": [{"name": "steady", "duration_s": 2.5, "rates": {"a": '
    '3.0}, "arrivals": "bursty"}, {"name": "on", "duration_s": null, "rates": {"a": 1.5}, '
    '"arrivals": "poisson"}], "deadline_s": 10.0, "seed": 9, "requests": {"a": "AAEC"}}'
)
BIAS = Bias(
    level=0.125,
    tilt=-0.0625,
    p_level=0.25,
    p_both=0.0,
    p_tilt=0.5,
    drift=0.001,
    scatter=0.01,
    point=Point(0.5, 0.25),
    windows=12,
    at_s=500.0,
    dispersion=Dispersion(0.125, 0.25, 64.0),
)
WEEK = ((1.5, 2), (0.0, 0), (0.0, 0), (0.25, 1), (0.0, 0), (0.0, 0), (0.0, 0))
DAY = Daily((Bin(12.5, 20.0, 0.75, 3, WEEK), *[None] * (BINS - 1)))
BELIEF = {
    "a": ModelState(
        bias=BIAS,
        curve=LiveCurve(0.5, 2, {1: Size(10.0, 2.5, 500.0), 4: Size(3.0, 7.25, 500.0)}),
        daily=DAY,
        copy=("1", "python"),
    ),
    "b": ModelState(copy=("3", "onnxruntime")),
}
WITHOUT_DISPERSION = (
    '{"format":"igniterd-learnt","version":1,"saved_s":1700000000.0,"models":{"a":{"version":"1",'
    '"backend":"python","profile":"abc","bias":{"level":0.125,"tilt":-0.0625,"p_level":0.25,'
    '"p_both":0.0,"p_tilt":0.5,"scatter":0.01,"drift":0.001,"windows":12,"share":0.5,"pressure":'
    '0.25},"curve":{"share":0.5,"instances":2,"sizes":{"1":[10.0,2.5],"4":[3.0,7.25]}},"day":[[12.5'
    ",20.0,0.75,3,1.5,2,0.0,0,0.0,0,0.25,1,0.0,0,0.0,0,0.0,0]"
    + ",null"
    * (BINS - 1)
    + ']},"b":{"version":"3","backend":"onnxruntime","profile":"","bias":null,"curve":null,"day":'
    "null}}}"
)
LEARNT_TEXT = WITHOUT_DISPERSION.replace(
    '"pressure":0.25}',
    '"pressure":0.25,"dispersion":{"usual":0.125,"variance":0.25,"freedom":64.0}}',
).replace(
    '"4":[3.0,7.25]}', '"4":[3.0,7.25]},"dispersion":{"usual":0.1,"variance":0.0,"freedom":0.0}'
)


def test_a_plan_is_written_and_read_as_ever() -> None:
    assert json.dumps(PLAN.as_json()) == PLAN_TEXT
    again = plan_from_json(json.loads(PLAN_TEXT), "here")
    assert again.gpus[0].tenants[1] == PLAN.gpus[0].tenants[1]
    assert again.as_json()["gpus"] == PLAN.as_json()["gpus"]
    assert (again.strategy, again.arrival_scv, again.lower_bound_gpus, again.planning_s) == (
        "igniterd",
        1.0,
        0.61,
        0.125,
    )


def test_a_load_is_written_and_read_as_ever() -> None:
    assert SPEC.to_json() == SPEC_TEXT
    assert LoadSpec.from_json(SPEC_TEXT) == SPEC


def test_a_checkpoint_is_written_and_read_as_ever() -> None:
    identities = {"a": "abc", "b": ""}
    written = plain(BELIEF, identities, 500.0, 1.7e9)
    assert json.dumps(written, separators=(",", ":")) == LEARNT_TEXT
    out, words = recalled(json.loads(LEARNT_TEXT), identities, 500.0, 1.7e9)
    assert words == []
    assert out["a"].curve == BELIEF["a"].curve
    assert out["a"].daily == DAY
    assert (out["a"].bias.level, out["a"].bias.windows, out["a"].bias.point) == (
        0.125,
        12,
        Point(0.5, 0.25),
    )
    assert out["a"].bias.dispersion == BIAS.dispersion
    assert out["b"] == ModelState(copy=("3", "onnxruntime"), published_bias=out["b"].published_bias)


def test_a_checkpoint_of_before_dispersion_was_learnt_is_taken_up() -> None:
    out, words = recalled(json.loads(WITHOUT_DISPERSION), {"a": "abc", "b": ""}, 500.0, 1.7e9)
    assert words == []
    assert (out["a"].bias.level, out["a"].bias.dispersion) == (0.125, Dispersion())
    assert out["a"].curve == BELIEF["a"].curve


def tenant(**changed: object) -> dict[str, object]:
    good = {"workload": "A", "model": "ssd", "rate_per_s": 1, "share": 0.6, "max_batch_size": 1}
    return good | changed


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (3, ["gpus is 3; should be a list of GPUs"]),
        ([3, {"gpu": "v"}], ["gpus[0] is 3; should be a table", "gpus[1].tenants is missing"]),
        ([{"gpu": "v", "tenants": [], "price_per_hour": math.inf}], ["price_per_hour is inf"]),
        (
            [{"gpu": "v", "tenants": [tenant(share="0.5"), tenant(share=True, model="")]}],
            [
                "gpus[0].tenants[0].share is '0.5'; should be a number above 0, at most 1",
                "gpus[0].tenants[1].model is ''; should be a name",
                "gpus[0].tenants[1].share is True",
            ],
        ),
        ([{"gpu": "v", "tenants": [tenant(rate_per_s=10**400)]}], ["should be a number above 0"]),
        ([{"gpu": "v", "tenants": [tenant(slo_p99_ms=math.nan)]}], ["slo_p99_ms is nan; should"]),
        ([{"gpu": "v", "tenants": [tenant(predicted=3)]}], ["predicted is 3; should be a table"]),
        ([{"gpu": "v", "tenants": [tenant(max_batch_size=4.5)]}], ["max_batch_size is 4.5"]),
    ],
)
def test_all_faults_of_a_plan_are_named_at_once(gpus: object, said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        plan_from_json({"gpus": gpus}, "here")
    for part in said:
        assert part in str(error.value)
    assert len(str(error.value)) < 1000
