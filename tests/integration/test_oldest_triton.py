"""The oldest tritonserver that is steered, for real: what is read of it, and every change that
igniterd makes, under traffic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from igniterd.act import act
from igniterd.clients.owned import as_owned
from igniterd.clients.shares import VARIABLE
from igniterd.clients.triton.apply import Applier
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config import LOAD_MARK, same_allocation
from igniterd.clients.triton.config_change import marked
from igniterd.clients.triton.info import Control
from igniterd.clients.triton.version import named
from igniterd.decisions import DecisionKind, Plan, Step, StepKind
from igniterd.errors import Refused
from igniterd.lab.gpu.boardfile import BoardFile
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import INPUT_FLOATS
from igniterd.records import Allocation, ModelReading
from tests.integration.readings import counted, reading
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
MODEL = "alexnet"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonHost]:
    spec = HostSpec((EmulatedModel(MODEL),), server="23.12")
    async with triton_host(spec, tmp_path_factory.mktemp("oldest") / "triton") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(host: TritonHost) -> AsyncIterator[TritonClient]:
    made = TritonClient("main", host.url, host.metrics_url, timeout_s=5.0)
    yield made
    await made.close()


def environments(host: TritonHost) -> list[str | None]:
    """The share that each process of the model was started with."""
    pids = {copy.pid for copy in BoardFile(host.board_path).copies()}
    said = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in pids]
    return [
        next(
            (p.decode().partition("=")[2] for p in parts if p.startswith(VARIABLE.encode() + b"=")),
            None,
        )
        for parts in said
    ]


@asynccontextmanager
async def traffic(host: TritonHost) -> AsyncIterator[list[str]]:
    """Requests one after the other from four clients; yields what went wrong."""
    failures = list[str]()
    tensor = InferInput("INPUT", [1, INPUT_FLOATS], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, INPUT_FLOATS), np.float32))

    async def ask(client: InferenceServerClient) -> None:
        while True:
            try:
                answer = await client.infer(MODEL, [tensor], client_timeout=20.0)
                if answer.as_numpy("OUTPUT").shape != (1, 1):
                    failures.append("an answer without its tensor")
            except Exception as error:  # whatever it is, a client would have seen it
                failures.append(str(error))

    async with InferenceServerClient(host.url) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(4)]
        try:
            yield failures
        finally:
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


async def test_it_says_what_it_is_and_what_it_serves(client: TritonClient) -> None:
    server = await client.server()
    assert (server.ready, server.control, server.too_old) == (True, Control.EXPLICIT, "")
    assert named(server.version) == "2.41.0 (23.12)"
    assert await client.refuses_loads() == ""
    seen = await reading(client, MODEL)
    assert (seen.share_fixed, seen.batching_fixed, seen.allocation) == (
        "",
        "",
        Allocation(None, 8, 0, 1),
    )


async def test_every_change_is_taken_and_put_back_without_a_failed_request(
    host: TritonHost, client: TritonClient, tmp_path: Path
) -> None:
    original, shares = await client.config(MODEL), tmp_path / "shares"
    async with traffic(host) as failures:
        for change in (
            {"share": 0.3},
            {"share": 0.3, "max_batch_size": 4},
            {"instances": 2},
            {"instances": 1},
        ):
            before = (await reading(client, MODEL)).allocation
            after = replace(before, **change)  # type: ignore[arg-type]  # of mixed types
            plan = Plan(
                0.0, DecisionKind.MOVE, "", steps=(Step(MODEL, StepKind.SHRINK, before, after),)
            )
            done = (await act(plan, Applier(client, shares))).actuations[0]
            assert done.ok, done.error
            assert same_allocation((await reading(client, MODEL)).allocation, after)
        await until(lambda: environments(host) == ["30"])  # the old copies leave a moment later
        serving = await client.config(MODEL)
        with pytest.raises(Refused):
            await client.load(
                MODEL,
                serving
                | {"parameters": {"EXECUTION_ENV_PATH": {"string_value": "/nowhere/shares/5"}}},
            )
        with pytest.raises(Refused):
            await client.load(MODEL, serving | {"runtime": ""})  # a default that it does not know
        assert await client.config(MODEL) == serving, "the old copy serves on"
        await client.load(MODEL, as_owned(serving, str(shares)), exact=True)
        assert await client.config(MODEL) == original
        assert LOAD_MARK not in original.get("parameters", {}), "nothing of ours is left"
        seen = await counted(client, MODEL, 20)  # clients ask on
    assert failures == []
    await until(lambda: environments(host) == [None])
    assert seen.batches
    assert seen.pending_count is not None


async def test_the_same_configuration_is_a_new_copy_only_with_another_mark(
    host: TritonHost, client: TritonClient
) -> None:
    def processes() -> set[int]:
        return {copy.pid for copy in BoardFile(host.board_path).copies()}

    config, first = await client.config(MODEL), processes()
    await client.load(MODEL, config, exact=True)
    assert processes() == first
    await client.load(MODEL, config)
    assert processes() - first
    await client.load(MODEL, marked(config, "x"), exact=True)
    again = processes()
    await client.load(MODEL, marked(config, "x"), exact=True)
    assert processes() <= again, "none is new"
    await client.load(MODEL, config, exact=True)


async def test_a_model_in_no_repository_serves_and_cannot_be_loaded_again_without_its_files(
    host: TritonHost, client: TritonClient
) -> None:
    folder = host.repository / MODEL
    files = {"1/model.py": (folder / "1" / "model.py").read_bytes()}
    config = await client.config(MODEL) | {"name": "guest"}
    await client.load("guest", config, files)
    found = (await client.read_models(["guest"]))["guest"]
    assert isinstance(found, ModelReading), found
    assert found.share_fixed.startswith("it is in no model repository")
    assert found.batching_fixed == found.share_fixed
    with pytest.raises(Refused, match="failed to poll"):
        await client.load("guest", config)
    await client.load("guest", config, files)
    await client.unload("guest")
