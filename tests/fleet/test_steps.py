"""Which rebalances may be begun."""

from __future__ import annotations

import asyncio

import pytest

from igniterd.errors import CannotRun
from igniterd.fleet.alone import alone
from igniterd.fleet.steps import faults_now, faults_of, places_of, why_too_old
from tests.fleet.world import NOW_S, World, rebalance


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
    found = asyncio.run(faults_now(rebalance(), crew.sites))
    assert len(found) == 2
    assert "step 1 changes the share of near" in found[0]


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
