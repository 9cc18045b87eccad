"""How large what a host says of itself may become."""

import json
from dataclasses import replace
from pathlib import Path

from igniterd.cluster_state import MOST_LOADABLE, cluster_state
from igniterd.config import Config, parse_config
from igniterd.decisions import Tick, Verdict
from igniterd.messages.event import MOST_BYTES
from igniterd.messages.state import split_state
from igniterd.profiled import Predictors
from igniterd.records import BoardReading, Effect, ShareState
from igniterd.states import Standing, State
from tests.hosts import config
from tests.messages.checked import faults_of
from tests.test_cluster_state import DIGEST, LOAD, READ, a_tick, messages_of, told


def test_of_a_large_repository_some_models_are_named(tmp_path: Path) -> None:
    names = {f"model-{n:05}" for n in range(20_000)}
    named = told(a_tick(), config(tmp_path), loadable={"main": names})["tritons"][0]["loadable"]
    assert named[0] == "resnet50"
    assert 0.9 * MOST_LOADABLE < len(json.dumps(named, separators=(",", ":"))) <= MOST_LOADABLE


LONGEST = "\N{GRINNING FACE}"  # twelve bytes of JSON


def a_worst_host(tmp_path: Path) -> tuple[Config, Tick]:
    """8 GPUs and 64 models of the longest names, on two Tritons that serve the same ones: the state
    says the name of each with that of its Triton, and alone."""
    tritons = ["a" * 128, "b" * 128]
    names = [f"{n:02}" + LONGEST * 198 for n in range(32)]
    text = f'[host]\nname = "{"h" * 128}"\ncluster = "{"c" * 128}"\n'
    for port, triton in enumerate(tritons, start=1):
        text += f'[[triton]]\nname = "{triton}"\nurl = "h:{port}"\n'
        text += "".join(
            f'[[model]]\nname = "{name}"\ntriton = "{triton}"\nslo_p99_ms = 60.0\n'
            f'profile = "v100.json"\nprofile_model = "{LONGEST * 200}"\n'
            for name in names
        )
    settings = parse_config(text, source="test", folder=tmp_path)
    gpus = tuple("GPU-" + f"{n}" * 36 for n in range(8))
    why = LONGEST * 500
    tenants = {model.tenant: model for model in settings.model}
    readings = {
        name: replace(READ, model=model.name, triton=model.triton, gpus=(gpus[n % 8],))
        for n, (name, model) in enumerate(tenants.items())
    }
    verdicts = {
        name: Verdict(name, READ.allocation, False, 9.123, 15.0, 0.5, why, 0.4567)
        for name in tenants
    }
    tick = a_tick(
        observation={
            "boards": tuple(BoardReading(n, g, "V" * 64, fault=why) for n, g in enumerate(gpus)),
            "models": readings,
            "devices": dict.fromkeys(tritons, gpus),
        },
        estimate={"loads": dict.fromkeys(tenants, LOAD)},
        plan={"why": why, "verdicts": verdicts, "least_by_gpu": dict.fromkeys(gpus, 0.4567)},
        standings=dict.fromkeys(tenants, Standing(State.BY_HAND, why)),
        shares={name: ShareState(0.25, Effect.UNPROVEN, why, why, 0.0) for name in tenants},
    )
    return settings, tick


def test_the_worst_host_is_told_in_parts_that_are_small_enough(tmp_path: Path) -> None:
    settings, tick = a_worst_host(tmp_path)
    loadable = {server.name: {LONGEST * n for n in range(1, 201)} for server in settings.triton}
    profiled = {model.tenant: LONGEST * 200 for model in settings.model}
    knowledge = Predictors(profiled, digests=dict.fromkeys(profiled, (DIGEST,)))
    state = cluster_state(tick, settings, knowledge, run="r" * 16, loadable=loadable)
    messages = list(messages_of(state))
    assert [fault for topic, payload in messages for fault in faults_of(topic, payload)] == []
    assert max(len(payload) for _, payload in messages) <= MOST_BYTES
    back = [model for _, text in messages for model in json.loads(text)["data"]["models"]]
    assert [model["name"] for model in back] == [model.tenant for model in settings.model]
    assert len(back) == 64


def test_what_could_be_loaded_is_not_named_where_there_is_no_room(tmp_path: Path) -> None:
    """As many MIG instances as a host may have, each with a fault."""
    boards = [BoardReading(n, "MIG-" + f"{n:036}", "V100", fault="x" * 200) for n in range(64)]
    now = a_tick(observation={"boards": tuple(boards)})
    state = told(now, config(tmp_path), loadable={"main": {f"model-{n:05}" for n in range(2000)}})
    assert len(state["boards"]) == 64
    assert 0 < len(state["tritons"][0]["loadable"]) < 1000


def test_a_usual_host_is_told_in_one_part(tmp_path: Path) -> None:
    state = told(a_tick(), config(tmp_path))
    assert len(list(split_state(state))) == 1
