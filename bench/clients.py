"""What one look at the host costs the daemon: CPU time of this process for each client call.

    python bench/clients.py [MODELS ...]        default: 3 64

Against a real tritonserver with emulated models, each of which executes batches of eight sizes once
before the measurement and one request between two reads, so that every model has news. CPU time,
not wall time: the server's own work is not in it. Reads are 0.1 s apart, as cold as a tick finds
the caches.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from igniterd.clients.mps import MpsControl
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.metrics import MetricsParser
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import INPUT_FLOATS
from igniterd.lab.services import mps_host

READS = 40
SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
MODULES = (
    "igniterd.clients.triton.client",
    "igniterd.clients.mqtt",
    "igniterd.clients.admin",
    "igniterd.clients.metrics",
    "igniterd.clients.nvml",
    "igniterd.clients.mps",
    "igniterd.clients.systemd",
)


def say(what: str, milliseconds: float, note: str = "") -> None:
    print(f"  {what:<58}{milliseconds:9.3f} ms  {note}")


async def cpu_ms(
    call: Callable[[], Awaitable[object]], between: Callable[[], Awaitable[object]] | None = None
) -> float:
    """Median CPU time of one call."""
    spent = []
    for _ in range(READS):
        if between is not None:
            await between()
        await asyncio.sleep(0.1)
        began = time.process_time()
        await call()
        spent.append(time.process_time() - began)
    return statistics.median(spent) * 1e3


async def one_request_each(host: TritonHost, names: list[str], batch: int = 1) -> None:
    tensor = InferInput("INPUT", [batch, INPUT_FLOATS], "FP32")
    tensor.set_data_from_numpy(np.zeros((batch, INPUT_FLOATS), np.float32))
    async with InferenceServerClient(host.url) as sender:
        await asyncio.gather(*(sender.infer(name, [tensor], client_timeout=60) for name in names))


async def triton(count: int) -> None:
    print(f"Triton, {count} models, {len(SIZES)} batch sizes each")
    names = [f"model{number:02d}" for number in range(count)]
    models = tuple(EmulatedModel(name, like="alexnet", max_batch_size=max(SIZES)) for name in names)
    async with triton_host(HostSpec(models, memory_bytes=1 << 42)) as host:
        for batch in SIZES:
            await one_request_each(host, names, batch)
        await _parsing(host)

        async def news() -> None:
            await one_request_each(host, names)

        bare = TritonClient("main", host.url, timeout_s=5, config_max_age_s=1e9)
        paged = TritonClient("main", host.url, host.metrics_url, timeout_s=5, config_max_age_s=1e9)
        for client in (bare, paged):
            await client.read_models(names)
        say(
            "read of all models: one statistics call",
            await cpu_ms(lambda: bare.read_models(names), news),
        )
        whole = await cpu_ms(lambda: paged.read_models(names), news)
        say("the same with the metrics page", whole)
        again = await cpu_ms(lambda: paged._config_message(names[0]))
        say(
            "one configuration read again, unchanged",
            again,
            f"{count}/60 of them a tick: {again * count / 60:.2f} ms",
        )
        print(f"  => {(whole + again * count / 60) / 10:.2f} % of one core at one tick a second")
        for client in (bare, paged):
            await client.close()


async def _parsing(host: TritonHost) -> None:
    async with aiohttp.ClientSession() as session, session.get(host.metrics_url) as answer:
        page = await answer.read()
    parser = MetricsParser()
    parser.parse(page)
    began = time.process_time()
    for _ in range(READS):
        parser.parse(page)
    say(
        "parsing the metrics page",
        (time.process_time() - began) / READS * 1e3,
        f"{len(page) / 1e3:.0f} kB",
    )


def children_s() -> float:
    """CPU time of the processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def mps() -> None:
    with TemporaryDirectory() as folder:
        async with mps_host(Path(folder)) as host:
            os.environ.update(host.control.environment())
            control = MpsControl(str(host.control.path), host.pipe_directory, timeout_s=5)
            began = children_s()
            ours = await cpu_ms(control.read)
            theirs = (children_s() - began) / READS * 1e3
    say("MPS control, one read", ours, f"and {theirs:.1f} ms in the program it starts")


def import_ms(module: str) -> float:
    """Median CPU time of a new process that imports `module`."""
    spent = []
    for _ in range(5):
        began = children_s()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, timeout=60)
        spent.append(children_s() - began)
    return statistics.median(spent) * 1e3


def imports() -> None:
    print("imports, each in a new process, less an empty one's")
    empty = import_ms("sys")
    for module in MODULES:
        say(module, import_ms(module) - empty)


async def main() -> None:
    await mps()
    for count in [int(argument) for argument in sys.argv[1:]] or [3, 64]:
        await triton(count)
    imports()


if __name__ == "__main__":
    asyncio.run(main())
