"""A rebalance in one message."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.fleet.fitting import in_one_message, same_advice
from igniterd.messages.event import MOST_DATA
from igniterd.messages.rebalance import Rebalance
from tests.fleet.fakes import a_move, a_rebalance, a_step


def large(moves: int = 0, unsolved: int = 0, left_out: int = 0, hosts: int = 0) -> dict[str, Any]:
    return a_rebalance(
        moves=[a_move(n, f"h{n}", f"h{n + 1}") for n in range(1, moves + 1)],
        steps=[a_step(2 * n + k, n) for n in range(1, moves + 1) for k in (0, 1)],
        freed=[{"host": f"h{n}", "gpu_uuid": "GPU-1"} for n in range(1, moves + 1)],
        unsolved=[
            {"host": f"h{n}", "model": "m", "reason": "r" * 100} for n in range(1, unsolved + 1)
        ],
        left_out=[{"host": f"x{n}", "reason": "silent" * 20} for n in range(1, left_out + 1)],
        rests_on=[{"host": f"h{n}", "run": "r", "tick": n} for n in range(1, hosts + 1)],
    )


def size(data: Any) -> int:
    return len(json.dumps(data, separators=(",", ":")).encode())


def test_what_fits_is_said_whole() -> None:
    data = large(moves=3, unsolved=2, left_out=2, hosts=4)
    assert in_one_message(data) == data


def test_of_what_is_too_large_the_first_moves_are_said_with_all_that_belongs_to_them() -> None:
    data = large(moves=200, unsolved=3, left_out=4, hosts=201)
    said = in_one_message(data)
    kept = len(said["moves"])
    assert 10 < kept < 200
    assert said["moves"] == data["moves"][:kept]
    assert said["steps"] == [step for step in data["steps"] if step["move"] <= kept]
    assert {basis["host"] for basis in said["rests_on"]} == {f"h{n}" for n in range(1, kept + 2)}
    assert [each["host"] for each in said["freed"]] == [f"h{n}" for n in range(1, kept + 1)]
    assert said["more_moves"] == 200 - kept
    assert (len(said["unsolved"]), len(said["left_out"])) == (3, 4)
    assert (said["more_unsolved"], said["more_left_out"]) == (0, 0)


def test_feasible_is_of_the_moves_that_are_said() -> None:
    whole = large(moves=200, hosts=201)
    said = in_one_message(whole)
    assert (whole["feasible"], said["feasible"]) == (True, False)
    assert said["why"] == f"why; the first {len(said['moves'])} of the moves are here"
    # moves that only free GPUs are needed by no SLO
    assert in_one_message(whole | {"hosts": {"known": 2, "used": 2, "troubled": 0}})["feasible"]
    # what was cut is no move
    assert in_one_message(large(moves=1, left_out=400))["feasible"]
    assert not in_one_message(whole | {"feasible": False})["feasible"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(0, 400), st.integers(0, 400), st.integers(0, 600))
def test_it_always_fits_and_loses_no_count(
    moves: int, unsolved: int, left_out: int, hosts: int
) -> None:
    said = in_one_message(large(moves, unsolved, left_out, hosts))
    assert size(said) <= MOST_DATA
    Rebalance.model_validate_json(json.dumps(said))
    assert len(said["moves"]) + said.get("more_moves", 0) == moves
    assert len(said["unsolved"]) + said.get("more_unsolved", 0) == unsolved
    assert len(said["left_out"]) + said.get("more_left_out", 0) == left_out
    assert not moves or said["moves"]


def test_a_newer_number_of_the_same_advice_is_the_same() -> None:
    one = large(moves=1, hosts=2)
    assert same_advice(one, one | {"number": 9, "time_s": 9.0, "rests_on": []})
    assert not same_advice(one, one | {"feasible": False})
    assert not same_advice(one, large(moves=2, hosts=2))
    assert not same_advice(None, one)
