"""What the daemon's resident memory is made of: one process for each stage, each importing what the one before did and a little more.

python bench/memory.py
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

STAGES = (
    ("Python", ""),
    ("+ numpy", "import numpy"),
    ("+ numba and LLVM", "import numba; numba.njit"),
    ("+ gRPC and Triton's client", "import igniterd.clients.triton"),
    ("+ the rest of the daemon, before it starts", "import igniterd.daemon"),
    ("+ the kernels of the tails, from numba's cache", "from igniterd.knowledge import _compile; _compile(None, '')"),
)
SHOW = "\nimport sys\nline = next(x for x in open('/proc/self/status') if x.startswith('VmRSS'))\nprint(int(line.split()[1]) / 1024)"


def resident_mb(stages: int) -> float:
    code = "\n".join(code for _, code in STAGES[:stages]) + SHOW
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; resident memory, MB")
    resident_mb(len(STAGES))  # once before, so that numba's cache is warm
    before = 0.0
    for count, (name, _) in enumerate(STAGES, 1):
        now = resident_mb(count)
        print(f"{name:<48} {now:>6.0f}   {now - before:>+6.0f}")
        before = now


if __name__ == "__main__":
    main()
