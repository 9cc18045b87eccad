"""A rebalance is carried out, stops, goes on and is taken back: on two hosts that are not there."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.triton.config import allocation_of
from igniterd.errors import CannotRun, ConfigError, Refused, Unanswered, Unreachable
from igniterd.fleet.alone import alone
from igniterd.fleet.apply import StepFailed, carry_out, mark_routed
from igniterd.fleet.journal import Journal
from igniterd.fleet.route import Router
from igniterd.fleet.steps import faults_now, faults_of, places_of, why_too_old
from igniterd.fleet.undo import take_back, to_undo
from igniterd.messages.rebalance import Rebalance
from igniterd.records import Allocation
from tests.fleet.world import NOW_S, SHARES, Killed, World, config_of, rebalance

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
    return await faults_now(found or rebalance(), world.crew().sites)


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
    assert "m" in world.served["gpu-a"]
    assert "m" not in world.served["gpu-b"]


def test_a_share_that_the_hosts_own_daemon_gave_does_not_keep_the_copy(tmp_path: Path) -> None:
    world = World.made()
    journal = started(tmp_path)
    run(carry_out(journal, world.crew()))
    world.served["gpu-b"]["m"] = config_of("m", 0.3, gpu=3)
    assert run(take_back(again(journal), world.crew())) == []
    assert "m" not in world.served["gpu-b"]


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
        ("gpu-a", "m", config_of("m", 0.6), "gpu-a has changed since: ask for a new rebalance"),
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


def test_what_the_rebalance_does_not_say_of_before_is_what_is_there(tmp_path: Path) -> None:
    world = World.made()
    steps = tuple(s.model_copy(update={"before": None}) for s in rebalance().steps)
    found = rebalance().model_copy(update={"steps": steps})
    assert run(faults(world, found)) == []
    run(carry_out(started(tmp_path, found), world.crew()))
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


# ---------------------------------------------------------------- what may be begun


@pytest.mark.parametrize(
    ("age_s", "said"), [(10, ""), (1200, ""), (1201, "1201 s old"), (-300, ""), (-301, "clocks")]
)
def test_an_old_rebalance_is_not_carried_out(age_s: float, said: str) -> None:
    found = why_too_old(rebalance(), NOW_S + age_s, 900.0)
    assert (said in found) if said else found == ""


def test_steps_in_no_safe_order_are_refused() -> None:
    good = rebalance()
    assert faults_of(good) == []
    shrink, load, route, unload, _ = good.steps
    for order, said in (
        ((load, unload.model_copy(update={"number": 3})), "before the route"),
        ((route,), "before the load"),
        ((route, load), "not numbered in order"),
        ((shrink.model_copy(update={"move": 9}),), "of move 9, which is not there"),
        ((shrink.model_copy(update={"allocation": None}),), "has no allocation"),
    ):
        assert said in faults_of(good.model_copy(update={"steps": order}))[0]
    (move,) = good.moves
    inside = good.model_copy(update={"moves": (move.model_copy(update={"to": move.source}),)})
    assert "move 1 is within one Triton" in faults_of(inside)[0]
    moves = rebalance("replicate").moves
    assert "only replicated" in faults_of(good.model_copy(update={"moves": moves}))[0]


def test_every_address_that_is_missing_is_named() -> None:
    places = World.made().places().model_copy(update={"triton": []})
    found = places.missing(places_of(rebalance()))
    assert [("gpu-a" in found[0]), ("gpu-b" in found[1]), len(found)] == [True, True, 2]


def test_a_share_cannot_be_changed_where_the_folder_is_not_given() -> None:
    world = World.made()
    crew = world.crew()
    for site in crew.sites.values():
        site.shares = None
    found = run(faults_now(rebalance(), crew.sites))
    assert len(found) == 2
    assert "step 1 changes the share of near" in found[0]


def test_a_move_that_needs_no_shares_is_loaded_without(tmp_path: Path) -> None:
    world = World.made()
    crew = world.crew()
    for site in crew.sites.values():
        site.shares = None
    steps = rebalance().steps[1:4]
    found = rebalance().model_copy(update={"steps": steps})
    assert run(faults_now(found, crew.sites)) == []
    run(carry_out(started(tmp_path, found), crew))
    assert allocation_of(world.served["gpu-b"]["m"]).share is None


def test_two_at_once_are_refused() -> None:
    with (
        alone("one"),
        alone("two"),
        pytest.raises(CannotRun, match="another igniterd fleet apply"),
        alone("one"),
    ):
        pass
    with alone("one"):  # let go again
        pass


# ---------------------------------------------------------------- the journal


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    world = World.made()
    journal = started(tmp_path)
    run(carry_out(journal, world.crew()))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"entry":"beg')
    assert again(journal).done.keys() == journal.done.keys()
    assert journal.path.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1 is none"),
        ('{"entry":"started","format":"other"}\n', "line 1"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "other.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Journal.read(path)


def test_a_journal_is_not_written_over(tmp_path: Path) -> None:
    started(tmp_path)
    with pytest.raises(CannotRun, match="is there already"):
        started(tmp_path)


def test_one_that_is_taken_back_does_not_go_on(tmp_path: Path) -> None:
    world = World.made()
    journal = started(tmp_path)
    run(carry_out(journal, world.crew()))
    run(take_back(journal, world.crew()))
    with pytest.raises(CannotRun, match="is being taken back"):
        run(carry_out(again(journal), world.crew()))
