"""The client's own rules, against a Triton of a few lines: the real one is in tests/integration."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from igniterd.clients.environments import DEFAULT_SHARES
from igniterd.clients.triton import configs as triton_configs
from igniterd.clients.triton.channel import channel_options
from igniterd.clients.triton.client import TritonClient
from igniterd.errors import NotNow, NotServed, Refused, Unanswered, Unreachable
from igniterd.lab.programs.process import free_ports
from igniterd.records import Allocation, BatchStat, ModelReading
from tests.waiting import until_answer


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Models by name: ``{version: successes}`` and a largest batch. Counts the calls it gets."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, int]] = {"m": {"1": 10}}
        self.largest = {"m": 8}
        self.batches: list[tuple[int, int, int]] = []
        self.hits = 0
        self.ensembles: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.loading = asyncio.Event()  # set: loads are finished
        self.loading.set()
        self.calls: list[str] = []
        self.listed = asyncio.Event()  # set: the repository is listed without delay
        self.listed.set()
        self.silent = asyncio.Event()
        self.silent.set()
        self.metadata: dict[str, str] = {}
        self.homeless: set[str] = set()  # loaded with files, in no repository
        self.version = "2.51.0"
        self.insists = 0  # the batch that the models' own code sets
        self.marks: dict[str, str] = {}
        self.loads: list[Any] = []
        self.newer = b""  # fields of a Triton newer than the client
        self.slow: set[str] = set()  # models whose configuration does not come in time
        self.more: dict[str, Any] = {}  # what else the configuration of each model says
        self.cut = ""  # why the next statistics end with UNAVAILABLE
        self.unloading: set[str] = set()
        self.spoils = ""  # a model for which no statistics can be had, nor of all at once
        self.odd: dict[str, dict[str, int]] = {}  # counts that cannot be

    async def _called(self, name: str, context: Any) -> None:
        self.calls.append(name)
        self.metadata = dict(context.invocation_metadata())
        await self.silent.wait()

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        await self._called("statistics", context)
        if self.cut:
            said, self.cut = self.cut, ""
            await context.abort(grpc.StatusCode.UNAVAILABLE, said)
        if self.spoils and request.name in {"", self.spoils}:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Request for unknown model: '{self.spoils}' has no available versions",
            )
        answer = service_pb2.ModelStatisticsResponse()
        for name, versions in self.models.items():
            if request.name not in {"", name}:
                continue
            for version, successes in versions.items():
                one = answer.model_stats.add(name=name, version=version, inference_count=successes)
                one.inference_stats.success.count = successes
                one.inference_stats.cache_hit.count = self.hits
                odd = self.odd.get(name, {})
                one.inference_stats.success.count = odd.get("success", successes)
                one.inference_stats.fail.count, one.inference_stats.queue.ns = (
                    odd.get("fail", 0),
                    odd.get("queue", 0),
                )
                one.inference_count = odd.get("inferences", successes)
                for size, count, nanoseconds in self.batches:
                    batch = one.batch_stats.add(batch_size=size)
                    batch.compute_infer.count, batch.compute_infer.ns = count, nanoseconds
        return answer

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called("config", context)
        if request.name in self.slow:
            await asyncio.Event().wait()
        if request.name not in self.largest:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Request for unknown model: '{request.name}' is not found",
            )
        answer = service_pb2.ModelConfigResponse()
        answer.config.name, answer.config.backend, answer.config.max_batch_size = (
            request.name,
            "python",
            self.largest[request.name],
        )
        if request.name in self.ensembles:
            answer.config.max_batch_size, members = self.ensembles[request.name]
            for member in members:
                answer.config.ensemble_scheduling.step.add(model_name=member)
            return answer
        answer.config.dynamic_batching.max_queue_delay_microseconds = 100
        if mark := self.marks.get(request.name):
            answer.config.parameters["IGNITERD_LOAD"].string_value = mark
        answer.config.MergeFromString(self.newer)
        answer.config.MergeFrom(model_config_pb2.ModelConfig(**self.more.get(request.name, {})))
        return answer

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called("index", context)
        await self.listed.wait()
        answer = service_pb2.RepositoryIndexResponse()
        answer.models.add(name="broken", state="UNAVAILABLE", reason="no such file")
        answer.models.add(name="resting")
        answer.models.add(name="coming", state="LOADING")
        for name in self.models.keys() - self.homeless:
            answer.models.add(name=name, state="READY")
        for name in self.unloading:
            answer.models.add(name=name, version="1", state="UNLOADING")
        return answer

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not self.largest:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no model control")
        if self.cut:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.cut)
        await self.loading.wait()
        self.loads.append(request)
        if "config" in request.parameters:
            sent = json.loads(request.parameters["config"].string_param)
            self.marks[request.model_name] = (
                sent.get("parameters", {}).get("IGNITERD_LOAD", {}).get("string_value", "")
            )
            self.largest[request.model_name] = (
                self.insists
                or json.loads(request.parameters["config"].string_param)["max_batch_size"]
            )
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._called(f"unload {request.model_name}", context)
        return service_pb2.RepositoryModelUnloadResponse()

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not self.version:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'k'"
            )
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)


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
    client = TritonClient(
        "main",
        f"127.0.0.1:{port}",
        timeout_s=5,
        config_max_age_s=60,
        headers={"Secret-Key": "s"},
        clock=clock,
    )
    yield servicer, client, clock
    await client.close()
    await server.stop(None)


async def read(client: TritonClient, name: str = "m") -> ModelReading:
    found = (await client.read_models([name]))[name]
    assert isinstance(found, ModelReading), found
    return found


async def test_a_tick_is_one_call_and_configurations_are_read_when_they_may_have_changed(
    world: World,
) -> None:
    server, client, clock = world
    await read(client)
    assert sorted(server.calls) == ["config", "index", "statistics"]
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
    assert (await read(client)).allocation.max_batch_size == 1, (
        "a new version is a new configuration"
    )


async def test_a_few_configurations_are_read_at_every_tick_so_that_idle_models_are_seen_to_change(
    world: World,
) -> None:
    server, client, clock = world
    names = [f"m{number}" for number in range(30)]
    server.models = {name: {"1": 0} for name in [*names, *(f"stranger{n}" for n in range(10))]}
    server.largest = dict.fromkeys(server.models, 8)
    await client.read_models(names)
    worst = 0
    for _ in range(200):  # minutes of ticks
        clock.now_s += 1
        server.calls.clear()
        await client.read_models(names)
        worst = max(worst, server.calls.count("config"))
    assert worst <= 10
    server.largest = dict.fromkeys(server.models, 4)
    seen: set[str] = set()
    for _ in range(8):
        clock.now_s += 1
        found = await client.read_models(names)
        seen |= {
            name
            for name, each in found.items()
            if isinstance(each, ModelReading) and each.allocation.max_batch_size == 4
        }
    assert seen == set(names)


async def test_a_change_by_hand_of_an_idle_model_is_seen_within_a_second(world: World) -> None:
    server, client, clock = world
    assert (await read(client)).allocation.max_batch_size == 8
    server.largest["m"] = 2
    clock.now_s += 1
    assert (await read(client)).allocation.max_batch_size == 2


async def test_versions_served_at_once_are_counted_together_and_only_watched(world: World) -> None:
    server, client, clock = world
    server.batches = [(1, 5, 500)]
    server.models["m"] = {"9": 1, "10": 2, "2": 3}
    assert (await read(client)).loading, "one may just be taking the place of another"
    clock.now_s += 10
    seen = await read(client)
    assert not seen.loading
    assert (seen.version, seen.success_count) == ("10", 6)
    assert seen.batches == (BatchStat(1, 15, 0, 1500, 0),)
    assert seen.allocation.instances == 3, "each is in a process of its own"
    assert (
        seen.left_alone
        == "it serves versions 2, 9, 10 at once, whose service times are not told apart"
    )
    server.models["m"] = {"10": 3}
    seen = await read(client)
    assert (seen.left_alone, seen.success_count, seen.allocation.instances) == ("", 3, 1)


async def test_answers_from_the_cache_are_no_load(world: World) -> None:
    server, client, _ = world
    server.models["m"]["1"], server.hits = 10, 7
    assert (await read(client)).success_count == 3
    server.calls.clear()
    server.models["m"]["1"], server.hits = 15, 12
    assert (await read(client)).success_count == 3
    assert server.calls == ["statistics"], "nothing restarted"


async def test_a_copy_whose_warm_up_hides_its_restart_is_seen_at_the_next_tick(
    world: World,
) -> None:
    server, client, _ = world
    server.batches = [(1, 10, 500)]
    await read(client)
    # as many requests, and other batches
    server.models["m"]["1"], server.batches, server.largest["m"] = 12, [(4, 3, 900)], 4
    assert (await read(client)).batches == (BatchStat(4, 3, 0, 900, 0),)
    assert (await read(client)).allocation.max_batch_size == 4


async def test_a_load_that_is_finished_too_late_is_seen_at_the_next_tick(world: World) -> None:
    server, client, clock = world
    server.loading.clear()
    client.reload_timeout_s = 0.1
    before = await client.config("m")
    with pytest.raises(Unanswered):
        await client.load("m", before | {"max_batch_size": 4})
    for _ in range(3):
        clock.now_s += 0.01
        seen = await read(client)
        assert (seen.loading, seen.allocation.max_batch_size) == (True, 8)
    server.largest["m"] = 4
    seen = await read(client)
    assert (seen.loading, seen.allocation.max_batch_size) == (False, 4)
    server.calls.clear()
    await read(client)
    assert server.calls == ["statistics"], "and then it is asked as seldom as before"


async def test_a_load_that_is_never_finished_stands_in_the_way_no_longer_than_it_was_waited_for(
    world: World,
) -> None:
    server, client, clock = world
    server.loading.clear()
    client.reload_timeout_s = 0.1
    with pytest.raises(Unanswered):
        await client.load("m", await client.config("m") | {"max_batch_size": 4})
    clock.now_s += 0.11
    server.calls.clear()
    assert not (await read(client)).loading
    assert sorted(server.calls) == ["config", "index", "statistics"], "but it is looked out for"
    clock.now_s += 1.0
    await read(client)
    server.calls.clear()
    await read(client)
    assert server.calls == ["statistics"], "not for ever"


async def test_an_ensemble_is_only_watched_and_models_nobody_asked_about_are_looked_at_now_and_then(
    world: World,
) -> None:
    server, client, _ = world
    server.models |= {"pipe": {"1": 0}, "other": {"1": 0}}
    server.largest |= {"pipe": 0, "other": 8}
    server.ensembles = {"pipe": (4, ("m", "x"))}
    await read(client)
    assert client.unmanaged_models == {"pipe", "other"}
    server.calls.clear()
    await read(client)
    assert server.calls == ["statistics"]
    pipe = (await client.read_models(["m", "pipe"]))["pipe"]
    assert isinstance(pipe, ModelReading)
    assert (pipe.left_alone, pipe.batches) == (
        "it is an ensemble, which executes nothing itself: name the models it is made of",
        (),
    )


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
    found = await client.read_models(["m", "broken", "resting", "coming", "stranger", "no-config"])
    assert isinstance(found["m"], ModelReading)
    said = {name: str(each) for name, each in found.items() if isinstance(each, NotNow)}
    assert said["broken"] == "model 'broken' is UNAVAILABLE on Triton 'main': no such file"
    assert said["resting"] == "model 'resting' is not loaded on Triton 'main'"
    assert said["stranger"].startswith("model 'stranger' is not in the repository of Triton 'main'")
    assert said["coming"] == "model 'coming' is LOADING on Triton 'main'"
    absent = {name for name, each in found.items() if isinstance(each, NotServed)}
    assert absent == {"broken", "resting"}, (
        "what is loading is waited for, and so is what may be a mistake in the configuration"
    )
    assert said["no-config"] == "Request for unknown model: 'no-config' is not found"


SOON_S = 0.8  # of an answer that comes: a busy machine takes 0.3 s now and then


async def in_ticks(
    client: TritonClient, names: list[str], ticks: int = 3
) -> dict[str, ModelReading | NotNow]:
    """What is read in the last of some ticks, none of which waits for what does not come."""
    for _ in range(ticks):
        async with asyncio.timeout(10.0):
            found = await client.read_models(names)
    return found


@pytest.mark.parametrize("name", ["broken", "stranger", "coming", "resting"])
async def test_a_repository_that_is_slow_to_list_costs_only_the_model_that_is_missing(
    world: World, name: str
) -> None:
    server, client, _ = world
    client.timeout_s = SOON_S
    server.listed.clear()
    found = await in_ticks(client, ["m", name])
    assert isinstance(found["m"], ModelReading)
    assert isinstance(found[name], Unanswered)
    assert f"model '{name}': it is not served, and why is not known" in str(found[name])
    assert server.calls.count("index") == 1, "it is not asked for again while it is being listed"
    server.listed.set()
    await until_answer(  # it is listed meanwhile
        lambda: client.read_models(["m", name]),
        lambda found: not isinstance(found[name], Unanswered),
    )
    server.listed.clear()
    found = await in_ticks(client, ["m", name], 1)
    assert isinstance(found[name], Refused), "the last answer stands in for the next"


async def test_a_configuration_that_does_not_come_costs_only_its_model(world: World) -> None:
    server, client, _ = world
    client.timeout_s = SOON_S
    server.models |= {"slow": {"1": 3}, "gone": {"1": 3}}
    server.largest["slow"] = 8
    server.slow = {"slow"}
    found = await in_ticks(client, ["m", "slow", "gone"])
    assert isinstance(found["m"], ModelReading)
    assert isinstance(found["slow"], Unanswered)
    assert isinstance(found["gone"], Refused)


async def test_a_known_model_is_still_read_while_its_configuration_comes_too_late(
    world: World,
) -> None:
    server, client, clock = world
    client.timeout_s = SOON_S
    await read(client)
    server.slow = {"m"}
    for _ in range(2):
        clock.now_s += 60
        server.models["m"]["1"] += 5
        seen = await read(client)
        assert (seen.success_count, seen.allocation) == (
            server.models["m"]["1"],
            Allocation(None, 8, 100),
        )
    clock.now_s += 61
    assert isinstance((await client.read_models(["m"]))["m"], Unanswered), "not for ever"


async def test_a_model_that_was_reloaded_is_not_read_with_its_old_configuration(
    world: World,
) -> None:
    server, client, _ = world
    client.timeout_s = SOON_S
    await read(client)
    server.slow, server.models["m"]["1"] = {"m"}, 0
    assert isinstance((await client.read_models(["m"]))["m"], Unanswered)


async def test_a_model_that_spoils_the_statistics_of_all_costs_only_itself(world: World) -> None:
    server, client, _ = world
    server.models["leaving"] = {"1": 3}
    server.spoils = "leaving"
    found = await client.read_models(["m", "leaving"])
    assert isinstance(found["m"], ModelReading)
    assert isinstance(found["leaving"], NotNow)
    with pytest.raises(Refused, match="leaving"):
        await client.read_models(["leaving"])


@pytest.mark.parametrize(
    "odd", [{"success": 2**63}, {"fail": 2**60}, {"inferences": 2**63 - 1}, {"queue": 2**63}]
)
async def test_counts_that_cannot_be_cost_only_their_model(
    world: World, odd: dict[str, int]
) -> None:
    server, client, _ = world
    server.models["odd"], server.largest["odd"] = {"1": 3}, 8
    server.odd["odd"] = odd
    found = await client.read_models(["m", "odd"])
    assert isinstance(found["m"], ModelReading)
    assert isinstance(found["odd"], Refused)
    assert "which cannot be" in str(found["odd"])


async def test_batches_that_cannot_have_been_executed_are_not_counted(world: World) -> None:
    server, client, _ = world
    server.batches = [(0, 5, 500), (1, 5, 500), (2, 2**60, 7), (3, 7, 2**62)]
    assert (await read(client)).batches == (BatchStat(1, 5, 0, 500, 0),)
    server.hits = 100  # more than were answered
    assert (await read(client)).success_count == 0


async def test_a_configuration_that_nobody_thought_of_costs_only_its_model(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client, _ = world
    server.models["odd"], server.largest["odd"] = {"1": 3}, 8
    known_of = triton_configs.known_of

    def choking(message: Any, *rest: Any, **more: Any) -> Any:
        if message.name == "odd":
            raise KeyError("nobody thought of this")
        return known_of(message, *rest, **more)

    monkeypatch.setattr(triton_configs, "known_of", choking)
    found = await client.read_models(["m", "odd"])
    assert isinstance(found["m"], ModelReading)
    assert (
        str(found["odd"])
        == "model 'odd': its configuration is not understood: KeyError('nobody thought of this')"
    )


async def a_load_that_goes_on(world: World) -> None:
    server, client, _ = world
    server.models["busy"], server.largest["busy"] = {"1": 1000}, 8
    await client.read_models(["m", "busy"])
    server.loading.clear()
    client.reload_timeout_s = 0.2
    with pytest.raises(Unanswered):
        await client.load("m", await client.config("m") | {"max_batch_size": 4})
    assert (await read(client)).loading
    server.cut = "connection reset by the proxy"
    with pytest.raises(Unreachable, match="connection reset"):
        await client.read_models(["m", "busy"])


async def test_a_connection_that_is_cut_for_a_moment_ends_no_load(world: World) -> None:
    server, client, _ = world
    await a_load_that_goes_on(world)
    server.models["busy"]["1"] += 10
    for _ in range(2):
        assert (await read(client)).loading
    server.loading.set()


async def test_a_load_whose_connection_is_cut_may_be_finished_yet(world: World) -> None:
    server, client, _ = world
    before = await client.config("m")
    server.cut = "connection reset by the proxy"
    with pytest.raises(Unreachable, match="connection reset"):
        await client.load("m", before | {"max_batch_size": 4})
    server.cut = ""
    assert (await read(client)).loading
    server.largest["m"] = 4
    assert not (await read(client)).loading


async def test_a_load_that_no_server_was_asked_for_is_not_waited_for(world: World) -> None:
    _, client, _ = world
    nowhere = TritonClient("gone", f"127.0.0.1:{free_ports(1)[0]}", timeout_s=0.3)
    with pytest.raises(Unreachable):
        await nowhere.load("m", await client.config("m"))
    assert "m" not in nowhere._unsettled
    await nowhere.close()


async def test_a_new_server_finishes_nothing_of_the_old_ones_loads(world: World) -> None:
    server, client, _ = world
    await a_load_that_goes_on(world)
    server.models = {"m": {"1": 0}, "busy": {"1": 2}}
    assert not (await read(client)).loading
    server.loading.set()


async def test_a_new_server_shows_by_the_marks_that_are_gone(world: World) -> None:
    server, client, _ = world
    server.models = {"m": {"1": 0}, "marked": {"1": 0}}
    server.largest["marked"] = 8
    await client.load("marked", await client.config("marked"))
    await client.read_models(["m", "marked"])
    server.loading.clear()
    client.reload_timeout_s = 0.2
    with pytest.raises(Unanswered):
        await client.load("m", await client.config("m") | {"max_batch_size": 4})
    for marks, loading in ((dict(server.marks), True), ({}, False)):
        server.cut, server.marks = "cut", marks
        with pytest.raises(Unreachable, match="cut"):
            await client.read_models(["m"])
        found = (await client.read_models(["m", "marked"]))["m"]
        assert isinstance(found, ModelReading)
        assert found.loading is loading
    server.loading.set()


@pytest.mark.parametrize(
    ("said", "off"),
    [("1", True), ("true", True), ("until Monday", True), ("0", False), ("No", False), ("", False)],
)
async def test_an_owner_may_keep_our_hands_off_a_model(world: World, said: str, off: bool) -> None:
    server, client, _ = world
    server.newer = a_message(parameters={"IGNITERD_HANDS_OFF": {"string_value": said}})
    assert bool((await read(client)).hands_off) is off


async def test_a_reading_is_of_the_moment_at_which_its_counts_were_answered(world: World) -> None:
    _, client, clock = world
    assert (await read(client)).at_s == 1000.0
    clock.now_s += 7.5
    assert (await read(client)).at_s == 1007.5


def shared(percent: str, *groups: dict[str, Any]) -> dict[str, Any]:
    path = {"EXECUTION_ENV_PATH": {"string_value": f"{DEFAULT_SHARES}/{percent}"}}
    return {"parameters": path, "instance_group": list(groups)}


async def test_what_unmanaged_models_hold_of_each_gpu_is_told(world: World) -> None:
    server, client, clock = world
    assert client.foreign_shares == {}
    unmanaged = {
        "two": shared("25", {"count": 2, "gpus": [0]}),
        "wide": shared("10", {"count": 1, "gpus": [0, 1]}),
        "cpu": shared("50", {"count": 1, "kind": model_config_pb2.ModelInstanceGroup.KIND_CPU}),
        "none": {},
    }
    server.more |= unmanaged | {"m": shared("40")}
    server.models |= {name: {"1": 0} for name in unmanaged}
    server.largest |= dict.fromkeys(unmanaged, 8)
    await read(client)
    assert client.foreign_shares == pytest.approx({0: 0.6, 1: 0.1})
    server.more["none"] = shared("5", {"count": 1, "gpus": [1]})
    for _ in range(3):
        clock.now_s += 1
        await read(client)
    assert client.foreign_shares == pytest.approx({0: 0.6, 1: 0.15}), (
        "an idle one that was given a share"
    )
    server.models = {"m": {"1": 0}}
    await read(client)
    assert client.foreign_shares == {}


async def test_how_busy_unmanaged_models_without_a_share_are_is_told(world: World) -> None:
    server, client, clock = world
    cpu = {"count": 1, "kind": model_config_pb2.ModelInstanceGroup.KIND_CPU}
    server.more |= {
        "wide": {"instance_group": [{"count": 1, "gpus": [0, 1]}]},
        "held": shared("25", {"count": 1, "gpus": [0]}),
        "cpu": {"instance_group": [cpu]},
    }
    server.ensembles["pipe"] = (8, ("m",))
    server.models |= {name: {"1": 0} for name in ("wide", "held", "cpu", "pipe")}
    server.largest |= dict.fromkeys(("wide", "held", "cpu", "pipe"), 8)
    server.batches = [(4, 10, 10**12)]
    await read(client)
    assert client.foreign_busy == {0: 0.0, 1: 0.0}, "nothing is known of the time before"
    for second in range(60):
        clock.now_s += 1
        server.batches = [(4, 11 + second, 10**12 + (second + 1) * 400_000_000)]
        await read(client)
    # two instances, together 0.4 s of every second
    assert client.foreign_busy == pytest.approx({0: 0.2, 1: 0.2}, rel=0.01)
    clock.now_s += 1
    server.batches = [(4, 1, 300_000_000)]  # another copy's
    await read(client)
    assert client.foreign_busy == pytest.approx({0: 0.2, 1: 0.2}, rel=0.01)
    for _ in range(60):
        clock.now_s += 1
        await read(client)
    assert client.foreign_busy == pytest.approx({0: 0.0, 1: 0.0}, abs=0.01)


async def test_of_what_is_only_watched_the_time_it_executes_is_told(world: World) -> None:
    server, client, _ = world
    server.batches = [(1, 10, 3_000_000), (2, 5, 4_000_000)]
    server.more = {"m": {"model_transaction_policy": {"decoupled": True}}}
    decoupled = await read(client)
    assert (decoupled.batches, decoupled.busy_ns) == ((), 7_000_000)
    client.read_configs_again()
    server.more = {}
    plain = await read(client)
    assert (len(plain.batches), plain.busy_ns) == (2, 0)
    client.read_configs_again()
    server.ensembles["m"] = (8, ("other",))
    assert (await read(client)).busy_ns == 0


async def test_what_is_applied_is_read_anew_for_whoever_is_about_to_change_it(world: World) -> None:
    server, client, _ = world
    client.timeout_s = SOON_S
    server.models |= {"slow": {"1": 3}, "gone": {"1": 3}}
    server.largest |= {"slow": 8, "gone": 8}
    await client.read_models(["m", "slow", "gone"])
    server.largest["m"] = 3
    del server.largest["gone"]
    server.slow = {"slow"}
    assert await client.applied_now(["m", "slow", "gone"]) == {"m": Allocation(None, 3, 100)}


async def test_a_server_that_does_not_answer_costs_one_deadline(world: World) -> None:
    server, client, _ = world
    assert (await read(client)).allocation == Allocation(None, 8, 100)
    server.silent.clear()
    client.timeout_s = 0.2
    with pytest.raises(Unreachable, match=r"no answer in 0\.2 s"):
        await client.read_models(["m"])


async def test_headers_go_with_every_call(world: World) -> None:
    server, client, _ = world
    await read(client)
    assert server.metadata["secret-key"] == "s"


async def test_a_call_that_triton_does_not_know_is_a_refusal(world: World) -> None:
    server, client, _ = world
    server.largest.clear()
    with pytest.raises(Refused):
        await client.load("m", {"name": "m"})


NEWER = b"\xf8\x3f\x01"  # field 1023, a number


async def test_a_configuration_of_a_newer_triton_is_not_written_back_without_its_new_fields(
    world: World,
) -> None:
    server, client, _ = world
    assert (await client.config("m"))["max_batch_size"] == 8
    server.newer = NEWER
    with pytest.raises(
        Refused, match=r"m: .* fields that the installed tritonclient does not know \(1023\)"
    ):
        await client.config("m")
    seen = await read(client)
    assert seen.allocation.max_batch_size == 8, "reading what is known of it is no harm"
    assert "does not know (1023)" in seen.share_fixed, "it is said before anything is tried"
    assert seen.batching_fixed == seen.share_fixed
    assert not seen.left_alone


async def test_a_configuration_of_a_newer_triton_is_read_in_the_servers_own_words_where_they_can_be_had(  # noqa: E501
    world: World,
) -> None:
    server, client, _ = world
    server.newer = NEWER
    theirs = {"name": "m", "max_batch_size": 8, "no_client_knows_this": 1}
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers.get("Secret-Key")))
        return web.json_response(theirs)

    page = web.Application()
    page.router.add_get("/v2/models/m/config", answer)
    async with TestServer(page) as http:
        newer = TritonClient(
            "main",
            client.url,
            timeout_s=5,
            headers={"Secret-Key": "s"},
            http_url=str(http.make_url("/")),
        )
        assert await newer.config("m") == theirs
        assert asked == [("/v2/models/m/config", "s")]
        seen = await read(newer)
        assert (seen.batching_fixed, seen.share_fixed) == ("", "")
        theirs["name"] = "other"
        with pytest.raises(Refused, match="not the configuration of m"):
            await newer.config("m")
        server.newer = b""
        assert (await newer.config("m"))["max_batch_size"] == 8
        assert len(asked) == 2, "gRPC tells it all"
        await newer.close()


async def test_a_model_in_no_repository_is_left_as_it_is(world: World) -> None:
    server, client, clock = world
    server.homeless = {"m"}
    for _ in range(3):
        seen = await read(client)
        assert seen.share_fixed.startswith("it is in no model repository")
        assert seen.batching_fixed == seen.share_fixed
        clock.now_s += 60
    assert server.calls.count("index") == 1, (
        "a slow repository is listed once for a configuration, not at every tick"
    )


async def test_a_repository_that_is_slow_to_list_costs_one_look(world: World) -> None:
    server, client, _ = world
    server.listed.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):  # as a tick gives up
            await read(client)
    async with asyncio.timeout(1.0):
        assert (await read(client)).share_fixed == ""
    server.listed.set()


async def test_every_load_differs_from_the_last_and_an_exact_one_is_sent_as_it_is(
    world: World,
) -> None:
    server, client, _ = world
    config = await client.config("m") | {"parameters": {"weights": {"string_value": "v7"}}}
    for _ in range(2):
        await client.load("m", config, {"1/model.py": b"\x00\xff", "1/weights/a.bin": b""})
    await client.load("m", config, exact=True)
    await client.load("m", None)
    sent = [json.loads(load.parameters["config"].string_param) for load in server.loads[:3]]
    marks = [one["parameters"].pop("IGNITERD_LOAD", {}).get("string_value") for one in sent]
    assert len(set(marks[:2])) == 2
    assert marks[2] is None
    assert sent == [config] * 3
    for load in server.loads[:2]:
        assert load.parameters["file:1/model.py"].bytes_param == b"\x00\xff"
        assert (
            load.parameters["file:1/weights/a.bin"].WhichOneof("parameter_choice") == "bytes_param"
        )
    assert not server.loads[3].parameters
    with pytest.raises(ValueError, match="only with a configuration"):
        await client.load("m", None, {"1/model.py": b""})


async def test_a_model_that_sets_its_own_batching_is_known_after_one_load(world: World) -> None:
    server, client, clock = world
    server.insists = 8
    await client.load("m", await client.config("m") | {"max_batch_size": 4})
    seen = await read(client)
    assert seen.batching_fixed == (
        "its own code sets its batching (auto_complete_config): loaded with largest batch 4 and "
        "delay 100 us, it serves with 8 and 100 us"
    )
    assert seen.share_fixed == ""
    server.marks["m"], server.largest["m"] = "", 16
    clock.now_s += 60
    assert (await read(client)).batching_fixed == "", "somebody else loaded it otherwise"
    server.insists = 0
    await client.load("m", await client.config("m") | {"max_batch_size": 4})
    assert (await read(client)).batching_fixed == ""


async def test_what_is_unloaded_is_read_anew(world: World) -> None:
    server, client, _ = world
    await read(client)
    await client.unload("m")
    assert server.calls[-1] == "unload m"
    server.calls.clear()
    await read(client)
    assert "config" in server.calls


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("2.40.0", "tritonserver 2.40.0 is older than 2.41 (23.12)"),
        ("2.41.0", ""),
        ("3.0.1", ""),
        ("dev", ""),
        ("", ""),
    ],
)
async def test_a_triton_that_is_too_old_is_not_steered(
    world: World, version: str, words: str
) -> None:
    server, client, _ = world
    server.version = version
    said = await client.refuses_loads()
    assert bool(said) == bool(words)
    assert words in said


def a_message(**more: Any) -> bytes:
    return bytes(model_config_pb2.ModelConfig(**more).SerializeToString())


async def test_what_triton_tells_of_an_old_copy(world: World) -> None:
    server, client, _ = world
    assert await client.old_copy("m") == ""
    server.unloading = {"m"}
    assert await client.old_copy("m") == "Triton is still unloading version 1 of m"
    assert await client.old_copy("coming") == ""


def test_pings_are_rarer_than_a_server_takes_them() -> None:
    """A server takes one in 300 s from a client that it sends no data, and gRPC's own limits let
    more through than that."""
    assert dict(channel_options())["grpc.keepalive_time_ms"] >= 1.1 * 300_000
