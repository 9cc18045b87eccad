"""The client against a real tritonserver with emulated models."""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from google.protobuf import json_format
from tritonclient.grpc import InferInput, model_config_pb2
from tritonclient.grpc.aio import InferenceServerClient

from igniterd.clients.environments import base_env_of, share_of
from igniterd.clients.shares import prepare_share
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import with_allocation
from igniterd.clients.triton.http import TritonHttp
from igniterd.clients.triton.info import Control
from igniterd.clients.triton.loadable import loadable
from igniterd.errors import NotNow, Refused, Unreachable
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import INPUT_FLOATS
from igniterd.lab.programs.process import free_ports
from igniterd.records import Allocation, ModelReading
from igniterd.window import between_readings
from tests.integration.readings import counted, reading
from tests.waiting import until, until_answer

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

SPEC = HostSpec(
    models=(EmulatedModel("alexnet"), EmulatedModel("resnet50", max_queue_delay_us=500))
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[TritonHost]:
    async with triton_host(SPEC) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(host: TritonHost) -> AsyncIterator[TritonClient]:
    triton = TritonClient("main", host.url, host.metrics_url, timeout_s=5, config_max_age_s=3600)
    yield triton
    await triton.close()


async def infer(url: str, model: str, times: int) -> None:
    async with InferenceServerClient(url) as sender:
        tensor = InferInput("INPUT", [1, INPUT_FLOATS], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, INPUT_FLOATS), np.float32))
        for _ in range(times):
            await sender.infer(model, [tensor], client_timeout=30)


async def test_the_server_and_its_control_mode(client: TritonClient) -> None:
    info = await client.server()
    assert (info.live, info.ready, info.control) == (True, True, Control.EXPLICIT)
    assert info.version
    assert "statistics" in info.extensions
    assert {entry.name: entry.state for entry in await client.index()} == {
        "alexnet": "READY",
        "resnet50": "READY",
    }


async def test_configurations_are_tritons_own(host: TritonHost, client: TritonClient) -> None:
    http = TritonHttp(host.http_url, 5.0, {}, None)
    theirs = await http.config("resnet50")
    await http.close()
    ours = await client.config("resnet50")
    assert json_format.ParseDict(ours, model_config_pb2.ModelConfig()) == json_format.ParseDict(
        theirs, model_config_pb2.ModelConfig()
    )
    assert "runtime" in theirs
    assert "runtime" not in ours, "a default that older servers do not know"


async def test_readings_count_requests_and_batches(host: TritonHost, client: TritonClient) -> None:
    before = await reading(client, "resnet50")
    await infer(host.url, "resnet50", 5)
    after = await counted(client, "resnet50", before.success_count + 5)
    assert after.success_count - before.success_count == 5
    assert (
        sum(batch.count for batch in after.batches) - sum(batch.count for batch in before.batches)
        == 5
    )
    assert {batch.batch_size for batch in after.batches} == {1}
    assert after.inference_count == after.success_count == 5
    assert all(batch.compute_infer_ns > 0 for batch in after.batches)
    assert (after.triton, after.backend, after.version, after.owns_process) == (
        "main",
        "python",
        "1",
        True,
    )
    assert after.allocation == Allocation(share=None, max_batch_size=8, max_queue_delay_us=500)
    assert after.pending_count == 0
    assert after.latency_quantiles_s is not None
    assert 0 < after.latency_quantiles_s[0.5] <= after.latency_quantiles_s[0.99]
    assert client.metrics_gap is None


async def test_a_model_that_is_not_there_says_why_and_the_others_are_read(
    client: TritonClient,
) -> None:
    found = await client.read_models(["resnet50", "vgg99"])
    assert isinstance(found["resnet50"], ModelReading)
    assert isinstance(found["vgg99"], Refused)
    assert "model 'vgg99' is not in the repository of Triton 'main'" in str(found["vgg99"])


async def test_what_is_unloaded_could_be_loaded(client: TritonClient) -> None:
    async def listed() -> frozenset[str]:
        return loadable(await client.index(timeout_s=5.0))

    assert await listed() == frozenset()
    await client.unload("alexnet")
    await until_answer(listed, lambda names: names == {"alexnet"})
    await client.load("alexnet", None)
    assert await listed() == frozenset()


def stub_shares(host: TritonHost, model: str) -> set[str | None]:
    """``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`` in the processes that execute `model`, from the
    kernel's own record."""
    shares: set[str | None] = set()
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
            if (
                b"triton_python_backend_stub" not in command
                or str(host.repository / model).encode() not in command
            ):
                continue
            if b"bash" in command.split(b"\0")[0]:
                continue  # the shell that sourced the environment
            pairs = dict(
                entry.split(b"=", 1)
                for entry in (process / "environ").read_bytes().split(b"\0")
                if b"=" in entry
            )
        except (OSError, ValueError):
            continue
        share = pairs.get(b"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
        shares.add(None if share is None else share.decode())
    return shares


async def test_a_share_reaches_the_new_process_and_no_request_is_lost(
    host: TritonHost, client: TritonClient, tmp_path: Path
) -> None:
    assert stub_shares(host, "alexnet") == {None}
    config = await client.config("alexnet")
    target = Allocation(share=0.125, max_batch_size=4)
    shares = tmp_path / "shares"
    prepare_share(shares, 0.125, base_env_of(config))
    load = asyncio.create_task(infer(host.url, "alexnet", 150))
    await client.load("alexnet", with_allocation(config, target, str(shares)))
    await load  # raises when a request failed
    assert (await reading(client, "alexnet")).allocation == target
    await until(lambda: stub_shares(host, "alexnet") == {"12.5"})  # the old process ends later


async def test_arrivals_are_those_that_came_while_a_replaced_copy_answers_what_waited(
    tmp_path: Path,
) -> None:
    """Its requests are pending, and Triton's statistics count them no more."""
    spec = HostSpec((EmulatedModel("slow", like="vgg19", max_batch_size=1),), slow_factor=10)
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(triton_host(spec, tmp_path))
        client = TritonClient("main", host.url, host.metrics_url, timeout_s=5)
        stack.push_async_callback(client.close)
        backlog = [asyncio.create_task(infer(host.url, "slow", 1)) for _ in range(80)]
        await counted(client, "slow", 2)
        config = await client.config("slow")
        target = dataclasses.replace(allocation_of(config), max_batch_size=2)
        await client.load("slow", with_allocation(config, target, ""))
        readings = [await reading(client, "slow")]
        while (readings[-1].pending_count or 0) > 3:
            await infer(host.url, "slow", 1)  # the new copy's
            readings.append(await reading(client, "slow"))
        await asyncio.gather(*backlog)
        came, pairs = len(readings) - 1, itertools.pairwise(readings)
        windows = [between_readings(before, after, 1.0) for before, after in pairs]
        assert sum(window.completed for window in windows) == pytest.approx(came, abs=1)
        assert (readings[0].pending_count or 0) > 20
        # what is being executed is neither pending nor answered
        assert sum(window.arrivals for window in windows) == pytest.approx(came, abs=3)


async def test_a_refused_configuration_leaves_the_old_one_serving(
    host: TritonHost, client: TritonClient
) -> None:
    config = await client.config("resnet50")
    missing = json.loads(json.dumps(config)) | {
        "parameters": config["parameters"]
        | {"EXECUTION_ENV_PATH": {"string_value": "/no/such/env"}}
    }
    with pytest.raises(Refused, match="/no/such/env"):
        await client.load("resnet50", missing)
    with pytest.raises(Refused, match="only Triton's log says why"):
        await client.load("resnet50", config | {"no_such_field": 1})
    with pytest.raises(Refused, match="vgg99"):
        await client.load("vgg99", config)
    await infer(host.url, "resnet50", 2)
    assert await client.config("resnet50") == config


async def test_a_restarted_triton_is_seen_without_its_overrides(
    client: TritonClient, host: TritonHost, tmp_path: Path
) -> None:
    config = await client.config("resnet50")
    prepare_share(tmp_path / "shares", 0.4)
    await client.load(
        "resnet50", with_allocation(config, Allocation(0.4, 2, 0), str(tmp_path / "shares"))
    )
    await infer(host.url, "resnet50", 3)
    assert (await reading(client, "resnet50")).allocation == Allocation(0.4, 2, 0)
    await host.stop()
    with pytest.raises(Unreachable, match="Triton 'main' at"):
        await client.read_models(["resnet50"])
    await host.start()

    async def back() -> dict[str, ModelReading | NotNow] | None:
        try:
            return await client.read_models(["resnet50"])
        except Unreachable:
            return None

    found = await until_answer(back, lambda found: found is not None)
    assert found is not None
    seen = found["resnet50"]
    assert isinstance(seen, ModelReading)
    assert seen.allocation == Allocation(None, 8, 500), (
        "the counters went back, so the configuration was read again"
    )
    assert share_of(await client.config("resnet50")) is None


async def test_a_metrics_page_that_is_gone_costs_only_its_readings(host: TritonHost) -> None:
    triton = TritonClient(
        "main", host.url, f"http://127.0.0.1:{free_ports(1)[0]}/metrics", timeout_s=5
    )
    seen = await reading(triton, "alexnet")
    assert (seen.pending_count, seen.latency_quantiles_s) == (None, None)
    assert triton.metrics_gap is not None
    assert triton.metrics_gap.source == "metrics:main"
    await triton.close()


async def test_nobody_there() -> None:
    triton = TritonClient("main", f"127.0.0.1:{free_ports(1)[0]}", timeout_s=2)
    with pytest.raises(Unreachable, match="Triton 'main' at"):
        await triton.server()
    await triton.close()


class PollingHost(TritonHost):
    """The same server with model control left at Triton's default."""

    def _command(self) -> list[str]:
        return [
            {"--model-control-mode=explicit": "--model-control-mode=none"}.get(part, part)
            for part in super()._command()
            if "load-model" not in part
        ]


async def test_a_triton_without_explicit_control_is_found_out(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, models=SPEC.models[:1])
    host = PollingHost(spec, tmp_path, free_ports(3))
    host.prepare()
    triton = TritonClient("main", host.url, timeout_s=5)
    try:
        await host.start()
        info = await triton.server()
        assert info.control is Control.NOT_EXPLICIT
        assert "not allowed" in info.control_reason
        config = await triton.config("alexnet")
        assert allocation_of(config).max_batch_size == 8
        with pytest.raises(Refused, match="not allowed"):
            await triton.load("alexnet", config)
    finally:
        await triton.close()
        await host.stop()


WAITS = "while [ ! -e {} ]; do sleep 0.05; done\n"


async def test_a_load_that_hangs_keeps_nobody_and_is_finished_by_triton(
    host: TritonHost, client: TritonClient, tmp_path: Path
) -> None:
    """Also when whoever asked for it has gone: cancelled, as by the daemon's end, it is carried
    through all the same."""
    environment, go, shares = tmp_path / "env", tmp_path / "go", tmp_path / "shares"
    (environment / "bin").mkdir(parents=True)
    (environment / "lib").mkdir()
    (environment / "bin" / "activate").write_text(WAITS.format(go))
    config, present = await client.config("alexnet"), (await reading(client, "alexnet")).allocation
    config["parameters"]["EXECUTION_ENV_PATH"] = {"string_value": str(environment)}
    target = dataclasses.replace(present, share=0.5)
    prepare_share(shares, 0.5, base_env_of(config))
    hanging = TritonClient("main", host.url, timeout_s=5, reload_timeout_s=1.0)
    try:
        with pytest.raises(Unreachable, match="no answer in 1 s"):
            await hanging.load("alexnet", with_allocation(config, target, str(shares)))
        assert (await reading(hanging, "alexnet")).loading
    finally:
        await hanging.close()
    loading = asyncio.create_task(
        client.load(
            "alexnet", with_allocation(config, dataclasses.replace(target, share=0.75), str(shares))
        )
    )
    prepare_share(shares, 0.75, base_env_of(config))
    await infer(host.url, "alexnet", 5)  # the old copy serves
    other = await client.config("resnet50")
    prepare_share(shares, 0.25)
    await client.load(
        "resnet50",
        with_allocation(other, dataclasses.replace(allocation_of(other), share=0.25), str(shares)),
    )
    await infer(host.url, "resnet50", 5)
    assert (await reading(client, "alexnet")).allocation == present
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    go.touch()
    await until_answer(lambda: client.config("alexnet"), lambda now: share_of(now) == 0.75)
    await infer(host.url, "alexnet", 5)
