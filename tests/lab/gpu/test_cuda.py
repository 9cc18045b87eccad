"""The emulated CUDA runtime numbers and describes boards as CUDA does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from igniterd.lab.gpu.boards import EmulatedBoard, boards_of
from igniterd.lab.gpu.cuda import cuda_environment, visible_boards

BOARDS = boards_of("t4", "v100", "t4", "v100")  # in the order of the bus


def seen(visible: str | None, order: str | None = None) -> list[int]:
    """Places on the bus, by device number."""
    return [BOARDS.index(board) for board in visible_boards(BOARDS, visible, order)]


def test_the_fastest_comes_first_and_the_bus_decides_among_equals() -> None:
    assert seen(None) == [1, 3, 0, 2]
    assert seen(None, "FASTEST_FIRST") == [1, 3, 0, 2]
    assert seen(None, "PCI_BUS_ID") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("visible", "places"),
    [
        ("", []),
        ("-1", []),
        ("0", [1]),
        ("2, 0", [0, 1]),
        ("3,0,-1,1", [2, 1]),
        ("1,4,0", [3]),
        ("1,x,0", [3]),
        ("0,1,0", []),
        (BOARDS[2].uuid, [2]),
        ("GPU-00000004,GPU-00000001-e4e1", [3, 0]),
        ("GPU-00000004,GPU-0000,0", [3]),
        ("GPU-00000004,GPU-ffffffff,0", [3]),
        ("GPU-00000002,0", []),
    ],
)
def test_what_is_visible(visible: str, places: list[int]) -> None:
    """An entry that names no single board ends the list; a board named twice empties it."""
    assert seen(visible) == places


def test_a_number_counts_in_the_chosen_order() -> None:
    assert seen("0,3", "PCI_BUS_ID") == [0, 3]


ASKED = """
import ctypes, json
cuda = ctypes.CDLL(None)
count, free, total, at = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t(), ctypes.create_string_buffer(32)
error = cuda.cudaGetDeviceCount(ctypes.byref(count))
said = []
for device in range(count.value):
    assert cuda.cudaSetDevice(device) == 0 and cuda.cudaDeviceGetPCIBusId(at, 32, device) == 0
    assert cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
    now = ctypes.c_int()
    assert cuda.cudaGetDevice(ctypes.byref(now)) == 0 and now.value == device
    properties = (ctypes.c_int * 258)()
    assert cuda.cudaGetDeviceProperties_v2(properties, device) == 0
    said.append([at.value.decode(), total.value, *properties[90:92], properties[97], bytes(properties)[:5].decode()])
cuda.cudaGetErrorString.restype = ctypes.c_char_p
beyond = cuda.cudaGetErrorString(cuda.cudaSetDevice(count.value)).decode()
print(json.dumps([error, said, beyond]))
"""  # noqa: E501


def asked(*boards: EmulatedBoard, visible: str | None = None) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_")}
    return subprocess.run(
        [sys.executable, "-c", ASKED],
        env=kept | cuda_environment(boards, visible),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout.strip()


def test_a_program_sees_devices() -> None:
    """The places of the fields are those of CUDA 12's cudaDeviceProp."""
    v100, t4 = BOARDS[1], BOARDS[2]
    assert asked(t4, v100) == (
        f'[0, [["0000:1C:00.0", {v100.memory}, 7, 0, 80, "Tesla"], '
        f'["0000:1D:00.0", {t4.memory}, 7, 5, 40, "Tesla"]], "invalid device ordinal"]'
    )


def test_a_program_sees_none() -> None:
    assert asked(*BOARDS, visible="-1") == '[100, [], "no CUDA-capable device is detected"]'


def test_memory_is_host_memory_and_copies_copy() -> None:
    program = (
        "import ctypes\ncuda = ctypes.CDLL(None)\nat = ctypes.c_void_p()\n"
        "assert cuda.cudaMalloc(ctypes.byref(at), ctypes.c_size_t(6)) == 0\n"
        "back = ctypes.create_string_buffer(6)\n"
        "assert cuda.cudaMemcpy(at, b'igni!\\0', ctypes.c_size_t(6), 1) == 0\n"
        "assert cuda.cudaMemcpyAsync(back, at, ctypes.c_size_t(6), 2, None) == 0\n"
        "assert cuda.cudaFree(at) == 0\nprint(back.value.decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | cuda_environment(BOARDS, "0"),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "igni!\n"


def test_there_is_a_largest_number_of_boards() -> None:
    assert len(visible_boards(boards_of(*["t4"] * 64))) == 64
    with pytest.raises(ValueError, match="65 boards: an emulated host has at most 64"):
        visible_boards(boards_of(*["t4"] * 65))
