"""What the daemon's resident memory is made of: one process for each stage, each importing what the
one before did and a little more.

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
    ("+ gRPC and Triton's client", "import igniterd.clients.triton.client"),
    ("+ the rest of the daemon, before it starts", "import igniterd.daemon"),
    (
        "+ the kernels of the tails, from numba's cache",
        "from igniterd.predictors import _compile; _compile(None, 0.95, '')",
    ),
    (
        "- what is given back after the first tick",
        "from igniterd.resident import trim_rss; trim_rss()",
    ),
)
SHOW = """
lines = dict(line.split(":") for line in open("/proc/self/status"))
print(*(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "RssFile")))
"""


def resident_mb(stages: int) -> tuple[float, float]:
    """In all, and the part that is pages of files."""
    code = "\n".join(code for _, code in STAGES[:stages]) + "\n" + SHOW
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True
    )
    everything, files = done.stdout.split()[-2:]
    return float(everything), float(files)


def main() -> None:
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; resident memory, MB"
    )
    resident_mb(len(STAGES))  # once before, so that numba's cache is warm
    print(f"{'':<48} {'all':>6} {'change':>8} {'of files':>10}")
    before = 0.0
    for count, (name, _) in enumerate(STAGES, 1):
        now, files = resident_mb(count)
        print(f"{name:<48} {now:>6.0f} {now - before:>+8.0f} {files:>10.0f}")
        before = now


if __name__ == "__main__":
    main()
