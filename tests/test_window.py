import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.records import Allocation, BatchStat, ModelReading, Observation
from igniterd.window import between, between_readings

MS = 1_000_000


def reading(
    success: int = 0,
    failure: int = 0,
    pending: int | None = None,
    queue_ms: int = 0,
    **batches: tuple[int, int],
) -> ModelReading:
    return ModelReading(
        model="m",
        version="1",
        triton="main",
        ready=True,
        backend="python",
        allocation=Allocation(0.5, 8),
        success_count=success,
        failure_count=failure,
        pending_count=pending,
        queue_ns=queue_ms * MS,
        batches=tuple(
            BatchStat(int(k[1:]), n, n * MS, ms * MS, n * MS) for k, (n, ms) in batches.items()
        ),
    )


def test_rates_by_hand() -> None:
    before = reading(100, 2, 3, 500, b1=(60, 240), b2=(20, 120))
    after = reading(150, 3, 5, 600, b1=(70, 300), b2=(40, 240), b4=(1, 10))
    window = between_readings(before, after, 2.0)
    assert (window.arrivals, window.completed, window.failed) == (53, 51, 1)
    assert window.executions == {1: 10, 2: 20, 4: 1}
    # 60/10 + input 1 + output 1; 120/20 + 2; 10 + 2
    assert window.service_ms == {1: 8.0, 2: 8.0, 4: 12.0}
    assert window.queue_ms == 2.0
    assert not window.restarted


def test_the_time_executing_is_told_where_executions_are_not() -> None:
    before, after = (replace(reading(n), busy_ns=n * MS) for n in (100, 350))
    assert between_readings(before, after, 1.0).busy_s == 0.25
    assert between_readings(after, before, 1.0).busy_s == 0.1, "another copy: all that it counts"


def test_a_reload_is_seen_and_counts_from_zero() -> None:
    window = between_readings(reading(1000, b4=(250, 5000)), reading(12, b4=(3, 60)), 1.0)
    assert window.restarted
    assert (window.arrivals, window.executions, window.service_ms) == (12, {4: 3}, {4: 22.0})


def test_a_restart_hidden_by_the_total_is_seen_in_the_batches() -> None:
    assert between_readings(reading(10, b1=(10, 20)), reading(12, b2=(6, 20)), 1.0).restarted


def test_first_observation_and_models_that_come_and_go() -> None:
    first = Observation(at_s=1.0, models={"m": reading(5)})
    assert between(None, first).models == {}
    assert between(first, first).span_s == 0.0
    second = Observation(at_s=2.0, models={"n": replace(reading(9), model="n")})
    assert between(first, second).models == {}
    assert between(first, Observation(at_s=3.0, models={"m": reading(9)})).models["m"].arrivals == 4


counts = st.integers(0, 10**9)
batches = st.dictionaries(
    st.sampled_from(["b1", "b2", "b8"]), st.tuples(st.integers(0, 10**6), st.integers(0, 10**6))
)
readings = st.builds(
    lambda s, f, p, q, b: reading(s, f, p, q, **b),
    counts,
    counts,
    st.none() | st.integers(0, 10**4),
    counts,
    batches,
)


@given(readings, readings, st.floats(0.01, 100))
def test_counters_that_restart_never_give_a_negative_rate(
    before: ModelReading, after: ModelReading, span_s: float
) -> None:
    window = between_readings(before, after, span_s)
    assert window.arrivals >= 0
    assert window.completed >= 0
    assert window.failed >= 0
    assert all(n > 0 for n in window.executions.values())
    assert all(ms >= 0 for ms in window.service_ms.values())
    assert window.queue_ms is None or window.queue_ms >= 0


def seen(at_s: float, answered_s: float | None, of: ModelReading, **more: object) -> Observation:
    return Observation(at_s, models={"m": replace(of, at_s=answered_s)}, **more)  # type: ignore[arg-type]


def test_a_span_is_from_answer_to_answer() -> None:
    window = between(seen(1.0, 1.3, reading(100)), seen(2.0, 2.0, reading(170)))
    assert window.span_s == 1.0
    assert window.models["m"].span_s == pytest.approx(0.7)
    assert between(seen(1.0, None, reading(100)), seen(2.0, 2.2, reading(220))).models[
        "m"
    ].span_s == pytest.approx(1.2)
    assert (
        between(seen(1.0, math.nan, reading(100)), seen(2.0, None, reading(200))).models["m"].span_s
        == 1.0
    )


@pytest.mark.parametrize(
    ("first_s", "then_s", "more"),
    [
        (1.2, 1.2, {}),  # the same answer, seen twice
        (1.2, 0.9, {}),  # a clock that went back
        (1.5, 1.55, {}),  # hardly a moment
        # what stands for it was answered before
        (None, None, {"unread": {"m": "no answer in 0.4 s"}}),
    ],
)
def test_a_reading_that_is_not_new_is_no_window(
    first_s: float | None, then_s: float | None, more: dict[str, object]
) -> None:
    assert (
        between(seen(1.0, first_s, reading(100)), seen(2.0, then_s, reading(100), **more)).models
        == {}
    )


def test_an_answer_that_is_new_counts_though_its_stamp_is_not() -> None:
    window = between(
        seen(1.0, 1.2, reading(100, pending=3)), seen(2.0, 1.2, reading(100, pending=90))
    )
    assert (window.models["m"].span_s, window.models["m"].arrivals) == (1.0, 87)


def test_a_model_that_was_unread_is_counted_from_its_last_answer() -> None:
    stands_in = seen(5.0, 1.0, reading(100), unread={"m": "no answer"})
    assert between(stands_in, seen(6.0, 6.0, reading(600))).models["m"].span_s == 5.0
    unstamped = seen(5.0, None, reading(100), unread={"m": "no answer"})
    assert between(unstamped, seen(6.0, 6.0, reading(600))).models == {}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (reading(100), reading(100 + 10**12)),
        # another server behind the address: no new copy counts so much in a second
        (reading(26_000_000), reading(10_000_000)),
        (reading(2**64 - 1), reading(2**63)),
        (reading(-5), reading(100)),
        (reading(100), reading(-100)),
        (reading(100), reading(120, failure=10**15)),
    ],
)
def test_what_no_server_could_have_counted_is_no_window(
    before: ModelReading, after: ModelReading
) -> None:
    assert between(seen(1.0, None, before), seen(2.0, None, after)).models == {}


@pytest.mark.parametrize(
    ("was", "now", "arrivals"),
    # 12 answered, of which 4 by this copy, and 9 fewer wait: 3 came
    [(100, 108, 3), (108, 100, 0), (None, 108, 0), (100, None, 0), (100, 300, 53)],
)
def test_what_copies_answer_that_were_replaced_came_before(
    was: int | None, now: int | None, arrivals: int
) -> None:
    before, after = reading(20, pending=50), reading(24, pending=41)
    window = between_readings(
        replace(before, former_count=was), replace(after, former_count=now), 1.0
    )
    assert (window.arrivals, window.completed) == (arrivals, 4)


def test_a_copy_that_was_replaced_answers_no_more_than_waited_or_was_executed() -> None:
    """300 more is a page that came late."""
    before, after = (
        replace(reading(count, pending=3), former_count=former)
        for count, former in ((20, 100), (24, 400))
    )
    assert between_readings(before, after, 1.0).drained == 3 + 8  # one batch


@pytest.mark.parametrize("pending", [10**12 * 2, -5])
def test_a_pending_count_that_is_none_is_not_believed(pending: int) -> None:
    window = between_readings(reading(100, pending=3), reading(130, pending=pending), 1.0)
    assert (window.arrivals, window.pending) == (30, None)
    assert (
        between_readings(reading(130, pending=pending), reading(160, pending=2), 1.0).arrivals == 30
    )


def test_times_that_cannot_have_passed_are_not_believed() -> None:
    assert between_readings(reading(0), reading(40, b4=(10, 1_000_000)), 1.0).service_ms == {}
    # one that began long before
    slow = between_readings(reading(0), reading(4, b4=(1, 90_000)), 1.0)
    assert slow.service_ms == {4: 90_002.0}


def test_items_of_requests() -> None:
    def counted(requests: int, items: int) -> ModelReading:
        return replace(reading(requests), inference_count=items)

    assert between_readings(counted(1000, 1000), counted(1030, 1240), 1.0).items == 240
    assert between_readings(counted(1000, 1000), counted(1030, 1000), 1.0).items == 30, (
        "never below one a request"
    )
    assert between_readings(counted(1000, 1000), counted(1030, 10**14), 1.0).items == 30
    assert between_readings(counted(1000, 9000), counted(1030, 400), 1.0).restarted


def test_a_model_on_another_gpu_is_another_copy() -> None:
    moved = between_readings(reading(100), replace(reading(130), gpus=("main:1",)), 1.0)
    assert (moved.restarted, moved.arrivals) == (True, 30)


def test_requests_refused_at_the_door() -> None:
    def refused(count: int | None) -> ModelReading:
        return replace(reading(1), rejected_count=count)

    counts = [
        between_readings(refused(a), refused(b), 1.0).rejected
        for a, b in ((3, 8), (None, 8), (8, None), (8, 3), (0, 10**12))
    ]
    assert counts == [5, 0, 0, 0, 0]
