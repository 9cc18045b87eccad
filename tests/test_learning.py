"""What is learnt, at work in the control loop: minutes of virtual time on a simulated host."""

from pathlib import Path

import pytest

from igniterd.state.carry import Carry
from igniterd.state.checkpoint import plain, recalled
from tests.hosts import SLOS, Bench, config

pytestmark = pytest.mark.looptime

LIGHT = {"alexnet": 250.0, "resnet50": 200.0, "vgg19": 100.0}


def steady(**rates: float) -> dict:
    return {name: (lambda _, rate=rate: rate) for name, rate in {**LIGHT, **rates}.items()}


def shares(bench: Bench) -> dict[str, float]:
    return {
        name: reading.allocation.effective_share
        for name, reading in bench.ticks[-1].observation.models.items()
    }


async def test_a_host_slower_than_its_profile_is_learnt_and_held(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), steady(), seed=5)
    bench.host.slow_down(1.2)
    await bench.run(90)
    for name, load in bench.ticks[-1].estimate.loads.items():
        assert load.bias == pytest.approx(1.2, rel=0.1), name
        assert load.published_bias is not None
        assert bench.p99_ms(name, 40, 90) < SLOS[name]
    errors = [
        load.error_ratio
        for tick in bench.ticks[40:]
        for load in tick.estimate.loads.values()
        if load.error_ratio is not None
    ]
    assert sum(errors) / len(errors) > 0.1


async def test_models_that_become_slower_are_noticed_once_and_their_slos_kept(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), steady(), seed=6)
    await bench.run(60)
    assert all(load.changed is None for load in bench.ticks[-1].estimate.loads.values())
    bench.host.slow_down(1.4)
    await bench.run(60)
    for name, load in bench.ticks[-1].estimate.loads.items():
        assert load.changed is not None, name
        assert load.bias > 1.25
        assert bench.p99_ms(name, 85, 120) < SLOS[name]
        assert len({t.estimate.loads[name].changed for t in bench.ticks} - {None}) == 1


async def test_what_was_learnt_is_at_work_again_after_a_restart(tmp_path: Path) -> None:
    settings = config(tmp_path)
    bench = Bench(settings, steady(), seed=7)
    bench.host.slow_down(1.2)
    await bench.run(60)
    identities = dict.fromkeys(SLOS, "same")
    kept = plain(bench.loop.carry.belief, identities, bench.clock(), 1e9)
    bench.loop.carry = Carry(belief=recalled(kept, identities, bench.clock(), 1e9 + 5)[0])
    before = {name: load.bias for name, load in bench.ticks[-1].estimate.loads.items()}
    await bench.run(2)
    for name, load in bench.ticks[-1].estimate.loads.items():
        assert load.bias == pytest.approx(before[name], rel=0.03)


async def test_an_idle_model_keeps_its_share_while_nobody_else_needs_it(tmp_path: Path) -> None:
    rates = {
        "alexnet": lambda _: 250.0,
        "resnet50": lambda t: 200.0 if t < 70 else 370.0,
        "vgg19": lambda t: 0.0 if 40 <= t < 130 else 100.0,
    }
    bench = Bench(config(tmp_path), rates, seed=8)
    await bench.run(40)
    before = shares(bench)
    await bench.run(90)
    idle = shares(bench)
    assert bench.ticks[-1].estimate.loads["vgg19"].rate_per_s < 1.0
    assert any(
        done.step.model in {"resnet50", "vgg19"}
        for t in bench.ticks[70:]
        for done in t.outcome.actuations
    )
    assert idle["vgg19"] > 0.7 * before["vgg19"]
    await bench.run(30)
    for name, slo in SLOS.items():
        assert bench.p99_ms(name, 130, 160) < slo, name


async def test_an_idle_model_gives_way_to_one_that_needs_its_share(tmp_path: Path) -> None:
    rates = {
        "alexnet": lambda _: 250.0,
        "resnet50": lambda t: 200.0 if t < 60 else 620.0,
        "vgg19": lambda t: 100.0 if t < 40 else 0.0,
    }
    bench = Bench(config(tmp_path), rates, seed=9)
    await bench.run(40)
    before = shares(bench)
    await bench.run(60)
    assert shares(bench)["vgg19"] < before["vgg19"] - 0.05
    assert bench.p99_ms("resnet50", 80, 100) < SLOS["resnet50"]


@pytest.mark.parametrize(("true", "least", "most"), [(0.02, 0.0, 0.07), (0.3, 0.15, 0.35)])
async def test_how_much_service_times_differ_is_learnt_and_predicted_with(
    tmp_path: Path, true: float, least: float, most: float
) -> None:
    """The profile tells none of it, so that the usual 0.1 is taken at first."""
    bench = Bench(config(tmp_path), steady(alexnet=60.0, resnet50=40.0, vgg19=15.0), seed=5)
    bench.host.dispersion_cv = true
    await bench.run(240)
    for name, load in bench.ticks[-1].estimate.loads.items():
        assert load.published_bias is not None
        assert load.published_bias.cv is not None
        assert least < load.published_bias.cv < most, name
        measured = bench.p99_ms(name, 120, 240)
        assert load.predicted_p99_ms == pytest.approx(measured, rel=0.1), name
