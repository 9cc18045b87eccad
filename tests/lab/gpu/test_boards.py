"""What an emulated board may be, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from igniterd.lab.gpu.boardfile import BoardFile, board_paths
from igniterd.lab.gpu.boards import EmulatedBoard, boards_of, create_boards


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "h100"}, "kind 'h100' of a board: there are v100, t4, a100"),
        ({"uuid": "GPU-1"}, "uuid 'GPU-1' of a board: give one like GPU-0"),
        ({"pci": "0000:1a:00.0"}, "pci '0000:1a:00.0' of a board: give an address like 0000:1A"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EmulatedBoard(**wrong)


def test_a_folder_of_boards_says_what_each_is(tmp_path: Path) -> None:
    boards = (*boards_of("t4", "a100"), EmulatedBoard(pci="0000:03:00.0", memory_bytes=2**30))
    create_boards(tmp_path / "boards", boards, slow_factor=3.0)
    files = [BoardFile(path) for path in board_paths(tmp_path / "boards")]
    assert {f.slow_factor for f in files} == {3.0}
    found = {b.uuid: b for b in map(EmulatedBoard.of, files)}
    assert {u: (b.kind, b.pci, b.memory) for u, b in found.items()} == {
        b.uuid: (b.kind, b.pci, b.memory) for b in boards
    }


def test_two_boards_in_one_slot_are_refused(tmp_path: Path) -> None:
    one, other = boards_of("t4", "t4")
    twice = EmulatedBoard("t4", other.uuid, one.pci)
    with pytest.raises(ValueError, match=f"boards: pci {one.pci} is given twice"):
        create_boards(tmp_path / "boards", (one, twice), slow_factor=1.0)
    with pytest.raises(ValueError, match=f"boards: uuid {one.uuid} is given twice"):
        create_boards(tmp_path / "more", (one, one), slow_factor=1.0)


def test_a_folder_without_boards_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no board file \(\*\.board\)"):
        board_paths(tmp_path)
