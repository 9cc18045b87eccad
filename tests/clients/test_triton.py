"""The client's own rules, against a Triton of a few lines: the real one is in tests/integration."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from igniterd.clients.triton import TritonClient
from igniterd.errors import NotNow, Refused, Unreachable
from igniterd.records import Allocation, BatchStat, ModelReading


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Models by name: ``{version: successes}`` and a largest batch. Counts the calls it gets."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, int]] = {"m": {"1": 10}}
        self.largest = {"m": 8}
        self.batches: list[tuple[int, int, int]] = []
        self.calls: list[str] = []
        self.silent = asyncio.Event()
        self.silent.set()
        self.metadata: dict[str, str] = {}
        self.newer = b""  # fields of a Triton newer than the client

    async def _called(self, name: str, context: Any) -> None:
        self.calls.append(name)
        self.metadata = dict(context.invocation_metadata())
        await self.silent.wait()

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        await self._called("statistics", context)
        answer = service_pb2.ModelStatisticsResponse()
        for name, versions in self.models.items():
            for version, successes in versions.items():
                one = answer.model_stats.add(name=name, version=version, inference_count=successes)
                one.inference_stats.success.count = successes
                for size, count, nanoseconds in self.batches:
                    batch = one.batch_stats.add(batch_size=size)
                    batch.compute_infer.count, batch.compute_infer.ns = count, nanoseconds
        return answer

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called("config", context)
        if request.name not in self.largest:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        answer = service_pb2.ModelConfigResponse()
        answer.config.name, answer.config.backend, answer.config.max_batch_size = request.name, "python", self.largest[request.name]
        answer.config.dynamic_batching.max_queue_delay_microseconds = 100
        answer.config.MergeFromString(self.newer)
        return answer

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called("index", context)
        answer = service_pb2.RepositoryIndexResponse()
        answer.models.add(name="broken", state="UNAVAILABLE", reason="no such file")
        answer.models.add(name="resting")
        return answer


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


World = tuple[Server, TritonClient, Clock]


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    servicer, clock = Server(), Clock()
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = TritonClient("main", f"127.0.0.1:{port}", timeout_s=5, config_max_age_s=60, headers={"Secret-Key": "s"}, clock=clock)
    yield servicer, client, clock
    await client.close()
    servicer.silent.set()
    await server.stop(None)


async def read(client: TritonClient, name: str = "m") -> ModelReading:
    found = (await client.read_models([name]))[name]
    assert isinstance(found, ModelReading), found
    return found


async def test_a_tick_is_one_call_and_configurations_are_read_when_they_may_have_changed(world: World) -> None:
    server, client, clock = world
    await read(client)
    assert sorted(server.calls) == ["config", "statistics"]
    server.calls.clear()
    server.largest["m"] = 4
    for _ in range(3):
        server.models["m"]["1"] += 5
        assert (await read(client)).allocation.max_batch_size == 8
    assert server.calls == ["statistics"] * 3
    server.models["m"]["1"] = 0  # a reload
    assert (await read(client)).allocation.max_batch_size == 4
    server.largest["m"] = 2
    clock.now_s += 60  # in place, as a change of instances is: seen in time
    assert (await read(client)).allocation.max_batch_size == 2
    server.models["m"]["2"] = 1
    server.largest["m"] = 1
    assert (await read(client)).allocation.max_batch_size == 1, "a new version is a new configuration"


async def test_each_configuration_is_read_again_within_its_age_and_not_all_at_once(world: World) -> None:
    server, client, clock = world
    names = [f"m{number}" for number in range(30)]
    server.models = {name: {"1": 0} for name in names}
    server.largest = dict.fromkeys(names, 8)
    await client.read_models(names)
    worst = 0
    for _ in range(600):  # ten minutes of ticks
        clock.now_s += 1
        server.calls.clear()
        await client.read_models(names)
        worst = max(worst, server.calls.count("config"))
    assert worst <= 5
    server.largest = dict.fromkeys(names, 4)
    seen: set[str] = set()
    for _ in range(60):
        clock.now_s += 1
        found = await client.read_models(names)
        seen |= {name for name, each in found.items() if isinstance(each, ModelReading) and each.allocation.max_batch_size == 4}
    assert seen == set(names)


async def test_the_highest_version_counts(world: World) -> None:
    server, client, _ = world
    server.models["m"] = {"9": 1, "10": 2, "2": 3}
    seen = await read(client)
    assert (seen.version, seen.success_count) == ("10", 2)


async def test_batches_are_what_the_server_says_now(world: World) -> None:
    server, client, _ = world
    server.batches = [(1, 5, 500), (4, 2, 900)]
    first = await read(client)
    assert first.batches == (BatchStat(1, 5, 0, 500, 0), BatchStat(4, 2, 0, 900, 0))
    server.batches = [(1, 5, 500), (4, 3, 1300)]
    second = await read(client)
    assert second.batches == (BatchStat(1, 5, 0, 500, 0), BatchStat(4, 3, 0, 1300, 0))
    server.batches = [(4, 3, 700)]  # restarted, and by chance as many as before
    assert (await read(client)).batches == (BatchStat(4, 3, 0, 700, 0),)


async def test_what_is_missing_says_why(world: World) -> None:
    server, client, _ = world
    server.models["no-config"] = {"1": 0}
    found = await client.read_models(["m", "broken", "resting", "stranger", "no-config"])
    assert isinstance(found["m"], ModelReading)
    said = {name: str(each) for name, each in found.items() if isinstance(each, NotNow)}
    assert said["broken"] == "model 'broken' is UNAVAILABLE on Triton 'main': no such file"
    assert said["resting"] == "model 'resting' is not loaded on Triton 'main'"
    assert said["stranger"].startswith("model 'stranger' is not in the repository of Triton 'main'")
    assert said["no-config"] == "Request for unknown model: 'no-config' is not found"


async def test_a_server_that_does_not_answer_costs_one_deadline(world: World) -> None:
    server, client, _ = world
    assert (await read(client)).allocation == Allocation(None, 8, 100)
    server.silent.clear()
    client._timeout_s = 0.2
    with pytest.raises(Unreachable, match=r"no answer in 0\.2 s"):
        await client.read_models(["m"])


async def test_headers_go_with_every_call(world: World) -> None:
    server, client, _ = world
    await read(client)
    assert server.metadata["secret-key"] == "s"


async def test_a_call_that_triton_does_not_know_is_a_refusal(world: World) -> None:
    _, client, _ = world
    with pytest.raises(Refused):
        await client.load("m", {"name": "m"})


async def test_a_configuration_of_a_newer_triton_is_not_written_back_without_its_new_fields(world: World) -> None:
    server, client, _ = world
    assert (await client.config("m"))["max_batch_size"] == 8
    server.newer = b"\xf8\x3f\x01"  # field 1023, a number
    with pytest.raises(Refused, match="fields that the installed tritonclient does not know"):
        await client.config("m")
    assert (await read(client)).allocation.max_batch_size == 8  # reading what is known of it is no harm
