"""What the loop does about what it does not know, and about others who change the host. Virtual
time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import marked
from igniterd.clients.triton.marks import rebalance_mark
from igniterd.decisions import Tick
from igniterd.errors import Refused, Unanswered, Unreachable
from igniterd.loop import Loop
from igniterd.records import Allocation, BoardReading, ModelReading
from igniterd.state.carry_over import resumed
from igniterd.states import Cause, State
from tests.hosts import SLOS, Bench, config
from tests.sim.host import SimModel, config_of
from tests.test_loop import STEADY, Mps, answering, applied, constant, moves

pytestmark = pytest.mark.looptime

SHARES = "/var/lib/igniterd/shares/igniterd-v2"
QUIET = {name: rate / 4 for name, rate in STEADY.items()}
"""For tests of half an hour that are not about traffic."""
RISING: dict[str, Callable[[float], float]] = {
    "alexnet": lambda _: 200.0,
    "resnet50": lambda t: 150.0 if t < 90 else 330.0,
    "vgg19": lambda _: 75.0,
}
"""At 90 s resnet50 needs what the others can spare."""


def granted(bench: Bench) -> float:
    return sum(model.applied.granted or 0.0 for model in bench.host.models.values())


def with_shares(tick: Tick) -> set[str]:
    return {name for name, a in applied(tick).items() if a.share is not None and a.share < 1}


def refusing(bench: Bench, name: str) -> None:
    load = bench.host.load

    async def refused(model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        if model == name:
            raise Refused(f"{name}: failed to load: out of memory")
        await load(model, config, exact=exact)

    bench.host.load = refused  # type: ignore[method-assign]


# ---------------------------------------------------------------- not read


async def test_a_reading_that_is_missed_now_and_then_gives_nothing_away(tmp_path: Path) -> None:
    rates: dict[str, Callable[[float], float]] = {
        "alexnet": lambda _: 300.0,
        "resnet50": lambda t: 250.0 if int(t // 60) % 2 else 400.0,
        "vgg19": lambda _: 150.0,
    }
    reloads = {}
    for missed in (False, True):
        bench = Bench(config(tmp_path, vgg19=2), rates, seed=2)
        await bench.run(60)
        count = [0]

        def change(reading: ModelReading, missed: bool = missed, count: list[int] = count) -> Any:
            count[0] += 1
            return Unanswered("no answer in 0.4 s") if missed and count[0] % 7 == 0 else reading

        answering(bench, "vgg19", change)
        for _ in range(150):
            await bench.run(1)
            assert granted(bench) <= 1 + 1e-9
        reloads[missed] = len(bench.host.loads)
    assert reloads[True] <= reloads[False] + 4


async def test_a_model_not_read_for_long_stays_as_it_is_and_the_others_are_steered(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), RISING, seed=3)
    await bench.run(60)
    before = applied(bench.ticks[-1])
    answering(bench, "vgg19", lambda _: Unanswered("no answer in 0.4 s"))
    for _ in range(120):
        await bench.run(1)
        assert granted(bench) <= 1 + 1e-9
    last = bench.ticks[-1]
    assert last.standings["vgg19"].state is State.UNREAD
    assert "every SLO holds" not in last.plan.why
    assert bench.host.models["vgg19"].applied == before["vgg19"]
    assert "vgg19" not in {d.step.model for d in moves(bench) if d.step.before == before["vgg19"]}
    assert bench.p99_ms("resnet50", 120, 180) < SLOS["resnet50"]


async def test_a_silent_triton_keeps_its_shares_and_is_steered_again_when_it_answers(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    await bench.run(60)
    before, loads = applied(bench.ticks[-1]), len(bench.host.loads)
    bench.host.silent = True
    await bench.run(120)
    assert {s.state for s in bench.ticks[-1].standings.values()} == {State.UNREAD}
    bench.host.silent = False
    await bench.run(30)
    assert applied(bench.ticks[-1]) == before
    assert len(bench.host.loads) == loads, "nothing had changed"


# ---------------------------------------------------------------- plans


async def test_a_model_that_leaves_in_the_middle_of_a_plan_and_comes_back_freezes_nothing(
    tmp_path: Path,
) -> None:
    rates: dict[str, Callable[[float], float]] = {
        n: (lambda t, r=r: r if t < 60 else 0.75 * r) for n, r in STEADY.items()
    }
    bench = Bench(config(tmp_path), rates)
    while not any(d.ok for d in moves(bench)):
        await bench.run(1)
    away = bench.host.remove("vgg19")
    await bench.run(60)
    bench.host.add(away)
    await bench.run(90)
    assert with_shares(bench.ticks[-1]) == set(SLOS)
    assert not any("carrying on: 0 changes" in tick.plan.why for tick in bench.ticks)


async def test_one_model_that_can_never_be_reloaded_keeps_nobody_from_a_share(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(QUIET))
    refusing(bench, "alexnet")
    await bench.run(300)
    assert with_shares(bench.ticks[-1]) == {"resnet50", "vgg19"}
    tried = [d for d in moves(bench) if d.step.model == "alexnet"]
    assert 2 <= len(tried) <= 4, "again and again, ever less often"


async def test_a_refusal_on_one_gpu_holds_up_no_other(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.host.models["vgg19"].put(1)
    refusing(bench, "vgg19")
    await bench.run(40)
    assert {d.step.model for d in moves(bench) if d.ok} == {"alexnet", "resnet50"}
    held = bench.loop.carry.held
    assert {hold.gpu for hold in held.models.values()} == {"main:0", "main:1"}
    assert held.gpu("main:1").moved_at_s == -math.inf


async def test_two_gpus_are_changed_side_by_side(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.host.models["vgg19"].put(1)
    bench.host.reload_s = 20.0
    while len(bench.loop.actor.under_way) < 2:
        await bench.run(1)
        assert bench.now_s < 30
    assert "every SLO holds" not in bench.ticks[-1].plan.why
    assert await bench.loop.close()


# ---------------------------------------------------------------- somebody else's hand


async def test_a_change_by_hand_is_said_and_respected_for_ten_minutes(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(QUIET))
    await bench.run(60)
    by_hand = config_of("alexnet", 4, f"{SHARES}/15")
    bench.host.models["alexnet"].reset(by_hand)
    loads = len(bench.host.loads)
    with capture_logs() as logs:
        await bench.run(590)
    assert "alexnet" not in {model for _, model, _ in bench.host.loads[loads:]}
    assert bench.ticks[-1].standings["alexnet"].state is State.BY_HAND
    assert "alexnet: somebody else changed it to share 15.0%, batch 4" in bench.ticks[-1].plan.why
    said = [line for line in logs if "somebody else changed it" in line.get("reason", "")]
    assert len(said) == 1
    await bench.run(60)
    assert bench.ticks[-1].standings["alexnet"].state is State.STEERED


# ---------------------------------------------------------------- a rebalance's hand


def changed(bench: Bench, model: str, share: int, by: str = "fleet", batch: int = 1) -> None:
    """Somebody loads it with a share, in percent."""
    config = config_of(model, batch, f"{SHARES}/{share}")
    fleets = rebalance_mark(allocation_of(config), bench.clock())
    bench.host.models[model].reset(marked(config, fleets if by == "fleet" else by))


@pytest.mark.parametrize("by", ["fleet", "3f2a9c1e"])
async def test_what_a_rebalance_changed_is_steered_on_at_once(tmp_path: Path, by: str) -> None:
    """Its model would miss its SLO as it is. A mark of any other kind is a hand's."""
    bench = Bench(config(tmp_path), constant(STEADY))
    await bench.run(60)
    loads = len(bench.host.loads)
    changed(bench, "alexnet", 8, by)
    there = bench.host.models["alexnet"].applied
    await bench.run(40)
    steered = "alexnet" in {model for _, model, _ in bench.host.loads[loads:]}
    assert steered is (by == "fleet")
    told = [tick.rebalanced for tick in bench.ticks if tick.rebalanced]
    assert [each["alexnet"].after for each in told] == [there] * (by == "fleet")
    states = {tick.standings["alexnet"].state for tick in bench.ticks[60:]}
    assert (State.BY_HAND in states) is (by != "fleet")


async def test_room_that_a_rebalance_made_is_not_taken_at_once_where_every_slo_holds(
    tmp_path: Path,
) -> None:
    """It is for a model that comes next."""
    bench = Bench(config(tmp_path), constant({name: rate / 2 for name, rate in STEADY.items()}))
    await bench.run(90)
    loads = len(bench.host.loads)
    changed(bench, "alexnet", 9, batch=8)
    await bench.run(55)
    assert bench.ticks[-1].standings["alexnet"].state is State.STEERED
    assert "rates free to grow by 20%" in bench.ticks[-1].plan.why, "it would gain by more"
    assert len(bench.host.loads) == loads
    await bench.run(15)
    assert "alexnet" in {model for _, model, _ in bench.host.loads[loads:]}


async def test_a_plan_under_way_does_not_undo_what_a_rebalance_changed(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    while bench.loop.carry.held.gpu("main:0").plan is None:
        await bench.run(1)
        assert bench.now_s < 30
    now, target = {step.model for step in bench.loop.actor.steps}, bench.loop.carry.held.target
    name = next(n for n, a in target.items() if n not in now and a != applied(bench.ticks[-1])[n])
    changed(bench, name, 5)
    await bench.run(1)
    assert name in bench.ticks[-1].rebalanced
    assert bench.loop.carry.held.gpu("main:0").plan is None
    assert not bench.loop.actor.steps, "what is there now has time to settle"


async def test_a_change_by_hand_is_seen_before_the_next_step(tmp_path: Path) -> None:
    """The reading is a moment old when a step is taken: what is applied is read once more."""
    bench = Bench(config(tmp_path), constant(STEADY))
    await bench.run(60)
    # not seen by a tick yet
    bench.host.models["vgg19"].reset(config_of("vgg19", 4, f"{SHARES}/10"))
    old, here = bench.ticks[-1].observation.models["vgg19"], bench.loop.carry.known
    assert here.last["vgg19"].allocation == old.allocation
    step = next(d.step for d in moves(bench) if d.step.model == "alexnet")
    refused, cause = await bench.loop.actor.gate(step, bench.ticks[-1].observation, here)
    assert cause is Cause.BY_HAND
    assert "vgg19: somebody else changed it" in refused


@pytest.mark.parametrize("after_s", [1.0, pytest.param(5.0, marks=pytest.mark.slow)])
async def test_whoever_undoes_every_change_is_left_to_it(tmp_path: Path, after_s: float) -> None:
    bench = Bench(config(tmp_path), constant(QUIET))
    load, undoing = bench.host.load, []

    async def undone(model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        await load(model, config, exact=exact)

        async def undo() -> None:
            await asyncio.sleep(after_s)
            bench.host.advance(bench.clock())
            bench.host.models[model].reset(config_of(model))

        undoing.append(asyncio.create_task(undo()))

    bench.host.load = undone  # type: ignore[method-assign]
    await bench.run(1500)
    assert 3 <= len(bench.host.loads) <= 12
    times = {hand.times for hand in bench.loop.carry.known.hands.values()}
    assert max(times) > 1, "the pauses grow"


async def test_a_server_that_started_anew_and_a_new_version_are_no_hand(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    await bench.run(60)
    bench.host.restart()
    await bench.run(30)
    assert with_shares(bench.ticks[-1]) == set(SLOS)
    answering(bench, "vgg19", lambda r: replace(r, version="2"))
    bench.host.models["vgg19"].reset(config_of("vgg19"))
    await bench.run(30)
    assert with_shares(bench.ticks[-1]) == set(SLOS)
    assert not any(
        s.state is State.BY_HAND for tick in bench.ticks for s in tick.standings.values()
    )


async def test_a_model_marked_hands_off_is_never_touched_and_its_share_is_nobody_elses(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.host.models["vgg19"].reset(config_of("vgg19", 8, f"{SHARES}/45"))
    answering(
        bench, "vgg19", lambda r: replace(r, hands_off="its owner says so (IGNITERD_HANDS_OFF)")
    )
    await bench.run(120)
    assert "vgg19" not in {d.step.model for d in moves(bench)}
    assert bench.ticks[-1].standings["vgg19"].state is State.HANDS_OFF
    assert with_shares(bench.ticks[-1]) == set(SLOS)
    assert granted(bench) <= 1 + 1e-9


# ---------------------------------------------------------------- shares that are not planned with


async def test_a_share_counts_whoever_holds_it(tmp_path: Path) -> None:
    rates = {name: STEADY[name] for name in ("alexnet", "resnet50")}
    bench = Bench(config(tmp_path, {name: SLOS[name] for name in rates}), constant(rates))
    bench.host.add(
        SimModel("vgg19", "vgg19", lambda _: 150.0, config_of("vgg19", 8, f"{SHARES}/45"))
    )
    await bench.run(60)
    assert with_shares(bench.ticks[-1]) == set(rates)
    assert granted(bench) <= 1 + 1e-9, "vgg19 is not in the configuration, and keeps its 45 %"
    bench = Bench(config(tmp_path), constant(STEADY))
    known = replace(bench.loop.knowledge, profiled={name: name for name in rates})
    bench.loop = Loop(
        bench.loop.config,
        bench.loop.sources,
        {"main": bench.host},
        known,
        bench.ticks.append,
        wall_clock=bench.clock,
    )
    bench.host.models["vgg19"].reset(config_of("vgg19", 8, f"{SHARES}/40"))
    await bench.run(60)
    assert with_shares(bench.ticks[-1]) == set(SLOS)
    assert granted(bench) <= 1 + 1e-9, "it has no profile, and keeps its 40 %"


# ---------------------------------------------------------------- readings nobody thought of


async def test_a_model_that_cannot_be_predicted_is_left_out_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    predictors = bench.loop.knowledge.predictors
    assert predictors is not None
    for predictor in (predictors.upper, predictors.mean):
        served = predictor.served

        def odd(demand: Any, *args: Any, served: Any = served, **kw: Any) -> Any:
            if demand.model == "vgg19" and bench.now_s > 5:
                raise FloatingPointError("nobody thought of that")
            return served(demand, *args, **kw)

        predictor.served = odd  # type: ignore[method-assign]
    with capture_logs() as logs:
        await bench.run(60)
    last = bench.ticks[-1]
    assert last.standings["vgg19"].state is State.UNPREDICTABLE
    assert with_shares(last) >= {"alexnet", "resnet50"}
    assert "every SLO holds" not in last.plan.why
    assert sum("nobody thought of that" in line.get("reason", "") for line in logs) == 1


# ---------------------------------------------------------------- MPS, and servers that go away


async def test_nothing_is_reloaded_from_the_moment_mps_control_is_gone(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    mps = bench.loop.sources.mps = Mps()
    mps.gone = False
    await bench.run(3)
    mps.gone = True  # its last answer stands for half a minute
    await bench.run(40)
    assert not bench.host.loads
    holds = bench.loop.carry.held.models.values()
    assert not any(hold.refusals for hold in holds), "that is no refusal of the model's"
    mps.gone = False
    await bench.run(40)
    assert with_shares(bench.ticks[-1]) == set(SLOS)


async def test_a_triton_that_dies_in_the_middle_of_a_reload_is_taken_over_at_once_when_it_is_back(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    await bench.run(60)
    bench.host.restart()
    bench.host.reload_s = 5.0
    while bench.loop.acting is None:
        await bench.run(1)
    bench.host.silent = True
    await bench.run(10)
    bench.host.silent, bench.host.reload_s = False, 0.6
    bench.host.restart()
    await bench.run(30)
    assert with_shares(bench.ticks[-1]) == set(SLOS)
    assert any(d.cause is Cause.LOST for d in moves(bench))


# ---------------------------------------------------------------- what was known, and is not told
# now


async def test_a_triton_started_anew_is_told_from_a_hand_beside_a_share_from_a_file(
    tmp_path: Path,
) -> None:
    """A model that igniterd never changes has its share after a restart as before: that shows
    nothing."""
    bench = Bench(config(tmp_path), constant({"alexnet": 200.0, "resnet50": 150.0, "vgg19": 75.0}))
    file = config_of("vgg19", 8, f"{SHARES}/45")
    bench.host.models["vgg19"].reset(file)
    answering(
        bench, "vgg19", lambda r: replace(r, hands_off="its owner says so (IGNITERD_HANDS_OFF)")
    )
    await bench.run(60)
    bench.host.silent = True
    await bench.run(5)
    bench.host.silent = False
    bench.host.restart()
    bench.host.models["vgg19"].reset(file)
    await bench.run(40)
    assert with_shares(bench.ticks[-1]) == set(SLOS)


async def test_a_board_that_is_not_read_for_a_moment_is_still_the_odd_one(tmp_path: Path) -> None:
    class Boards:
        gone = False

        async def read(self) -> tuple[BoardReading, ...]:
            if self.gone:
                raise Unreachable("NVML: no answer")
            return (BoardReading(0, "GPU-0", "T4", sm_count=40),)

    bench = Bench(config(tmp_path), constant(STEADY))
    bench.loop.knowledge = replace(bench.loop.knowledge, sm_count=80, board="V100")
    boards = bench.loop.sources.boards = Boards()
    await bench.run(20)
    boards.gone = True
    await bench.run(20)
    assert not bench.host.loads
    assert "it is T4" in bench.ticks[-1].plan.why


async def test_a_step_under_way_when_the_configuration_is_read_again_is_no_hand(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    bench.host.reload_s = 20.0
    while bench.loop.acting is None:
        await bench.run(1)
    step, old = bench.loop.actor.steps[0], bench.loop
    carry = resumed(old.handed_on(), old.config, old.knowledge, old.config, old.knowledge)
    await old.close()
    bench.host.reload_s = 0.6
    bench.loop = Loop(
        old.config,
        old.sources,
        {"main": bench.host},
        old.knowledge,
        bench.ticks.append,
        wall_clock=bench.clock,
    )
    bench.loop.carry = carry
    await bench.run(10)
    assert bench.ticks[-1].standings[step.model].state is State.REFUSED, "it may come yet"
    assert step.after.share == 1.0
    bench.host.models[step.model].reset(
        config_of(step.model, step.after.max_batch_size, f"{SHARES}/100")
    )
    await bench.run(40)
    assert with_shares(bench.ticks[-1]) == set(SLOS)
    assert not any(
        s.state is State.BY_HAND for tick in bench.ticks for s in tick.standings.values()
    )


@pytest.mark.slow
async def test_pauses_grow_for_a_hand_that_undoes_reloads_that_take_long(tmp_path: Path) -> None:
    """Ticks go on while a model is being reloaded: what is known of the hand stays."""
    bench = Bench(config(tmp_path), constant(QUIET))
    bench.host.reload_s = 2.5
    load, undoing = bench.host.load, []

    async def undone(model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        await load(model, config, exact=exact)

        async def undo() -> None:
            await asyncio.sleep(1.0)
            bench.host.advance(bench.clock())
            bench.host.models[model].reset(config_of(model))

        undoing.append(asyncio.create_task(undo()))

    bench.host.load = undone  # type: ignore[method-assign]
    await bench.run(2000)
    assert max(hand.times for hand in bench.loop.carry.known.hands.values()) > 1


@pytest.mark.parametrize("late", [False, True])
async def test_nobody_is_confined_to_nothing_beside_one_that_holds_the_gpu_whole(
    tmp_path: Path, late: bool
) -> None:
    """A load that was not answered may bring all of it yet; or somebody else gave it that."""
    bench = Bench(config(tmp_path), constant({"alexnet": 200.0, "resnet50": 150.0, "vgg19": 75.0}))
    if late:
        load = bench.host.load

        async def lost(model: str, config: dict[str, Any], *, exact: bool = False) -> None:
            if model == "alexnet" and bench.now_s < 60:
                raise Unanswered("alexnet: no answer in 30 s")
            await load(model, config, exact=exact)

        bench.host.load = lost  # type: ignore[method-assign]
    else:
        await bench.run(60)
        bench.host.models["alexnet"].reset(config_of("alexnet", 8, f"{SHARES}/100"))
    before = {name: model.applied for name, model in bench.host.models.items()}
    for _ in range(50):
        await bench.run(1)
        assert {name: model.applied for name, model in bench.host.models.items()} == before
    assert "every SLO holds" not in bench.ticks[-1].plan.why
    if late:
        await bench.run(150)
        assert with_shares(bench.ticks[-1]) == set(SLOS)


async def test_a_load_of_the_daemon_before_this_one_is_no_hand(tmp_path: Path) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))
    await bench.run(3)  # restarted in the middle of a take-over: nothing of it is known
    bench.host.advance(bench.clock())
    bench.host.models["alexnet"].reset(config_of("alexnet", 8, f"{SHARES}/100"))
    await bench.run(40)
    assert with_shares(bench.ticks[-1]) == set(SLOS)
    assert not any(
        s.state is State.BY_HAND for tick in bench.ticks for s in tick.standings.values()
    )


async def test_a_model_changed_by_hand_while_it_is_not_read_holds_up_no_other(
    tmp_path: Path,
) -> None:
    bench = Bench(config(tmp_path), RISING, seed=3)
    await bench.run(60)
    answering(bench, "vgg19", lambda _: Unanswered("no answer in 0.4 s"))
    await bench.run(2)
    bench.host.models["vgg19"].reset(config_of("vgg19", 8, f"{SHARES}/30"))
    for _ in range(120):
        await bench.run(1)
        assert granted(bench) <= 1 + 1e-9 or bench.now_s < 80
    assert bench.host.models["vgg19"].applied.share == 0.3
    assert bench.p99_ms("resnet50", 120, 180) < SLOS["resnet50"]


@pytest.mark.parametrize("odd", ["raises", "keeps the old copy"])
async def test_what_the_gate_is_told_or_not_told_fails_no_tick_and_changes_nothing(
    tmp_path: Path, odd: str
) -> None:
    bench = Bench(config(tmp_path), constant(STEADY))

    async def raises(names: Any) -> dict[str, Allocation]:
        raise TypeError("a configuration nobody thought of")

    async def stays(model: str) -> str:
        return f"Triton is still unloading version 1 of {model}"

    answers = {"raises": ("applied_now", raises), "keeps the old copy": ("old_copy", stays)}
    setattr(bench.host, *answers[odd])
    await bench.run(40)
    assert not bench.host.loads
    said = {
        done.error.partition(": ")[2] if odd == "raises" else done.error for done in moves(bench)
    }
    assert all("nobody thought of" in each or "still unloading" in each for each in said)
    assert {done.cause for done in moves(bench)} == {Cause.HELD}
    for name, _ in answers.values():
        bench.host.__dict__.pop(name, None)
    await bench.run(40)
    assert with_shares(bench.ticks[-1]) == set(SLOS)
