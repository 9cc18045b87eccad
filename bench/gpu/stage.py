"""Where the models and the board come from: PyTorch networks on a GPU, or emulated models on an
emulated V100. All else is the same.

Triton and MPS control are the real programs either way. Compute mode, clocks and MIG are left as
they are. MPS control gets a pipe directory of its own, so that a daemon that runs already is not
touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.gpu import machine
from igniterd.errors import CannotRun
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import free_ports
from igniterd.lab.services import MpsHost, mps_host

ROOT = Path(__file__).parents[2]
SLOW_FACTOR = 4.0
"""The emulated V100 is this many times slower than a real one, so that Triton and the load fit on
two cores."""
IMAGE, TOKENS, VECTOR = ("TYPE_UINT8", [3, 224, 224]), ("TYPE_INT64", [128]), ("TYPE_FP32", [1024])


class Kind(StrEnum):
    """What is measured on."""

    GPU = "gpu"
    EMULATED = "emulated"
    # the networks on the CPU: tries out everything but shares; its figures mean nothing
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class TorchModel:
    """One network of ``networks.py`` in the repository."""

    name: str
    takes: tuple[str, list[int]]
    gives: int
    max_batch_size: int

    def config(self) -> dict[str, object]:
        """Its ModelConfig. KIND_CPU: Triton makes no context for it; the network finds its device
        itself."""
        return {
            "name": self.name,
            "backend": "python",
            "max_batch_size": self.max_batch_size,
            "input": [{"name": "INPUT", "data_type": self.takes[0], "dims": self.takes[1]}],
            "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [self.gives]}],
            "instance_group": [{"kind": "KIND_CPU", "count": 1}],
            "dynamic_batching": {},
            "parameters": {"network": {"string_value": self.name}},
        }


class TorchHost(TritonHost):
    """A Triton whose models are PyTorch networks."""

    ready_s = 240.0  # each imports torch, the first time from a cold disk
    extra: dict[str, str]
    """Variables for the server and its models: where MPS control listens."""

    def prepare(self) -> None:
        self.repository.mkdir(parents=True)
        for model in self.spec.models:
            self._place(model, Path(__file__).with_name("torch_model.py"))

    def _command(self) -> list[str]:
        return [
            *super()._command(),
            # without pools of its own the server needs no memory on the board
            "--pinned-memory-pool-byte-size=0",
            "--cuda-memory-pool-byte-size=0:0",
            # it would start each model's process twice, and importing torch takes seconds
            "--disable-auto-complete-config",
            "--backend-config=python,stub-timeout-seconds=120",
        ]

    def _environment(self) -> dict[str, str]:
        path = [str(ROOT), *(p for p in sys.path if p and Path(p).is_dir())]
        ours = {
            "IGNITERD_BENCH_PATH": os.pathsep.join(dict.fromkeys(path)),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            # A Python that was moved since it was built finds its library from the python3 on PATH.
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
            ),
        }
        return super()._environment() | ours | self.extra


@dataclass(frozen=True, slots=True)
class Stage:
    """What is running. The first three of ``models`` are used together; all are profiled."""

    kind: Kind
    models: tuple[str, ...]
    max_batch: int
    min_share: float
    triton: TritonHost
    board: str
    """As ``igniterd profile --gpu`` and ``[gpu] source`` take it."""
    sm_count: int | None
    """Where the board cannot be asked."""
    mps: MpsHost | None
    notes: tuple[str, ...]


@asynccontextmanager
async def staged(kind: Kind, folder: Path) -> AsyncIterator[Stage]:
    """MPS control and Triton with all models loaded; both gone on the way out. Raises
    :class:`CannotRun` where it cannot be."""
    notes: list[str] = []
    async with AsyncExitStack() as stack:
        mps = await _mps(stack, folder / "mps", kind, notes)
        if kind is Kind.EMULATED:
            models = tuple(EmulatedModel(name) for name in ("alexnet", "resnet50", "vgg19", "ssd"))
            host = TritonHost(
                HostSpec(models, slow_factor=SLOW_FACTOR, seed=23), folder / "triton", free_ports(3)
            )
            board, sm_count = f"emulated:{host.board_path}", None
        else:
            host = TorchHost(HostSpec(networks(kind)), folder / "triton", free_ports(3))
            host.extra = dict(mps.environment) if mps else {}
            board, sm_count = await _board(kind, notes)
        host.folder.mkdir(parents=True)
        host.prepare()
        stack.push_async_callback(lambda: asyncio.shield(host.stop()))
        await host.start()
        named = tuple(m.name for m in host.spec.models)
        yield Stage(
            kind,
            named,
            host.spec.models[0].max_batch_size,
            0.1,
            host,
            board,
            sm_count,
            mps,
            tuple(notes),
        )


def networks(kind: Kind) -> tuple[TorchModel, ...]:
    """The models of the real mode; on a CPU without the slowest one and with small batches."""
    largest = 32 if kind is Kind.GPU else 2
    every = (
        TorchModel("resnet50", IMAGE, 1000, largest),
        TorchModel("vgg16", IMAGE, 1000, largest),
        TorchModel("bert", TOKENS, 768, largest),
        TorchModel("mlp", VECTOR, 100, largest),
    )
    return every if kind is Kind.GPU else tuple(m for m in every if m.name != "vgg16")


async def _board(kind: Kind, notes: list[str]) -> tuple[str, int | None]:
    """How the board is read, and its SMs where NVML does not say."""
    told = await asyncio.to_thread(machine.torch_here)
    if kind is Kind.CPU:
        return "none", 80
    if not told["available"]:
        raise CannotRun(
            f"PyTorch {told['torch']} (CUDA {told['cuda']}) sees no GPU: use --emulated on a "
            "machine without one"
        )
    asked = await asyncio.to_thread(machine.board)
    if "error" in asked:
        notes.append(f"{asked['error']}: profiled without power, clocks and memory")
        return "none", int(told["sm_count"])
    if asked.get("mig"):
        notes.append("MIG is on and left so: shares are of what this process sees")
    if asked.get("compute_mode", "default") != "default":
        notes.append(f"compute mode is {asked['compute_mode']} and left so")
    if asked.get("other_processes"):
        notes.append(
            f"{asked['other_processes']} other processes use the GPU: figures depend on them"
        )
    return "nvml", None


async def _mps(stack: AsyncExitStack, folder: Path, kind: Kind, notes: list[str]) -> MpsHost | None:
    """MPS control with a pipe directory of its own, or ``None`` with a note."""
    others = await asyncio.to_thread(machine.other_mps)
    if others:
        notes.append(
            f"MPS runs already ({'; '.join(others)}): left alone, the harness has its own beside it"
        )
    try:
        mps = await stack.enter_async_context(mps_host(folder))
    except CannotRun as problem:
        without = (
            "the emulated board gives shares without it"
            if kind is Kind.EMULATED
            else "shares had no effect: models took turns"
        )
        notes.append(f"MPS control could not be started ({problem}); {without}")
        return None
    stack.push_async_callback(_quit, mps)
    return mps


async def _quit(mps: MpsHost) -> None:
    """Have it end its server: a server that is only left behind would keep the board."""
    with contextlib.suppress(TimeoutError, OSError):
        await mps.ask("quit", timeout_s=5.0)


def needed() -> None:
    """Raise :class:`CannotRun` where Triton cannot be run by this Python, with what is missing."""
    if shutil.which("bash") is None:
        raise CannotRun("bash is missing: Triton starts models with it")
    if not (programs.triton_root() / "pytriton").is_dir():
        raise CannotRun(
            f"no tritonserver in {programs.cache_root()}: run `{programs.FETCH}` where its wheel "
            "can be had (see run.sh)"
        )
    if not programs.python_stub().exists():
        raise CannotRun(
            f"Triton's Python backend has no stub for Python {programs.PYTHON}: use another "
            "Python with PYTHON="
        )
    if programs.libpython() is None:
        package = f"libpython{programs.PYTHON}"
        raise CannotRun(
            f"{package}.so.1.0 is missing, which Triton's Python backend links against (Debian, "
            f"Ubuntu: {package})"
        )
    if missing := programs.required(programs.tritonserver(), "tritonserver").missing_libraries():
        raise CannotRun(f"tritonserver needs {', '.join(missing)}")
