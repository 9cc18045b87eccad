"""The loop beside models that it does not steer and that no share confines, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from igniterd.config import Config
from igniterd.decisions import DecisionKind
from igniterd.profiled import Predictors
from tests.hosts import Bench, config, knowledge
from tests.sim.host import SimModel, config_of

pytestmark = pytest.mark.looptime

SLOS = {"alexnet": 15.0, "resnet50": 40.0}
RATES = {"alexnet": 200.0, "resnet50": 120.0}
Rate = Callable[[float], float]


def settings_beside(tmp_path: Path, more: str = "") -> Config:
    """Beside them one is watched: it has no profile."""
    watched = f'[[model]]\nname = "watched"\nslo_p99_ms = 500.0\n{more}'
    return config(tmp_path, SLOS, more=watched)


def steady(rate: float) -> Rate:
    return lambda _: rate


def bench(settings: Config, watched: Rate) -> Bench:
    """``watched`` is like vgg19 and runs inside tritonserver."""
    made = Bench(settings, {name: steady(rate) for name, rate in RATES.items()})
    model = SimModel(
        "watched",
        "vgg19",
        lambda at_s: watched(at_s - made.began_s),
        config_of("watched") | {"backend": "onnxruntime"},
        backend="onnxruntime",
    )
    made.host.add(model)
    made.loop.sources.models = {"main": (*RATES, "watched")}
    made.loop.knowledge = Predictors({name: name for name in RATES}, knowledge(settings).predictors)
    return made


def granted(made: Bench) -> float:
    return sum(made.host.models[name].applied.share or 0.0 for name in RATES)


async def test_plans_leave_free_what_a_watched_model_is_busy(tmp_path: Path) -> None:
    made = bench(settings_beside(tmp_path), lambda _: 65.0)
    await made.run(120)
    last = made.ticks[-1]
    busy = last.estimate.loads["watched"].utilisation
    taken = last.plan.takes["watched"]
    assert busy == pytest.approx(0.33, abs=0.06)
    assert 0.3 <= taken <= 0.5
    assert last.plan.reserved == {"main:0": taken}
    assert 0 < granted(made) <= 1 - taken + 1e-6
    assert last.plan.outcome is DecisionKind.HOLD
    # it is not followed up and down
    assert len({tick.plan.takes["watched"] for tick in made.ticks[-60:]}) <= 2
    assert {tick.plan.outcome for tick in made.ticks[-30:]} == {DecisionKind.HOLD}


async def test_a_part_that_is_configured_is_left_free_whatever_is_measured(tmp_path: Path) -> None:
    made = bench(settings_beside(tmp_path, "reserve_share = 0.6\n"), lambda _: 20.0)
    await made.run(60)
    last = made.ticks[-1]
    assert last.plan.takes == {"watched": 0.6}
    assert last.plan.reserved == {"main:0": 0.6}
    assert 0 < granted(made) <= 0.4 + 1e-6


async def test_slos_are_kept_beside_a_neighbour_that_leaves_plans_too_little(
    tmp_path: Path,
) -> None:
    """A plan within what it leaves would let models go, and help nobody but the neighbour."""
    made = bench(settings_beside(tmp_path), lambda at_s: 170.0 if 40 < at_s < 140 else 30.0)
    await made.run(140)
    last = made.ticks[-1]
    assert last.plan.takes["watched"] > 0.6
    assert last.plan.reserved == {"main:0": last.plan.takes["watched"]}
    assert last.plan.feasible
    assert "with nothing left free for models that no share confines" in last.plan.why
    for name, slo_ms in SLOS.items():
        assert made.p99_ms(name, 60, 140) <= slo_ms
    await made.run(120)  # and once there is less of it, its part is left free again
    last = made.ticks[-1]
    assert "nothing left free" not in last.plan.why
    assert 0 < granted(made) <= 1 - last.plan.takes["watched"] + 1e-6


async def test_the_part_is_given_back_a_while_after_the_traffic_has_gone(tmp_path: Path) -> None:
    made = bench(settings_beside(tmp_path), lambda at_s: 65.0 if at_s < 60 else 0.0)
    await made.run(60)
    taken = made.ticks[-1].plan.takes["watched"]
    await made.run(50)
    assert made.ticks[-1].plan.takes["watched"] >= taken >= 0.3
    await made.run(70)
    last = made.ticks[-1]
    assert (last.plan.takes, last.plan.reserved) == ({"watched": 0.0}, {"main:0": 0.0})
    assert last.plan.outcome is DecisionKind.HOLD


async def test_a_model_that_nobody_configured_takes_its_part_too(tmp_path: Path) -> None:
    made = bench(config(tmp_path, SLOS), lambda _: 65.0)
    made.loop.sources.models = {"main": tuple(RATES)}
    await made.run(90)
    last = made.ticks[-1]
    assert last.plan.takes == {}
    assert last.plan.reserved["main:0"] >= 0.3
    assert 0 < granted(made) <= 1 - last.plan.reserved["main:0"] + 1e-6
