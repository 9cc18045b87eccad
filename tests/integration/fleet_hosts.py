"""A cluster of three hosts, each with a real tritonserver on a board of its own and a real daemon,
with a real ``igniterd fleet`` and broker, under load through a route that can be switched.

Rates and SLOs are those of the V100's profile, slowed by ``SLOW``. By ``igniterd plan`` ``heavy``
and ``far`` need 0.68 of a GPU at least, ``medium`` 0.38 once its traffic has come, ``near`` 0.40,
and beside each other more. So ``medium`` and ``near`` fit on a GPU, and no other two of them: the
only single move after which every SLO holds is ``medium`` to ``gpu-b``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from igniterd.lab.gpu.boards import boards_of
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import LoadProcess, LoadSpec, Phase
from igniterd.lab.load.load import load as loading
from igniterd.lab.load.switch import switchable_route
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.lab.services import MpsHost, mps_host
from igniterd.perf import builtin_profile
from tests.integration.secured_broker import (
    FLEET,
    ROOT,
    Hearing,
    Line,
    SecuredBroker,
    hearing,
    line_to,
    secured_broker,
)
from tests.integration.test_daemon import Daemon, daemon

SLOW = 10
CLUSTER = "lab"
LIKE = {"heavy": "vgg19", "medium": "vgg19", "tiny": "alexnet", "near": "vgg19", "far": "vgg19"}
SLOS = {"vgg19": 60 * SLOW, "alexnet": 15 * SLOW}
HOME = {"heavy": "gpu-a", "medium": "gpu-a", "tiny": "gpu-a", "near": "gpu-b", "far": "gpu-c"}
HOSTS = tuple(sorted(set(HOME.values())))
CALM = {"heavy": 304.0, "medium": 24.0, "tiny": 48.0, "near": 160.0, "far": 304.0}
TROUBLE = CALM | {"medium": 144.0}
ROUTE = """
import os, pathlib, sys
folder, model, action, there, back = sys.argv[1:]
new = pathlib.Path(folder) / f".{model}"
new.write_text(back if action == "back" else there)
os.replace(new, pathlib.Path(folder) / model)
"""


@dataclass
class OneHost:
    """One of them; its daemon may be stopped and started."""

    name: str
    folder: Path
    triton: TritonHost
    config: Path
    port: int
    daemon: Daemon | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        self.daemon = await self.stack.enter_async_context(
            daemon(self.folder, self.config, self.port)
        )

    async def stop(self) -> None:
        stack, self.stack, self.daemon = self.stack, AsyncExitStack(), None
        await stack.aclose()

    async def state(self) -> dict[str, Any]:
        assert self.daemon
        return await self.daemon.state()


@dataclass
class FleetCluster:
    """All of it. ``to_broker``: the line of the hosts; ``fleets``: that of ``igniterd fleet``."""

    folder: Path
    broker: SecuredBroker
    heard: Hearing
    to_broker: Line
    fleets: Line
    fleet_port: int
    hosts: dict[str, OneHost] = field(default_factory=dict)
    fleet: Running | None = None
    traffic: LoadProcess | None = None

    @property
    def config(self) -> Path:
        return self.folder / "fleet.toml"

    async def load(self, name: str, rates: Mapping[str, float]) -> None:
        """Change the traffic to these rates."""
        assert self.traffic
        await self.traffic.change(phase(name, rates))

    async def command(self, *words: str) -> tuple[int, str, str]:
        """``igniterd fleet`` with these words: its exit status, what it said, and its errors."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "igniterd", "fleet"),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=environment(),
        )
        async with asyncio.timeout(180.0):
            said, wrong = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode(), wrong.decode()

    async def get(self, path: str) -> str:
        """A page of the running ``igniterd fleet``."""
        url = f"http://127.0.0.1:{self.fleet_port}{path}"
        async with aiohttp.ClientSession() as web, web.get(url) as answer:
            return await answer.text()

    async def known(self) -> dict[str, Any]:
        """What ``igniterd fleet`` knows and says of the cluster; empty while it does not answer."""
        try:
            found: dict[str, Any] = json.loads(await self.get("/state"))["clusters"][CLUSTER]
        except (aiohttp.ClientError, KeyError, ValueError):
            return {}
        return found


def phase(name: str, rates: Mapping[str, float]) -> Phase:
    return Phase(name, None, {model: rate / SLOW for model, rate in rates.items()})


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def host_config(one: OneHost, mps: MpsHost, broker: SecuredBroker, port: int) -> str:
    """Every model is configured everywhere: those of other hosts may come."""
    control = programs.required(programs.mps_control(), "nvidia-cuda-mps-control").path
    models = "".join(
        f'[[model]]\nname = "{name}"\nslo_p99_ms = {SLOS[like]}\n'
        f"priority = {2 if name == 'heavy' else 1}\n"
        f'profile = "v100.json"\nprofile_model = "{like}"\n'
        for name, like in LIKE.items()
    )
    return (
        f'[host]\nname = "{one.name}"\ncluster = "{CLUSTER}"\n'
        f'[[triton]]\nurl = "{one.triton.url}"\nmetrics_url = "{one.triton.metrics_url}"\n'
        f'[gpu]\nsource = "emulated:{one.triton.board_path}"\n'
        f'[mps]\ncontrol = "{control}"\npipe_directory = "{mps.pipe_directory}"\n'
        f'[metrics]\nlisten = "127.0.0.1:{one.port}"\n[mqtt]\n{broker.table(one.name, port)}'
        f'[state]\ndirectory = "{one.folder}/state"\n{models}'
    )


def fleet_config(cluster: FleetCluster) -> str:
    tritons = "".join(
        f'[[triton]]\nhost = "{one.name}"\nurl = "{one.triton.url}"\n'
        f'metrics_url = "{one.triton.metrics_url}"\nshares = "{one.folder}/state/shares"\n'
        for one in cluster.hosts.values()
    )
    code, routes = json.dumps(ROUTE), json.dumps(str(cluster.folder / "routes"))
    words = '"{served_as}", "{action}", "{to_url}", "{from_url}"'
    return (
        f"[broker]\n{cluster.broker.table(FLEET, cluster.fleets.port)}"
        f'[fleet]\nname = "one"\nclusters = ["{CLUSTER}"]\n'
        f'[metrics]\nlisten = "127.0.0.1:{cluster.fleet_port}"\n{tritons}'
        f'[route]\ncommand = ["{sys.executable}", "-c", {code}, {routes}, {words}]\n'
    )


@asynccontextmanager
async def one_host(folder: Path, name: str, number: int) -> AsyncIterator[OneHost]:
    """A Triton with its own models loaded and all others in its repository."""
    boards = boards_of("v100", "v100", "v100")[number : number + 1]

    def model(each: str) -> EmulatedModel:
        return EmulatedModel(each, like=LIKE[each], max_batch_size=8, gpus=(0,))

    here = tuple(model(each) for each in HOME if HOME[each] == name)
    spec = HostSpec(here, slow_factor=SLOW, seed=number + 1, boards=boards)
    async with triton_host(spec, folder / "triton") as triton:
        for each, home in HOME.items():
            if home != name:
                triton.add_to_repository(model(each))
        (port,) = free_ports(1)
        made = OneHost(name, folder, triton, folder / "igniterd.toml", port)
        try:
            yield made
        finally:
            await made.stop()


@asynccontextmanager
async def fleet_cluster(folder: Path) -> AsyncIterator[FleetCluster]:
    """Everything runs, under calm load."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(secured_broker(folder, HOSTS))
        heard = await enter(hearing(broker))
        to_broker, fleets = await enter(line_to(broker.port)), await enter(line_to(broker.port))
        made = FleetCluster(folder, broker, heard, to_broker, fleets, free_ports(1)[0])
        mps = await enter(mps_host(folder / "mps"))
        routes = folder / "routes"
        routes.mkdir()
        started = [enter_host(stack, folder / name, name, n) for n, name in enumerate(HOSTS)]
        for one in await asyncio.gather(*started):
            made.hosts[one.name] = one
            builtin_profile("v100").time_scaled(SLOW).save(one.folder / "v100.json")
            one.config.write_text(host_config(one, mps, broker, made.to_broker.port))
        for model, host in HOME.items():
            (routes / model).write_text(made.hosts[host].triton.url)
        made.config.write_text(fleet_config(made))
        url = await enter(switchable_route(routes))
        # who is overloaded waits until it is moved, which takes long on a busy machine
        spec = LoadSpec(url, (phase("calm", CALM),), deadline_s=120.0, seed=7)
        made.traffic = await enter(loading(spec, folder / "requests.csv"))
        for one in made.hosts.values():
            await one.start()
        command = [sys.executable, "-m", "igniterd", "fleet", "--config", str(made.config)]
        made.fleet = await enter(
            running("igniterd fleet", command, log=folder / "fleet.log", env=environment())
        )
        yield made


async def enter_host(stack: AsyncExitStack, folder: Path, name: str, number: int) -> OneHost:
    return await stack.enter_async_context(one_host(folder, name, number))
