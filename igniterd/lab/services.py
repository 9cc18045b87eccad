"""The programs beside tritonserver: a real MPS control daemon and a real MQTT broker.

Each is an async context manager: started with a deadline, its log in a folder, stopped on the way
out. The broker listens on loopback at a port found free.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from igniterd.lab.programs import programs
from igniterd.lab.programs.process import Running, free_ports, listens, running


@dataclass(frozen=True, slots=True)
class MpsHost:
    """A running MPS control daemon."""

    control: programs.Program
    pipe_directory: Path
    program: Running

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to find it."""
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self.pipe_directory)}

    async def ask(self, command: str, *, timeout_s: float = 5.0) -> str:
        """One command, its answer. Raises ``TimeoutError`` when it does not answer in time."""
        return await _mps_ask(self.control, self.environment, command, timeout_s)


async def _mps_ask(
    control: programs.Program, environment: dict[str, str], command: str, timeout_s: float
) -> str:
    process = await asyncio.create_subprocess_exec(
        str(control.path),
        env=os.environ | control.environment() | environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, _ = await process.communicate(f"{command}\n".encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode().strip()


@asynccontextmanager
async def mps_host(folder: Path) -> AsyncIterator[MpsHost]:
    """A real ``nvidia-cuda-mps-control``, answering. Its sockets are in a short temporary folder:
    socket paths end at 107 bytes."""
    control = programs.required(programs.mps_control(), "nvidia-cuda-mps-control")
    with tempfile.TemporaryDirectory(prefix="mps-") as pipes:
        places = {"CUDA_MPS_PIPE_DIRECTORY": pipes, "CUDA_MPS_LOG_DIRECTORY": str(folder)}
        env = os.environ | control.environment() | places
        async with running(
            "nvidia-cuda-mps-control", [str(control.path), "-f"], log=folder / "mps.log", env=env
        ) as program:
            host = MpsHost(control, Path(pipes), program)

            async def answers() -> bool:
                if not (host.pipe_directory / "control").exists():
                    return False
                try:
                    # an error has words too: only a number is an answer
                    return (
                        float(await host.ask("get_default_active_thread_percentage", timeout_s=2.0))
                        >= 0
                    )
                except (TimeoutError, ValueError):
                    return False

            await program.until(answers, timeout_s=20.0)
            yield host


@dataclass(frozen=True, slots=True)
class BrokerHost:
    """A running MQTT broker."""

    port: int
    program: Running

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"


@asynccontextmanager
async def broker_host(
    folder: Path, *, port: int | None = None, more: str = ""
) -> AsyncIterator[BrokerHost]:
    """A real mosquitto that accepts anyone on loopback; ``more`` is added to its configuration."""
    broker = programs.required(programs.mosquitto(), "mosquitto")
    chosen = port or free_ports(1)[0]
    command = [str(broker.path), "-c", str(_broker_config(folder, chosen, more))]
    async with running(
        "mosquitto", command, log=folder / "mosquitto.log", env=os.environ | broker.environment()
    ) as program:

        async def answers() -> bool:
            return await listens(chosen)

        await program.until(answers, timeout_s=20.0)
        yield BrokerHost(chosen, program)


def _broker_config(folder: Path, port: int, more: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "mosquitto.conf"
    # Started by root it would change to a user that this machine may not have.
    as_root = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_dest stdout\n"
        f"{as_root}{more}"
    )
    return config
