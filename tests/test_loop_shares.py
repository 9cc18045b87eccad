"""The loop on a host whose shares are not what its configurations say, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from igniterd.decisions import DecisionKind, StepKind, Tick
from igniterd.records import Effect
from tests.hosts import Bench, config
from tests.sim.host import config_of

pytestmark = pytest.mark.looptime

RATES = {"alexnet": 400.0, "resnet50": 300.0, "vgg19": 150.0}


def bench(tmp_path: Path) -> Bench:
    rates = {name: (lambda _, r=rate: r) for name, rate in RATES.items()}
    return Bench(config(tmp_path), rates, proves=True)


def reloads(made: Bench, model: str) -> int:
    return sum(1 for _, name, _ in made.host.loads if name == model)


def gaps(tick: Tick) -> set[str]:
    return {gap.source for gap in tick.observation.gaps}


async def test_shares_that_processes_show_are_proven_and_planned_with(tmp_path: Path) -> None:
    made = bench(tmp_path)
    await made.run(60)
    last = made.ticks[-1]
    assert {name: state.effect for name, state in last.shares.items()} == dict.fromkeys(
        RATES, Effect.PROVEN
    )
    assert last.plan.outcome is DecisionKind.HOLD
    assert not gaps(last)


async def test_a_share_without_effect_is_said_once_tried_once_more_and_planned_without(
    tmp_path: Path,
) -> None:
    made = bench(tmp_path)
    made.host.processes.ignores = {"vgg19"}
    await made.run(240)
    last = made.ticks[-1]
    state = last.shares["vgg19"]
    assert (state.effect, state.effective) == (Effect.REFUTED, None)
    assert gaps(last) == {"share:vgg19"}
    assert last.shares["alexnet"].effect is Effect.PROVEN
    assert "the share of vgg19 is not shown to have an effect" in last.plan.why
    assert (last.plan.headroom, last.plan.least_share) == (None, None)
    # the two others are planned beside a neighbour that may use the whole GPU: no part is kept for
    # it
    assert last.plan.verdicts["vgg19"].allocation.share is None
    assert 1 <= reloads(made, "vgg19") <= 3
    made.host.processes.ignores = set()
    before = reloads(made, "vgg19")
    made.host.processes.server_pid += 1000  # Triton is restarted by somebody who mended it
    await made.run(60)
    assert made.ticks[-1].shares["vgg19"].effect is Effect.PROVEN
    assert reloads(made, "vgg19") <= before + 3  # and then room is made for it


async def test_nothing_visible_is_unproven_and_nothing_is_planned_with_it_after_a_while(
    tmp_path: Path,
) -> None:
    made = bench(tmp_path)
    made.host.processes.gone = True
    await made.run(240)
    for name in RATES:
        state = made.ticks[-1].shares[name]
        assert state.effect in (Effect.UNPROVEN, Effect.PROVEN)
        if state.effect is Effect.UNPROVEN:
            assert state.effective is None
            assert f"share:{name}" in gaps(made.ticks[-1])
        else:
            assert state.by.startswith("service times")
    assert "processes" in gaps(made.ticks[-1])


async def test_a_process_that_died_is_brought_back(tmp_path: Path) -> None:
    made = bench(tmp_path)
    await made.run(60)
    before = reloads(made, "resnet50")
    made.host.processes.died = {"resnet50"}
    await made.run(10)
    assert reloads(made, "resnet50") == before + 1
    revived = [
        a for tick in made.ticks for a in tick.outcome.actuations if a.step.kind is StepKind.REVIVE
    ]
    assert [(a.step.model, a.ok) for a in revived] == [("resnet50", True)]
    assert made.ticks[-1].shares["resnet50"].effect is Effect.PROVEN


async def test_a_model_that_dies_again_and_again_is_not_reloaded_for_ever(tmp_path: Path) -> None:
    made = bench(tmp_path)
    await made.run(60)
    before = reloads(made, "resnet50")
    for _ in range(30):
        made.host.processes.died = {"resnet50"}
        await made.run(10)
    assert reloads(made, "resnet50") - before <= 8


async def test_a_model_that_its_owner_made_twice_as_fast_still_has_its_share(
    tmp_path: Path,
) -> None:
    made = bench(tmp_path)
    await made.run(60)
    made.host.speed_up("vgg19", 2.2)
    await made.host.load("vgg19", made.host.models["vgg19"].config)
    await made.run(30)
    assert {tick.shares["vgg19"].effect for tick in made.ticks[-25:]} == {Effect.PROVEN}
    loads = made.ticks[-1].estimate.loads["vgg19"]
    assert loads.share_test is not None
    assert loads.share_test.verdict is not Effect.PROVEN  # times alone would not say so


async def test_one_that_cannot_be_mended_keeps_nobody_from_being_steered(tmp_path: Path) -> None:
    rates = {name: (lambda _, r=rate: r) for name, rate in RATES.items()}
    made = Bench(
        config(tmp_path),
        rates | {"alexnet": lambda at_s: 400.0 if at_s < 65 else 700.0},
        proves=True,
    )
    await made.run(60)
    made.host.processes.ignores, made.host.refuse = {"vgg19"}, {"vgg19": "no memory for two copies"}
    before = len(made.host.loads)
    await made.run(60)
    assert "vgg19" not in made.host.refuse  # it was tried, once
    assert made.ticks[-1].shares["vgg19"].effect is Effect.REFUTED
    assert {name for _, name, _ in made.host.loads[before:]} == {"alexnet", "resnet50"}
    assert made.ticks[-1].plan.outcome is DecisionKind.HOLD


async def test_a_table_that_is_read_now_and_then_changes_nothing(tmp_path: Path) -> None:
    made = bench(tmp_path)
    await made.run(40)
    before = len(made.host.loads)
    for tick in range(40):
        made.host.processes.gone = tick % 4 == 0
        await made.run(1)
    assert len(made.host.loads) == before
    assert all(
        state.effective is not None for tick in made.ticks[-40:] for state in tick.shares.values()
    )


async def test_who_only_advises_says_what_is_wrong_and_changes_nothing(tmp_path: Path) -> None:
    rates = {name: (lambda _, r=rate: r) for name, rate in RATES.items()}
    made = Bench(config(tmp_path, more='[loop]\nmode = "advise"\n'), rates, proves=True)
    given = config_of("vgg19", share_path="/var/lib/igniterd/shares/igniterd-v2/30")
    made.host.models["vgg19"].reset(given)
    made.host.processes.ignores = {"vgg19"}
    await made.run(10)
    made.host.processes.died = {"alexnet"}
    await made.run(10)
    assert gaps(made.ticks[-1]) == {"share:vgg19", "model:alexnet"}
    assert made.host.loads == []


async def test_a_share_that_is_only_in_doubt_is_not_given_away(tmp_path: Path) -> None:
    """Its process may well have it: others grow into what is surely free."""
    rates = {
        "alexnet": lambda at_s: 400.0 if at_s < 100 else 700.0,
        "resnet50": lambda _: 300.0,
        "vgg19": lambda _: 150.0,
    }
    made = Bench(config(tmp_path), rates, proves=True)
    await made.run(60)
    made.host.processes.hides = {"resnet50"}
    made.host.models["resnet50"].copies += 1  # other processes, by which nobody can tell
    for _ in range(200):
        await made.run(1)
        shares = [model.applied.share for model in made.host.models.values()]
        assert sum(share or 0.0 for share in shares) <= 1 + 1e-9
    state = made.ticks[-1].shares["resnet50"]
    assert state.effective is None or state.by.startswith("service times")
