"""igniterd beside models that are not plain ones, on a real tritonserver: what it must leave alone
stays as it is, and nothing fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import structlog
from structlog.testing import capture_logs
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.clients.environments import ModelConfig, share_path
from igniterd.clients.shares import prepare_config
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import with_allocation
from igniterd.config import parse_config
from igniterd.decisions import DecisionKind, Tick
from igniterd.errors import NotServed, Refused
from igniterd.loop import Loop
from igniterd.observe import Sources
from igniterd.profiled import Predictors
from igniterd.records import Allocation
from tests.hosts import knowledge
from tests.integration.conftest import Host
from tests.integration.odd import ECHO, FLOATS, ODD
from tests.integration.readings import counted, reading
from tests.waiting import until_answer

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


def an_input(value: float = 0.0) -> list[InferInput]:
    tensor = InferInput("INPUT", [1, FLOATS], "FP32")
    tensor.set_data_from_numpy(np.full((1, FLOATS), value, np.float32))
    return [tensor]


async def state_of(host: Host, model: str) -> str:
    (state,) = [entry.state for entry in await host.client.index() if entry.name == model]
    return state


@contextlib.asynccontextmanager
async def asked(host: Host, model: str) -> AsyncIterator[list[str]]:
    """Requests one after another, all the while; yields what went wrong."""
    failures: list[str] = []

    async def ask() -> None:
        async with InferenceServerClient(host.triton.url) as client:
            while True:
                try:
                    await client.infer(model, an_input())
                except Exception as error:  # whatever it is, a client would have seen it
                    failures.append(str(error))
                await asyncio.sleep(0.005)

    asking = asyncio.create_task(ask())
    try:
        yield failures
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


async def test_an_override_loses_nothing_of_a_rich_configuration(host: Host) -> None:
    before = await host.client.config(ODD)
    for section in ("model_warmup", "response_cache", "optimization", "version_policy"):
        assert before[section], "as its file says"
    await host.client.load(ODD, prepare_config(before, Allocation(0.25, 3), host.shares))
    ours = {
        "EXECUTION_ENV_PATH": share_path(str(host.shares), 0.25),
        "IGNITERD_PREFERRED_BATCH_SIZE": "2, 4",
        "IGNITERD_QUEUE_DELAY_US": "200",
    }
    after = await host.client.config(ODD)
    assert after["parameters"].pop("IGNITERD_LOAD")
    assert after == before | {
        "dynamic_batching": {
            k: v
            for k, v in before["dynamic_batching"].items()
            if k != "max_queue_delay_microseconds"
        }
        | {"preferred_batch_size": [3]},
        "parameters": before["parameters"]
        | {name: {"string_value": value} for name, value in ours.items()},
    }


async def test_answers_from_the_response_cache_are_not_counted(host: Host) -> None:
    before = await reading(host.client, ODD)
    async with InferenceServerClient(host.triton.url) as client:
        for value in (1.0, 2.0, 2.0, 2.0, 1.0):
            await client.infer(ODD, an_input(value))
    now = await counted(host.client, ODD, before.success_count + 2)
    assert now.success_count == before.success_count + 2
    assert now.inference_count == before.inference_count + 2


async def test_an_ensemble_is_served_though_a_member_forms_smaller_batches(host: Host) -> None:
    """A ``max_batch_size`` below the ensemble's would take it out of service: it is never
    lowered."""
    config = await host.client.config("member")
    await host.client.load("member", with_allocation(config, Allocation(None, 2), str(host.shares)))
    assert (await reading(host.client, "member")).allocation.max_batch_size == 2
    assert await state_of(host, "pipe") == "READY"
    async with InferenceServerClient(host.triton.url) as client:
        await client.infer("pipe", an_input(1.0))
    await host.client.load("member", config)


def a_loop(host: Host, folder: Path, models: dict[str, float], ticks: list[Tick]) -> Loop:
    text = "".join(
        f'[[model]]\nname = "{name}"\nslo_p99_ms = {slo}\nprofile = "v100.json"\nprofile_model = '
        '"alexnet"\n'
        for name, slo in models.items()
    )
    head = f'[host]\nname = "odd"\n[decide]\nwarmup_s = 2.0\n[state]\ndirectory = "{folder}"\n'
    settings = parse_config(head + text, source="test")
    known = Predictors(dict.fromkeys(models, "alexnet"), knowledge(settings).predictors)
    sources = Sources(
        tritons={"main": host.client},
        models={"main": tuple(models)},
        emulated=True,  # Triton finds no GPU here, and its instances stand for some on one
        timeout_s=5.0,
    )
    return Loop(settings, sources, {"main": host.client}, known, ticks.append)


async def configurations(host: Host, models: tuple[str, ...]) -> dict[str, ModelConfig]:
    return {model: await host.client.config(model) for model in models}


async def test_check_says_what_is_left_alone_and_what_is_not_reckoned_with(
    host: Host, tmp_path: Path
) -> None:
    models = "".join(
        f'[[model]]\nname = "{name}"\nslo_p99_ms = 50\n'
        for name in (ODD, "pipe", "stream", "talk", "last")
    )
    file = tmp_path / "igniterd.toml"
    file.write_text(
        f'[[triton]]\nurl = "{host.triton.url}"\nmetrics_url = "{host.triton.metrics_url}"\n'
        '[loop]\nmode = "advise"\ninterval_s = 20\n'
        'io_timeout_s = 5\n[gpu]\nsource = "none"\n[mps]\nenabled = false\n[state]\ndirectory = '
        f'"{tmp_path}"\n{models}'
    )
    result = await asyncio.to_thread(
        CliRunner().invoke, app, ["check", "--live", "--format", "json", "--config", str(file)]
    )
    structlog.reset_defaults()
    assert result.exit_code == 0, result.output
    warned = [
        (finding["what"], finding["said"])
        for finding in json.loads(result.stdout)
        if finding["level"] == "warn"
    ]
    for model, words in (
        ("pipe", "watched, not steered: it is an ensemble"),
        ("stream", "watched, not steered: it is decoupled"),
        ("talk", "watched, not steered: it has sequence_batching"),
        ("last", "its batching is left as it is: it has no dynamic_batching"),
        (ODD, "priority levels are kept"),
        (ODD, "queue policies are kept"),
        (ODD, "response_cache is kept"),
    ):
        assert any(what == f"model {model}" and words in said for what, said in warned), (
            model,
            words,
            result.output,
        )
    assert any(
        "it also serves" in said and "member" in said
        for what, said in warned
        if what == "Triton main"
    )


@pytest_asyncio.fixture(loop_scope="session")
async def broken(host: Host) -> str:
    """A model that is in the repository and cannot be loaded."""
    folder = host.triton.repository / "broken"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(
        ECHO + "    def initialize(self, args):\n        raise ValueError('no weights')\n"
    )
    with pytest.raises(Refused, match="no weights"):
        await host.client.load("broken", (await host.client.config("talk")) | {"name": "broken"})
    assert isinstance((await host.client.read_models(["broken"]))["broken"], NotServed)
    return "broken"


async def test_everything_is_taken_over_that_can_be_and_the_rest_is_left_alone(
    host: Host, broken: str, tmp_path: Path
) -> None:
    alone, ticks = ("pipe", "stream", "talk"), list[Tick]()
    before = await configurations(host, (*alone, "last"))
    loop = a_loop(host, tmp_path, dict.fromkeys(("member", ODD, broken, *alone), 50.0), ticks)
    async with InferenceServerClient(host.triton.url) as talking, asked(host, "pipe") as failures:
        await talking.infer("talk", an_input(), sequence_id=7, sequence_start=True)
        with capture_logs() as said:
            await until_answer(
                lambda: loop.tick(time.monotonic()),
                lambda tick: (
                    tick.plan.outcome is DecisionKind.HOLD
                    and tick.observation.models["member"].allocation.share
                ),
                60.0,
                every_s=0.25,
            )
        await talking.infer("talk", an_input(), sequence_id=7, sequence_end=True)
    assert failures == []
    done = [each for tick in ticks for each in tick.outcome.actuations]
    assert all(each.ok for each in done), done
    assert {each.step.model for each in done} <= {"member", ODD}
    for model in ("member", ODD):
        assert (await reading(host.client, model)).allocation.share is not None
    assert (await configurations(host, (*alone, "last"))) == before
    assert allocation_of(await host.client.config("member")).max_batch_size >= 4
    assert await state_of(host, "pipe") == "READY"
    watched = {
        line["model"]: line["why"] for line in said if line["event"] == "watched, not steered"
    }
    assert watched.keys() == set(alone)
    (strangers,) = [
        line["models"]
        for line in said
        if line["event"] == "serves models that the configuration does not name"
    ]
    assert "last" in strangers
