"""Compiled arithmetic: bare arrays in documented units, NaN where there is no answer, no errors raised. numba lives only here.

numba keeps what it compiles in ``NUMBA_CACHE_DIR``, beside the package or in the home, and refuses to load where none of them can be
written: a package installed by root and a user without a home are enough. Then a folder for this process and its children is made.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from igniterd.errors import CannotRun


def _places() -> Iterator[Path]:
    """Where numba would keep its cache, in its own order."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(named)
    yield Path(__file__).parent / "__pycache__"
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "numba"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _ensure_cache() -> None:
    """Raises :class:`CannotRun` where nothing at all can be written."""
    if any(_writable(place) for place in _places()):
        return
    wanted = "compiled kernels cannot be kept: set NUMBA_CACHE_DIR to a folder that this user can write"
    try:
        folder = tempfile.mkdtemp(prefix="igniterd-kernels-")
    except OSError as error:
        raise CannotRun(f"{wanted} ({error.strerror or error})") from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder  # numba has not been imported yet; children find it too
    sys.stderr.write(f"igniterd: {wanted}; until then every start compiles them again, for up to a minute\n")


_ensure_cache()
