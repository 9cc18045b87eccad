"""A rebalance is carried out, stops, goes on and is taken back: on two hosts that are not there."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.marks import rebalanced_s
from igniterd.errors import CannotRun, Refused, Unanswered, Unreachable
from igniterd.fleet.apply import StepFailed, carry_out, mark_routed
from igniterd.fleet.journal import Journal
from igniterd.fleet.orders import faults_now
from igniterd.fleet.route import Router
from igniterd.fleet.undo import take_back, to_undo
from igniterd.messages.rebalance import Rebalance
from igniterd.records import Allocation
from tests.fleet.world import SHARES, Killed, World, config_of, rebalance, share_at

MOST_CALLS = 34
"""More than a whole run makes: see the test that counts them."""


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def started(folder: Path, found: Rebalance | None = None) -> Journal:
    return Journal.start(folder / "journal.jsonl", found or rebalance())


def again(journal: Journal) -> Journal:
    """As another process finds it."""
    return Journal.read(journal.path)


async def faults(world: World, found: Rebalance | None = None) -> list[str]:
    return await faults_now(found or rebalance(), world.crew().remotes)


def is_moved(world: World) -> bool:
    there = allocation_of(world.served["gpu-b"]["m"], SHARES)
    near, rest = world.served["gpu-b"]["near"], world.served["gpu-a"]["rest"]
    return (
        there == Allocation(0.45, 4, 0, 1, (3,))
        and "m" not in world.served["gpu-a"]
        and allocation_of(near, SHARES).share == 0.5
        and allocation_of(rest, SHARES).share == 0.8
        and world.route == {"gpu-b"}
    )


# ---------------------------------------------------------------- the whole


def test_a_model_is_moved_in_order_and_taken_back(tmp_path: Path) -> None:
    world, before = World.made(), World.made().standing()
    journal = started(tmp_path)
    assert run(faults(world)) == []
    run(carry_out(journal, world.crew()))
    assert is_moved(world)
    assert world.calls < MOST_CALLS
    assert run(take_back(again(journal), world.crew())) == []
    assert (world.standing(), set(world.route)) == (before, {"gpu-a"})
    assert world.unroutable == []


def test_a_replica_is_loaded_and_the_first_stays(tmp_path: Path) -> None:
    world = World.made()
    run(carry_out(started(tmp_path, rebalance("replicate")), world.crew()))
    assert world.route == {"gpu-a", "gpu-b"}
    assert "m" in world.served["gpu-a"]


def test_the_check_changes_nothing() -> None:
    world = World.made()
    assert run(faults(world)) == []
    assert world.standing() == World.made().standing()


def marked_by_rebalance(world: World) -> set[str]:
    """The models whose last load says that a rebalance set what they have."""
    return {
        f"{host}/{name}"
        for host, models in world.served.items()
        for name, config in models.items()
        if rebalanced_s(config, allocation_of(config, SHARES)) is not None
    }


def test_every_load_says_who_made_it_and_so_does_every_one_that_takes_it_back(
    tmp_path: Path,
) -> None:
    world = World.made()
    journal = started(tmp_path)
    run(carry_out(journal, world.crew()))
    assert marked_by_rebalance(world) == {"gpu-a/rest", "gpu-b/near", "gpu-b/m"}
    run(take_back(again(journal), world.crew()))
    assert marked_by_rebalance(world) == {"gpu-a/rest", "gpu-a/m", "gpu-b/near"}


def test_one_that_goes_on_says_so_too(tmp_path: Path) -> None:
    world, journal = World.made(), started(tmp_path)
    world.late = True  # the first load is not answered, and ends later
    with pytest.raises(StepFailed):
        run(carry_out(journal, world.crew()))
    world.finish_loads()
    assert marked_by_rebalance(world) == {"gpu-b/near"}
    run(carry_out(again(journal), world.crew()))
    assert marked_by_rebalance(world) == {"gpu-a/rest", "gpu-b/near", "gpu-b/m"}


def test_instances_alone_are_brought_back_beside_those_that_serve_on(tmp_path: Path) -> None:
    """With another mark that would be a new copy."""
    world = World.made()
    steps = rebalance().model_dump(mode="json", by_alias=True)["steps"]
    now = {"share": 0.9, "max_batch_size": 8, "devices": [0]}
    steps[0] |= {"before": now, "allocation": now | {"instances": 2, "devices": [0, 0]}}
    sent = copy.deepcopy(world.served["gpu-b"]["near"])
    journal = started(tmp_path, rebalance(steps=steps))
    run(carry_out(journal, world.crew()))
    group = sent["instance_group"][0] | {"count": 2}
    assert world.served["gpu-b"]["near"] == sent | {"instance_group": [group]}
    run(take_back(again(journal), world.crew()))
    assert world.served["gpu-b"]["near"] == sent


# ---------------------------------------------------------------- where it fails

errors = st.sampled_from([Refused("no"), Unreachable("gone"), Unanswered("late")])


@given(at=st.integers(1, MOST_CALLS), error=errors, done=st.booleans(), undo_at=st.integers(1, 60))
def test_wherever_a_call_fails_undo_gets_back_to_the_start(
    at: int, error: Exception, done: bool, undo_at: int
) -> None:
    world = World.made()
    world.fails = {at: (error, done)}
    with tempfile.TemporaryDirectory() as folder:
        journal = started(Path(folder))
        try:
            run(carry_out(journal, world.crew()))
        except StepFailed:
            assert again(journal).path.read_text().count('"stopped"') == 1
        world.calls, world.fails = 0, {undo_at: (error, done)}  # and undoing may fail once too
        try:
            run(take_back(again(journal), world.crew()))
        except StepFailed:
            world.fails = {}
            run(take_back(again(journal), world.crew()))
        assert (world.standing(), set(world.route)) == (World.made().standing(), {"gpu-a"})
        assert to_undo(again(journal)) == []
    assert world.unroutable == []


@given(at=st.integers(1, MOST_CALLS), done=st.booleans(), undo=st.booleans())
def test_a_killed_run_is_undone_or_goes_on(at: int, done: bool, undo: bool) -> None:
    world = World.made()
    world.fails = {at: (Killed(), done)}
    with tempfile.TemporaryDirectory() as folder:
        journal = started(Path(folder))
        try:
            run(carry_out(journal, world.crew()))
        except Killed:
            assert "stopped" not in journal.path.read_text()
        world.fails = {}
        if undo:
            assert run(take_back(again(journal), world.crew())) == []
            assert (world.standing(), set(world.route)) == (World.made().standing(), {"gpu-a"})
        else:
            run(carry_out(again(journal), world.crew()))
            assert is_moved(world)
    assert world.unroutable == []


@given(first=st.integers(1, MOST_CALLS), second=st.integers(1, MOST_CALLS), done=st.booleans())
def test_one_that_was_killed_twice_is_undone(first: int, second: int, done: bool) -> None:
    world = World.made()
    with tempfile.TemporaryDirectory() as folder:
        journal = started(Path(folder))
        for at in (first, second):
            world.calls, world.fails = 0, {at: (Killed(), done)}
            with contextlib.suppress(Killed):
                run(carry_out(again(journal), world.crew()))
        world.fails = {}
        assert run(take_back(again(journal), world.crew())) == []
        assert (world.standing(), set(world.route)) == (World.made().standing(), {"gpu-a"})


def test_a_load_that_ends_after_everybody_has_gone_is_taken_back_too(tmp_path: Path) -> None:
    world = World.made()
    world.late = True
    journal = started(tmp_path)
    with pytest.raises(StepFailed, match="step 1, shrink near"):
        run(carry_out(journal, world.crew()))
    assert run(take_back(again(journal), world.crew())) == []
    world.finish_loads()
    assert world.standing() == World.made().standing()


def test_nothing_is_done_after_a_refusal(tmp_path: Path) -> None:
    world = World.made()
    del world.repository["gpu-b"]["m"]
    with pytest.raises(StepFailed, match=r"step 2, load m on gpu-b: .*not ready"):
        run(carry_out(started(tmp_path), world.crew()))
    assert world.route == {"gpu-a"}
    assert "m" in world.served["gpu-a"]
    assert "m" not in world.served["gpu-b"]


def test_a_model_loaded_otherwise_than_asked_is_unloaded_again(tmp_path: Path) -> None:
    world = World.made()
    world.repository["gpu-b"]["m"]["instance_group"] *= 2
    with pytest.raises(StepFailed, match=r"one instance group.*is unloaded again on gpu-b"):
        run(carry_out(started(tmp_path), world.crew()))
    assert "m" not in world.served["gpu-b"]


# ---------------------------------------------------------------- others change things


def test_what_somebody_else_changed_is_left_alone_and_named(tmp_path: Path) -> None:
    world = World.made()
    journal = started(tmp_path)
    run(carry_out(journal, world.crew()))
    theirs = config_of("near", 0.7)
    world.served["gpu-b"]["near"] = theirs
    (left,) = run(take_back(again(journal), world.crew()))
    assert "shrink near on gpu-b" in left
    assert "somebody else" in left
    assert world.served["gpu-b"]["near"] == theirs
    world.served["gpu-b"]["near"] = config_of("near", 0.5)  # they take it back
    assert run(take_back(again(journal), world.crew())) == []
    assert share_at(world, "gpu-b", "near") == 0.9
    assert "m" in world.served["gpu-a"]
    assert "m" not in world.served["gpu-b"]


def test_a_share_that_the_hosts_own_daemon_gave_does_not_keep_the_copy(tmp_path: Path) -> None:
    world = World.made()
    journal = started(tmp_path)
    run(carry_out(journal, world.crew()))
    world.served["gpu-b"]["m"] = config_of("m", 0.3, gpu=3)
    assert run(take_back(again(journal), world.crew())) == []
    assert "m" not in world.served["gpu-b"]


def test_a_copy_that_somebody_put_on_another_gpu_is_left_alone(tmp_path: Path) -> None:
    world = World.made()
    journal = started(tmp_path)
    run(carry_out(journal, world.crew()))
    world.served["gpu-b"]["m"] = config_of("m", 0.45, batch=4, gpu=1)
    (left,) = run(take_back(again(journal), world.crew()))
    assert "load m on gpu-b: left as it is: somebody else changed it" in left
    assert "m" in world.served["gpu-b"]


def test_a_copy_that_was_there_before_is_not_unloaded_by_undo(tmp_path: Path) -> None:
    world = World.made()
    world.served["gpu-b"]["m"] = config_of("m", 0.45, batch=4, gpu=3)
    journal = started(tmp_path)
    assert run(faults(world)) == []
    run(carry_out(journal, world.crew()))
    assert run(take_back(again(journal), world.crew())) == []
    assert "m" in world.served["gpu-b"]


@pytest.mark.parametrize(
    ("host", "model", "config", "said"),
    [
        (
            "gpu-b",
            "near",
            config_of("near", 0.8),
            "gpu-b has changed since: ask for a new rebalance",
        ),
        ("gpu-b", "near", config_of("near", 0.9, batch=2), "gpu-b has changed since"),
        ("gpu-b", "m", config_of("m", None, gpu=3), "m is served there with"),
        ("gpu-a", "rest", None, "rest is not served there"),
    ],
)
def test_a_host_that_has_changed_since_is_named_before_anything_is_done(
    host: str, model: str, config: dict[str, Any] | None, said: str
) -> None:
    world = World.made()
    world.served[host].pop(model, None)
    if config is not None:
        world.served[host][model] = config
    (found,) = run(faults(world))
    assert said in found


def test_what_leaves_may_have_been_changed_by_its_daemon_meanwhile(tmp_path: Path) -> None:
    """It is short of room, and goes on doing what it can."""
    world = World.made()
    world.served["gpu-a"]["m"] = config_of("m", 0.6)
    assert run(faults(world)) == []
    run(carry_out(started(tmp_path), world.crew()))
    assert is_moved(world)


def test_what_the_rebalance_does_not_say_of_before_is_what_is_there(tmp_path: Path) -> None:
    world = World.made()
    steps = tuple(s.model_copy(update={"before": None}) for s in rebalance().steps)
    found = rebalance().model_copy(update={"steps": steps})
    assert run(faults(world, found)) == []
    run(carry_out(started(tmp_path, found), world.crew()))
    assert is_moved(world)


def test_one_that_was_changed_after_the_check_is_refused(tmp_path: Path) -> None:
    world = World.made()
    world.served["gpu-b"]["near"] = config_of("near", 0.8)
    with pytest.raises(StepFailed, match=r"step 1, shrink near.*somebody else changed it"):
        run(carry_out(started(tmp_path), world.crew()))
    assert share_at(world, "gpu-b", "near") == 0.8


def test_a_share_that_a_message_has_rounded_is_what_is_there(tmp_path: Path) -> None:
    world = World.made()
    world.served["gpu-b"]["near"] = config_of("near", 0.90004)
    assert run(faults(world)) == []
    run(carry_out(started(tmp_path), world.crew()))
    assert is_moved(world)


# ---------------------------------------------------------------- the source is let go


@pytest.mark.looptime
async def test_a_model_that_still_gets_requests_stays_loaded(tmp_path: Path) -> None:
    world = World.made()
    world.arriving = frozenset({"gpu-a"})
    with pytest.raises(StepFailed, match=r"step 4.*still arrive.*stays loaded"):
        await carry_out(started(tmp_path), world.crew(quiet_s=None))
    assert "m" in world.served["gpu-a"]
    assert world.route == {"gpu-b"}


@pytest.mark.looptime
async def test_undo_keeps_a_copy_that_still_gets_requests(tmp_path: Path) -> None:
    world, journal = World.made(), started(tmp_path)
    await carry_out(journal, world.crew())
    world.arriving = frozenset({"gpu-b"})
    with pytest.raises(StepFailed, match=r"step 2.*still arrive.*stays loaded"):
        await take_back(journal, world.crew(quiet_s=None))
    assert "m" in world.served["gpu-a"]
    assert "m" in world.served["gpu-b"]
    assert world.route == {"gpu-a"}


@pytest.mark.looptime
async def test_a_source_is_watched_for_ten_gaps_between_requests(tmp_path: Path) -> None:
    world, now_s = World.made(), asyncio.get_running_loop().time
    rare = rebalance().moves[0].model_copy(update={"rate_per_s": 1.0})
    began_s = now_s()
    await carry_out(
        started(tmp_path, rebalance().model_copy(update={"moves": (rare,)})),
        world.crew(quiet_s=None),
    )
    assert now_s() - began_s == pytest.approx(10.0, abs=0.5)


# ---------------------------------------------------------------- the route by hand


def test_without_command_and_terminal_it_waits_for_the_operator(tmp_path: Path) -> None:
    world = World.made()
    crew, journal = world.crew(), started(tmp_path)
    crew.router = Router(world.places())
    with pytest.raises(StepFailed, match="send all requests for m to gpu-b") as stopped:
        run(carry_out(journal, crew))
    assert stopped.value.waits
    world.route = frozenset({"gpu-b"})  # the operator does it
    journal = again(journal)
    with pytest.raises(CannotRun, match="--routed 4: step 3 waits"):
        mark_routed(journal, 4)
    mark_routed(journal, 3)
    run(carry_out(journal, crew))
    assert is_moved(world)


def test_an_operator_who_says_no_stops_it(tmp_path: Path) -> None:
    world = World.made()
    crew = world.crew()

    async def no(_: str) -> bool:
        return False

    crew.router = Router(world.places(), no)
    with pytest.raises(StepFailed, match="did not change the route"):
        run(carry_out(started(tmp_path), crew))
    assert "m" in world.served["gpu-a"]


def test_a_move_that_needs_no_shares_is_loaded_without(tmp_path: Path) -> None:
    world = World.made()
    crew = world.crew()
    for remote in crew.remotes.values():
        remote.shares = None
    steps = rebalance().steps[1:4]
    found = rebalance().model_copy(update={"steps": steps})
    assert run(faults_now(found, crew.remotes)) == []
    run(carry_out(started(tmp_path, found), crew))
    assert allocation_of(world.served["gpu-b"]["m"]).share is None
