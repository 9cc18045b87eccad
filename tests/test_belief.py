"""What is believed of odd, late, repeated and missing readings."""

import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.belief import ModelState
from igniterd.estimate import estimate
from igniterd.loads import Estimate
from igniterd.records import Allocation, BatchStat, ModelReading, Observation
from igniterd.window import between
from tests.hosts import SLOS, config, knowledge


class Host:
    """Several models, each as its reading says; ``tick`` gives what is told of them."""

    def __init__(self, folder: Path, *, profiled: bool = True) -> None:
        self.config = config(folder)
        known = knowledge(self.config)
        self.predictor = known.predictors.mean if known.predictors and profiled else None
        self.profiled = dict(known.profiled) if profiled else {}
        self.at_s = 1000.0
        self.belief: dict[str, ModelState] = {}
        self.seen: Observation | None = None
        self.readings = {
            n: ModelReading(n, "1", "main", True, "python", Allocation(0.3, 8), pending_count=0)
            for n in SLOS
        }
        self.unread: dict[str, str] = {}

    def serve(
        self, name: str, requests: int, *, each_ms: float = 4.0, items: int = 1, pending: int = 0
    ) -> None:
        """``requests`` more, one to a batch; ``items``: what each brings."""
        old = self.readings[name]
        n, ns = next(((b.count, b.compute_infer_ns) for b in old.batches), (0, 0))
        batch = BatchStat(1, n + requests, 0, ns + int(requests * each_ms * 1e6), 0)
        self.readings[name] = replace(
            old,
            success_count=old.success_count + requests,
            inference_count=old.inference_count + items * requests,
            batches=(batch,),
            pending_count=pending,
        )

    def tick(self, span_s: float = 1.0) -> Estimate:
        self.at_s += span_s
        now = Observation(self.at_s, models=dict(self.readings), unread=self.unread)
        window = between(self.seen, now)
        told, self.belief = estimate(
            now,
            window,
            self.belief,
            rules=self.config.decide,
            models=self.config.by_name(),
            profiled=self.profiled,
            predictor=self.predictor,
        )
        self.seen = now
        return told

    def ticks(self, count: int, requests: int = 30) -> Estimate:
        for _ in range(count):
            for name in self.readings:
                self.serve(name, requests)
            told = self.tick()
        return told


# ---------------------------------------------------------------- items of a request


def test_batches_in_requests_after_ten_days_of_single_ones(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.readings["alexnet"] = replace(
        host.readings["alexnet"], success_count=26_000_000, inference_count=26_000_000
    )
    assert host.ticks(60).loads["alexnet"].items_per_request == 1.0
    believed = []
    for _ in range(60):
        host.serve("alexnet", 30, items=8)
        believed.append(host.tick().loads["alexnet"].items_per_request)
    assert believed[-1] == pytest.approx(8.0, rel=0.05)
    assert believed == sorted(believed)
    fallen = host.ticks(20).loads["alexnet"].items_per_request
    assert fallen - 1 > 8 - believed[20], "down slower than up"
    assert host.ticks(600).loads["alexnet"].items_per_request == pytest.approx(1.0, abs=0.05)


def test_before_a_request_is_seen_the_servers_count_tells_and_idling_changes_nothing(
    tmp_path: Path,
) -> None:
    host = Host(tmp_path)
    host.readings["alexnet"] = replace(
        host.readings["alexnet"], success_count=1000, inference_count=4000
    )
    assert [host.tick().loads["alexnet"].items_per_request for _ in range(900)][-1] == 4.0


# ---------------------------------------------------------------- requests that wait


def stuck(
    host: Host, seconds: int, name: str = "vgg19", *, pending: int | None = 40, span_s: float = 1.0
) -> float:
    """What is told after so long, in which nothing of it is executed."""
    for second in range(round(seconds / span_s)):
        for other in host.readings.keys() - {name}:
            host.serve(other, 30)
        count = None if pending is None else pending + second
        host.readings[name] = replace(host.readings[name], pending_count=count)
        told = host.tick(span_s)
    return told.loads[name].stuck_s


@pytest.mark.parametrize("profiled", [True, False])
def test_a_model_that_answers_no_more_is_stuck_until_it_answers(
    tmp_path: Path, profiled: bool
) -> None:
    host = Host(tmp_path, profiled=profiled)
    host.ticks(20)
    assert stuck(host, 3) == 0.0
    assert stuck(host, 57) == pytest.approx(60.0)
    assert all(load.stuck_s == 0 for name, load in host.tick().loads.items() if name != "vgg19")
    host.serve("vgg19", 1, pending=70)
    assert host.tick().loads["vgg19"].stuck_s == 0.0


def test_failures_are_no_answer_while_others_wait(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.ticks(20)
    for _ in range(20):
        host.readings["vgg19"] = replace(
            host.readings["vgg19"],
            failure_count=host.readings["vgg19"].failure_count + 5,
            pending_count=9,
        )
        told = host.tick()
    assert told.loads["vgg19"].stuck_s == pytest.approx(20.0)


def test_a_full_queue_that_refuses_is_seen_without_a_pending_count(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.ticks(20)
    for count in range(21):
        host.readings["vgg19"] = replace(
            host.readings["vgg19"], pending_count=None, rejected_count=5 * count
        )
        told = host.tick()
    assert told.loads["vgg19"].stuck_s == pytest.approx(20.0)


def test_a_replaced_copy_that_answers_what_waited_is_not_stuck(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.ticks(20)
    for second in range(20):
        host.readings["vgg19"] = replace(
            host.readings["vgg19"], former_count=1000 + 30 * second, pending_count=700 - 30 * second
        )
        told = host.tick()
    assert told.loads["vgg19"].stuck_s == 0.0


def test_slow_is_not_stuck(tmp_path: Path) -> None:
    host = Host(tmp_path, profiled=False)
    host.readings["vgg19"] = replace(host.readings["vgg19"], allocation=Allocation(0.3, 1))
    for _ in range(4):  # executions that take 8 s each
        for second in range(8):
            if second == 7:
                host.serve("vgg19", 1, each_ms=8000.0, pending=3)
            else:
                host.readings["vgg19"] = replace(host.readings["vgg19"], pending_count=3)
            assert host.tick().loads["vgg19"].stuck_s == 0.0
    assert stuck(host, 70) == 0.0
    assert stuck(host, 20) > 80.0


@pytest.mark.parametrize(
    "change",
    [
        {"loading": True},
        {"ready": False},
        {"pending_count": None},
        {"pending_count": 0},
        {"allocation": Allocation(0.3, 8, 40_000_000)},
    ],
)
def test_what_may_wait_for_good_reason_is_not_stuck(
    tmp_path: Path, change: dict[str, object]
) -> None:
    host = Host(tmp_path)
    host.ticks(20)
    host.readings["vgg19"] = replace(host.readings["vgg19"], **{"pending_count": 40} | change)
    for _ in range(30):
        told = host.tick()
    assert told.loads["vgg19"].stuck_s == 0.0


# ---------------------------------------------------------------- one that cannot be predicted


@pytest.mark.parametrize(
    "allocation", [Allocation(0.0, 8), Allocation(-0.5, 8), Allocation(math.nan, 8)]
)
def test_one_odd_model_is_left_out_and_the_others_go_on(
    tmp_path: Path, allocation: Allocation
) -> None:
    host = Host(tmp_path)
    host.ticks(20)
    before = host.belief["alexnet"]
    host.readings["alexnet"] = replace(host.readings["alexnet"], allocation=allocation)
    told = host.ticks(5)
    assert set(told.left_out) == {"alexnet"}
    assert "failed" in told.left_out["alexnet"]
    assert set(told.loads) == {"resnet50", "vgg19"}
    assert host.belief["alexnet"] == before
    assert told.loads["vgg19"].predicted_p99_ms is not None
    host.readings["alexnet"] = replace(host.readings["alexnet"], allocation=Allocation(0.3, 8))
    assert host.ticks(1).left_out == {}


def test_nothing_that_is_given_is_written_into(tmp_path: Path) -> None:
    """One model learns, one raises, one is away: what they were is what they were."""
    host = Host(tmp_path)
    host.ticks(20)
    host.readings["alexnet"] = replace(host.readings["alexnet"], allocation=Allocation(math.nan, 8))
    del host.readings["vgg19"]
    given, readings, profiled = host.belief, dict(host.readings), dict(host.profiled)
    before = dict(given)
    told = host.tick()
    assert set(told.left_out) == {"alexnet"}
    assert all(given[name] is state for name, state in before.items())
    assert set(given) == set(before)
    assert host.belief["resnet50"] is not before["resnet50"]
    assert host.belief["vgg19"] is before["vgg19"]
    assert (host.readings, host.profiled) == (readings, profiled)


def test_several_odd_ones_and_one_that_is_odd_only_beside_others(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.ticks(3)
    host.profiled["alexnet"] = "no such model"
    host.readings["vgg19"] = replace(host.readings["vgg19"], allocation=Allocation(0.0, 8))
    told = host.ticks(3)
    assert set(told.left_out) == {"alexnet", "vgg19"}
    assert set(told.loads) == {"resnet50"}


# ---------------------------------------------------------------- readings that are late, missing,
# or seen twice


def test_answers_that_come_late_are_no_bursts(tmp_path: Path) -> None:
    host, rng = Host(tmp_path, profiled=False), np.random.default_rng(1)
    answered = dict.fromkeys(host.readings, host.at_s)
    for _ in range(400):
        for name in host.readings:
            late_s = host.at_s + 1.0 + rng.uniform(0, 0.3)
            host.serve(name, int(rng.poisson(300 * (late_s - answered[name]))), each_ms=1.0)
            answered[name] = late_s
            host.readings[name] = replace(host.readings[name], at_s=late_s)
        told = host.tick()
        assert all(load.arrival_scv == 1.0 for load in told.loads.values())
    assert all(load.rate_per_s == pytest.approx(300, rel=0.05) for load in told.loads.values())
    assert all(load.rate_upper_per_s < 1.15 * 300 for load in told.loads.values())


@pytest.mark.parametrize("stands_in", [True, False])
def test_a_model_not_read_this_time_keeps_its_load(tmp_path: Path, stands_in: bool) -> None:
    host = Host(tmp_path)
    before = host.ticks(20).loads["vgg19"]
    belief = host.belief["vgg19"]
    read = host.readings["vgg19"]
    if not stands_in:
        del host.readings["vgg19"]
    host.unread = {"vgg19": "no answer in 0.4 s"}
    for _ in range(5):
        for name in host.readings.keys() - {"vgg19"}:
            host.serve(name, 30)
        told = host.tick()
    assert told.loads["vgg19"] == replace(before, error_ratio=None)
    assert replace(host.belief["vgg19"], load=None) == replace(belief, load=None)
    assert told.warm
    host.unread = {}
    host.readings["vgg19"] = read
    assert host.ticks(2).loads["vgg19"].rate_per_s < 1.3 * before.rate_per_s


def test_warm_waits_for_no_model_that_is_not_read_and_each_says_for_itself(tmp_path: Path) -> None:
    host = Host(tmp_path)
    late = host.readings.pop("vgg19")
    told = host.ticks(20)
    assert told.warm
    host.readings["vgg19"] = late
    told = host.ticks(2)
    assert not told.warm
    assert {n: load.watched_s for n, load in told.loads.items()} == {
        "alexnet": 21.0,
        "resnet50": 21.0,
        "vgg19": 1.0,
    }
    host.unread = {"vgg19": "no answer"}
    assert host.tick().warm


def test_a_neighbour_that_leaves_changes_the_prediction_at_once(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.ticks(30)
    beside = host.belief["vgg19"].expected
    for name in ("alexnet", "resnet50"):
        host.readings[name] = replace(host.readings[name], gpus=("main:1",))
    host.ticks(1)
    alone = host.belief["vgg19"].expected
    assert beside is not None
    assert alone is not None
    assert (beside.beside, alone.beside) == (frozenset(SLOS), frozenset({"vgg19"}))


# ---------------------------------------------------------------- any sequence of readings


def finite(value: object, path: str = "") -> list[str]:
    """Where a figure inside ``value`` is not finite."""
    if isinstance(value, float):
        return [] if math.isfinite(value) else [path]
    if isinstance(value, np.ndarray):
        return [] if np.isfinite(value).all() else [path]
    if is_dataclass(value):
        return [
            bad for f in fields(value) for bad in finite(getattr(value, f.name), f"{path}.{f.name}")
        ]
    if isinstance(value, dict):
        return [bad for key, each in value.items() for bad in finite(each, f"{path}.{key}")]
    if isinstance(value, tuple):
        return [bad for each in value for bad in finite(each, path)]
    return []


counts = st.integers(0, 5000) | st.sampled_from([0, 1, -1, 10**6, 10**12, 2**63, 2**64 - 1])
moments = st.floats(-1.0, 5.0) | st.sampled_from(
    [0.0, 1.0, 300.0, 86_400.0, -86_400.0, math.nan, math.inf]
)
odd_readings = st.builds(
    dict,
    success_count=counts,
    failure_count=counts,
    inference_count=counts,
    pending_count=st.none() | counts,
    queue_ns=counts,
    version=st.sampled_from(["1", "1", "1", "2"]),
    gpus=st.sampled_from([("main:0",)] * 3 + [("main:1",)]),
    batches=st.lists(
        st.builds(
            BatchStat, st.sampled_from([1, 2, 8, 0, 512]), counts, st.just(0), counts, st.just(0)
        ),
        max_size=3,
    ).map(tuple),
    latency_quantiles_s=st.none()
    | st.just({0.5: math.nan, 0.99: math.inf})
    | st.just({0.99: 0.02}),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(moments, st.none() | moments, odd_readings), min_size=2, max_size=12),
    st.booleans(),
)
def test_beliefs_stay_finite_and_rates_are_never_negative(
    tmp_path_factory: pytest.TempPathFactory,
    sequence: list[tuple[float, float | None, dict[str, object]]],
    profiled: bool,
) -> None:
    host = Host(tmp_path_factory.getbasetemp(), profiled=profiled)
    for later_s, answered, odd in sequence:
        at_s = None if answered is None else host.at_s + answered
        host.readings["vgg19"] = replace(host.readings["vgg19"], at_s=at_s, **odd)  # type: ignore[arg-type]
        told = host.tick(later_s if math.isfinite(later_s) else 1.0)
        assert set(told.loads) | set(told.left_out) == set(SLOS)
        for load in told.loads.values():
            assert (
                min(
                    load.rate_per_s,
                    load.rate_upper_per_s,
                    load.utilisation,
                    load.stuck_s,
                    load.watched_s,
                )
                >= 0
            )
            assert load.items_per_request >= 1
            assert load.utilisation <= 1
        assert finite(told.loads) == []
        for belief in host.belief.values():
            unset = replace(
                belief,
                bias=replace(
                    belief.bias, p_lag=0.0 if math.isinf(belief.bias.p_lag) else belief.bias.p_lag
                ),
            )
            assert finite(unset) == []
