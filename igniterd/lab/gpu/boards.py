"""The boards of an emulated host: what each is, and their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from igniterd.lab.gpu.boardfile import BoardFile
from igniterd.lab.gpu.kinds import KINDS, Kind

UUID = "GPU-00000000-e4e1-a7ed-0000-000000000100"
PCI = "0000:1A:00.0"
_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PCI = re.compile(r"[0-9A-F]{4}:[0-9A-F]{2}:[0-9A-F]{2}\.0")


@dataclass(frozen=True, slots=True)
class EmulatedBoard:
    """A board of a kind of :data:`~igniterd.lab.gpu.kinds.KINDS`; without ``memory_bytes`` with the
    memory of its kind.

    ``uuid`` and ``pci`` are written as NVML and CUDA write them, ``GPU-...`` in small letters and
    ``0000:3B:00.0``. Raises ``ValueError`` for what is not so.
    """

    kind: str = "v100"
    uuid: str = UUID
    pci: str = PCI
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} of a board: there are {', '.join(KINDS)}")
        if not _UUID.fullmatch(self.uuid):
            raise ValueError(f"uuid {self.uuid!r} of a board: give one like {UUID}")
        if not _PCI.fullmatch(self.pci):
            raise ValueError(f"pci {self.pci!r} of a board: give an address like {PCI}")

    @property
    def figures(self) -> Kind:
        return KINDS[self.kind]

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.memory_bytes or self.figures.memory_bytes

    @classmethod
    def of(cls, file: BoardFile) -> EmulatedBoard:
        """The board that a file is of."""
        return cls(memory_bytes=file.memory_bytes, **file.about)

    def create(self, path: Path, *, slow_factor: float) -> None:
        """Its file, without tenants."""
        about = {"kind": self.kind, "uuid": self.uuid, "pci": self.pci}
        BoardFile.create(
            path, slow_factor=slow_factor, memory_bytes=self.memory, about=about
        ).close()


def boards_of(*kinds: str) -> tuple[EmulatedBoard, ...]:
    """Boards of these kinds, each with a UUID and a bus address of its own, in that order on the
    bus."""
    return tuple(
        EmulatedBoard(kind, f"GPU-{n:08x}-e4e1-a7ed-0000-000000000100", f"0000:{0x1A + n:02X}:00.0")
        for n, kind in enumerate(kinds, start=1)
    )


def checked(boards: Sequence[EmulatedBoard]) -> tuple[EmulatedBoard, ...]:
    """The boards in the order of the bus. Raises ``ValueError`` for two with one UUID or
    address."""
    for field in ("uuid", "pci"):
        given = [getattr(board, field) for board in boards]
        if twice := sorted({value for value in given if given.count(value) > 1}):
            raise ValueError(f"boards: {field} {twice[0]} is given twice: each board has its own")
    return tuple(sorted(boards, key=lambda board: board.pci))


def create_boards(folder: Path, boards: Sequence[EmulatedBoard], *, slow_factor: float) -> None:
    """The files of several boards in a new folder. Raises as :func:`checked`."""
    folder.mkdir(parents=True)
    for board in checked(boards):
        board.create(folder / f"{board.uuid}.board", slow_factor=slow_factor)
