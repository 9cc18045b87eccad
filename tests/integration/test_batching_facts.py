"""How Triton forms batches, on which the batching knob rests: tried on both real tritonservers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from igniterd.clients.triton import TritonClient
from igniterd.clients.triton_config import allocation_of, with_allocation
from igniterd.emulator import programs
from igniterd.emulator.host import HostSpec
from igniterd.emulator.process import free_ports
from igniterd.records import Allocation
from tests.integration.odd import FLOATS, OddHost, OddModel, ensemble

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

LIMIT = 32
SLOW = """
    def execute(self, requests):
        import time
        time.sleep(0.02)
        return [echo(request) for request in requests]
"""
WARM = {
    "model_warmup": [
        {"name": "zeros", "batch_size": 16, "inputs": {"INPUT": {"data_type": "TYPE_FP32", "dims": [FLOATS], "zero_data": True}}}
    ]
}
MODELS = (
    OddModel("plain", {}, SLOW, LIMIT),
    OddModel("ordered", {"dynamic_batching": {"preserve_ordering": True}}, SLOW, LIMIT),
    OddModel("twice", {"instance_group": [{"kind": "KIND_CPU", "count": 2}]}, SLOW, LIMIT),
    OddModel("sized", {"dynamic_batching": {"preferred_batch_size": [4, 8]}}, SLOW, LIMIT),
    OddModel("warm", WARM, SLOW, LIMIT),
    OddModel("member", {}, SLOW, LIMIT),
    OddModel("pipe", ensemble("member"), max_batch_size=LIMIT),
)


@dataclass
class There:
    client: TritonClient
    infer: InferenceServerClient
    folder: Path

    async def ask(self, model: str, batch: int) -> None:
        data = InferInput("INPUT", [batch, FLOATS], "FP32")
        data.set_data_from_numpy(np.zeros((batch, FLOATS), np.float32))
        await self.infer.infer(model, [data], client_timeout=30.0)

    async def formed(self, model: str) -> dict[int, int]:
        """Executions by batch so far."""
        (now,) = (await self.client.statistics(model)).model_stats
        return {each.batch_size: each.compute_infer.count for each in now.batch_stats}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(programs.SERVERS))
async def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[There]:
    folder = tmp_path_factory.mktemp("batching")
    triton = OddHost(HostSpec(MODELS, server=request.param), folder / "triton", free_ports(3))
    triton.folder.mkdir()
    triton.prepare()
    try:
        await triton.start()
        made = There(TritonClient("main", triton.url, timeout_s=5.0), InferenceServerClient(triton.url), folder)
        yield made
        await made.infer.close()
        await made.client.close()
    finally:
        await asyncio.shield(triton.stop())


@pytest.mark.parametrize(("model", "batch"), [("plain", 1), *((m, 5) for m in ("ordered", "twice", "sized", "warm", "member"))])
async def test_batches_are_formed_as_planned_and_the_owner_s_largest_is_served(there: There, model: str, batch: int) -> None:
    before = await there.client.config(model)
    await there.client.load(model, with_allocation(before, Allocation(None, batch, 0, allocation_of(before).instances), str(there.folder)))
    after = await there.client.config(model)
    assert (after["max_batch_size"], allocation_of(after).max_batch_size) == (LIMIT, batch)
    begun = await there.formed(model)
    await asyncio.gather(*(there.ask(model, 1) for _ in range(41)))
    formed = {size: count - begun.get(size, 0) for size, count in (await there.formed(model)).items() if count > begun.get(size, 0)}
    assert max(formed) == batch, "a backlog is cut into batches of that size"
    await asyncio.gather(there.ask(model, LIMIT), there.ask(model, 7), *(there.ask(model, 1) for _ in range(9)))
    assert (await there.formed(model)).get(LIMIT, 0) >= 1, "a client's own batch is executed whole"


async def test_a_batch_through_an_ensemble_is_served_beside_a_smaller_batch_of_its_member(there: There) -> None:
    config = await there.client.config("member")
    await there.client.load("member", with_allocation(config, Allocation(None, 2), str(there.folder)))
    await there.ask("pipe", LIMIT)


async def test_with_a_delay_preferred_sizes_are_no_limit(there: There) -> None:
    config = await there.client.config("plain")
    config["dynamic_batching"] = {"preferred_batch_size": [5], "max_queue_delay_microseconds": 1000}
    await there.client.load("plain", config)
    assert allocation_of(await there.client.config("plain")).max_batch_size == LIMIT
    begun = await there.formed("plain")
    await asyncio.gather(*(there.ask("plain", 1) for _ in range(60)))
    assert max(size for size, count in (await there.formed("plain")).items() if count > begun.get(size, 0)) > 5
