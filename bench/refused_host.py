"""The hosts of :mod:`bench.refused`: models of several kinds, load, and the daemon as a process."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from igniterd.lab.host import EmulatedModel, HostSpec, Servable, TritonHost
from igniterd.lab.load.load import INPUT_FLOATS, LoadProcess, LoadSpec, Phase, load
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.lab.services import MpsHost, mps_host
from igniterd.perf import builtin_profile

SLOW = 4.0
LARGEST = 32
PLANNED = 8
"""The largest batch that igniterd is told to plan: a quarter of what clients may bring."""
BIG = f" x{LARGEST}"
"""Of a load's name: its requests bring the owner's largest batch."""
SLOS_MS = {"alexnet": 40, "resnet50": 100, "vgg19": 160, "hanging": 160}
PROFILES = {"hanging": "resnet50"}
_LOADING = re.compile(r"\bloading: (.+):\d+")


@dataclass(frozen=True)
class Variant:
    """An emulated model with more in its configuration (None takes a section out), or more code."""

    base: EmulatedModel
    more: Mapping[str, object] = field(default_factory=dict)
    code: str = ""

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def max_batch_size(self) -> int:
        return self.base.max_batch_size

    def config(self) -> dict[str, object]:
        """Its ModelConfig, in JSON's names."""
        return {k: v for k, v in (self.base.config() | dict(self.more)).items() if v is not None}


def plain(name: str, like: str = "") -> EmulatedModel:
    return EmulatedModel(name, like=like, max_batch_size=LARGEST)


def ensemble(name: str, member: str) -> Variant:
    step = {
        "model_name": member,
        "model_version": -1,
        "input_map": {"INPUT": "INPUT"},
        "output_map": {"OUTPUT": "OUTPUT"},
    }
    no = dict.fromkeys(("backend", "instance_group", "dynamic_batching", "parameters"))
    scheduling = {"platform": "ensemble", "ensemble_scheduling": {"step": [step]}}
    return Variant(plain(name, member), no | scheduling)


def warmed(name: str) -> Variant:
    """It is warmed up with its owner's largest batch at each load."""
    zeros = {"data_type": "TYPE_FP32", "dims": [INPUT_FLOATS], "zero_data": True}
    sample = {"name": "largest", "batch_size": LARGEST, "inputs": {"INPUT": zeros}}
    return Variant(plain(name), {"model_warmup": [sample]})


class VariedHost(TritonHost):
    """Serves variants too."""

    def _place(self, model: Servable, code: Path) -> None:
        super()._place(model.base if isinstance(model, Variant) else model, code)
        folder = self.repository / model.name
        message = json_format.ParseDict(model.config(), model_config_pb2.ModelConfig())
        (folder / "config.pbtxt").write_text(text_format.MessageToString(message))
        with (folder / "1" / "model.py").open("a") as file:
            file.write(getattr(model, "code", ""))

    def loads(self) -> Counter[str]:
        """Loads begun so far, by model; Triton makes an ensemble anew at any load, which is
        none."""
        begun = _LOADING.findall(self.log.read_text(errors="replace"))
        return Counter(name for name in begun if name in SLOS_MS)


class Daemon:
    """``igniterd run`` as a process, which may be killed and started again."""

    def __init__(self, config: Path, port: int) -> None:
        self._config, self._url = config, f"http://127.0.0.1:{port}/state"
        self._stack = AsyncExitStack()
        self._program: Running | None = None

    async def start(self) -> None:
        command = [sys.executable, "-m", "igniterd", "run", "--config", str(self._config)]
        here = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"}
        log = self._config.with_name("igniterd.log")
        program = running("igniterd", command, log=log, env=os.environ | here)
        self._program = await self._stack.enter_async_context(program)

    async def stop(self, *, kill: bool = False) -> None:
        """With ``kill`` it has no time to end anything."""
        if kill and self._program:
            os.kill(self._program.pid, signal.SIGKILL)
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def state(self) -> dict[str, Any]:
        """What it says; empty while it does not answer."""
        try:
            made = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0))
            async with made as http, http.get(self._url) as answer:
                return dict(await answer.json()) if answer.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError):
            return {}

    async def until(self, reached: Callable[[dict[str, Any]], bool], timeout_s: float) -> bool:
        """Whether it says so in time."""
        ends_s = time.monotonic() + timeout_s
        while time.monotonic() < ends_s:
            if (state := await self.state()) and reached(state):
                return True
            await asyncio.sleep(0.3)
        return False


def shared(state: Mapping[str, Any]) -> bool:
    """Every model has a share of its own."""
    shares = [m.get("applied", {}).get("share") for m in state["models"]]
    return None not in shares and sum(shares) <= 1 + 1e-9


def settled(state: Mapping[str, Any]) -> bool:
    return shared(state) and state["decision"]["outcome"] == "hold"


def batches(state: Mapping[str, Any]) -> dict[str, int]:
    """The largest batch that is formed of each model's requests."""
    seen = [m for m in state.get("models", ()) if "applied" in m]
    return {m["name"]: m["applied"]["max_batch_size"] for m in seen}


def configuration(folder: Path, host: TritonHost, mps: MpsHost, port: int) -> Path:
    builtin_profile("v100").time_scaled(SLOW).save(folder / "v100.json")
    control = programs.required(programs.mps_control(), "nvidia-cuda-mps-control").path
    models = "".join(
        f'[[model]]\nname = "{m.name}"\nslo_p99_ms = {SLOS_MS[m.name]}\nprofile = "v100.json"\n'
        f'profile_model = "{PROFILES.get(m.name, m.name)}"\nmax_batch_size = {PLANNED}\n'
        for m in host.spec.models
        if m.name in SLOS_MS
    )
    path = folder / "igniterd.toml"
    path.write_text(
        f'[host]\nname = "bench"\n[state]\ndirectory = "{folder}/state"\n'
        f'[[triton]]\nurl = "{host.url}"\nmetrics_url = "{host.metrics_url}"\n'
        f'[gpu]\nsource = "emulated:{host.board_path}"\n'
        f'[mps]\ncontrol = "{control}"\npipe_directory = "{mps.pipe_directory}"\n'
        f'[metrics]\nlisten = "127.0.0.1:{port}"\n{models}'
    )
    return path


def request(model: str, batch: int) -> str:
    """A request of ``batch`` items, as the load generator wants it."""
    made, shape = service_pb2.ModelInferRequest, [batch, INPUT_FLOATS]
    tensor = made.InferInputTensor(name="INPUT", datatype="FP32", shape=shape)
    raw = [bytes(4 * batch * INPUT_FLOATS)]
    message = made(model_name=model, inputs=[tensor], raw_input_contents=raw)
    return base64.b64encode(message.SerializeToString()).decode()


@dataclass
class Stage:
    """A host under load and the daemon beside it."""

    host: VariedHost
    daemon: Daemon
    load: LoadProcess


@asynccontextmanager
async def stage(models: tuple[Servable, ...], rates: Mapping[str, float]) -> AsyncIterator[Stage]:
    """Everything up, under load, with the daemon started."""
    with tempfile.TemporaryDirectory(prefix="refused-") as made:
        folder = Path(made)
        *ports, port = free_ports(4)
        host = VariedHost(HostSpec(models, slow_factor=SLOW, seed=7), folder / "triton", ports)
        host.folder.mkdir()
        host.prepare()
        requests = {f"{m.name}{BIG}": request(m.name, LARGEST) for m in models}
        async with mps_host(folder / "mps") as mps:
            daemon = Daemon(configuration(folder, host, mps, port), port)
            try:
                await host.start()
                spec = LoadSpec(host.url, (Phase("first", None, rates),), seed=7, requests=requests)
                async with load(spec, folder / "log.csv") as sending:
                    await daemon.start()
                    yield Stage(host, daemon, sending)
            finally:
                await asyncio.shield(daemon.stop())
                await asyncio.shield(host.stop())
