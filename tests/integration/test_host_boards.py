"""Real tritonservers on several emulated boards: what Triton places where, and that it moves models
between boards without losing a request."""

from __future__ import annotations

import asyncio
import copy
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from igniterd.boards import nvml_library
from igniterd.clients.environments import share_of
from igniterd.clients.shares import prepare_config
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config_change import same_but_instances
from igniterd.errors import Refused
from igniterd.lab.gpu.boardfile import BoardFile, Copy
from igniterd.lab.gpu.boards import EmulatedBoard, boards_of
from igniterd.lab.gpu.kinds import truth_of
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, emulated_host, triton_host
from igniterd.lab.load.load import INPUT_FLOATS, Arrivals, LoadSpec, Phase, load
from igniterd.lab.programs import programs
from igniterd.records import Allocation
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

SLOW = 4.0
T4, V100 = BOARDS = boards_of("t4", "v100")  # on the bus; CUDA's device 0 is the V100


@dataclass
class Server:
    """A running server and what tests do to it."""

    triton: TritonHost
    client: TritonClient
    infer_client: InferenceServerClient
    shares: Path

    def board(self, board: EmulatedBoard) -> BoardFile:
        return BoardFile(self.triton.board_path / f"{board.uuid}.board")

    def copies(self, board: EmulatedBoard, like: str) -> list[Copy]:
        """Copies on a board of what behaves like a measured model."""
        models = truth_of(board.kind).models
        return [c for c in self.board(board).copies() if models[c.model] == like]

    async def groups(self, model: str) -> list[dict[str, Any]]:
        """Instance groups as Triton has them."""
        config = await self.client.config(model)
        return [
            {key: group.get(key) for key in ("kind", "gpus", "count")}
            for group in config["instance_group"]
        ]

    async def load_groups(
        self, model: str, groups: Sequence[dict[str, Any]], share: float | None = None
    ) -> None:
        """Load with other instance groups, as the daemon loads; with ``share`` also with another
        environment."""
        config = await self.client.config(model)
        changed = copy.deepcopy(config)
        if share is not None:
            changed = prepare_config(changed, Allocation(share, 8), self.shares)
        changed["instance_group"] = list(groups)
        await self.client.load(model, changed, exact=same_but_instances(config, changed))

    async def moves(
        self,
        model: str,
        groups: list[dict[str, Any]],
        share: float | None,
        source: EmulatedBoard,
        target: EmulatedBoard,
    ) -> None:
        """Load a model like resnet50 so; its only copy goes from ``source`` to ``target`` and
        executes there."""
        await self.load_groups(model, groups, share)
        await until(lambda: not self.copies(source, "resnet50"))
        (there,) = self.copies(target, "resnet50")
        await until(lambda: self.copies(target, "resnet50")[0].executions > there.executions)
        assert await self.groups(model) == groups
        assert there.units == round(40 * (share or 0.0))
        if share is not None:
            assert share_of(await self.client.config(model)) == share

    async def infer(self, model: str, batch: int = 1) -> None:
        tensor = InferInput("INPUT", [batch, INPUT_FLOATS], "FP32")
        tensor.set_data_from_numpy(np.zeros((batch, INPUT_FLOATS), np.float32))
        await self.infer_client.infer(model, [tensor], client_timeout=20.0)


@asynccontextmanager
async def server(triton: TritonHost) -> AsyncIterator[Server]:
    client = TritonClient("main", triton.url, triton.metrics_url, timeout_s=5.0)
    async with InferenceServerClient(triton.url) as infer_client:
        yield Server(triton, client, infer_client, triton.folder / "shares")
    await client.close()


ON_ONE = [{"kind": "KIND_GPU", "gpus": [1], "count": 1}]
ON_ZERO = [{"kind": "KIND_GPU", "gpus": [0], "count": 1}]


@pytest.fixture(scope="module", params=list(programs.SERVERS))
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(release: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server on a T4 and a V100."""
    spec = HostSpec(
        (
            EmulatedModel("anywhere", like="alexnet"),
            EmulatedModel("second", like="vgg19", gpus=(1,)),
            EmulatedModel("twice", like="ssd", gpus=(0, 1), instances=2),
            EmulatedModel("moved", like="resnet50", gpus=(0,)),
        ),
        slow_factor=SLOW,
        server=release,
        boards=BOARDS,
        gpu_metrics="forward",
    )
    async with (
        triton_host(spec, tmp_path_factory.mktemp("two") / "triton") as triton,
        server(triton) as made,
    ):
        yield made


async def test_triton_places_models_on_every_device(two: Server) -> None:
    """Without a group of its own a model gets one instance on each device."""
    assert await two.groups("anywhere") == [{"kind": "KIND_GPU", "gpus": [0, 1], "count": 1}]
    assert [len(two.copies(board, "alexnet")) for board in (V100, T4)] == [1, 1]


async def test_triton_places_models_where_their_groups_say(two: Server) -> None:
    assert await two.groups("second") == [{"kind": "KIND_GPU", "gpus": [1], "count": 1}]
    assert [len(two.copies(board, "vgg19")) for board in (V100, T4)] == [0, 1]
    assert await two.groups("twice") == [{"kind": "KIND_GPU", "gpus": [0, 1], "count": 2}]
    assert [len(two.copies(board, "ssd")) for board in (V100, T4)] == [2, 2]


async def test_a_device_that_is_not_there_is_refused_by_triton(two: Server) -> None:
    with pytest.raises(Refused, match="gpu"):
        await two.load_groups("second", [{"kind": "KIND_GPU", "gpus": [2], "count": 1}])
    assert await two.groups("second") == [{"kind": "KIND_GPU", "gpus": [1], "count": 1}]


async def test_nvml_counts_by_the_bus_and_cuda_by_speed(two: Server) -> None:
    nvml = nvml_library(f"emulated:{two.triton.board_path}", field="gpu.source")
    uuids = [nvml.nvmlDeviceGetUUID(n) for n in range(nvml.nvmlDeviceGetCount())]
    assert uuids == [T4.uuid, V100.uuid]
    assert [board.uuid for board in two.triton.spec.devices] == [V100.uuid, T4.uuid]
    used = {pid for n in range(2) for pid in pids(nvml, n)}
    assert len(used) == len(two.board(T4).copies()) + len(two.board(V100).copies()) >= 8


def pids(nvml: Any, handle: int) -> list[int]:
    return [p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]


async def metrics_page(server: Server) -> str:
    url = server.triton.metrics_url
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def test_the_page_of_metrics_names_the_devices(two: Server) -> None:
    page = await metrics_page(two)
    assert 'nv_inference_request_success{model="second"' in page
    named = [line for line in page.splitlines() if line.startswith("nv_gpu_utilization{")]
    assert named == [
        f'nv_gpu_utilization{{gpu_uuid="{board.uuid}"}} 0.000000' for board in (V100, T4)
    ]


@pytest.mark.parametrize("shares", [(None, None), (0.5, 0.25)], ids=["group", "group and share"])
async def test_a_model_moves_to_another_device_under_load(
    two: Server, tmp_path: Path, shares: tuple[float | None, float | None]
) -> None:
    """There and back, its environment the same or changed as well, and no request fails."""
    phase = Phase("load", None, {"moved": 20.0}, Arrivals.CONSTANT)
    assert [len(two.copies(board, "resnet50")) for board in (V100, T4)] == [1, 0]
    async with load(LoadSpec(two.triton.url, (phase,)), tmp_path / "log.csv") as generator:
        await generator.until_sent(20, timeout_s=30.0)
        await two.moves("moved", ON_ONE, shares[0], V100, T4)
        await two.moves("moved", ON_ZERO, shares[1], T4, V100)
        log = await generator.stop()
    assert log.failed == 0
    assert len(log) > 40


async def executions_ms(
    two: Server, board: EmulatedBoard, model: str, like: str, batch: int, count: int
) -> float:
    """Median time of single executions."""
    found = []
    for _ in range(count):
        await two.infer(model, batch)
        (one,) = two.copies(board, like)
        found.append((one.last_ended_s - one.last_started_s) * 1e3)
    return statistics.median(found)


async def test_each_board_has_its_kind_s_times_and_tenants_of_another_do_not_slow_it(
    two: Server,
) -> None:
    async def keep_busy(model: str) -> None:
        while True:
            await two.infer(model, 8)

    tasks = [asyncio.create_task(keep_busy("second")) for _ in range(2)]  # on the T4
    try:
        (one,) = two.copies(V100, "resnet50")
        got = await executions_ms(two, V100, "moved", "resnet50", 4, 20)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    share = (one.units or 40) / 40
    assert got == pytest.approx(SLOW * truth_of("v100").solo_ms("resnet50", 4, share), rel=0.08)
    got = await executions_ms(two, T4, "second", "vgg19", 4, 10)
    assert got == pytest.approx(SLOW * truth_of("t4").solo_ms("vgg19", 4, 1.0), rel=0.08)


async def test_a_server_for_each_gpu_and_one_for_all(tmp_path: Path) -> None:
    """The same model on several servers: each numbers the devices it sees from 0, and all are on
    the same boards."""
    model = EmulatedModel("same", like="alexnet")
    first = HostSpec((model,), boards=BOARDS, visible_devices="1", gpu_metrics="forward")
    by_uuid = HostSpec((model,), boards=BOARDS, visible_devices=V100.uuid[:12])
    by_bus = HostSpec((model,), boards=BOARDS, device_order="PCI_BUS_ID", gpu_metrics="backward")
    async with (
        emulated_host(first, tmp_path, mps=False, broker=False, beside=(by_uuid, by_bus)) as host,
        server(host.tritons[0]) as one,
        server(host.tritons[1]) as two_,
        server(host.tritons[2]) as both,
    ):
        assert (
            await one.groups("same")
            == await two_.groups("same")
            == [{"kind": "KIND_GPU", "gpus": [0], "count": 1}]
        )
        assert await both.groups("same") == [{"kind": "KIND_GPU", "gpus": [0, 1], "count": 1}]
        assert {s.triton.board_path for s in (one, two_, both)} == {tmp_path / "triton" / "boards"}
        assert [len(one.copies(board, "alexnet")) for board in (V100, T4)] == [2, 2]
        for each, board in ((one, T4), (two_, V100)):
            before = executed(each, board)
            await each.infer("same")
            assert executed(each, board) == before + 1
        page = await metrics_page(one)
        assert page.count("nv_gpu_utilization{") == page.count(T4.uuid) == 1
        page = await metrics_page(both)
        assert page.index(V100.uuid) < page.index(T4.uuid)


def executed(server: Server, board: EmulatedBoard) -> int:
    return sum(c.executions for c in server.copies(board, "alexnet"))
