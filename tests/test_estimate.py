"""Estimates from made-up observations: what is learnt, and what is forgotten."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from igniterd.belief import SETTLE_S, ModelState
from igniterd.estimate import HORIZON_S, estimate
from igniterd.estimators.bias import Bias, Measured, Point
from igniterd.estimators.bias_filter import update_bias
from igniterd.expect import as_modelled, others
from igniterd.loads import Load
from igniterd.perf.api import Tenant
from igniterd.queueing.tail import SERVICE_CV
from igniterd.records import Allocation, BatchStat, ModelReading, Observation
from igniterd.window import between
from tests.hosts import config, knowledge

SHARE = 0.5


class Host:
    """One model whose true service time is ``slow`` times what is predicted; a tick a second."""

    def __init__(self, folder: Path, *, profiled: bool = True) -> None:
        self.config = config(folder, {"resnet50": 40.0})
        known = knowledge(self.config)
        self.predictor = known.predictors.mean if known.predictors and profiled else None
        self.profiled = dict(known.profiled) if profiled else {}
        self.curve_ms = (
            known.predictors.mean.model.service_curve_ms("resnet50", SHARE, (), 8)[0]
            if known.predictors
            else None
        )
        self.slow, self.version, self.backend = 1.0, "1", "python"
        self.allocation = Allocation(SHARE, 8)
        self.stats: dict[int, tuple[int, int]] = {}
        self.belief: dict[str, ModelState] = {}
        self.at_s, self.seen = 0.0, None
        self.load: Load | None = None
        self.beside: ModelReading | None = None

    def reloaded(self, **changes: object) -> None:
        self.stats = {}
        for name, value in changes.items():
            setattr(self, name, value)

    def tick(
        self, each: int = 10, batches: tuple[int, ...] = (1, 2, 4, 8), odd: float = 1.0
    ) -> Load:
        assert self.curve_ms is not None
        for b in batches:
            n, ns = self.stats.get(b, (0, 0))
            self.stats[b] = (
                n + each,
                ns + round(each * self.curve_ms[b - 1] * self.slow * odd * 1e6),
            )
        self.at_s += 1.0
        reading = ModelReading(
            "resnet50",
            self.version,
            "main",
            True,
            self.backend,
            self.allocation,
            success_count=sum(b * n for b, (n, _) in self.stats.items()),
            pending_count=0,
            batches=tuple(BatchStat(b, n, 0, ns, 0) for b, (n, ns) in sorted(self.stats.items())),
        )
        beside = {} if self.beside is None else {self.beside.model: self.beside}
        now = Observation(self.at_s, models={"resnet50": reading, **beside})
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
        self.load = told.loads["resnet50"]
        return self.load

    def ticks(self, count: int, **how: int) -> Load:
        for _ in range(count):
            load = self.tick(**how)
        return load


def test_rate_bias_and_prediction_of_steady_traffic(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.slow = 1.1
    load = host.ticks(40)
    assert load.rate_per_s == pytest.approx(150.0, rel=0.01)
    assert load.rate_per_s < load.rate_upper_per_s < 1.1 * load.rate_per_s
    assert load.confident
    assert load.bias == pytest.approx(1.1, rel=0.01)
    assert load.bias < load.bias_upper < 1.14
    assert load.published_bias is not None
    assert load.published_bias.level == pytest.approx(math.log(1.1), abs=0.012)
    assert load.error_ratio == pytest.approx(0.1, abs=1e-6)
    assert load.predicted_p99_ms is not None
    assert load.predicted_mean_ms is not None
    assert load.predicted_mean_ms < load.predicted_p99_ms
    assert load.changed is None
    assert load.remembered_per_s == pytest.approx(150.0, rel=0.05)
    assert HORIZON_S > 0


def test_predictions_are_asked_for_again_only_when_something_has_moved(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.ticks(30)
    before = host.belief["resnet50"].expected
    host.ticks(5)
    assert host.belief["resnet50"].expected is before
    host.allocation = replace(host.allocation, max_batch_size=4)
    host.tick()
    assert host.belief["resnet50"].expected is not before


@pytest.mark.parametrize("profiled", [True, False])
def test_windows_that_are_all_alike_tell_that_executions_are(
    tmp_path: Path, profiled: bool
) -> None:
    host = Host(tmp_path, profiled=profiled)
    first, later = host.ticks(5), host.ticks(120)
    assert first.predicted_p99_ms is not None
    assert later.predicted_p99_ms is not None
    told = later.published_bias if profiled else later.live
    assert told is not None
    assert told.cv is not None
    assert told.cv < 0.5 * SERVICE_CV
    assert later.predicted_p99_ms < first.predicted_p99_ms


def test_plans_are_not_told_of_noise(tmp_path: Path) -> None:
    host = Host(tmp_path)
    told = host.ticks(60).published_bias
    host.ticks(10)
    host.tick(odd=1.01)
    assert host.tick().published_bias is told


def test_the_first_executions_of_a_new_copy_do_not_count(tmp_path: Path) -> None:
    host = Host(tmp_path)
    before = host.ticks(30).bias
    host.reloaded()
    host.tick(odd=3.0)
    assert host.ticks(int(SETTLE_S) - 1, each=10).bias == before
    host.slow = 1.0
    assert host.ticks(10).bias == pytest.approx(1.0, abs=0.01)
    assert host.load is not None
    assert host.load.changed is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "2"}, "version 1 -> 2: what was learnt of its service times is forgotten"),
        (
            {"backend": "onnxruntime"},
            "backend python -> onnxruntime: what was learnt of its service times is forgotten",
        ),
    ],
)
def test_another_version_or_backend_is_learnt_anew_and_said(
    tmp_path: Path, change: dict[str, str], why: str
) -> None:
    host = Host(tmp_path)
    host.slow = 1.3
    host.ticks(30)
    host.reloaded(**change)
    load = host.tick()
    assert load.bias == 1.0
    assert load.published_bias is None
    assert load.changed is not None
    assert (load.changed.at_s, load.changed.why) == (host.at_s, why)


def test_another_engine_under_the_same_version_is_noticed_by_its_times(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.ticks(40)
    host.slow = 0.6
    host.ticks(10)
    assert host.load is not None
    assert host.load.changed is not None
    assert "its service times became 0.6" in host.load.changed.why
    assert host.load.bias == pytest.approx(0.6, rel=0.03)


def test_a_model_without_a_profile_is_learnt_from_its_traffic_and_its_p99_predicted(
    tmp_path: Path,
) -> None:
    host, profiled = Host(tmp_path, profiled=False), Host(tmp_path)
    load, other = host.ticks(40), profiled.ticks(40)
    assert load.rate_per_s == pytest.approx(150.0, rel=0.01)
    assert (load.bias, load.published_bias, load.error_ratio) == (1.0, None, None)
    assert load.live is not None
    assert load.live.share == SHARE
    assert host.curve_ms is not None
    assert load.live.mean_ms == pytest.approx(list(host.curve_ms), rel=0.03)
    assert load.live.said.startswith("batches 1 to 8 within ")
    assert load.predicted_p99_ms == pytest.approx(other.predicted_p99_ms, rel=0.05)
    assert other.live is None


def test_processes_that_take_turns_are_learnt_from_their_traffic_too(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.allocation = Allocation(None, 8)
    load = host.ticks(20)
    assert load.live is not None
    assert load.published_bias is None
    assert load.predicted_p99_ms is not None


@pytest.mark.parametrize(
    ("fixed", "profiled"),
    [("it is decoupled", False), ("", False), ("its environment is an archive", True)],
)
def test_a_process_that_never_gets_a_share_does_not_stop_the_learning(
    tmp_path: Path, fixed: str, profiled: bool
) -> None:
    host = Host(tmp_path)
    host.slow = 1.2
    host.beside = ModelReading(
        "other", "1", "main", True, "python", Allocation(None, 8), share_fixed=fixed
    )
    if profiled:
        host.config = config(tmp_path, {"resnet50": 40.0, "other": 500.0})
        host.profiled["other"] = "alexnet"
    load = host.ticks(40)
    assert load.bias == pytest.approx(1.2, rel=0.02)
    assert load.predicted_p99_ms is not None
    host.beside = replace(host.beside, share_fixed="")
    assert (host.ticks(2).error_ratio is None) == profiled, (
        "one that is about to get a share is waited for"
    )


def test_nothing_is_forgotten_of_a_model_that_is_not_seen(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.ticks(30)
    known = host.belief["resnet50"]
    silent = Observation(host.at_s + 1)
    told, after = estimate(
        silent,
        between(host.seen, silent),
        host.belief,
        rules=host.config.decide,
        models=host.config.by_name(),
        profiled=host.profiled,
        predictor=host.predictor,
    )
    assert told.loads == {}
    assert not told.warm
    assert after["resnet50"] == known


def test_a_model_that_was_away_keeps_what_was_learnt(tmp_path: Path) -> None:
    bias, _ = update_bias(Bias(), 1.0, [Measured(4, 100, 1.2)], Point(SHARE))
    host = Host(tmp_path)
    host.belief = {
        "resnet50": ModelState(bias=bias, published_bias=bias.estimate, copy=("1", "python"))
    }
    assert host.tick().bias == bias.mean


def test_nothing_is_learnt_while_a_host_is_taken_over() -> None:
    """Some processes without a share, or more granted than there is: service times then are not
    what the model is about."""

    def seen(*shares: float | None) -> list[ModelReading]:
        return [
            ModelReading(f"m{i}", "1", "main", True, "python", Allocation(share, 8))
            for i, share in enumerate(shares)
        ]

    assert as_modelled(seen(0.4, 0.6))
    assert not as_modelled(seen(0.4, None))
    assert not as_modelled(seen(1.0, 0.6))


def test_each_model_feels_all_but_one_of_its_own_instances() -> None:
    groups = {
        name: [Tenant(name, 1.0, 0.1)] * count
        for name, count in (("one", 1), ("idle", 0), ("three", 3))
    }
    felt = {name: "".join(t.model[0] for t in others) for name, others in others(groups).items()}
    assert felt == {"one": "ttt", "idle": "ottt", "three": "ott"}
    assert others({}) == {}
