"""What the figures were measured on: processor, GPU, driver, versions. Reads; changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from igniterd import __version__
from igniterd.errors import CannotRun
from igniterd.lab.programs import programs

_TORCH = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda}
found["available"] = torch.cuda.is_available()
if found["available"]:
    board = torch.cuda.get_device_properties(0)
    found |= {"name": board.name, "sm_count": board.multi_processor_count}
    found["memory_bytes"] = board.total_memory
print(json.dumps(found))
"""


def described() -> dict[str, Any]:
    """The machine without its GPU."""
    return {
        "processor": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "igniterd": __version__,
        "pytriton": programs.PYTRITON,
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def torch_here(timeout_s: float = 120.0) -> dict[str, Any]:
    """What PyTorch says of itself and of the first GPU, asked in a process of its own. Raises
    :class:`CannotRun` where there is none."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotRun(
            f"PyTorch did not say within {timeout_s:.0f} s whether there is a GPU"
        ) from None
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CannotRun(
            f"PyTorch cannot be used from {sys.executable} ({why}): name a Python that has it "
            "with PYTHON=, or use --emulated"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def board() -> dict[str, Any]:
    """The first GPU by NVML, with the modes that decide who may use it; ``{"error": ...}`` where
    NVML is not there."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"error": f"NVML: {error}"}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        found: dict[str, Any] = {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "name": pynvml.nvmlDeviceGetName(handle),
        }
        asked = {
            "memory_bytes": lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            "power_limit_w": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "max_sm_clock_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(
                handle, pynvml.NVML_CLOCK_SM
            ),
            "compute_mode": lambda: (
                "default",
                "exclusive thread",
                "prohibited",
                "exclusive process",
            )[pynvml.nvmlDeviceGetComputeMode(handle)],
            "mig": lambda: bool(pynvml.nvmlDeviceGetMigMode(handle)[0]),
            "other_processes": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        }
        for key, ask in asked.items():
            with contextlib.suppress(pynvml.NVMLError, AttributeError, IndexError):
                found[key] = ask()
        return found
    except pynvml.NVMLError as error:
        return {"error": f"NVML: {error}"}
    finally:
        pynvml.nvmlShutdown()


def other_mps() -> list[str]:
    """MPS programs that run already, in words."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            # the kernel keeps 15 letters of the name
            if (folder / "comm").read_text().startswith("nvidia-cuda-mps"):
                pipes = "its pipe directory cannot be read"
                with contextlib.suppress(OSError):
                    variables = dict(
                        v.partition("=")[::2] for v in (folder / "environ").read_text().split("\0")
                    )
                    place = "/tmp/nvidia-mps"  # noqa: S108  NVIDIA's default
                    place = variables.get("CUDA_MPS_PIPE_DIRECTORY", place)
                    pipes = f"pipe directory {place}"
                found.append(f"process {folder.name}, {pipes}")
    return found


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
