import numpy as np
import pytest

from igniterd.queueing.parallel import map_threads, response_times_threaded
from igniterd.queueing.tail import response_times


@pytest.fixture(params=[1, 2, 3])
def processors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    many = set(range(request.param))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: many)
    return int(request.param)


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 100, 101])
def test_answers_come_in_order_on_any_number_of_processors(processors: int, rows: int) -> None:
    assert map_threads(lambda row: row * row, range(rows)) == [row * row for row in range(rows)]


def test_rows_have_the_same_response_times_on_any_number_of_processors(processors: int) -> None:
    rng = np.random.default_rng(4)
    curves = np.tile([4.0, 5.0, 6.0], (40, 1))
    rates, batches = rng.uniform(20.0, 600.0, 40), rng.integers(1, 4, 40)
    found = response_times_threaded(rates, curves, batches=batches, service_cv=0.1, arrival_scv=1.0)
    alone = response_times(rates, curves, batches=batches, service_cv=0.1, arrival_scv=1.0)
    np.testing.assert_array_equal(found.p99_ms, alone.p99_ms)
    np.testing.assert_array_equal(found.ok, alone.ok)
    assert not found.ok.all()
    assert found.ok.any()
