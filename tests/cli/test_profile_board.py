"""Which board of the host a profile is of."""

from __future__ import annotations

import pytest

from igniterd.cli.profile_run import board_index
from igniterd.errors import CannotRun
from igniterd.records import BoardReading


def board(index: int, name: str) -> BoardReading:
    return BoardReading(index, f"GPU-{index}", name, sm_count=80, pci=f"00000000:0{index}:00.0")


async def test_the_only_board_of_a_host_is_its_server_s() -> None:
    assert await board_index([board(0, "V100")], "127.0.0.1:1", 0) == 0


async def test_a_board_that_is_not_known_is_not_guessed() -> None:
    boards = [board(0, "T4"), board(1, "V100")]
    with pytest.raises(CannotRun, match=r"which of the 2 boards .* CUDA_VISIBLE_DEVICES=UUID"):
        await board_index(boards, "127.0.0.1:1", 0)
