"""A GPU host without a GPU: a real tritonserver with emulated models, a real MPS control daemon, a
real MQTT broker.

Every part is an async context manager: started with a deadline, its log in a folder, stopped on the
way out. All listen on loopback at ports found free. ``emulated_host`` starts them together.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp

from igniterd.lab.gpu.boardfile import BoardFile
from igniterd.lab.gpu.executor import HANDOVER_S, SLICE_S
from igniterd.lab.gpu.truth import BOARD_MEMORY_BYTES, DISPERSION_CV, MAX_BATCH, Truth
from igniterd.lab.load.load import INPUT_FLOATS
from igniterd.lab.programs import programs
from igniterd.lab.programs.launcher import Launcher, launcher_environment
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.lab.services import BrokerHost, MpsHost, broker_host, mps_host

_READY_S = 60.0


@dataclass(frozen=True, slots=True)
class EmulatedModel:
    """A model in the repository. ``like`` names the measured model it behaves like (by default its
    own name).

    ``max_queue_delay_us`` None leaves Triton's default dynamic batching; ``parameters`` are added
    to its configuration.
    """

    name: str
    like: str = ""
    max_batch_size: int = 8
    max_queue_delay_us: int | None = None
    instances: int = 1
    parameters: dict[str, str] = field(default_factory=dict)

    def config(self) -> dict[str, object]:
        """Its ModelConfig, in JSON's names. Raises ``ValueError`` for a batch that was not
        measured."""
        if not 1 <= self.max_batch_size <= MAX_BATCH:
            raise ValueError(
                f"model {self.name}: max_batch_size {self.max_batch_size} was not measured: give "
                f"1 to {MAX_BATCH}"
            )
        batching = (
            {}
            if self.max_queue_delay_us is None
            else {"max_queue_delay_microseconds": self.max_queue_delay_us}
        )
        texts = {"emulated_model": self.like or self.name, **self.parameters}
        return {
            "name": self.name,
            "backend": "python",
            "max_batch_size": self.max_batch_size,
            "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [INPUT_FLOATS]}],
            "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [1]}],
            "instance_group": [{"kind": "KIND_CPU", "count": self.instances}],
            "dynamic_batching": batching,
            "parameters": {key: {"string_value": text} for key, text in texts.items()},
        }


class Servable(Protocol):
    """A model that a Triton can be started with."""

    @property
    def name(self) -> str: ...

    @property
    def max_batch_size(self) -> int: ...

    def config(self) -> dict[str, object]:
        """Its ModelConfig, in JSON's names."""
        ...


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What to emulate. Every time of the tables is multiplied by ``slow_factor``; the same ``seed``
    gives the same dispersion.

    ``launcher``: the version of Triton whose way of starting a model's process in its environment
    is taken.
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


class TritonHost:
    """A running tritonserver with its emulated board.

    One with models of another kind is made by overriding ``prepare``, ``_environment`` and
    ``ready_s``.
    """

    ready_s = _READY_S
    """Longest wait for the server, and 2 s more for each model."""

    def __init__(self, spec: HostSpec, folder: Path, ports: Sequence[int]) -> None:
        self.spec = spec
        self.folder = folder
        self.http_port, self.grpc_port, self.metrics_port = ports
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
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    @property
    def board_path(self) -> Path:
        """File of the emulated board, for :class:`igniterd.lab.gpu.nvml.EmulatedNvml`."""
        return self.folder / "board"

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
            "IGNITERD_EMULATOR_SEED": str(self.spec.seed),
            "IGNITERD_EMULATOR_CV": str(self.spec.dispersion_cv),
            "IGNITERD_EMULATOR_SLICE_S": str(self.spec.slice_s),
            "IGNITERD_EMULATOR_HANDOVER_S": str(self.spec.handover_s),
        }
        kept = {k: v for k, v in os.environ.items() if k != "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"}
        return kept | program.environment() | ours

    def prepare(self) -> None:
        """Write the model repository, the tables and the empty board."""
        self.repository.mkdir(parents=True)
        for model in self.spec.models:
            self._place(model, Path(__file__).parent / "gpu" / "triton_model.py")
        Truth.v100().tables().save(self.folder / "truth.npz")
        BoardFile.create(
            self.board_path, slow_factor=self.spec.slow_factor, memory_bytes=self.spec.memory_bytes
        ).close()

    def _place(self, model: Servable, code: Path) -> None:
        """A model of the repository, run by ``code`` in the Python that runs this."""
        version = self.repository / model.name / "1"
        version.mkdir(parents=True)
        shutil.copy(code, version / "model.py")
        (version.parent / "config.pbtxt").write_text(_pbtxt(model.config()))
        stub = programs.python_stub(self.spec.server)
        (version.parent / stub.name).symlink_to(stub)  # the backend's own may be for another Python


def _pbtxt(message: dict[str, object], indent: str = "") -> str:
    """A ModelConfig in protobuf's text format, which is what a model repository holds."""
    lines = []
    for key, value in message.items():
        if key == "parameters" and isinstance(value, dict):
            value = [{"key": k, "value": v} for k, v in value.items()]  # noqa: PLW2901  a map is a list of entries there
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                lines.append(f"{indent}{key} {{\n{_pbtxt(each, indent + '  ')}{indent}}}\n")
            else:
                enum = key in ("data_type", "kind")
                lines.append(f"{indent}{key}: {each if enum else json.dumps(each)}\n")
    return "".join(lines)


@asynccontextmanager
async def triton_host(spec: HostSpec, folder: Path | None = None) -> AsyncIterator[TritonHost]:
    """A real tritonserver with emulated models, ready. ``folder`` (new or empty; by default a
    temporary one) keeps its files and log.

    Raises :class:`igniterd.errors.CannotRun` when it does not come up, with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="igniterd-") as temporary:
        host = TritonHost(spec, folder or Path(temporary), free_ports(3))
        host.folder.mkdir(parents=True, exist_ok=True)
        host.prepare()
        try:
            await host.start()
            yield host
        finally:
            await asyncio.shield(host.stop())


@dataclass(frozen=True, slots=True)
class EmulatedHost:
    """The whole host; ``mps`` and ``broker`` are ``None`` where they were not asked for."""

    triton: TritonHost
    mps: MpsHost | None
    broker: BrokerHost | None


@asynccontextmanager
async def emulated_host(
    spec: HostSpec, folder: Path, *, mps: bool = True, broker: bool = True
) -> AsyncIterator[EmulatedHost]:
    """Everything at once, each with its files in a folder of its own under ``folder``."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        yield EmulatedHost(
            mps=await enter(mps_host(folder / "mps")) if mps else None,
            broker=await enter(broker_host(folder / "broker")) if broker else None,
            triton=await enter(triton_host(spec, folder / "triton")),
        )
