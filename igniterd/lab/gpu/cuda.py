"""CUDA devices without a GPU: what a program needs in its environment to see emulated boards.

``cuda.c`` stands in front of the real runtime and is the only thing that is not real. It gives
device numbers as CUDA does: the fastest board first unless ``CUDA_DEVICE_ORDER`` is ``PCI_BUS_ID``,
and of these what ``CUDA_VISIBLE_DEVICES`` names.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from igniterd.lab.gpu.boards import EmulatedBoard, checked
from igniterd.lab.programs.compiler import shared_library

_SOURCE = Path(__file__).with_name("cuda.c")
_MOST = 64  # cuda.c's MOST


def cuda_environment(
    boards: Sequence[EmulatedBoard], visible: str | None = None, order: str | None = None
) -> dict[str, str]:
    """The environment in which a program sees ``boards``, with ``CUDA_VISIBLE_DEVICES`` and
    ``CUDA_DEVICE_ORDER`` where they are given.

    It is for programs that do not have these two otherwise. Raises
    :class:`~igniterd.errors.CannotRun` where ``cuda.c`` cannot be compiled.
    """
    before = os.environ.get("LD_PRELOAD", "")
    library = str(shared_library(_SOURCE))
    chosen = {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order}
    return {
        "LD_PRELOAD": f"{library}:{before}" if before else library,
        "IGNITERD_CUDA_DEVICES": _listed(boards),
        **{name: value for name, value in chosen.items() if value is not None},
    }


def visible_boards(
    boards: Sequence[EmulatedBoard], visible: str | None = None, order: str | None = None
) -> tuple[EmulatedBoard, ...]:
    """What such a program sees, by device number: asked of ``cuda.c`` itself."""
    on_bus, seen = checked(boards), (ctypes.c_int * _MOST)()
    count = _library().igniterd_visible(
        _listed(boards).encode(),
        None if visible is None else visible.encode(),
        None if order is None else order.encode(),
        seen,
    )
    return tuple(on_bus[place] for place in seen[:count])


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(shared_library(_SOURCE)))


def _listed(boards: Sequence[EmulatedBoard]) -> str:
    if len(boards) > _MOST:
        raise ValueError(f"{len(boards)} boards: an emulated host has at most {_MOST}")
    return ";".join(
        ",".join(
            map(
                str,
                (
                    board.uuid,
                    board.pci,
                    *board.figures.capability,
                    board.figures.sm_count,
                    board.figures.max_clock_mhz,
                    board.memory,
                    board.figures.name,
                ),
            )
        )
        for board in checked(boards)
    )
