"""The loop on a host whose shares are not what its configurations say, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from igniterd.records import Effect, Outcomes, StepKind, Tick
from tests.hosts import Bench, config

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
    assert {name: state.effect for name, state in last.shares.items()} == dict.fromkeys(RATES, Effect.PROVEN)
    assert last.plan.outcome is Outcomes.HOLD
    assert not gaps(last)


async def test_a_share_without_effect_is_said_once_tried_once_more_and_planned_without(tmp_path: Path) -> None:
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
    # the two others are planned beside a neighbour that may use the whole GPU: no part is kept for it
    assert last.plan.verdicts["vgg19"].allocation.share is None
    assert 1 <= reloads(made, "vgg19") <= 3
    made.host.processes.ignores = set()
    before = reloads(made, "vgg19")
    made.host.processes.server_pid += 1000  # Triton is restarted by somebody who mended it
    await made.run(60)
    assert made.ticks[-1].shares["vgg19"].effect is Effect.PROVEN
    assert reloads(made, "vgg19") <= before + 3  # and then room is made for it


async def test_nothing_visible_is_unproven_and_nothing_is_planned_with_it_after_a_while(tmp_path: Path) -> None:
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
    revived = [a for tick in made.ticks for a in tick.outcome.actuations if a.step.kind is StepKind.REVIVE]
    assert [(a.step.model, a.ok) for a in revived] == [("resnet50", True)]
    assert made.ticks[-1].shares["resnet50"].effect is Effect.PROVEN


async def test_a_model_that_dies_again_and_again_is_not_reloaded_for_ever(tmp_path: Path) -> None:
    made = bench(tmp_path)
    await made.run(60)
    before = reloads(made, "resnet50")
    for _ in range(60):
        made.host.processes.died = {"resnet50"}
        await made.run(10)
    assert reloads(made, "resnet50") - before <= 15
