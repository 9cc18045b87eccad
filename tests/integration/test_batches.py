"""Which batches a real Triton forms and admits, and what it tells of old copies: what igniterd's
batch limit rests on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from igniterd.act import act
from igniterd.clients.triton.apply import Applier
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config import allocation_of
from igniterd.decisions import DecisionKind, Plan, Step, StepKind
from igniterd.lab.host import HostSpec
from igniterd.lab.programs.process import free_ports
from igniterd.records import ModelReading
from tests.integration.odd import FLOATS, OddHost, OddModel, ensemble
from tests.integration.readings import counted, reading

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
LARGEST = 32
SLOW = """
    def execute(self, requests):
        import time
        time.sleep(0.02)
        return [echo(request) for request in requests]
"""
SETS_ITS_OWN = (
    """
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(32)
        config.set_dynamic_batching()
        return config
"""
    + SLOW
)
HANGS = """
    def finalize(self):
        import time
        time.sleep(600)
"""
SLOWER = """
    def execute(self, requests):
        import time
        time.sleep(0.3)
        return [echo(request) for request in requests]
"""
TWO = [{"kind": "KIND_CPU", "count": 2}]
WARM = {
    "name": "largest",
    "batch_size": LARGEST,
    "inputs": {"INPUT": {"data_type": "TYPE_FP32", "dims": [FLOATS], "zero_data": True}},
}
BATCHED = (
    OddModel("plain", {}, SLOW, LARGEST),
    OddModel("ordered", {"dynamic_batching": {"preserve_ordering": True}}, SLOW, LARGEST),
    OddModel("two", {"instance_group": TWO}, SLOW, LARGEST),
    OddModel("warm", {"model_warmup": [WARM]}, SLOW, LARGEST),
    OddModel("auto", {}, SETS_ITS_OWN, LARGEST),
    OddModel("preferring", {"dynamic_batching": {"preferred_batch_size": [8, 16]}}, SLOW, LARGEST),
)
IMPATIENT = {"default_timeout_microseconds": 100_000, "timeout_action": "REJECT"}
QUEUES = (
    OddModel(
        "full",
        {
            "dynamic_batching": {
                "preferred_batch_size": [1],
                "default_queue_policy": {"max_queue_size": 2},
            }
        },
        SLOWER,
    ),
    OddModel(
        "impatient",
        {"dynamic_batching": {"preferred_batch_size": [1], "default_queue_policy": IMPATIENT}},
        SLOWER,
    ),
)
MODELS = (
    *BATCHED,
    *QUEUES,
    OddModel("pipe", ensemble("plain", "two"), max_batch_size=LARGEST),
    OddModel("hanging", {}, HANGS),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["24.10", "23.12"])
async def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[OddHost]:
    folder = tmp_path_factory.mktemp("batches") / "triton"
    made = OddHost(HostSpec(MODELS, server=request.param), folder, free_ports(3))
    made.folder.mkdir()
    made.prepare()
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(host: OddHost) -> AsyncIterator[TritonClient]:
    made = TritonClient("main", host.url, host.metrics_url, timeout_s=5.0)
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def asking(host: OddHost) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(host.url) as made:
        yield made


async def ask(asking: InferenceServerClient, model: str, batch: int = 1) -> None:
    tensor = InferInput("INPUT", [batch, FLOATS], "FP32")
    tensor.set_data_from_numpy(np.zeros((batch, FLOATS), np.float32))
    answer = await asking.infer(model, [tensor], client_timeout=30.0)
    assert answer.as_numpy("OUTPUT").shape == (batch, FLOATS)


async def limit(client: TritonClient, model: str, largest: int, shares: Path) -> ModelReading:
    """Through the actuator, as a plan would."""
    before = await reading(client, model)
    after = replace(before.allocation, max_batch_size=largest)
    plan = Plan(
        0.0, DecisionKind.MOVE, "", steps=(Step(model, StepKind.SHRINK, before.allocation, after),)
    )
    done = (await act(plan, Applier(client, shares))).actuations[0]
    assert done.ok, done.error
    return await reading(client, model)


async def formed(
    client: TritonClient, asking: InferenceServerClient, model: str, requests: int
) -> Counter[int]:
    """Batches that a backlog of so many single requests was executed in."""
    before = await reading(client, model)
    await asyncio.gather(*(ask(asking, model) for _ in range(requests)))
    now = await counted(client, model, before.success_count + requests)
    counts = Counter({each.batch_size: each.count for each in now.batches})
    return counts - Counter({each.batch_size: each.count for each in before.batches})


@pytest.mark.parametrize("model", [each.name for each in BATCHED])
async def test_batches_keep_to_the_limit_and_the_owners_largest_is_served(
    client: TritonClient, asking: InferenceServerClient, tmp_path: Path, model: str
) -> None:
    original = await client.config(model)
    for largest in (5, 1):
        seen = await limit(client, model, largest, tmp_path)
        assert (seen.allocation.max_batch_size, seen.batching_fixed) == (largest, "")
        assert max(await formed(client, asking, model, 60)) == largest
        await ask(asking, model, LARGEST)
    seen = await limit(client, model, allocation_of(original).max_batch_size, tmp_path)
    after = await client.config(model)
    mark = after.get("parameters", {}).pop("IGNITERD_LOAD")
    assert mark
    assert {**after, "parameters": after["parameters"] or None} == {
        "parameters": None,
        **original,
    }, "as it was"


async def test_an_ensemble_goes_on_whatever_its_members_form(
    client: TritonClient, asking: InferenceServerClient, tmp_path: Path
) -> None:
    await limit(client, "plain", 2, tmp_path)
    await ask(asking, "pipe", LARGEST)
    assert {entry.state for entry in await client.index() if entry.name == "pipe"} == {"READY"}


async def test_a_request_above_the_largest_batch_is_in_no_count(
    client: TritonClient, asking: InferenceServerClient
) -> None:
    before = await reading(client, "two")
    with pytest.raises(InferenceServerException, match="batch-size must be <= 32"):
        await ask(asking, "two", LARGEST + 1)
    await ask(asking, "two", 1)
    now = await counted(client, "two", before.success_count + 1)
    assert now.failure_count == before.failure_count
    assert now.rejected_count in (None, 0)


@pytest.mark.parametrize(("model", "told"), [("full", False), ("impatient", True)])
async def test_of_requests_that_a_queue_refuses_only_those_that_ran_out_of_time_are_counted_and_not_by_all(  # noqa: E501
    host: OddHost, client: TritonClient, asking: InferenceServerClient, model: str, told: bool
) -> None:
    answers = await asyncio.gather(*(ask(asking, model) for _ in range(12)), return_exceptions=True)
    refused = sum(isinstance(each, InferenceServerException) for each in answers)
    assert refused >= 8
    now = await counted(client, model, 12 - refused)
    newer = host.spec.server == "24.10"
    assert now.failure_count == (refused if told and newer else 0)
    assert now.rejected_count == (now.failure_count if newer else None)


async def test_triton_tells_nothing_of_an_old_copy_that_hangs(
    client: TritonClient, host: OddHost
) -> None:
    """Its process is the only sign."""

    def processes() -> set[str]:
        found = set()
        for each in Path("/proc").iterdir():
            try:
                line = (
                    (each / "cmdline").read_bytes().decode(errors="replace")
                    if each.name.isdecimal()
                    else ""
                )
            except OSError:
                continue
            if f"{host.repository}/hanging/" in line and "triton_python_backend_stub" in line:
                found.add(each.name)
        return found

    first = processes()
    await client.load("hanging", await client.config("hanging"))
    assert first < processes(), "the old copy lives on beside the new one"
    states = [
        (entry.version, entry.state) for entry in await client.index() if entry.name == "hanging"
    ]
    assert states == [("1", "READY")]
    assert await client.old_copy("hanging") == ""
    await client.unload("hanging")
    assert await client.old_copy("hanging") == "Triton is still unloading version 1 of hanging"


async def test_with_a_delay_preferred_sizes_are_no_limit(
    client: TritonClient, asking: InferenceServerClient
) -> None:
    model = BATCHED[0].name
    before = await client.config(model)
    delayed = before | {
        "dynamic_batching": {"preferred_batch_size": [5], "max_queue_delay_microseconds": 1000}
    }
    await client.load(model, delayed)
    assert (await reading(client, model)).allocation.max_batch_size == LARGEST
    assert max(await formed(client, asking, model, 60)) > 5
    await client.load(model, before)
