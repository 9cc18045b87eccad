"""The folders that give a model its MPS share: one a percentage, each with the ``bin/activate`` that Triton sources before it starts
the model's stub process."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from pathlib import Path

from igniterd.clients.triton_config import percent_name, share_path
from igniterd.errors import Refused

VARIABLE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


def prepare_share(shares_dir: Path, share: float, base_env: str | None = None) -> Path:
    """Make the folder for `share` (a fraction in (0, 1]), in front of the environment at `base_env` when there is one.

    Written whole or not at all, and left alone when it is already right, so that Triton never sources half a file. Returns the folder;
    raises :class:`~igniterd.errors.Refused` when it cannot be written.
    """
    folder = Path(share_path(str(shares_dir), share, base_env))
    lines = ["# Written by igniterd: Triton sources this before it starts a model's stub process."]
    if base_env is not None:
        lines.append(f". {shlex.quote(base_env.rstrip('/') + '/bin/activate')}")
    lines.append(f"export {VARIABLE}={percent_name(share)}")
    try:
        _write_whole(folder / "bin" / "activate", "\n".join(lines) + "\n")
        _library(folder / "lib", base_env)
    except (OSError, UnicodeError) as error:
        raise Refused(f"{folder}: cannot write the environment of a share: {error}") from error
    return folder


def _write_whole(path: Path, text: str) -> None:
    if path.is_file() and path.read_bytes() == text.encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".activate-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError:  # a full disk: not one more file for each try
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _library(path: Path, base_env: str | None) -> None:
    """Triton puts ``<environment>/lib`` in front of LD_LIBRARY_PATH: it must be there, and be the model's own where it has one."""
    if base_env is None:
        path.mkdir(exist_ok=True)
    elif not path.is_symlink():
        path.symlink_to(Path(base_env) / "lib")
