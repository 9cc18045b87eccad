"""What the daemon costs: CPU and memory at one tick a second, and the time to READY, on a real
Triton with 3 and with 64 models.

    python bench/tick.py [--seconds 45] [--models 3 64]

Starts a real tritonserver with that many emulated models (eight on a GPU, shares applied, a little
traffic on each), the daemon as systemd would, and reads the daemon's own CPU time from /proc.
Memory is resident at the end.

The daemon reads no boards meanwhile: the emulated one works out power and clock from what all
models execute, in the process that asks, which no NVML does. What reading costs is measured by
itself, on a library that answers at once; the driver's own part is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pynvml

from igniterd.clients.nvml import NvmlClient
from igniterd.clients.shares import prepare_share
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import LoadSpec, Phase
from igniterd.lab.programs.process import free_ports, running
from igniterd.perf import builtin_profile

LIKE = ("alexnet", "resnet50", "vgg19")
SHARE = 0.1
PER_GPU = 8
TICK = os.sysconf("SC_CLK_TCK")


def names(count: int) -> dict[str, str]:
    return {f"m{i:02d}": LIKE[i % len(LIKE)] for i in range(count)}


def write_config(folder: Path, triton: TritonHost, models: dict[str, str], port: int) -> Path:
    builtin_profile("v100").save(folder / "v100.json")
    text = (
        f'[[triton]]\nurl = "{triton.url}"\nmetrics_url = "{triton.metrics_url}"\n[gpu]\n'
        'source = "none"\n'
    )
    text += (
        f'[mps]\ninterval_s = 3600\n[metrics]\nlisten = "127.0.0.1:{port}"\n[state]\n'
        f'directory = "{folder}/state"\n'
    )
    for i, (name, like) in enumerate(models.items()):
        text += (
            f'[[model]]\nname = "{name}"\nslo_p99_ms = 500\nprofile = "v100.json"\n'
            f'profile_model = "{like}"\ngpu = {i // PER_GPU}\n'
        )
    (folder / "igniterd.toml").write_text(text)
    return folder / "igniterd.toml"


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss_mb(pid: int) -> float:
    line = next(
        x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024


async def measure(count: int, seconds: float) -> dict[str, float]:
    models = names(count)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        share = prepare_share(folder / "state" / "shares", SHARE)
        spec = HostSpec(
            tuple(
                EmulatedModel(n, like=like, parameters={"EXECUTION_ENV_PATH": str(share)})
                for n, like in models.items()
            ),
            memory_bytes=2**40,
        )
        async with triton_host(spec, folder / "triton") as triton:
            (port,) = free_ports(1)
            config = write_config(folder, triton, models, port)
            rate = min(2.0, 60.0 / count)
            (folder / "load.json").write_text(
                LoadSpec(
                    triton.url, (Phase("light", 600.0, dict.fromkeys(models, rate)),)
                ).to_json()
            )
            load = [
                sys.executable,
                "-m",
                "igniterd.lab.load.generator",
                str(folder / "load.json"),
                "-o",
                str(folder / "log.csv"),
            ]
            async with running("loadgen", load, log=folder / "load.log", env=dict(os.environ)):
                await ready_s(folder, config)  # once before, so that numba's caches are warm
                return await steady(folder, config, seconds)


async def ready_s(folder: Path, config: Path) -> float:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        async with started(folder, config, systemd) as took:
            return took[0]


class started:  # noqa: N801 - an async context manager used as a function
    """The daemon, under a stand-in for systemd; gives ``(seconds to READY, pid)``."""

    def __init__(self, folder: Path, config: Path, systemd: socket.socket) -> None:
        self.folder, self.config, self.systemd = folder, config, systemd

    async def __aenter__(self) -> tuple[float, int]:
        address = self.folder / "notify"
        address.unlink(missing_ok=True)
        self.systemd.bind(str(address))
        self.systemd.settimeout(180.0)
        command = [sys.executable, "-m", "igniterd", "run", "--config", str(self.config)]
        began = time.perf_counter()
        self.context = running(
            "igniterd",
            command,
            log=self.folder / "igniterd.log",
            env={**os.environ, "NOTIFY_SOCKET": str(address)},
        )
        program = await self.context.__aenter__()
        await asyncio.to_thread(self.systemd.recv, 4096)
        return time.perf_counter() - began, program.pid

    async def __aexit__(self, *error: object) -> None:
        await self.context.__aexit__(*error)


async def steady(folder: Path, config: Path, seconds: float) -> dict[str, float]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        async with started(folder, config, systemd) as (ready, pid):
            # warm-up, the first search, MPS read: not what a steady hour costs
            await asyncio.sleep(20.0)
            before, began = cpu_s(pid), time.perf_counter()
            await asyncio.sleep(seconds)
            used, span = cpu_s(pid) - before, time.perf_counter() - began
            return {"ready_s": ready, "cpu_pct": 100 * used / span, "rss_mb": rss_mb(pid)}


class Boards:
    """pynvml with eight boards of which nearly everything is 1."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = pynvml.NVML_CLOCK_SM, pynvml.NVML_TEMPERATURE_GPU
    one = SimpleNamespace(used=1, total=1, busId="1")

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name == "nvmlDeviceGetHandleByIndex":
            return lambda index: index
        if name == "nvmlDeviceGetUUID":
            return lambda board: f"GPU-{board}"
        answers = {
            "nvmlDeviceGetCount": 8,
            "nvmlDeviceGetName": "1",
            "nvmlDeviceGetMigMode": (0, 0),
            "nvmlDeviceGetMemoryInfo": self.one,
            "nvmlDeviceGetPciInfo": self.one,
            "nvmlDeviceGetCudaComputeCapability": (7, 0),
        }
        return lambda *_: answers.get(name, 1)


async def boards_ms(reads: int = 500) -> float:
    """Processor time (ms) of one read of eight boards."""
    client = NvmlClient(Boards(), timeout_s=5.0)
    assert [board.fault for board in await client.read()] == [""] * 8
    began = time.process_time()
    for _ in range(reads):
        await client.read()
    used = time.process_time() - began
    await client.close()
    return 1000 * used / reads


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--models", type=int, nargs="+", default=[3, 64])
    arguments = parser.parse_args()
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; one tick a second"
    )
    print(f"{'models':>7} {'READY s':>9} {'CPU % of one core':>18} {'RSS MB':>8}")
    for count in arguments.models:
        result = asyncio.run(measure(count, arguments.seconds))
        print(
            f"{count:>7} {result['ready_s']:>9.1f} {result['cpu_pct']:>18.2f} "
            f"{result['rss_mb']:>8.0f}"
        )
    print(f"reading eight boards, besides: {asyncio.run(boards_ms()):.2f} ms of CPU a tick")


if __name__ == "__main__":
    main()
