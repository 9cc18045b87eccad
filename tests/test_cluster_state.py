"""What a host says of itself to its cluster."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from igniterd import __version__
from igniterd.cluster_state import cluster_state
from igniterd.config import Config
from igniterd.decisions import ActResult, DecisionKind, Plan, Tick, Verdict
from igniterd.loads import BiasEstimate, Estimate, Load
from igniterd.messages.event import event
from igniterd.messages.state import HostState, split_state
from igniterd.messages.topics import host_topic
from igniterd.placement import HOMELESS
from igniterd.profiled import Predictors
from igniterd.records import (
    UNNAMED_GPU,
    Allocation,
    BoardReading,
    Effect,
    ModelReading,
    Observation,
    ShareState,
    Window,
)
from igniterd.states import Standing, State
from tests.factories import settings_of
from tests.hosts import config, knowledge
from tests.messages.checked import faults_of

AT = datetime(2026, 11, 29, tzinfo=UTC)
DIGEST = "0123456789abcdef" * 2
GPUS = ("GPU-0", "GPU-1")
BOARDS = (
    BoardReading(0, "GPU-0", "V100", sm_count=80, memory_used_bytes=5, memory_total_bytes=16),
    BoardReading(1, "GPU-1", "V100"),
)
READ = ModelReading(
    "alexnet", "1", "main", True, "python", Allocation(0.25, 8, 0, 2, (0, 0)), gpus=("GPU-0",)
)
LOAD = Load(
    "alexnet",
    200.0,
    210.0,
    True,
    utilisation=0.4,
    mean_batch=3.5,
    arrival_scv=1.2,
    bias=1.1,
    published_bias=BiasEstimate(0.25, 0.3, 0.0953, 0.01, 0.012, 0.03),
    measured_mean_ms=4.0,
    measured_p99_ms=9.0,
    predicted_p99_ms=8.5,
)
PLAN = Plan(
    0.0,
    DecisionKind.HOLD,
    "every SLO holds",
    {"alexnet": Verdict("alexnet", READ.allocation, True, 9.25, 15.0)},
    headroom=1.12,
    allocated_share=0.5,
    least_share=0.4,
    least_by_gpu={"GPU-0": 0.4},
)


def a_tick(**changes: Any) -> Tick:
    """alexnet steered on GPU-0; resnet50 is absent, and vgg19 was not seen yet. ``changes``: of
    records of the tick, by field."""
    made = Tick(
        7,
        5.0,
        1000.5,
        Observation(
            5.0,
            boards=BOARDS,
            models={"alexnet": READ},
            absent=frozenset({"resnet50"}),
            devices={"main": GPUS},
        ),
        Window(5.0, 1.0),
        Estimate(5.0, {"alexnet": LOAD}),
        PLAN,
        ActResult(),
        standings={
            "alexnet": Standing(State.STEERED),
            "resnet50": Standing(State.ABSENT, "Triton does not serve it"),
            "vgg19": Standing(State.UNSEEN, "not seen yet"),
        },
    )
    for part, values in changes.items():
        whole = part in ("standings", "shares")
        made = replace(made, **{part: values if whole else replace(getattr(made, part), **values)})
    return made


def known(settings: Config) -> Predictors:
    """The V100's profile, of every configured model."""
    names = [model.tenant for model in settings.model]
    return replace(knowledge(settings), digests=dict.fromkeys(names, (DIGEST,)))


def told(
    tick: Tick, settings: Config, *, loadable: Mapping[str, set[str]] | None = None
) -> dict[str, Any]:
    """The state, each part of which was checked by the shipped schema."""
    state = cluster_state(tick, settings, known(settings), run="1234abcd", loadable=loadable)
    for topic, payload in messages_of(state):
        assert faults_of(topic, payload) == []
    return state


def messages_of(state: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    about = {"source": f"igniterd/{state['cluster']}/{state['host']}", "id": "1" * 24}
    for number, part in enumerate(split_state(state), start=1):
        topic = host_topic(state["cluster"], state["host"], "state", number)
        yield topic, event("state", part, at=AT, **about)


def model_in(state: dict[str, Any], name: str = "alexnet") -> dict[str, Any]:
    (found,) = [model for model in state["models"] if model["name"] == name]
    return dict(found)


def test_a_state_by_hand(tmp_path: Path) -> None:
    state = told(a_tick(), config(tmp_path))
    assert {key: value for key, value in state.items() if key != "models"} == {
        "schema": 1,
        "igniterd": __version__,
        "host": "test",
        "cluster": "default",
        "run": "1234abcd",
        "mode": "act",
        "tick": 7,
        "time_s": 1000.5,
        "decision": {
            "outcome": "hold",
            "why": "every SLO holds",
            "feasible": True,
            "headroom": 1.12,
            "allocated_share": 0.5,
            "least_share": 0.4,
            "least_by_gpu": {"GPU-0": 0.4},
        },
        "tritons": [
            {
                "name": "main",
                "gpus": ["GPU-0", "GPU-1"],
                "shares": f"{tmp_path}/state/shares",
                "loadable": ["resnet50"],
            }
        ],
        "boards": [
            {
                "uuid": "GPU-0",
                "name": "V100",
                "sm_count": 80,
                "memory_used_bytes": 5,
                "memory_total_bytes": 16,
                "reserved": 0.0,
            },
            {"uuid": "GPU-1", "name": "V100", "reserved": 0.0},
        ],
    }
    assert state["models"] == [
        {
            "name": "alexnet",
            "slo_p99_ms": 15.0,
            "seen": True,
            "state": "steered",
            "profiles": [DIGEST],
            "gpus": ["GPU-0"],
            "applied": {"share": 0.25, "max_batch_size": 8, "instances": 2, "devices": [0, 0]},
            "rate_per_s": 200.0,
            "rate_upper_per_s": 210.0,
            "busy": 0.4,
            "mean_batch": 3.5,
            "burstiness": 1.2,
            "bias": 1.1,
            "learnt": {
                "share": 0.25,
                "pressure": 0.3,
                "level": 0.0953,
                "tilt": 0.01,
                "sd": 0.012,
                "cv": 0.03,
            },
            "measured": {"mean": 4.0, "p99": 9.0},
            "predicted": {"p99": 8.5},
            "batches": (1, 32),
            "feasible": True,
            "planned_p99_ms": 9.25,
        },
        {
            "name": "resnet50",
            "slo_p99_ms": 40.0,
            "seen": False,
            "absent": True,
            "state": "absent",
            "why": "Triton does not serve it",
            "stays": "Triton does not serve it",
            "profiles": [DIGEST],
        },
        {
            "name": "vgg19",
            "slo_p99_ms": 60.0,
            "seen": False,
            "state": "unseen",
            "why": "not seen yet",
            "stays": "not seen yet",
            "profiles": [DIGEST],
        },
    ]


def test_it_is_read_as_it_was_meant(tmp_path: Path) -> None:
    text = json.dumps(told(a_tick(), config(tmp_path)))
    alexnet = HostState.model_validate_json(text).models[0]
    assert (alexnet.items, alexnet.items_per_request, alexnet.steerable) == (1, 1.0, True)
    assert (alexnet.min_share, alexnet.max_share, alexnet.priority) == (0.05, 1.0, 1)
    assert (alexnet.stays, alexnet.reserved, alexnet.keeps_batch) == ("", 0.0, None)


def test_what_the_configuration_and_requests_ask_for_is_told(tmp_path: Path) -> None:
    more = 'client_batch = 4\nmax_batch_size = 16\nmin_share = 0.1\nprofile_model = "vgg19"\n'
    whole = settings_of(tmp_path, {"alexnet": 15.0}, more="[decide]\nslo_margin = 0.2\n")
    settings = whole.model_copy(update={"model": [whole.model[0].model_copy(update=_fields(more))]})
    load = replace(LOAD, items_per_request=2.5)
    state = told(a_tick(estimate={"loads": {"alexnet": load}}), settings)
    found = model_in(state)
    assert (found["items"], found["items_per_request"], found["batches"]) == (4, 2.5, (4, 16))
    assert (found["min_share"], state["terms"]) == (0.1, {"slo_margin": 0.2})


def _fields(toml: str) -> dict[str, Any]:
    return tomllib.loads(toml)


def test_a_batch_that_is_fixed_is_told(tmp_path: Path) -> None:
    fixed = replace(READ, batching_fixed="a sequence batcher", share_fixed="its own process")
    found = model_in(told(a_tick(observation={"models": {"alexnet": fixed}}), config(tmp_path)))
    assert (found["keeps_batch"], found["batches"], found["steerable"]) == (8, (8, 8), False)
    assert "stays" not in found, "a share that it lacks is no obstacle on another host"


@pytest.mark.parametrize(
    ("changes", "told_gpu", "why"),
    [
        ({}, None, ""),
        ({"hands_off": "its owner says so"}, None, "its owner says so"),
        ({"left_alone": "it is an ensemble"}, None, "it is an ensemble"),
        ({"ready": False}, None, "it is being loaded, or not ready"),
        ({"loading": True}, None, "it is being loaded, or not ready"),
        ({"gpus": ("GPU-0", "GPU-1")}, None, "it is on 2 GPUs"),
        ({"gpus": ()}, None, "it is on no GPU"),
        ({"gpus": (UNNAMED_GPU,)}, None, "which GPU it is on is not known"),
        ({"share_fixed": HOMELESS}, None, HOMELESS),
        ({"batching_fixed": HOMELESS}, None, HOMELESS),
        ({}, 0, "[[model]] gpu = 0 says where it belongs"),
        ({}, "GPU-0", "[[model]] gpu = 'GPU-0' says where it belongs"),
    ],
)
def test_why_a_model_stays_by_what_was_read(
    tmp_path: Path, changes: dict[str, Any], told_gpu: int | str | None, why: str
) -> None:
    settings = config(tmp_path)
    models = [model.model_copy(update={"gpu": told_gpu}) for model in settings.model]
    settings = settings.model_copy(update={"model": models})
    tick = a_tick(observation={"models": {"alexnet": replace(READ, **changes)}})
    assert model_in(told(tick, settings)).get("stays", "") == why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"standings": {"alexnet": Standing(State.BY_HAND, "by hand")}}, "by hand"),
        ({"standings": {"alexnet": Standing(State.LOADING)}}, "it is loading"),
        ({"observation": {"models": {}}, "standings": {}}, "it is not read"),
        ({"estimate": {"loads": {}}}, "nothing is known of its traffic yet"),
        ({"estimate": {"left_out": {"alexnet": "a prediction failed"}}}, "a prediction failed"),
        (
            {"estimate": {"loads": {"alexnet": replace(LOAD, stuck_s=31.0)}}},
            "requests wait for 31 s and nothing is executed",
        ),
        ({"observation": {"boards": ()}}, ""),
        ({"observation": {"boards": (), "devices": {}}}, "which GPU it is on is not known"),
    ],
)
def test_why_a_model_stays_by_what_is_known(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    assert model_in(told(a_tick(**changes), config(tmp_path))).get("stays", "") == why


def test_a_model_without_a_profile_stays(tmp_path: Path) -> None:
    state = cluster_state(a_tick(), config(tmp_path), Predictors(), run="1")
    alexnet = model_in(state)
    assert alexnet["stays"] == "it has no profile"
    assert "profiles" not in alexnet
    assert "batches" not in alexnet


def doubted(effect: Effect, *, absent: bool = False) -> dict[str, ShareState]:
    return {"alexnet": ShareState(0.25, effect, "", "nothing shows it", 0.0, None, absent=absent)}


@pytest.mark.parametrize(
    ("changes", "reserved"),
    [
        # two instances of a share that may be held, and that nothing shows
        ({"shares": doubted(Effect.UNPROVEN)}, 0.5),
        ({"shares": doubted(Effect.REFUTED, absent=True)}, 0.0),
        ({"plan": {"takes": {"alexnet": 0.15}}}, 0.15),
        # not planned with, on a GPU that nobody plans: two instances that hold their share
        ({"observation": {"models": {"alexnet": replace(READ, left_alone="odd")}}}, 0.5),
    ],
)
def test_what_is_left_free_for_a_model(
    tmp_path: Path, changes: dict[str, Any], reserved: float
) -> None:
    found = model_in(told(a_tick(**changes), config(tmp_path)))
    assert found.get("reserved", 0.0) == reserved


def test_a_model_that_is_only_watched_takes_the_time_that_it_executes(tmp_path: Path) -> None:
    """0.31 of the time, of either of two instances: 0.62 of the GPU, rounded up to 0.65."""
    bare = replace(READ, left_alone="odd", allocation=Allocation(None, 8, 0, 2))
    load = replace(LOAD, rate_upper_per_s=200.0, utilisation=0.31)
    now = a_tick(observation={"models": {"alexnet": bare}}, estimate={"loads": {"alexnet": load}})
    assert model_in(told(now, config(tmp_path)))["reserved"] == 0.65


def test_a_share_that_is_proven_is_told(tmp_path: Path) -> None:
    proven = ShareState(0.25, Effect.PROVEN, "its receipt", "", 0.0, 0.25)
    found = model_in(told(a_tick(shares={"alexnet": proven}), config(tmp_path)))
    assert found["share"] == {"applied": 0.25, "effective": 0.25, "state": "proven"}


@pytest.mark.parametrize(
    ("changes", "reserved"),
    [
        ({"observation": {"foreign": {"GPU-0": 0.3}}}, [0.3, 0.0]),
        # executes 12 % of the time without a share: rounded up
        ({"observation": {"foreign_busy": {"GPU-1": 0.12}}}, [0.0, 0.15]),
        # what the host still leaves free, less what is left for a model that it knows
        ({"plan": {"reserved": {"GPU-0": 0.4}, "takes": {"alexnet": 0.15}}}, [0.25, 0.0]),
    ],
)
def test_what_is_left_free_for_what_nobody_configured(
    tmp_path: Path, changes: dict[str, Any], reserved: list[float]
) -> None:
    state = told(a_tick(**changes), config(tmp_path))
    assert [board["reserved"] for board in state["boards"]] == reserved


def test_what_could_be_loaded_and_is_not_served(tmp_path: Path) -> None:
    """alexnet was loaded since the repository was listed."""
    state = told(a_tick(), config(tmp_path), loadable={"main": {"zoo", "alexnet", "bert"}})
    assert state["tritons"][0]["loadable"] == ["resnet50", "bert", "zoo"]
