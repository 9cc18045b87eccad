"""The library that a source of board readings names: the driver's, or the lab's in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from igniterd.clients.nvml import driver_library
from igniterd.errors import CannotRun

EMULATED = "emulated:"


def nvml_library(source: str, *, field: str) -> Any:
    """An object with pynvml's names; ``None`` for ``none``.

    ``source`` is ``nvml``, ``none`` or ``emulated:FILE``, the board file of a running lab host, or
    the folder of the files of its boards.
    ``field`` names the setting in errors. Raises :class:`~igniterd.errors.CannotRun` for a board
    file that cannot be read and for a host without pynvml.
    """
    if source == "none":
        return None
    if not source.startswith(EMULATED):
        return driver_library()
    from igniterd.lab.gpu.nvml import EmulatedNvml  # late: only hosts without a GPU need the lab

    try:
        return EmulatedNvml(Path(source.removeprefix(EMULATED)))
    except (OSError, ValueError) as error:
        raise CannotRun(
            f"{field} = {source!r}: {error}; it takes emulated:FILE with the board file of a "
            "running host of the lab, or with the folder of its board files"
        ) from error
