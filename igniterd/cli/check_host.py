"""What ``igniterd check --live`` finds of the host: boards, MPS control, stub processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.config import Config
    from igniterd.devices import ServerFacts
    from igniterd.errors import IgniterdError
    from igniterd.profiled import Predictors
    from igniterd.records import BoardReading, ModelReading, MpsReading, Stub

PROCESSES_S = 5.0  # longest look at the host's processes


def copies(
    readings: Mapping[str, ModelReading], boards: Sequence[BoardReading], knowledge: Predictors
) -> Iterator[Finding]:
    """Whether every model that is steered fits beside itself for the time of a reload."""
    from igniterd.act import second_copy
    from igniterd.records import Observation

    seen, unknown = Observation(0.0, boards=tuple(boards), models=readings), list[str]()
    for name in readings.keys() & knowledge.steerable(seen).keys():
        fits = second_copy(name, seen, knowledge.copy_bytes)
        if fits.refused:
            yield Finding(
                "warn",
                f"model {name}",
                f"it cannot be changed: {fits.refused.removeprefix(f'{name}: ')}",
            )
        elif fits.unknown:
            unknown.append(name)
    if unknown:
        why = (
            "whether there is room for a second copy while one is reloaded is not known: it "
            "takes memory_bytes of a profile, and NVML"
        )
        yield Finding("warn", "GPU memory", f"{', '.join(sorted(unknown))}: {why}")


async def read_stubs() -> tuple[Stub, ...] | None:
    """The stub processes of this host; ``None`` where its table cannot be read."""
    from igniterd.clients.processes import ProcessTable
    from igniterd.errors import IgniterdError

    try:
        async with asyncio.timeout(PROCESSES_S):
            return await ProcessTable().read()
    except (IgniterdError, TimeoutError):
        return None


async def read_servers() -> Mapping[int, ServerFacts]:
    """What each tritonserver of this host was started with, by its gRPC port; empty where the table
    of processes cannot be read."""
    from igniterd.clients.processes import ProcessTable
    from igniterd.errors import IgniterdError

    try:
        async with asyncio.timeout(PROCESSES_S):
            return await ProcessTable().servers()
    except (IgniterdError, TimeoutError):
        return {}


async def read_mps(settings: Config) -> MpsReading | IgniterdError | None:
    """MPS control's answer, or why there is none; ``None`` where MPS is not used."""
    from igniterd.errors import IgniterdError
    from igniterd.setup import mps_client

    client = mps_client(settings)
    if client is None:
        return None
    try:
        return await client.read()
    except IgniterdError as error:
        return error


def mps_control(settings: Config, reading: MpsReading | IgniterdError | None) -> Finding:
    """What MPS control answers, and what that means for shares."""
    from igniterd.errors import IgniterdError

    if reading is None:
        return Finding(
            "warn", "MPS", "mps.enabled is false: shares have no effect; only batching is steered"
        )
    if isinstance(reading, IgniterdError):
        return Finding(
            "bad" if settings.loop.mode == "act" else "warn",
            "MPS control",
            f"{reading}; start nvidia-cuda-mps-control -d",
        )
    if reading.default_share is not None and reading.default_share < 1:
        return Finding(
            "warn",
            "MPS control",
            f"the default active thread percentage is {reading.default_share:.0%} and caps every "
            "client: "
            "set_default_active_thread_percentage 100",
        )
    return _mps_servers(settings, reading)


def _mps_servers(settings: Config, reading: MpsReading) -> Finding:
    faulty = [str(pid) for pid, state in reading.states.items() if state == "FAULT"]
    if faulty:
        what = (
            f"server {', '.join(faulty)} is in FAULT: it takes no client until all it has are gone"
        )
        return Finding("bad" if settings.loop.mode == "act" else "warn", "MPS control", what)
    if reading.server_pids:
        clients = "" if reading.client_pids is None else f", {len(reading.client_pids)} clients"
        return Finding(
            "ok", "MPS control", f"answers; {len(reading.server_pids)} servers running{clients}"
        )
    if settings.gpu.source.startswith("emulated:"):
        return Finding(
            "ok", "MPS control", "answers; no server, as models of an emulated board are no clients"
        )
    return Finding(
        "warn",
        "MPS control",
        f"answers, but no process has connected to {settings.mps.pipe_directory}: with models "
        "that use the GPU that means that "
        "Triton does not reach it (its CUDA_MPS_PIPE_DIRECTORY, a mount, --ipc=host, or another "
        "user), and shares have no effect",
    )


async def boards(settings: Config, read: list[BoardReading]) -> AsyncIterator[Finding]:
    """``read`` takes what they answer."""
    from igniterd.errors import IgniterdError
    from igniterd.setup import nvml_client

    client = nvml_client(settings)
    if client is None:
        yield Finding("warn", "NVML", "gpu.source is none: power, clock and memory are not watched")
        return
    try:
        boards = await client.read()
    except IgniterdError as error:
        yield Finding("warn", "NVML", str(error))
        return
    finally:
        await client.close()
    read.extend(boards)
    for board in boards:
        level = "warn" if board.fault else "ok"
        yield Finding(level, f"GPU {board.index}", board.fault or f"{board.name}, {board.uuid}")
