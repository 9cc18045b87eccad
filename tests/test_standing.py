"""Whose hand changed a model, and the one state of each: worked examples."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.config import allocation_of, same_allocation
from igniterd.clients.triton.config_change import marked, with_allocation
from igniterd.clients.triton.marks import rebalance_mark, rebalanced_s
from igniterd.decide.state import DecisionState
from igniterd.decisions import ActResult, Actuation, Step, StepKind
from igniterd.hands import Rebalanced
from igniterd.loads import Load
from igniterd.records import Allocation, ModelReading, Observation, Stub
from igniterd.standing import Facts, Known, followed, scene, standings, stepped
from igniterd.states import Cause, State
from tests.hosts import config

A, B = Allocation(0.4, 8), Allocation(0.2, 8)
EPOCH_S = 1_764_000_000.0


def reading(name: str = "alexnet", here: Allocation = A, **more: Any) -> ModelReading:
    more = {"success_count": 100, "instance_names": frozenset({f"{name}_0_0"}), **more}
    return ModelReading(
        name, more.pop("version", "1"), "main", more.pop("ready", True), "python", here, **more
    )


def at(now_s: float, *readings: ModelReading, **more: Any) -> Observation:
    return Observation(now_s, models={r.model: r for r in readings}, **more)


def done(after: Allocation, *, ok: bool = True, cause: Cause = Cause.NONE) -> ActResult:
    return ActResult(
        (Actuation(Step("alexnet", StepKind.SHRINK, A, after), ok, 1.0, "" if ok else "no", cause),)
    )


class World:
    """Follows one observation after another."""

    def __init__(self, folder: Path) -> None:
        self.config, self.known = config(folder), Known()

    def sees(self, seen: Observation, outcome: ActResult | None = None, **more: Any) -> Known:
        more = {"wall_s": EPOCH_S + seen.at_s, **more}
        self.known = followed(self.known, seen, outcome or ActResult(), config=self.config, **more)
        return self.known

    def state(self, seen: Observation, name: str = "alexnet", **facts: Any) -> State:
        loads = {
            n: Load(n, 1.0, 1.0, True, watched_s=100.0) for n in ("alexnet", "resnet50", "vgg19")
        }
        all_of_it = {
            "loads": loads,
            "profiled": {n: n for n in loads},
            "held": DecisionState(),
            **facts,
        }
        return standings(
            scene(seen, self.known), Facts(seen.at_s, self.config, self.known, **all_of_it)
        )[name].state


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.sees(at(0.0, reading()))
    world.sees(at(100.0, reading()))
    return world


def test_a_change_that_nobody_here_asked_for_is_a_hand_and_is_over_after_a_time(
    world: World,
) -> None:
    seen = at(101.0, reading(here=B, success_count=0))
    hand = world.sees(seen).hands["alexnet"]
    assert (hand.allocation, hand.times, hand.until_s) == (
        B,
        1,
        101.0 + world.config.decide.respect_s,
    )
    assert world.state(seen) is State.BY_HAND
    later = at(hand.until_s, reading(here=B))
    world.sees(later)
    assert world.state(later) is State.STEERED


@pytest.mark.parametrize(
    "change",
    [{"max_queue_delay_us": 500}, {"instances": 2}, {"max_batch_size": 4}, {"share": None}],
)
def test_a_hand_may_change_anything(world: World, change: dict[str, Any]) -> None:
    assert (
        "alexnet"
        in world.sees(at(101.0, reading(here=replace(A, **change), success_count=0))).hands
    )


# ---------------------------------------------------------------- a rebalance's


def by_rebalance(here: Allocation, at_s: float, **more: Any) -> ModelReading:
    """As a rebalance has set it at ``at_s``."""
    return reading(here=here, success_count=0, rebalanced_s=EPOCH_S + at_s, **more)


def test_what_a_rebalance_changed_is_taken_over_at_once_and_told_once(world: World) -> None:
    seen = at(101.0, by_rebalance(B, 100.5))
    known = world.sees(seen)
    assert (known.hands, known.rebalanced) == ({}, {"alexnet": Rebalanced(A, B)})
    assert world.state(seen) is State.STEERED
    later = at(102.0, by_rebalance(B, 100.5))
    assert world.sees(later).rebalanced == {}
    assert world.state(later) is State.STEERED


def test_a_second_rebalance_and_one_that_takes_it_back_are_taken_over_too(world: World) -> None:
    world.sees(at(101.0, by_rebalance(B, 100.5)))
    assert world.sees(at(110.0, by_rebalance(A, 109.0))).rebalanced == {"alexnet": Rebalanced(B, A)}
    assert not world.known.hands


C = Allocation(0.3, 8)


@pytest.mark.parametrize(
    ("now", "respected"),
    [
        # loaded from its file, by a program without marks, or with a mark of something else
        (reading(here=C), True),
        # the configuration of before, kept and loaded again with its mark
        (by_rebalance(A, 50.0), True),
        # one that was kept for long
        (by_rebalance(C, -5000.0), True),
        # marked by somebody whose clock is of another day
        (by_rebalance(C, 90_000.0), True),
        # a rebalance, by a machine whose clock is five minutes behind or ahead
        (by_rebalance(C, 110.0), False),
        (by_rebalance(C, 410.0), False),
        # a new version
        (reading(here=C, version="2"), False),
    ],
)
def test_who_is_respected_after_a_rebalance(
    world: World, now: ModelReading, respected: bool
) -> None:
    world.sees(at(50.0, by_rebalance(A, 50.0)))
    world.sees(at(101.0, by_rebalance(B, 100.5)))
    seen = at(120.0, now)
    assert bool(world.sees(seen).hands) is respected
    assert (world.state(seen) is State.BY_HAND) is respected


def test_a_mark_whose_time_is_behind_the_last_one_is_not_believed(world: World) -> None:
    """Two machines carry out rebalances, and their clocks differ: respected, as ever before."""
    world.sees(at(101.0, by_rebalance(B, 400.0)))
    assert world.sees(at(120.0, by_rebalance(C, 120.0))).hands


def test_a_rebalance_while_triton_was_out_of_reach_for_an_hour_is_one(world: World) -> None:
    for now_s in range(101, 4000, 60):
        world.sees(at(float(now_s), unread={"alexnet": "no answer"}))
    assert not world.sees(at(4000.0, by_rebalance(B, 300.0))).hands


def test_a_daemon_that_begins_anew_takes_an_old_mark_for_no_change(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.sees(at(0.0, by_rebalance(A, -10.0))).rebalanced == {}
    assert world.known.loaded_s == {}
    world.sees(at(60.0, reading(here=B)), done(B))
    assert world.sees(at(100.0, by_rebalance(A, -10.0))).hands, "loaded again by hand"


def test_a_rebalance_ends_what_a_hand_did(world: World) -> None:
    world.sees(at(101.0, reading(here=C)))
    assert world.known.hands
    assert not world.sees(at(110.0, by_rebalance(B, 109.0))).hands


def test_a_rebalance_during_a_step_of_ours_is_seen_after_it(world: World) -> None:
    world.sees(at(101.0, by_rebalance(B, 100.5)), acting=["alexnet"])
    known = world.sees(at(102.0, by_rebalance(B, 100.5)), done(C, ok=False, cause=Cause.BY_HAND))
    assert (known.hands, known.rebalanced) == ({}, {"alexnet": Rebalanced(A, B)})


def test_what_loads_a_model_that_is_new_is_no_change_and_its_second_load_none_by_hand(
    world: World,
) -> None:
    """Where its file cannot be read it is loaded as that says, and then as wanted."""
    world.sees(at(101.0, absent=frozenset({"alexnet"})))
    assert not world.sees(at(110.0, reading(here=A, success_count=0))).hands
    seen = at(112.0, by_rebalance(B, 111.0))
    assert not world.sees(seen).hands
    assert world.state(seen) is State.STEERED


def test_what_a_rebalance_loads_counts_as_loaded_though_nothing_was_there(world: World) -> None:
    """Its processes have the time to show that those of our own loads have."""
    world.sees(at(101.0, absent=frozenset({"alexnet"})))
    known = world.sees(at(110.0, by_rebalance(B, 109.0)))
    assert known.rebalanced == {}
    assert known.loaded_at(110.0) == {"alexnet"}
    assert world.sees(at(111.0, by_rebalance(B, 109.0))).loaded_at(111.0) == set()


def test_what_is_not_managed_stays_so_after_a_rebalance(world: World) -> None:
    seen = at(101.0, by_rebalance(B, 100.5, hands_off="its owner says so"))
    world.sees(seen)
    assert world.state(seen) is State.HANDS_OFF
    seen = at(102.0, by_rebalance(C, 101.5))
    world.sees(seen)
    assert world.state(seen, profiled={}) is State.WATCHED


def test_an_old_copy_after_a_rebalance_may_answer_its_last_requests(world: World) -> None:
    both = (stub(10), stub(11, started=5))
    world.sees(at(99.0, reading(), stubs=(stub(10),)), done(A))
    for now_s, state in ((120.0, State.STEERED), (125.0, State.STEERED), (131.0, State.OLD_COPY)):
        seen = at(now_s, by_rebalance(B, 119.0), stubs=both)
        world.sees(seen)
        assert world.state(seen) is state


WHO = st.sampled_from(["rebalance", "daemon", "file", "kept mark", "kept configuration"])
SHARES_THERE = st.sampled_from([0.1, 0.2, 0.3])


@given(st.lists(st.tuples(WHO, SHARES_THERE, st.integers(0, 9)), max_size=12))
def test_whoever_changes_it_and_however_often_only_a_hand_is_respected(
    changes: list[tuple[str, float, int]],
) -> None:
    """Configurations as they are loaded: by hand from a file, with the mark that was read back, or
    as one of before was."""
    group = {"name": "alexnet_0", "count": 1, "kind": "KIND_GPU", "gpus": [0]}
    own = {"name": "alexnet", "backend": "python", "max_batch_size": 8, "instance_group": [group]}
    served = [with_allocation(own, Allocation(0.4, 1, 0, 1, (0,)), "/shares")]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.sees(at(0.0, of_config(served[0])))
        for number, (who, share, which) in enumerate(changes, start=1):
            now_s, asked = 40.0 * number, Allocation(share, 1, 0, 1, (0,))
            before, until_s = world.known.last["alexnet"].allocation, world.known.hands
            config = with_allocation(own if who == "file" else served[-1], asked, "/shares")
            if who == "rebalance":
                config = marked(config, rebalance_mark(asked, EPOCH_S + now_s))
            elif who == "daemon":
                config = marked(config, f"{number:08x}")
            elif who == "kept configuration":
                config = served[which % len(served)]
            served.append(config)
            now = of_config(config)
            if same_allocation(now.allocation, before):
                world.sees(at(now_s, now))
                assert world.known.hands == until_s, "nothing has changed"
                assert not world.known.rebalanced
                continue
            ours = done(asked) if who == "daemon" else None
            world.sees(at(now_s, now), ours)
            by = world.known.hands.get("alexnet")
            assert (by is not None and by.at_s == now_s) is (who not in ("rebalance", "daemon"))
            assert bool(world.known.rebalanced) is (who == "rebalance")
            if who == "rebalance":
                assert by is None


def of_config(config: ModelConfig) -> ModelReading:
    here = allocation_of(config, "/shares")
    return reading(here=here, rebalanced_s=rebalanced_s(config, here))


# ---------------------------------------------------------------- several in a row


def test_two_hands_in_a_row_are_one_quarrel(world: World) -> None:
    world.sees(at(101.0, reading(here=B)))
    hand = world.sees(at(110.0, reading(here=A))).hands["alexnet"]
    assert (hand.times, hand.at_s) == (1, 110.0)


def test_what_our_own_step_brought_is_no_hand_and_what_undoes_it_is(world: World) -> None:
    assert not world.sees(at(101.0, reading(here=B, success_count=0)), done(B)).hands
    assert world.sees(at(102.0, reading(here=A, success_count=0))).hands


def test_a_step_that_brought_something_else_met_a_hand(world: World) -> None:
    assert world.sees(at(101.0, reading(here=replace(B, max_batch_size=2))), done(B)).hands


def test_a_hand_that_the_gate_found_while_a_tick_passed_is_still_known(world: World) -> None:
    world.sees(at(101.0, reading(here=B)), acting=["alexnet"])
    assert world.sees(at(102.0, reading(here=B)), done(A, ok=False, cause=Cause.BY_HAND)).hands


def test_a_load_that_was_not_answered_may_come_later(world: World) -> None:
    world.sees(at(101.0, reading()), done(B, ok=False, cause=Cause.UNANSWERED))
    assert not world.sees(at(150.0, reading(here=B)), came={"alexnet": B}).hands


def test_a_step_left_to_another_loop_may_come_later(world: World) -> None:
    world.known = stepped(world.known, done(B, ok=False, cause=Cause.UNANSWERED))
    assert not world.sees(at(101.0, reading(here=B)), came={"alexnet": B}).hands


def test_another_version_is_a_deployment_and_ends_what_a_hand_did(world: World) -> None:
    world.sees(at(101.0, reading(here=B)))
    assert not world.sees(at(102.0, reading(here=A, version="2"))).hands


def test_a_model_given_back_is_its_owners(world: World) -> None:
    assert not world.sees(at(101.0, reading(here=B)), released=["alexnet"]).hands
    assert (
        world.state(at(101.0, reading(here=B)), released={"alexnet": "it was given back"})
        is State.HANDS_OFF
    )


def three(share: float | None, count: int) -> list[ModelReading]:
    return [
        reading(n, replace(A, share=share), success_count=count)
        for n in ("alexnet", "resnet50", "vgg19")
    ]


def test_a_server_whose_models_all_count_from_the_start_is_a_new_one(world: World) -> None:
    world.sees(at(101.0, *three(0.3, 100)))
    known = world.sees(at(102.0, *three(None, 3)))
    assert known.anew == {"main"}
    assert not known.hands


def test_one_of_our_shares_that_stands_shows_that_the_server_is_the_same(world: World) -> None:
    world.sees(at(101.0, *three(0.3, 100)))
    world.known = replace(world.known, hands={})
    known = world.sees(at(102.0, *three(None, 3)[:2], three(0.3, 110)[2]))
    assert not known.anew
    assert known.hands.keys() == {"alexnet", "resnet50"}


def stub(pid: int, server: int = 1, started: int = 0) -> Stub:
    return Stub(
        pid, (pid,), server, None, "/models/alexnet/1/model.py", "alexnet_0_0", started=started
    )


def test_another_pid_is_a_new_server_whatever_the_counts_say(world: World) -> None:
    world.sees(at(101.0, reading(), stubs=(stub(10),)))
    assert world.sees(at(102.0, reading(here=B), stubs=(stub(20, server=2),))).anew == {"main"}


def test_an_old_copy_that_lingers_is_not_reloaded_and_one_of_another_server_is_none(
    world: World,
) -> None:
    world.sees(at(101.0, reading(here=B), stubs=(stub(10), stub(11, started=5))), done(B))
    soon = at(105.0, reading(here=B), stubs=(stub(10), stub(11, started=5)))
    world.sees(soon)
    assert world.state(soon) is State.STEERED, "it may answer its last requests"
    late = replace(soon, at_s=112.0)
    world.sees(late)
    assert world.state(late) is State.OLD_COPY
    other = replace(late, at_s=113.0, stubs=(stub(10, server=2), stub(11, started=5)))
    world.sees(other)
    assert world.state(other) is State.STEERED


def test_what_is_not_read_is_as_it_was_and_what_is_not_served_is_gone(world: World) -> None:
    unread = at(101.0, unread={"alexnet": "no answer in 0.4 s"})
    world.sees(unread)
    assert scene(unread, world.known).models["alexnet"].allocation == A
    assert world.state(unread) is State.UNREAD
    assert world.state(unread, "vgg19") is State.UNSEEN
    gone = at(102.0, absent=frozenset({"alexnet"}))
    world.sees(gone)
    assert not scene(gone, world.known).models
    assert world.state(gone) is State.ABSENT


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({"loading": True, "hands_off": "its owner"}, State.LOADING),
        ({"ready": False}, State.LOADING),
        ({"hands_off": "its owner", "left_alone": "an ensemble"}, State.HANDS_OFF),
        ({"left_alone": "an ensemble"}, State.WATCHED),
    ],
)
def test_what_is_more_final_is_said_first(world: World, more: dict[str, Any], state: State) -> None:
    seen = at(101.0, reading(here=B, **more))
    world.sees(seen)
    assert world.state(seen) is state
