"""Memory that starting took and running does not need."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

_SMAPS, _STATM = Path("/proc/self/smaps"), Path("/proc/self/statm")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DONTNEED = 4  # MADV_DONTNEED of <sys/mman.h>, the same on every Linux


def trim_rss() -> int:
    """Unmap clean pages of files and free memory of the heap; the bytes by which RSS fell.

    Why: the resident set is the figure by which a sidecar is judged, and that a container's working
    set is made of. Much of the daemon's is code of LLVM, which is needed until numba's kernels are
    loaded and then never more: 214 MB become 114 (``bench/memory.py``). What it does not do: free
    the machine's memory at once. The kernel keeps the pages in its cache while it has room, and
    now takes them first when it has none. What it costs: some milliseconds once, and a minor fault
    for a page that is used again.

    Only pages of files that are mapped privately, not writable and were never written: the file
    has the same content. Where the kernel or the C library has no such thing, nothing is done.
    """
    try:
        before = _resident_bytes()
        libc = ctypes.CDLL(None)
        for start, end in _clean(_SMAPS.read_text(encoding="utf-8", errors="replace")):
            # one that is refused stays as it is
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(ctypes.c_size_t(0))
        return before - _resident_bytes()
    except (OSError, AttributeError, ValueError):
        return 0


def collect_rarely() -> None:
    """Have the garbage collector look less often.

    Why: it goes through everything that is kept whenever a quarter of it is new. A process that
    keeps the states of thousands of hosts spends half its time there (``bench/view.py``), and
    states are freed without it, as nothing in them points back.
    """
    gc.set_threshold(100_000, 20, 50)


def _clean(smaps: str) -> Iterator[tuple[int, int]]:
    """Start and end of each private, read-only mapping of a file, no page of which is a copy of its
    own, in memory or in swap.

    A page that was written (relocations; breakpoints in code) would come back as it is in the file.
    """
    mapping: tuple[int, int] | None = None
    for line in smaps.splitlines():
        found = _MAPPING.match(line)
        if found:
            if mapping is not None:
                yield mapping
            start, end, access, path = found.groups()
            plain = (
                access[1] == "-"
                and access[3] == "p"
                and path.startswith("/")
                and not path.startswith("/dev/")
            )
            mapping = (int(start, 16), int(end, 16)) if plain else None
        elif line.startswith(("Anonymous:", "Swap:")) and int(line.split()[1]) != 0:
            mapping = None
    if mapping is not None:
        yield mapping


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
