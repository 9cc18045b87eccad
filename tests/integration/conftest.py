"""Real programs for the integration tests, started once for all of them: a tritonserver on an
emulated board, the MPS control daemon.

A test that changes a model takes one that no other test uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from igniterd.clients.shares import prepare_config
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import same_but_instances
from igniterd.lab.gpu.boardfile import BoardFile, Copy
from igniterd.lab.gpu.nvml import EmulatedNvml
from igniterd.lab.gpu.truth import Truth
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost
from igniterd.lab.load.load import INPUT_FLOATS
from igniterd.lab.programs.process import free_ports
from igniterd.lab.services import MpsHost, mps_host
from igniterd.records import Allocation
from tests.integration import odd
from tests.integration.engine_host import engines  # noqa: F401  a fixture
from tests.waiting import until

SLOW = 4.0
MODELS = (
    EmulatedModel("alexnet", max_batch_size=32),
    EmulatedModel("resnet50", max_batch_size=32),
    EmulatedModel("vgg19", max_batch_size=32),
    EmulatedModel("steady", like="alexnet"),
    EmulatedModel("shared", like="alexnet"),
    EmulatedModel("refusing", like="alexnet"),
    EmulatedModel("counted", like="alexnet"),
    EmulatedModel("dying", like="alexnet"),
    EmulatedModel("eager", like="alexnet", host_ms=6.0, host_rise=0.4),
)


class Host:
    """The running Triton with what tests do to it."""

    def __init__(self, triton: TritonHost, client: TritonClient, shares: Path) -> None:
        self.triton, self.client, self.shares = triton, client, shares
        self.board = BoardFile(triton.board_path)
        self.nvml = EmulatedNvml(triton.board_path)
        self._infer = InferenceServerClient(triton.url)
        self._inputs: dict[int, InferInput] = {}

    async def close(self) -> None:
        await self.client.close()
        await self._infer.close()

    async def allocate(self, model: str, target: Allocation) -> None:
        """Load ``model`` with ``target``, as the daemon does."""
        config = await self.client.config(model)
        changed = prepare_config(config, target, self.shares)
        await self.client.load(model, changed, exact=same_but_instances(config, changed))

    async def give_share(self, model: str, share: float) -> None:
        """Change only the share, and wait until the old copy has left the board."""
        copies = len(self.board.copies())
        present = allocation_of(await self.client.config(model))
        await self.allocate(
            model,
            Allocation(
                share, present.max_batch_size, present.max_queue_delay_us, present.instances
            ),
        )
        await until(lambda: len(self.board.copies()) == copies)

    async def infer(self, model: str, batch: int = 1) -> None:
        """One request of ``batch`` items, answered."""
        if batch not in self._inputs:
            self._inputs[batch] = InferInput("INPUT", [batch, INPUT_FLOATS], "FP32")
            self._inputs[batch].set_data_from_numpy(np.zeros((batch, INPUT_FLOATS), np.float32))
        answer = await self._infer.infer(model, [self._inputs[batch]], client_timeout=20.0)
        assert answer.as_numpy("OUTPUT").shape == (batch, 1)

    def last_executed(self, like: str) -> Copy:
        """The copy of a measured model that executed last."""
        return max(
            (c for c in self.board.copies() if Truth.v100().models[c.model] == like),
            key=lambda c: c.last_ended_s,
        )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    triton = odd.OddHost(
        HostSpec((*MODELS, *odd.MODELS), slow_factor=SLOW, seed=1), folder / "triton", free_ports(3)
    )
    triton.folder.mkdir()
    triton.prepare()
    try:
        await triton.start()
        made = Host(
            triton,
            TritonClient("main", triton.url, triton.metrics_url, timeout_s=5.0),
            folder / "shares",
        )
        yield made
        await made.close()
    finally:
        await asyncio.shield(triton.stop())


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mps(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MpsHost]:
    async with mps_host(tmp_path_factory.mktemp("mps")) as running:
        yield running
