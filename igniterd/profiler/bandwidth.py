"""Host-to-device bandwidth, measured with the CUDA driver itself: ``python -m
igniterd.profiler.bandwidth INDEX``.

Run in a process of its own, because a context that was made stays until its process ends, and a
driver in trouble may hang. Prints bytes per ms, or a reason with exit status 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from typing import Any

from igniterd.errors import CannotRun, NotNow, Unreachable

ASSUMED_BYTES_PER_MS = 1e7  # 10 GB/s: sixteen lanes of PCIe 3 as they are in practice
COMMAND = ("-m", "igniterd.profiler.bandwidth")
_SIZE = 64 << 20
_ROUNDS = 8


def copy_rate(cuda: Any, index: int, *, size: int = _SIZE, clock: Any = time.perf_counter) -> float:
    """Bytes per ms of copies of ``size`` bytes from page-locked memory; ``cuda`` is libcuda. Raises
    :class:`CannotRun`."""

    def call(name: str, *arguments: Any) -> None:
        status = getattr(cuda, name)(*arguments)
        if status != 0:
            raise CannotRun(f"{name} answered {status}")

    device, context, there, here = (
        ctypes.c_int(),
        ctypes.c_void_p(),
        ctypes.c_uint64(),
        ctypes.c_void_p(),
    )
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
    call("cuMemAlloc_v2", ctypes.byref(there), ctypes.c_size_t(size))
    call("cuMemHostAlloc", ctypes.byref(here), ctypes.c_size_t(size), 0)
    best_s = float("inf")
    for _ in range(_ROUNDS):  # the first ones wake the link up
        start = clock()
        call("cuMemcpyHtoD_v2", there, here, ctypes.c_size_t(size))
        call("cuCtxSynchronize")
        best_s = min(best_s, clock() - start)
    return size / best_s / 1e3


async def measure(index: int, *, timeout_s: float = 20.0) -> float:
    """Bytes per ms to board ``index`` (NVML's order), measured in a child process. Raises
    :class:`NotNow` with the reason it cannot be."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, *COMMAND, str(index)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, _ = await child.communicate()
    except TimeoutError:
        raise Unreachable(f"the copy did not end in {timeout_s:g} s") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    said = out.decode(errors="replace").strip()
    if child.returncode != 0:
        raise NotNow(said.splitlines()[-1] if said else f"it exited with status {child.returncode}")
    return float(said)


def main() -> int:
    try:
        sys.stdout.write(f"{copy_rate(ctypes.CDLL('libcuda.so.1'), int(sys.argv[1])):.6g}\n")
    except (OSError, CannotRun) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
