"""A GPU host without a GPU: a real tritonserver with emulated models, a real MPS control daemon, a
real MQTT broker.

Every part is an async context manager: started with a deadline, its log in a folder, stopped on the
way out. All listen on loopback at ports found free. ``emulated_host`` starts them together.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp

from igniterd.lab.gpu.boards import EmulatedBoard, create_boards
from igniterd.lab.gpu.cuda import cuda_environment, visible_boards
from igniterd.lab.gpu.executor import HANDOVER_S, SLICE_S
from igniterd.lab.gpu.kinds import truth_of
from igniterd.lab.gpu.truth import BOARD_MEMORY_BYTES, DISPERSION_CV
from igniterd.lab.gpu_metrics import GpuMetrics
from igniterd.lab.models import EmulatedModel, Servable, pbtxt
from igniterd.lab.programs import programs
from igniterd.lab.programs.launcher import Launcher, launcher_environment
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.lab.services import BrokerHost, MpsHost, broker_host, mps_host

__all__ = (
    "EmulatedHost",
    "EmulatedModel",
    "HostSpec",
    "Servable",
    "TritonHost",
    "emulated_host",
    "triton_host",
)

_READY_S = 60.0


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What to emulate. Every time of the tables is multiplied by ``slow_factor``; the same ``seed``
    gives the same dispersion.

    ``launcher``: the version of Triton whose way of starting a model's process in its environment
    is taken.

    Without ``boards`` the host has one V100 of ``memory_bytes``, CUDA has no device, and models run
    on KIND_CPU. With them the server sees CUDA devices: ``visible_devices`` is its
    CUDA_VISIBLE_DEVICES, ``device_order`` its CUDA_DEVICE_ORDER. With ``gpu_metrics`` its page of
    metrics names its GPUs, as it does where Triton reads DCGM: by their device numbers, or from the
    last to the first. The order says nothing: Triton keeps its series in a hash table.
    """

    models: tuple[Servable, ...]
    slow_factor: float = 1.0
    seed: int = 0
    dispersion_cv: float = DISPERSION_CV
    slice_s: float = SLICE_S
    handover_s: float = HANDOVER_S
    memory_bytes: int = BOARD_MEMORY_BYTES
    launcher: Launcher = "24.10"
    server: str = programs.SERVER  # a release of programs.SERVERS
    boards: tuple[EmulatedBoard, ...] = ()
    visible_devices: str | None = None
    device_order: str | None = None
    gpu_metrics: Literal["", "forward", "backward"] = ""

    def __post_init__(self) -> None:
        given = [
            name
            for name in ("visible_devices", "device_order", "gpu_metrics")
            if getattr(self, name) not in (None, "")
        ]
        if given and not self.boards:
            raise ValueError(f"{given[0]} is of CUDA devices, and without boards there is none")

    @property
    def devices(self) -> tuple[EmulatedBoard, ...]:
        """The boards that the server sees, by their device numbers."""
        return visible_boards(self.boards, self.visible_devices, self.device_order)


class TritonHost:
    """A running tritonserver with its emulated boards: its own, or with ``boards_of`` those of
    another one.

    One with models of another kind is made by overriding ``prepare``, ``_environment`` and
    ``ready_s``.
    """

    ready_s = _READY_S
    """Longest wait for the server, and 2 s more for each model."""

    def __init__(
        self,
        spec: HostSpec,
        folder: Path,
        ports: Sequence[int],
        boards_of: TritonHost | None = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.http_port, self.grpc_port, self.metrics_port = ports
        self._gpu_metrics_port = free_ports(1)[0] if spec.gpu_metrics else None
        self._boards_of = boards_of
        self._stack = AsyncExitStack()
        self._program: Running | None = None

    @property
    def url(self) -> str:
        """Address of the gRPC endpoint, as tritonclient wants it."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self._gpu_metrics_port or self.metrics_port}/metrics"

    @property
    def board_path(self) -> Path:
        """For :class:`igniterd.lab.gpu.nvml.EmulatedNvml`: the file of the emulated board, or the
        folder with one for each of the boards that were given."""
        if self._boards_of is not None:
            return self._boards_of.board_path
        return self.folder / ("boards" if self.spec.boards else "board")

    @property
    def repository(self) -> Path:
        return self.folder / "models"

    @property
    def log(self) -> Path:
        return self.folder / "tritonserver.log"

    @property
    def pid(self) -> int:
        """Process id of tritonserver. Raises ``RuntimeError`` while it is stopped."""
        if self._program is None:
            raise RuntimeError("tritonserver is not running")
        return self._program.pid

    async def start(self) -> None:
        """Start it and wait until every model is loaded."""
        env = self._environment()
        env |= launcher_environment(
            self.spec.launcher, self.folder / "launcher", env.get("PATH", os.defpath)
        )
        self._program = await self._stack.enter_async_context(
            running(
                "tritonserver", self._command(), log=self.log, env=env, cwd=self.folder, stop_s=15.0
            )
        )
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:

            async def ready() -> bool:
                try:
                    async with session.get(f"{self.http_url}/v2/health/ready") as answer:
                        return answer.status == 200
                except (aiohttp.ClientError, TimeoutError):
                    return False

            await self._program.until(ready, timeout_s=self.ready_s + 2.0 * len(self.spec.models))
        if self._gpu_metrics_port is not None:
            page = f"http://127.0.0.1:{self.metrics_port}/metrics"
            uuids = [board.uuid for board in self.spec.devices]
            if self.spec.gpu_metrics == "backward":
                uuids.reverse()
            await self._stack.enter_async_context(GpuMetrics(page, self._gpu_metrics_port, uuids))

    async def stop(self) -> None:
        """Stop it; the board and the repository stay."""
        stack, self._stack, self._program = self._stack, AsyncExitStack(), None
        await stack.aclose()

    async def restart(self) -> None:
        """Stop and start again on the same ports, as an upgrade of the server would."""
        await self.stop()
        await self.start()

    def _command(self) -> list[str]:
        program = programs.required(programs.tritonserver(self.spec.server), "tritonserver")
        ports = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        return [
            str(program.path),
            f"--model-repository={self.repository}",
            f"--backend-directory={programs.backends(self.spec.server)}",
            "--model-control-mode=explicit",
            *(f"--load-model={m.name}" for m in self.spec.models),
            *(
                part
                for name, port in ports.items()
                for part in (f"--{name}-address=127.0.0.1", f"--{name}-port={port}")
            ),
            "--metrics-config=summary_latencies=true",
            "--allow-gpu-metrics=false",
            "--metrics-interval-ms=500",
            "--exit-timeout-secs=3",
        ]

    def _environment(self) -> dict[str, str]:
        program = programs.required(programs.tritonserver(self.spec.server), "tritonserver")
        package = Path(__file__).parents[2]  # the folder that holds the package igniterd
        ours = {
            "IGNITERD_EMULATOR_PATH": f"{package}:{sysconfig.get_path('purelib')}:{sysconfig.get_path('platlib')}",  # noqa: E501
            "PYTHONUNBUFFERED": "1",
            "OPENBLAS_NUM_THREADS": "1",  # numpy in each stub would start a thread for every core
            "IGNITERD_EMULATOR": str(self.folder),
            "IGNITERD_EMULATOR_BOARDS": str(self.board_path),
            "IGNITERD_EMULATOR_SEED": str(self.spec.seed),
            "IGNITERD_EMULATOR_CV": str(self.spec.dispersion_cv),
            "IGNITERD_EMULATOR_SLICE_S": str(self.spec.slice_s),
            "IGNITERD_EMULATOR_HANDOVER_S": str(self.spec.handover_s),
        }
        spec = self.spec
        if spec.boards:
            ours |= cuda_environment(spec.boards, spec.visible_devices, spec.device_order)
        others = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
        kept = {k: v for k, v in os.environ.items() if k not in others}
        return kept | program.environment() | ours

    def prepare(self) -> None:
        """Write the model repository, the tables and the empty boards."""
        self.repository.mkdir(parents=True)
        for model in self.spec.models:
            self._place(model, Path(__file__).parent / "gpu" / "triton_model.py")
        spec = self.spec
        for kind in {board.kind for board in spec.boards} or {"v100"}:
            truth_of(kind).tables().save(self.folder / f"truth-{kind}.npz")
        self.prepare_boards()

    def add_to_repository(self, model: Servable) -> None:
        """Write a model that is not to be loaded."""
        self._place(model, Path(__file__).parent / "gpu" / "triton_model.py")

    def prepare_boards(self) -> None:
        """Write the empty boards, unless they are another server's."""
        spec = self.spec
        if self._boards_of is not None:
            return
        if spec.boards:
            create_boards(self.board_path, spec.boards, slow_factor=spec.slow_factor)
        else:
            board = EmulatedBoard(memory_bytes=spec.memory_bytes)
            board.create(self.board_path, slow_factor=spec.slow_factor)

    def _place(self, model: Servable, code: Path) -> None:
        """A model of the repository, run by ``code`` in the Python that runs this."""
        version = self.repository / model.name / "1"
        version.mkdir(parents=True)
        shutil.copy(code, version / "model.py")
        if isinstance(model, EmulatedModel) and self.spec.boards:
            config = model.config_on_boards()
        else:
            config = model.config()
        (version.parent / "config.pbtxt").write_text(pbtxt(config))
        stub = programs.python_stub(self.spec.server)
        (version.parent / stub.name).symlink_to(stub)  # the backend's own may be for another Python


@asynccontextmanager
async def triton_host(
    spec: HostSpec, folder: Path | None = None, *, boards_of: TritonHost | None = None
) -> AsyncIterator[TritonHost]:
    """A real tritonserver with emulated models, ready. ``folder`` (new or empty; by default a
    temporary one) keeps its files and log.

    With ``boards_of`` it stands beside that one, on the same boards. Raises
    :class:`igniterd.errors.CannotRun` when it does not come up, with the end of its log, and
    ``ValueError`` for boards that are not those of the other.
    """
    if boards_of is not None:
        _check_beside(spec, boards_of.spec)
    with tempfile.TemporaryDirectory(prefix="igniterd-") as temporary:
        host = TritonHost(spec, folder or Path(temporary), free_ports(3), boards_of)
        host.folder.mkdir(parents=True, exist_ok=True)
        host.prepare()
        try:
            await host.start()
            yield host
        finally:
            await asyncio.shield(host.stop())


def _check_beside(spec: HostSpec, first: HostSpec) -> None:
    for name in ("boards", "slow_factor", "memory_bytes"):
        if (own := getattr(spec, name)) != (theirs := getattr(first, name)):
            raise ValueError(
                f"{name} {own!r} of a server beside another one is of their boards: give its "
                f"{theirs!r}"
            )


@dataclass(frozen=True, slots=True)
class EmulatedHost:
    """The whole host; ``mps`` and ``broker`` are ``None`` where they were not asked for.

    ``beside`` are the servers on the same boards as ``triton``.
    """

    triton: TritonHost
    mps: MpsHost | None
    broker: BrokerHost | None
    beside: tuple[TritonHost, ...] = ()

    @property
    def tritons(self) -> tuple[TritonHost, ...]:
        """Every server."""
        return (self.triton, *self.beside)


@asynccontextmanager
async def emulated_host(
    spec: HostSpec,
    folder: Path,
    *,
    mps: bool = True,
    broker: bool = True,
    beside: Sequence[HostSpec] = (),
) -> AsyncIterator[EmulatedHost]:
    """Everything at once, each with its files in a folder of its own under ``folder``.

    ``beside`` are more servers on the boards of the first. Raises as :func:`triton_host`.
    """
    for other in beside:
        _check_beside(other, spec)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        own_mps = await enter(mps_host(folder / "mps")) if mps else None
        own_broker = await enter(broker_host(folder / "broker")) if broker else None
        triton = await enter(triton_host(spec, folder / "triton"))
        others = [
            await enter(triton_host(other, folder / f"triton-{n}", boards_of=triton))
            for n, other in enumerate(beside, start=2)
        ]
        yield EmulatedHost(triton, own_mps, own_broker, tuple(others))
