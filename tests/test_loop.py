"""The control loop on a simulated host: minutes of virtual time."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from igniterd.decide.decide import decide
from igniterd.decide.state import DecisionState
from igniterd.decisions import DecisionKind, Tick
from igniterd.errors import NotNow, NotServed, Unreachable
from igniterd.loop import Loop
from igniterd.records import Allocation, BoardReading, ModelReading, MpsReading
from igniterd.state.carry import Carry
from igniterd.states import State
from tests.factories import predictor_pair
from tests.hosts import SLOS, Bench, config

pytestmark = pytest.mark.looptime

STEADY = {"alexnet": 400.0, "resnet50": 300.0, "vgg19": 150.0}


def constant(rates: dict[str, float]) -> dict:
    return {name: (lambda _, rate=rate: rate) for name, rate in rates.items()}


def applied(tick: Tick) -> dict[str, Allocation]:
    return {name: reading.allocation for name, reading in tick.observation.models.items()}


def moves(bench: Bench) -> list:
    return [done for tick in bench.ticks for done in tick.outcome.actuations]


async def test_takes_over_in_single_steps_and_holds_every_slo(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    await bench.run(60)
    for model, slo in SLOS.items():
        assert bench.p99_ms(model, 20, 60) < slo
    last = applied(bench.ticks[-1])
    assert all(a.share is not None for a in last.values())
    assert sum(a.share or 0 for a in last.values()) <= 1 + 1e-9
    assert len(moves(bench)) <= 7  # five to take over, and little after
    assert all(len(tick.outcome.actuations) <= 1 for tick in bench.ticks)
    assert bench.ticks[0].plan.outcome is DecisionKind.WAIT


async def test_follows_traffic_that_moves(tmp_path: Path) -> None:
    rates = {
        "alexnet": lambda _: 400.0,
        "resnet50": lambda t: 300.0 if t < 60 else 450.0,
        "vgg19": lambda t: 150.0 if t < 60 else 75.0,
    }
    bench = Bench(config(tmp_path), rates, seed=3)
    await bench.run(60)
    before = applied(bench.ticks[-1])
    await bench.run(60)
    then = applied(bench.ticks[-1])
    assert then["resnet50"].share > before["resnet50"].share
    assert then["vgg19"].share < before["vgg19"].share
    for model, slo in SLOS.items():
        assert bench.p99_ms(model, 75, 120) < slo


async def test_too_much_traffic_is_said_and_the_least_important_is_let_go(tmp_path: Path) -> None:
    bench = Bench(
        config(tmp_path, vgg19=2),
        constant({"alexnet": 550.0, "resnet50": 450.0, "vgg19": 225.0}),
        seed=2,
    )
    await bench.run(75)
    plan = bench.ticks[-1].plan
    assert plan.outcome is DecisionKind.INFEASIBLE
    assert not plan.feasible
    assert [v.model for v in plan.verdicts.values() if not v.feasible] == ["vgg19"]
    assert "vgg19 is let go" in plan.why
    assert plan.verdicts["vgg19"].needs_share
    for model in ("alexnet", "resnet50"):
        assert bench.p99_ms(model, 25, 75) < SLOS[model]


async def test_a_gpu_at_its_limit_is_either_held_or_said_to_be_too_small(tmp_path: Path) -> None:
    """The paper's own rates, with random arrivals: all of this board and no more. No SLO is missed
    without being named."""
    bench = Bench(
        config(tmp_path, vgg19=2),
        constant({"alexnet": 500.0, "resnet50": 400.0, "vgg19": 200.0}),
        seed=2,
    )
    await bench.run(110)
    named = {
        v.model for tick in bench.ticks[25:] for v in tick.plan.verdicts.values() if not v.feasible
    }
    missed = {model for model, slo in SLOS.items() if bench.p99_ms(model, 25, 110) > slo}
    assert missed <= named <= {"vgg19"}
    assert len(moves(bench)) <= 12  # and it does not swing to and fro


async def test_overrides_are_asserted_again_after_triton_restarts(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    await bench.run(40)
    assert all(a.share is not None for a in applied(bench.ticks[-1]).values())
    bench.host.restart()
    await bench.run(2)
    assert all(a.share is None for a in applied(bench.ticks[-2]).values())
    await bench.run(20)
    assert all(a.share is not None for a in applied(bench.ticks[-1]).values())


async def test_a_refused_change_is_left_alone_for_a_while(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.host.refuse["alexnet"] = "failed to load 'alexnet': out of memory"
    await bench.run(30)
    refused = [done for done in moves(bench) if not done.ok]
    assert [done.error for done in refused] == ["failed to load 'alexnet': out of memory"]
    last = bench.ticks[-1]
    assert last.standings["alexnet"].state is State.REFUSED
    assert "alexnet: failed to load 'alexnet': out of memory; next try in" in last.plan.why
    assert {name for name, a in applied(last).items() if a.share is not None} == {
        "resnet50",
        "vgg19",
    }, "the others go on"
    await bench.run(75)
    assert all(a.share is not None for a in applied(bench.ticks[-1]).values())


async def test_a_silent_triton_is_a_gap_and_nothing_is_changed(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.host.silent = True
    await bench.run(5)
    assert [gap.source for gap in bench.ticks[-1].observation.gaps] == ["triton:main"]
    assert bench.ticks[-1].plan.why == (
        "waiting for alexnet, resnet50, vgg19: Triton main does not answer: Triton 'main': no "
        "answer in 0.4 s"
    )
    bench.host.silent = False
    await bench.run(30)
    assert bench.ticks[-1].plan.outcome is DecisionKind.HOLD


async def test_a_triton_without_explicit_control_is_said_and_not_tried(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.host.control = "model control is not explicit"
    await bench.run(15)
    assert (
        "Triton main cannot be steered: model control is not explicit" in bench.ticks[-1].plan.why
    )
    assert {s.state for s in bench.ticks[-1].standings.values()} == {State.UNSTEERABLE}
    assert not bench.host.loads


async def test_a_model_that_triton_lacks_keeps_nobody_waiting_whenever_it_comes_or_goes(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    away = bench.host.remove("vgg19")
    await bench.run(25)
    assert bench.ticks[-1].standings["vgg19"].state is State.ABSENT
    assert "not in the repository" in bench.ticks[-1].standings["vgg19"].why
    assert {name for _, name, _ in bench.host.loads} == {"alexnet", "resnet50"}
    bench.host.add(away)
    await bench.run(40)
    assert all(a.share is not None for a in applied(bench.ticks[-1]).values())
    bench.host.remove("vgg19")
    await bench.run(10)
    assert bench.ticks[-1].plan.outcome is DecisionKind.HOLD


def answering(
    bench: Bench, name: str, change: Callable[[ModelReading], ModelReading | NotNow]
) -> None:
    """From now on Triton answers for ``name`` with what ``change`` makes of the answer."""
    read = bench.host.read_models

    async def changed(names: Iterable[str]) -> dict[str, ModelReading | NotNow]:
        seen = await read(names)
        return {
            n: change(r) if n == name and isinstance(r, ModelReading) else r
            for n, r in seen.items()
        }

    bench.host.read_models = changed


async def test_a_model_that_cannot_be_loaded_does_not_keep_the_others_from_their_shares(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    answering(
        bench,
        "vgg19",
        lambda _: NotServed("model 'vgg19' is UNAVAILABLE on Triton 'main': no weights"),
    )
    await bench.run(25)
    last = bench.ticks[-1]
    assert [gap.source for gap in last.observation.gaps] == ["model:vgg19"]
    assert {name for name, a in applied(last).items() if a.share is not None} == {
        "alexnet",
        "resnet50",
    }


async def test_a_model_of_a_kind_that_can_only_be_watched_is_not_touched(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    answering(bench, "vgg19", lambda r: replace(r, left_alone="it is decoupled", batches=()))
    await bench.run(25)
    last = bench.ticks[-1]
    assert {done.step.model for done in moves(bench)} == {"alexnet", "resnet50"}
    assert last.plan.outcome is DecisionKind.HOLD
    assert last.estimate.loads["vgg19"].rate_per_s == pytest.approx(STEADY["vgg19"], rel=0.3)
    assert last.estimate.loads["vgg19"].predicted_p99_ms is None


async def test_a_load_that_was_not_answered_and_may_still_end_holds_up_that_model_only(
    tmp_path: Path,
) -> None:
    bench, loading = Bench(config(tmp_path), constant(STEADY)), [True]
    answering(bench, "vgg19", lambda r: replace(r, loading=loading[0]))
    await bench.run(25)
    last = bench.ticks[-1]
    assert last.standings["vgg19"].state is State.LOADING
    assert {name for _, name, _ in bench.host.loads} == {"alexnet", "resnet50"}
    assert "every SLO holds" not in last.plan.why
    loading[0] = False
    await bench.run(15)
    assert "vgg19" in {name for _, name, _ in bench.host.loads}


class OtherBoard:
    async def read(self) -> tuple[BoardReading, ...]:
        return (BoardReading(0, "GPU-1", "NVIDIA H100", sm_count=132),)


async def test_profiles_of_another_board_are_not_planned_with(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.loop.knowledge = replace(bench.loop.knowledge, board="v100", sm_count=80)
    bench.loop.sources.boards = OtherBoard()
    await bench.run(15)
    assert bench.ticks[-1].plan.why == (
        "GPU-1: the profiles are of v100 with 80 SMs, and it is NVIDIA H100 with 132 SMs: profile "
        "the models on this board"
    )
    assert not bench.host.loads


class FullBoard:
    """1000 MiB free."""

    async def read(self) -> tuple[BoardReading, ...]:
        return (
            BoardReading(
                0,
                "GPU-1",
                "V100",
                memory_used_bytes=15 * 2**30 + 24 * 2**20,
                memory_total_bytes=2**34,
            ),
        )


async def test_what_would_not_fit_beside_itself_is_not_reloaded(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    known = replace(
        bench.loop.knowledge, copy_bytes={"alexnet": 1001 * 2**20, "resnet50": 1, "vgg19": 1}
    )
    bench.loop = Loop(
        bench.loop.config,
        bench.loop.sources,
        {"main": bench.host},
        known,
        bench.ticks.append,
        wall_clock=bench.clock,
    )
    bench.loop.sources.boards = FullBoard()
    await bench.run(14)
    refused = [done.error for done in moves(bench) if not done.ok]
    assert refused == [
        "alexnet: a second copy takes 1001 MiB while it is reloaded, and GPU-1 has 1000 MiB free"
    ]
    assert "alexnet" not in {model for _, model, _ in bench.host.loads}


@pytest.mark.parametrize("mode", ["observe", "advise"])
async def test_only_act_changes_the_host(tmp_path: Path, mode: str) -> None:
    bench = Bench(config(tmp_path, more=f'[loop]\nmode = "{mode}"'), constant(STEADY))
    await bench.run(20)
    assert not bench.host.loads
    planned = [tick for tick in bench.ticks if tick.plan.steps]
    assert bool(planned) == (mode == "advise")


def less_expired(held: DecisionState) -> DecisionState:
    """Less what :func:`after` lets expire, which the replay does not call."""
    return held.with_models(
        {m: replace(h, probation=None, refused_until_s=-inf) for m, h in held.models.items()}
    )


async def test_a_decision_replays_from_its_inputs(tmp_path: Path) -> None:
    settings = config(tmp_path)
    bench = Bench(settings, constant(STEADY))
    carries: list[Carry] = []
    for _ in range(25):
        carries.append(bench.loop.carry)
        await bench.run(1)
    known = bench.loop.knowledge
    fresh = predictor_pair(known.predictors.upper.model)
    replayed = 0
    for tick, after in zip(bench.ticks, [*carries[1:], bench.loop.carry], strict=True):
        if "is being reloaded" in tick.plan.why or tick.outcome.actuations:
            continue
        before = carries[tick.number].held
        again, held = decide(
            tick.estimate,
            tick.observation,
            before,
            config=settings,
            profiled=known.profiled,
            predictors=fresh,
            now_s=tick.at_s,
            standings=tick.standings,
            began_s=bench.ticks[0].at_s,
        )
        assert again == tick.plan
        assert less_expired(held) == less_expired(after.held)
        replayed += 1
    assert replayed > 15


async def test_a_take_over_is_finished_though_traffic_grows_meanwhile(tmp_path: Path) -> None:
    """Half taken over is worse than any plan: it is not left so for a new one, and what is measured
    there is not learnt."""
    rates = {
        "alexnet": lambda t: 400.0 if t < 9.5 else 440.0,
        "resnet50": lambda t: 300.0 if t < 9.5 else 330.0,
        "vgg19": lambda _: 120.0,
    }
    bench = Bench(config(tmp_path), rates, seed=4)
    await bench.run(40)
    done = moves(bench)
    taking_over = [move for move in done if move.step.before.share in (None, 1.0)]
    assert [move.step.model for move in done[: len(taking_over)]] == [
        move.step.model for move in taking_over
    ]
    shared = [
        tick for tick in bench.ticks if all(a.share is not None for a in applied(tick).values())
    ]
    confined = next(
        tick for tick in shared if sum(a.share or 0 for a in applied(tick).values()) <= 1 + 1e-9
    )
    assert confined.at_s - bench.ticks[0].at_s < 22  # five reloads of 1.6 s after 8 s of watching
    assert all(tick.plan.outcome is not DecisionKind.INFEASIBLE for tick in bench.ticks)
    assert all(load.bias < 1.3 for tick in bench.ticks for load in tick.estimate.loads.values())


async def test_profiled_models_that_all_leave_are_waited_for_while_another_stays(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.loop.knowledge = replace(bench.loop.knowledge, profiled={"vgg19": "vgg19"})
    await bench.run(15)
    bench.host.remove("vgg19")
    await bench.run(3)
    assert (bench.ticks[-1].plan.outcome, bench.ticks[-1].plan.why) == (
        DecisionKind.WAIT,
        "no model with a profile is served now",
    )


class Mps:
    """A control daemon that is gone while ``gone``."""

    gone = True
    asked = 0

    async def read(self) -> MpsReading:
        self.asked += 1
        if self.gone:
            raise Unreachable("MPS control: no control daemon at /tmp/nvidia-mps")
        return MpsReading((), 1.0)


async def test_nothing_is_reloaded_while_mps_control_is_gone(tmp_path: Path) -> None:
    """A process started without it would run without its share."""
    bench = Bench(config(tmp_path), constant(STEADY))
    mps = bench.loop.sources.mps = Mps()
    await bench.run(20)
    said = (
        "MPS control does not answer, and nothing with a share is reloaded without it: MPS "
        "control: no control"
    )
    assert said in bench.ticks[-1].plan.why
    assert not bench.host.loads
    assert 3 <= mps.asked <= 5
    mps.gone = False
    await bench.run(20)
    assert all(a.share is not None for a in applied(bench.ticks[-1]).values())
    # while it answers, twice a minute, and before each change
    assert mps.asked <= 7 + len(bench.host.loads)


async def test_what_came_of_a_step_is_not_lost_with_the_tick_that_should_have_told(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    while not (bench.loop.acting and bench.loop.acting.done()):
        await bench.run(1)
    belief, bench.loop.carry = bench.loop.carry.belief, replace(bench.loop.carry, belief=None)
    with pytest.raises(AttributeError):
        await bench.run(1)
    bench.loop.carry = replace(bench.loop.carry, belief=belief)
    await bench.run(1)
    assert [done.step.model for done in moves(bench)] == [bench.host.loads[0][1]]
    assert list(bench.loop.carry.held.on_probation) == [bench.host.loads[0][1]]


async def test_the_end_in_the_middle_of_a_reload_says_what_is_left(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.host.reload_s = 300.0
    while bench.loop.acting is None:
        await bench.run(1)
    left = await bench.loop.close()
    assert "is being reloaded to Allocation(share=1.0" in left
    assert "Triton finishes that by itself, or keeps the old copy" in left
    assert "a plan was under way; last seen otherwise than planned: " in left
    bench = Bench(config(tmp_path), constant(STEADY))
    while bench.loop.acting is None:
        await bench.run(1)
    assert " reloaded to Allocation(" in await bench.loop.close()


async def test_a_model_whose_batching_is_its_own_still_gets_its_share(tmp_path: Path) -> None:
    """One with max_batch_size 0: a plan with another batch would be refused for ever, and nobody's
    share set."""
    bench = Bench(
        config(tmp_path),
        constant({"alexnet": 100.0, "resnet50": 100.0, "vgg19": 40.0}),
        max_batch=1,
    )
    answering(bench, "vgg19", lambda r: replace(r, batching_fixed="max_batch_size is 0"))
    await bench.run(40)
    last = applied(bench.ticks[-1])
    assert all(a.share is not None for a in last.values())
    assert last["vgg19"].max_batch_size == 1
    assert max(a.max_batch_size for a in last.values()) > 1
    assert all(
        done.step.after.max_batch_size == 1 for done in moves(bench) if done.step.model == "vgg19"
    )
