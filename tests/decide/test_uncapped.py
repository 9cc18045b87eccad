"""What is not planned with takes its part of a GPU."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.config import Model
from igniterd.decide.state import DecisionState, ModelHold, Part
from igniterd.decide.uncapped import HOLD_S, STEP, after, beside, busy_part
from igniterd.loads import Load
from igniterd.records import Allocation, ModelReading, Observation

WARM_S = 5.0
FRACTIONS = st.floats(0.0, 1.0)


def reading(gpus: tuple[str, ...] = ("a",), **more: Any) -> ModelReading:
    allocation = more.pop("allocation", Allocation(None, 8, instances=len(gpus) or 1))
    given = {"ready": True, "backend": "onnxruntime", "allocation": allocation, "gpus": gpus}
    return ModelReading("m", "1", "main", **given, **more)


def load(
    busy: float, *, rate: float = 100.0, upper: float = 100.0, watched_s: float = 60.0
) -> Load:
    return Load("m", rate, upper, True, utilisation=busy, watched_s=watched_s)


def seen(one: ModelReading, at_s: float = 100.0, **more: Any) -> Observation:
    return Observation(at_s, models={"m": one}, **more)


def parts(
    one: ModelReading,
    known: Load | None,
    *gpus: str,
    told: float | None = None,
    planned: tuple[str, ...] = (),
    held: DecisionState | None = None,
    **more: Any,
) -> tuple[dict[str, float], dict[str, float]]:
    models = {"m": Model(name="m", slo_p99_ms=10.0, reserve_share=told)}
    loads = {} if known is None else {"m": known}
    held = held or DecisionState()
    found = beside(gpus or ("a",), planned, seen(one, **more), loads, models, held, WARM_S)
    return dict(found.by_gpu), dict(found.takes)


@pytest.mark.parametrize(
    ("one", "busy", "told", "takes"),
    [
        (reading(), 0.3, None, 0.3),
        (reading(), 0.31, None, 0.35),
        (reading(), 0.0, None, 0.0),
        (reading(), 0.004, None, 0.0),
        (reading(), 0.3, 0.1, 0.1),  # the configuration wins
        (reading(), 0.0, 0.1, 0.1),
        (reading(allocation=Allocation(None, 8, instances=3)), 0.2, None, 0.6),
        (reading(allocation=Allocation(None, 8, instances=3)), 0.5, None, 1.0),
        # confined to a share: that, or what the configuration says where that is more
        (reading(allocation=Allocation(0.2, 8)), 0.9, None, 0.2),
        (reading(allocation=Allocation(0.2, 8)), 0.9, 0.1, 0.2),
        (reading(allocation=Allocation(0.2, 8)), 0.9, 0.4, 0.4),
        # a share that is not proven
        (reading(reserved_share=0.4), 0.2, None, 0.4),
        (reading(reserved_share=0.4), 0.6, None, 0.6),
    ],
)
def test_one_model_by_hand(
    one: ModelReading, busy: float, told: float | None, takes: float
) -> None:
    by_gpu, each = parts(one, load(busy), told=told)
    assert by_gpu == pytest.approx({"a": takes})
    assert each == pytest.approx({"m": takes})


def test_a_model_takes_its_part_of_each_of_its_gpus() -> None:
    one = reading(("a", "b", "b"))
    by_gpu, takes = parts(one, load(0.3), "a", "b", "c")
    assert by_gpu == pytest.approx({"a": 0.3, "b": 0.6, "c": 0.0})
    assert takes == pytest.approx({"m": 0.6})


def test_what_is_planned_with_or_runs_on_the_cpu_takes_nothing_here() -> None:
    assert parts(reading(), load(0.3), planned=("m",)) == ({"a": 0.0}, {})
    assert parts(reading(()), load(0.3)) == ({"a": 0.0}, {})


def test_a_load_counts_once_it_has_been_watched() -> None:
    assert parts(reading(), load(0.3, watched_s=4.0)) == ({"a": 0.0}, {"m": 0.0})
    assert parts(reading(), None) == ({"a": 0.0}, {"m": 0.0})
    held = DecisionState({"m": ModelHold(uncapped=Part(0.4, 0.0))})
    assert parts(reading(), None, held=held) == ({"a": 0.4}, {"m": 0.4})


def test_it_is_reckoned_with_at_the_rate_that_plans_are_made_for() -> None:
    assert busy_part(load(0.3, upper=120.0), 1) == pytest.approx(0.36)
    assert busy_part(load(0.4, upper=1e6), 1) == pytest.approx(0.5)
    assert busy_part(load(0.3, rate=0.0, upper=50.0), 1) == pytest.approx(0.3)


def test_models_that_nobody_configured_take_what_they_hold_and_what_they_are_busy() -> None:
    foreign: dict[str, Any] = {"foreign": {"a": 0.2, "b": 0.1}, "foreign_busy": {"a": 0.12}}
    by_gpu, _ = parts(reading(), load(0.3), "a", "b", **foreign)
    assert by_gpu == pytest.approx({"a": 0.2 + 0.15 + 0.3, "b": 0.1})


def test_those_without_a_share_take_no_more_than_all_together() -> None:
    by_gpu, _ = parts(reading(), load(0.8), foreign={"a": 0.2}, foreign_busy={"a": 0.9})
    assert by_gpu == pytest.approx({"a": 1.2})


def test_only_shares_and_what_is_configured_can_never_be_given_away() -> None:
    held = DecisionState()
    both: dict[str, Any] = {"foreign": {"a": 0.2}, "foreign_busy": {"a": 0.3}}
    for told, bound, whole in ((None, 0.2, 0.9), (0.1, 0.3, 0.6)):
        models = {"m": Model(name="m", slo_p99_ms=10.0, reserve_share=told)}
        found = beside(("a",), (), seen(reading(), **both), {"m": load(0.4)}, models, held, WARM_S)
        assert found.bound == pytest.approx({"a": bound})
        assert found.by_gpu == pytest.approx({"a": whole})


def test_more_counts_at_once_and_much_less_only_after_a_while() -> None:
    part = after(None, 0.28, 0.0)
    assert part is not None and part.level == pytest.approx(0.3)
    higher = after(part, 0.33, 1.0)
    assert higher is not None and higher.level == pytest.approx(0.35)
    # a little less is noise, however long it lasts
    steady: Part | None = higher
    for second in range(2, 300):
        steady = after(steady, 0.28, float(second))
    assert steady is not None and steady.level == pytest.approx(0.35)
    idle: Part | None = steady
    for second in range(300, 359):
        idle = after(idle, 0.0, float(second))
        assert idle is not None and idle.level == pytest.approx(0.35)
    assert after(idle, 0.0, 299.0 + HOLD_S) is None
    assert after(idle, 0.12, 299.0 + HOLD_S) == Part(0.15, 299.0 + 2 * HOLD_S)


def test_the_smallest_part_is_given_back_too() -> None:
    part = after(None, 0.02, 0.0)
    assert part is not None and part.level == pytest.approx(STEP)
    assert after(part, 0.0, HOLD_S - 1) == part
    assert after(part, 0.0, HOLD_S) is None


def test_nothing_is_kept_of_a_model_that_is_planned_with_again_or_gone() -> None:
    held = DecisionState({"m": ModelHold(gpu="a", uncapped=Part(0.4, 1e9), refusals=1)})
    again = beside(("a",), {"m"}, seen(reading()), {}, {}, held, WARM_S).held
    assert again.of("m") == ModelHold(gpu="a", refusals=1)
    assert held.pruned({}).of("m") == ModelHold(refusals=1)


@given(FRACTIONS, FRACTIONS, st.integers(1, 8), st.floats(0, 1e4), st.floats(0, 1e4))
def test_a_part_is_within_the_gpu_and_grows_with_busy_time(
    one: float, other: float, instances: int, rate: float, upper: float
) -> None:
    less, more = sorted((one, other))
    low, high = (busy_part(load(busy, rate=rate, upper=upper), instances) for busy in (less, more))
    assert 0 <= low <= high <= 1
    lower, higher = (parts(reading(), load(busy))[1]["m"] for busy in (less, more))
    assert 0 <= lower <= higher <= 1
    assert less <= lower + 0.005


@given(st.lists(st.tuples(FRACTIONS, st.floats(0.1, 100)), min_size=1, max_size=40))
def test_whatever_is_seen_a_part_covers_it_nearly_and_never_more_than_the_gpu(
    seen_busy: list[tuple[float, float]],
) -> None:
    part, now_s = None, 0.0
    for busy, passed_s in seen_busy:
        now_s += passed_s
        part = after(part, busy, now_s)
        level = part.level if part is not None else 0.0
        assert max(0.0, busy - 0.005) <= level + 1e-6
        assert level <= 1
        # and the more is seen, the more is reckoned with
        fuller = after(part, min(1.0, busy + 0.1), now_s)
        assert (fuller.level if fuller is not None else 0.0) >= level


def test_a_share_of_an_unsteered_model_stays_as_it_is() -> None:
    one = replace(reading(("a", "b")), allocation=Allocation(0.25, 8, instances=2))
    assert parts(one, load(0.9), "a", "b") == ({"a": 0.25, "b": 0.25}, {"m": 0.25})
