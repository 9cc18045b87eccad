"""The simulated host serves clients that bring batches as Triton does."""

import asyncio
import copy

import pytest

from igniterd.clients.triton.config import allocation_of
from igniterd.lab.gpu.floor import HostFloor
from igniterd.records import ModelReading
from tests.sim.host import SimHost, config_of

pytestmark = pytest.mark.looptime


async def served(brings: int, config: dict[str, object]) -> tuple[SimHost, ModelReading]:
    clock = asyncio.get_running_loop().time
    host = SimHost({"alexnet": ("alexnet", lambda _: 20.0)}, clock)
    model = host.models["alexnet"]
    model.bring(brings)
    model.reset(copy.deepcopy(config))
    await asyncio.sleep(60.0)
    reading = (await host.read_models(["alexnet"]))["alexnet"]
    assert isinstance(reading, ModelReading)
    return host, reading


async def test_items_and_requests_are_counted_apart() -> None:
    host, reading = await served(4, config_of("alexnet", 8))
    assert reading.success_count == pytest.approx(1200, rel=0.15)
    assert reading.inference_count == pytest.approx(4 * reading.success_count, abs=4)
    assert (reading.inference_count / reading.success_count) == pytest.approx(4, rel=0.01)
    assert {each.batch_size % 4 for each in reading.batches} == {0}
    assert host.models["alexnet"].refused == 0


async def test_a_batch_above_the_limit_is_refused_and_counted_nowhere_else() -> None:
    host, reading = await served(16, config_of("alexnet", 8))
    assert host.models["alexnet"].refused == pytest.approx(1200, rel=0.15)
    assert (reading.success_count, reading.failure_count, reading.pending_count) == (0, 0, 0)


async def test_a_preferred_size_refuses_nobody() -> None:
    """A client's own batch is executed whole, though the batcher forms smaller ones."""
    config = config_of("alexnet", 8)
    config["dynamic_batching"]["preferred_batch_size"] = [2]
    host, reading = await served(6, config)
    assert allocation_of(config).max_batch_size == 2
    assert host.models["alexnet"].refused == 0
    assert {each.batch_size for each in reading.batches} == {6}


async def test_a_host_bound_model_takes_its_floor_and_more_beside_a_neighbour() -> None:
    clock = asyncio.get_running_loop().time
    host = SimHost({n: (n, lambda _: 20.0) for n in ("alexnet", "vgg19")}, clock)
    host.bind_to_host("alexnet", HostFloor(6.0, 0.5))
    host.speed_up("vgg19", 1e6)  # it hardly ever executes
    await asyncio.sleep(30.0)
    assert await mean_ms(host) == pytest.approx(6.0, rel=0.02)
    for model in host.models.values():
        model.reset(model.config)
    host.speed_up("vgg19", 1e-6)  # its first batch does not end
    await asyncio.sleep(30.0)
    assert await mean_ms(host) == pytest.approx(9.0, rel=0.02)


async def mean_ms(host: SimHost) -> float:
    """Of a batch of one of alexnet, as Triton counts."""
    reading = (await host.read_models(["alexnet"]))["alexnet"]
    assert isinstance(reading, ModelReading)
    one = next(each for each in reading.batches if each.batch_size == 1)
    return (one.compute_infer_ns + one.compute_input_ns + one.compute_output_ns) / one.count / 1e6
