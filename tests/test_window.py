from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from igniterd.records import Allocation, BatchStat, ModelReading, Observation
from igniterd.window import between, between_readings

MS = 1_000_000


def reading(success: int = 0, failure: int = 0, pending: int | None = None, queue_ms: int = 0, **batches: tuple[int, int]) -> ModelReading:
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
        batches=tuple(BatchStat(int(k[1:]), n, n * MS, ms * MS, n * MS) for k, (n, ms) in batches.items()),
    )


def test_rates_by_hand() -> None:
    before = reading(100, 2, 3, 500, b1=(60, 240), b2=(20, 120))
    after = reading(150, 3, 5, 600, b1=(70, 300), b2=(40, 240), b4=(1, 10))
    window = between_readings(before, after, 2.0)
    assert (window.arrivals, window.completed, window.failed) == (53, 51, 1)
    assert window.executions == {1: 10, 2: 20, 4: 1}
    assert window.service_ms == {1: 8.0, 2: 8.0, 4: 12.0}  # 60/10 + input 1 + output 1; 120/20 + 2; 10 + 2
    assert window.queue_ms == 2.0
    assert not window.restarted


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
batches = st.dictionaries(st.sampled_from(["b1", "b2", "b8"]), st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
readings = st.builds(lambda s, f, p, q, b: reading(s, f, p, q, **b), counts, counts, st.none() | st.integers(0, 10**4), counts, batches)


@given(readings, readings, st.floats(0.01, 100))
def test_counters_that_restart_never_give_a_negative_rate(before: ModelReading, after: ModelReading, span_s: float) -> None:
    window = between_readings(before, after, span_s)
    assert window.arrivals >= 0
    assert window.completed >= 0
    assert window.failed >= 0
    assert all(n > 0 for n in window.executions.values())
    assert all(ms >= 0 for ms in window.service_ms.values())
    assert window.queue_ms is None or window.queue_ms >= 0
