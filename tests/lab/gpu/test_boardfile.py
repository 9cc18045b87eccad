"""The board's shared file: slots, memory, overlapping executions, copies whose process died."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from igniterd.lab.gpu.boardfile import BoardFile, OutOfMemory

MIB = 2**20


@pytest.fixture
def board(tmp_path: Path) -> BoardFile:
    return BoardFile.create(tmp_path / "board", slow_factor=4.0, memory_bytes=1000 * MIB)


def test_a_copy_is_seen_by_another_process_view(board: BoardFile) -> None:
    slot = board.claim(model=2, units=12, memory_bytes=300 * MIB)
    slot.begin(5, 100.0, now_s=10.0)
    (copy,) = BoardFile(board.path).copies()
    assert (copy.model, copy.units, copy.batch, copy.started_s) == (2, 12, 5, 10.0)
    slot.end(12.5)
    (copy,) = BoardFile(board.path).copies()
    assert (copy.batch, copy.last_batch, copy.last_ended_s, copy.energy_j, copy.executions) == (
        0,
        5,
        12.5,
        250.0,
        1,
    )


def test_memory_runs_out_and_comes_back(board: BoardFile) -> None:
    first = board.claim(model=0, units=0, memory_bytes=700 * MIB)
    with pytest.raises(OutOfMemory, match="this copy needs 400 MiB, 300 MiB of 1000 MiB are free"):
        board.claim(model=1, units=0, memory_bytes=400 * MIB)
    first.release()
    board.claim(model=1, units=0, memory_bytes=400 * MIB)
    assert board.claims == 2


def test_others_clips_to_the_span_and_counts_no_execution_twice(board: BoardFile) -> None:
    me = board.claim(model=0, units=8, memory_bytes=0)
    other = board.claim(model=1, units=16, memory_bytes=0)
    other.begin(3, 0.0, now_s=1.0, busy=0.25)
    assert me.others(2.0, 4.0) == [(1, 16, 3, 0.25, 2.0, 4.0)]
    other.end(3.0)
    assert me.others(2.0, 4.0) == [(1, 16, 3, 0.25, 2.0, 3.0)]
    other.begin(4, 0.0, now_s=3.5)
    assert sorted(me.others(2.0, 4.0)) == [
        (1, 16, 3, 0.25, 2.0, 3.0),
        (1, 16, 4, 1.0, 3.5, 4.0),
    ]
    assert me.others(3.1, 3.2) == []


def test_a_dead_process_leaves_the_board_and_its_energy_stays(board: BoardFile) -> None:
    code = (
        "import sys; from pathlib import Path; from igniterd.lab.gpu.boardfile import BoardFile\n"
        "s = BoardFile(Path(sys.argv[1])).claim(model=0, units=4, memory_bytes=900 * 2**20)\n"
        "s.begin(1, 50.0, now_s=1.0); s.end(3.0); s.begin(1, 50.0, now_s=4.0)"
    )
    subprocess.run([sys.executable, "-c", code, str(board.path)], check=True, timeout=30)
    assert len(board.copies()) == 1
    mine = board.claim(model=1, units=4, memory_bytes=900 * MIB)  # claiming makes room first
    assert [c.model for c in board.copies()] == [1]
    assert board.departed_energy_j == 100.0
    mine.release()
    board.reap()
    assert board.copies() == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100_000))
    with pytest.raises(ValueError, match="is not a board file of this version"):
        BoardFile(tmp_path / "x")
