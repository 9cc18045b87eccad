from pathlib import Path

import pynvml
import pytest

from igniterd.boards import nvml_library
from igniterd.errors import CannotRun
from igniterd.lab.gpu.boardfile import BoardFile
from igniterd.lab.gpu.boards import boards_of, create_boards
from igniterd.lab.gpu.nvml import EmulatedNvml


def test_the_driver_is_read_through_pynvml() -> None:
    assert nvml_library("nvml", field="gpu.source") is pynvml


def test_without_a_source_nothing_is_read() -> None:
    assert nvml_library("none", field="gpu.source") is None


def test_a_board_file_is_read_by_the_lab(tmp_path: Path) -> None:
    board = BoardFile.create(tmp_path / "board", slow_factor=1.0, memory_bytes=2**30)
    library = nvml_library(f"emulated:{board.path}", field="gpu.source")
    assert isinstance(library, EmulatedNvml)
    assert library.nvmlDeviceGetCount() == 1


def test_a_folder_of_board_files_is_read_by_the_lab(tmp_path: Path) -> None:
    create_boards(tmp_path / "boards", boards_of("v100", "t4"), slow_factor=1.0)
    library = nvml_library(f"emulated:{tmp_path / 'boards'}", field="gpu.source")
    assert library.nvmlDeviceGetCount() == 2
    with pytest.raises(CannotRun, match=r"gpu\.source = .*has no board file \(\*\.board\)"):
        nvml_library(f"emulated:{tmp_path}", field="gpu.source")


def test_a_missing_board_file_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"--gpu = 'emulated:.*missing'.*takes emulated:FILE"):
        nvml_library(f"emulated:{tmp_path / 'missing'}", field="--gpu")
