import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.errors import Refused
from igniterd.jsontext import dumps
from igniterd.messages.lean import lean
from igniterd.messages.state import (
    AppliedState,
    HostState,
    Learnt,
    ModelState,
    short,
    split_state,
)
from tests.messages.examples import a_model, a_state

ROOM = 700


def size_of(document: dict[str, Any]) -> int:
    return len(dumps(document).encode())


@given(
    st.lists(st.text(max_size=60), max_size=40),
    st.lists(st.sampled_from(["GPU-a", "GPU-b"]), max_size=6),
)
def test_parts_are_within_the_size_and_lose_nothing(words: list[str], boards: list[str]) -> None:
    """Any letters: those beyond ASCII take several bytes each."""
    models = [a_model(f"m{n}", reason=each) for n, each in enumerate(words)]
    state = a_state(models=models, boards=[{"uuid": uuid} for uuid in boards])
    parts = list(split_state(state, ROOM))
    assert max(map(size_of, parts)) <= ROOM
    assert [model for part in parts for model in part["models"]] == models
    assert parts[0]["boards"] == state["boards"]
    assert all("boards" not in part for part in parts[1:])
    assert {(p["host"], p["run"], p["tick"]) for p in parts} == {("gpu-a", state["run"], 1)}
    if len(parts) == 1:
        assert parts == [state]
    else:
        numbers = [(part["part"], part["parts"]) for part in parts]
        assert numbers == [(n, len(parts)) for n in range(1, len(parts) + 1)]


def test_a_host_that_fills_the_first_part_has_its_models_in_the_next() -> None:
    state = a_state(models=[a_model("m")], boards=[{"uuid": "G" * 190}] * 2)
    most = size_of(state) - 10
    first, second = split_state(state, most)
    assert (first["models"], second["models"]) == ([], [a_model("m")])


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"boards": [{"uuid": "G" * 190}] * 4}, r"of the host itself has \d+ bytes, above 700"),
        ({"models": [a_model("m" * 390, reason="x" * 200)]}, r"said of model 'm+' has \d+ bytes"),
        ({"models": [a_model(reason="x" * 400)] * 65}, "65 models want 65 parts; at most 64 go"),
    ],
)
def test_what_no_parts_hold_is_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        list(split_state(a_state(**more), ROOM))


def test_what_is_null_or_at_its_default_is_left_out() -> None:
    values = {
        "name": "m",
        "slo_p99_ms": 60.0,
        "seen": False,
        "priority": 1,
        "ready": True,
        "steerable": False,
        "rate_per_s": 0.0,
        "why": "",
        "gpus": [],
        "bias": None,
        "applied": lean(AppliedState, {"share": None, "max_batch_size": 1, "devices": ()}),
    }
    assert lean(ModelState, values) == {
        "name": "m",
        "slo_p99_ms": 60.0,
        "seen": False,
        "steerable": False,
        "rate_per_s": 0.0,
        "applied": {},
    }


def test_what_is_out_of_bounds_is_brought_within() -> None:
    assert lean(AppliedState, {"share": 1.5, "max_batch_size": 10_000, "instances": -1}) == {
        "share": 1.0,
        "max_batch_size": 4096,
        "instances": 0,
    }
    assert lean(AppliedState, {"share": 0.0, "devices": [0] * 2000})["devices"] == [0] * 1024
    assert lean(Learnt, {"level": float("nan"), "tilt": -11.0}) == {"tilt": -10.0}
    assert lean(HostState, {"schema": 1, "mode": "x" * 3000})["mode"] == "x" * 2000


def test_a_field_that_the_schema_does_not_have_is_an_error() -> None:
    with pytest.raises(KeyError, match="shares"):
        lean(AppliedState, {"shares": 0.1})


@given(
    st.fixed_dictionaries(
        {
            "name": st.text(min_size=1, max_size=500),
            "slo_p99_ms": st.floats(min_value=0.001, allow_infinity=False),
            "seen": st.booleans(),
            "rate_per_s": st.none() | st.floats(),
            "busy": st.none() | st.floats(),
            "max_share": st.floats(min_value=0.001),
            "priority": st.integers(),
            "batches": st.none() | st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
            "why": st.text(),
        }
    )
)
def test_what_is_left_is_as_the_schema_says(values: dict[str, Any]) -> None:
    found = ModelState.model_validate_json(dumps(lean(ModelState, values)))
    assert found.seen == values["seen"]


def test_a_long_reason_is_cut() -> None:
    assert short("why") == "why"
    assert (len(short("x" * 201)), short("x" * 201)[-1]) == (200, "…")
    assert short("é" * 200) == "é" * 49 + "…", "six bytes each"
    assert len(dumps(short("\N{GRINNING FACE}" * 300))) <= 600


def test_a_part_is_read_by_its_keys() -> None:
    state = HostState.model_validate_json(json.dumps(a_state(models=[a_model()])))
    assert (state.schema_, state.part, state.parts) == (1, 1, 1)
    assert (state.models[0].items_per_request, state.terms.level) == (1.0, 0.95)
