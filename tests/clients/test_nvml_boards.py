from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.nvml_boards import RENEW_MOST_S, RENEW_S
from igniterd.errors import CannotRun, IgniterdError, Unreachable
from igniterd.records import BoardReading
from tests.clients.nvml_library import (
    V100,
    Host,
    a_board,
    a_slice,
    fails,
    lost,
    not_supported,
    unanswered,
    with_mig,
)

UNKNOWN = pynvml.NVML_ERROR_UNKNOWN


def read(*boards: dict[str, Any], **host: Any) -> tuple[BoardReading, ...]:
    return Host(list(boards), **host).reader().read()


def as_read(letter: str, index: int) -> BoardReading:
    """What comes of :func:`a_board` without trouble."""
    return BoardReading(
        index=index,
        uuid=f"GPU-{letter}",
        name="Tesla V100-SXM2-16GB",
        power_w=251.5,
        power_limit_w=300.0,
        sm_clock_mhz=1380.0,
        max_sm_clock_mhz=1530.0,
        memory_used_bytes=3 << 30,
        memory_total_bytes=16 << 30,
        clock_event_reasons=4,
        temperature_c=61.0,
        sm_count=80,
        pci=f"00000000:{letter.upper()}0:00.0",
    )


def test_every_reading_has_its_unit() -> None:
    assert read(a_board("a"), a_board("b")) == (as_read("a", 0), as_read("b", 1))


def test_what_a_board_never_gives_is_no_fault() -> None:
    bare = dict.fromkeys(V100, not_supported)
    (board,) = read(a_board("a", **bare, nvmlDeviceGetPciInfo=not_supported))
    assert board == BoardReading(index=0, uuid="GPU-a", name="unknown")


def test_a_vgpu_without_power_and_clocks_is_read() -> None:
    without = dict.fromkeys(
        ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetClockInfo"),
        not_supported,
    )
    (board,) = read(a_board("a", **without))
    assert (board.power_w, board.power_limit_w, board.sm_clock_mhz) == (None, None, None)
    assert board.memory_total_bytes == 16 << 30
    assert not board.fault


def test_a_limit_of_zero_is_none_that_is_known() -> None:
    zero = {"nvmlDeviceGetEnforcedPowerLimit": 0, "nvmlDeviceGetMaxClockInfo": 0}
    (board,) = read(a_board("a", **zero))
    assert (board.power_limit_w, board.max_sm_clock_mhz, board.fault) == (None, None, "")


def test_memory_shared_with_the_host_is_unknown_and_not_zero() -> None:
    (board,) = read(a_board("a", nvmlDeviceGetMemoryInfo=SimpleNamespace(used=0, total=0)))
    assert (board.memory_used_bytes, board.memory_total_bytes) == (None, None)
    assert not board.fault


def raises(error: Exception) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call


ODD: dict[str, Any] = {
    "a sensor that fails": fails(UNKNOWN),
    "a code nobody knows": fails(4711),
    "a negative number": -1,
    "all ones": 2**64 - 1,
    "NaN": float("nan"),
    "a truth": True,
    "nothing": None,
    "a text": "12",
    "a binding of another version": raises(TypeError("takes 1 argument")),
    "bytes that are no text": raises(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")),
    "a value that it cannot convert": raises(ValueError("bad")),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_answer_costs_that_reading_alone(odd: Any) -> None:
    first, second = read(a_board("a"), a_board("b", nvmlDeviceGetPowerUsage=odd))
    assert first == as_read("a", 0)
    assert second.power_w is None
    assert second.memory_used_bytes == 3 << 30
    assert second.fault.startswith("GPU 1 (GPU-b, Tesla V100-SXM2-16GB): cannot be read: power (")


def test_a_symbol_that_the_installed_library_lacks_is_no_fault() -> None:
    (board,) = read(a_board("a", nvmlDeviceGetTemperature=raises(AttributeError("no symbol"))))
    assert (board.temperature_c, board.fault) == (None, "")


def test_more_memory_in_use_than_there_is_is_not_believed() -> None:
    (board,) = read(a_board("a", nvmlDeviceGetMemoryInfo=SimpleNamespace(used=2, total=1)))
    assert (board.memory_used_bytes, board.memory_total_bytes) == (None, None)
    assert "memory (NVML said " in board.fault


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, "fallen off the bus: reset it or restart the host"),
        (pynvml.NVML_ERROR_RESET_REQUIRED, "needs a reset: nvidia-smi --gpu-reset"),
    ],
)
def test_a_lost_board_is_named_and_the_others_are_read(code: int, words: str) -> None:
    host = Host([a_board("a"), a_board("b"), a_board("c")])
    reader = host.reader()
    reader.read()
    host.boards[1].update(dict.fromkeys(V100, fails(code)), nvmlDeviceGetMigMode=fails(code))
    first, second, third = reader.read()
    assert (first, third) == (as_read("a", 0), as_read("c", 2))
    assert second.uuid == "GPU-b"
    assert second.fault.startswith("GPU 1 (GPU-b, Tesla V100-SXM2-16GB): it ")
    assert words in second.fault
    assert second.power_w is None


def test_a_lost_board_that_is_back_has_a_new_handle() -> None:
    host = Host([a_board("a"), a_board("b")])
    reader = host.reader()
    host.boards[1]["nvmlDeviceGetPowerUsage"] = lost
    assert reader.read()[1].fault
    host.boards[1] = a_board("b")
    host.now_s += RENEW_S - 1
    assert reader.read()[1].fault, "its handle is the old one"
    host.now_s += 1
    assert reader.read() == (as_read("a", 0), as_read("b", 1))
    assert host.calls == ["nvmlInit", "nvmlShutdown", "nvmlInit"]


def test_a_board_that_stays_lost_begins_nvml_anew_ever_more_rarely() -> None:
    host = Host([a_board("a"), a_board("b", nvmlDeviceGetPowerUsage=lost)])
    reader = host.reader()
    begun = list[float]()
    for _ in range(7200):
        before = host.begun
        assert reader.read()[0] == as_read("a", 0)
        if host.begun > before:
            begun.append(host.now_s - 100)
        host.now_s += 1
    apart = [later - earlier for earlier, later in pairwise(begun)]
    assert apart[:5] == [30, 60, 120, 240, 480]
    assert set(apart[5:]) == {RENEW_MOST_S}


def test_the_pause_of_a_board_that_was_back_is_short_again() -> None:
    host = Host([a_board("a", nvmlDeviceGetPowerUsage=lost)])
    reader = host.reader()
    reader.read()
    host.now_s += RENEW_S
    reader.read()
    host.boards[0]["nvmlDeviceGetPowerUsage"] = 251_500
    host.now_s += 2 * RENEW_S
    assert reader.read() == (as_read("a", 0),)
    host.boards[0]["nvmlDeviceGetPowerUsage"] = lost
    reader.read()
    before = host.begun
    host.now_s += RENEW_S
    reader.read()
    assert host.begun == before + 1


@pytest.mark.parametrize(
    "ill", [unanswered(UNKNOWN), dict.fromkeys([*V100, "nvmlDeviceGetUUID"], fails(UNKNOWN))]
)
def test_a_board_that_never_answered_is_read_once_it_does(ill: dict[str, Any]) -> None:
    host = Host([a_board("a"), a_board("b") | ill])
    reader = host.reader()
    assert reader.read()[1].uuid == "index-1"
    host.boards[1] = a_board("b")
    host.now_s += RENEW_S
    assert reader.read() == (as_read("a", 0), as_read("b", 1))


def test_handles_that_are_good_for_nothing_are_renewed() -> None:
    """Somebody else in the process has shut NVML down, say."""
    host = Host([a_board("a")])
    reader = host.reader()
    reader.read()
    host.begun += 1
    (board,) = reader.read()
    assert (board.uuid, board.power_w) == ("GPU-a", None)
    assert "power (Invalid Argument)" in board.fault
    host.now_s += RENEW_S
    assert reader.read() == (as_read("a", 0),)


def test_a_board_with_another_index_now_is_not_taken_for_the_one_without_a_uuid() -> None:
    host = Host([a_board("a", nvmlDeviceGetPowerUsage=lost), a_board("b")])
    reader = host.reader()
    reader.read()
    host.boards[:] = [a_board("b"), unanswered(UNKNOWN)]
    host.now_s += RENEW_S
    assert [board.uuid for board in reader.read()] == ["GPU-b", "index-1", "GPU-a"]


def test_healthy_boards_never_begin_nvml_anew() -> None:
    host = Host([a_board("a"), a_board("b", **dict.fromkeys(V100, not_supported))])
    reader = host.reader()
    for _ in range(5):
        reader.read()
        host.now_s += 1000
    assert host.calls == ["nvmlInit"]


def test_a_board_without_a_handle_keeps_the_uuid_that_it_had() -> None:
    host = Host([a_board("a"), a_board("b"), a_board("c")])
    reader = host.reader()
    reader.read()
    host.boards[1].update(nvmlDeviceGetPowerUsage=lost, **unanswered(UNKNOWN))
    reader.read()
    host.now_s += RENEW_S
    first, second, third = reader.read()
    assert (first, third) == (as_read("a", 0), as_read("c", 2))
    assert (second.uuid, second.index) == ("GPU-b", 1)
    assert "GPU 1 (GPU-b, Tesla V100-SXM2-16GB): cannot be read: handle (" in second.fault


@pytest.mark.parametrize(
    ("board", "words"),
    [
        (unanswered(pynvml.NVML_ERROR_GPU_IS_LOST), "it has fallen off the bus"),
        (unanswered(UNKNOWN), "cannot be read: handle (Unknown Error)"),
        (unanswered(pynvml.NVML_ERROR_NO_PERMISSION), "give it the board's device file"),
        (a_board("b", nvmlDeviceGetUUID=fails(UNKNOWN)), "cannot be read: UUID (Unknown Error)"),
        (a_board("b", nvmlDeviceGetUUID="two words"), "cannot be read: UUID (NVML said"),
        (a_board("b", nvmlDeviceGetUUID=not_supported), "cannot be read: UUID (not supported)"),
    ],
)
def test_a_board_whose_uuid_was_never_had_is_named_after_its_index(
    board: dict[str, Any], words: str
) -> None:
    first, second, third = read(a_board("a"), board, a_board("c"))
    assert (first, third) == (as_read("a", 0), as_read("c", 2))
    assert (second.index, second.uuid) == (1, "index-1")
    assert second.fault.startswith("GPU 1")
    assert words in second.fault


def test_a_handle_that_points_to_nothing_is_not_used() -> None:
    """NVML crashes on it."""
    host = Host([a_board("a")])
    host.library.nvmlDeviceGetHandleByIndex = lambda _: ctypes.POINTER(ctypes.c_int)()
    (board,) = host.reader().read()
    assert "GPU 0: cannot be read: handle (" in board.fault


def test_a_name_that_was_not_told_is_asked_again() -> None:
    host = Host([a_board("a", nvmlDeviceGetName=fails(UNKNOWN))])
    reader = host.reader()
    (board,) = reader.read()
    assert (board.name, board.power_w) == ("unknown", 251.5)
    assert board.fault.startswith("GPU 0 (GPU-a): cannot be read: name (")
    host.boards[0]["nvmlDeviceGetName"] = "Tesla V100-SXM2-16GB"
    assert reader.read() == (as_read("a", 0),)


def test_a_board_that_nvml_no_longer_lists_is_still_told_of() -> None:
    host = Host([a_board("a"), a_board("b"), a_board("c")])
    reader = host.reader()
    host.boards[1]["nvmlDeviceGetPowerUsage"] = lost
    reader.read()
    del host.boards[1]
    host.now_s += RENEW_S
    first, third, second = reader.read()
    assert (first, third) == (as_read("a", 0), as_read("c", 1))
    assert (second.uuid, second.index) == ("GPU-b", -1), "its index is another board's now"
    assert second.fault.startswith(
        "GPU 1 (GPU-b, Tesla V100-SXM2-16GB): NVML no longer lists it: reset it"
    )
    host.boards.insert(1, a_board("b"))
    host.now_s += 2 * RENEW_S
    assert reader.read() == tuple(as_read(letter, n) for n, letter in enumerate("abc"))


def test_a_board_that_is_gone_keeps_the_index_that_nobody_else_has() -> None:
    host = Host([a_board("a"), a_board("b", nvmlDeviceGetPowerUsage=lost)])
    reader = host.reader()
    reader.read()
    del host.boards[1]
    host.now_s += RENEW_S
    assert [(board.uuid, board.index) for board in reader.read()] == [("GPU-a", 0), ("GPU-b", 1)]


def test_two_boards_with_one_uuid_are_two_boards() -> None:
    first, second = read(a_board("a"), a_board("b", nvmlDeviceGetUUID="GPU-a"))
    assert (first.uuid, second.uuid) == ("GPU-a", "GPU-a@1")
    assert "another board has its UUID GPU-a" in second.fault
    assert second.power_w == 251.5


@pytest.mark.parametrize("count", [-1, 2**64 - 1, None, "2"])
def test_a_number_of_boards_that_cannot_be_is_refused(count: Any) -> None:
    host = Host([], overrides={"nvmlDeviceGetCount": lambda: count})
    with pytest.raises(Unreachable, match="NVML: nvmlDeviceGetCount said"):
        host.reader().read()
    assert host.calls == ["nvmlInit", "nvmlShutdown"], "what was begun is given back"


@pytest.mark.parametrize(
    ("capability", "cores", "sms"),
    [
        ((5, 2), 3072, 24),  # Tesla M40
        ((6, 0), 3584, 56),  # P100
        ((6, 1), 2560, 20),  # P4
        ((7, 0), 5120, 80),  # V100
        ((7, 5), 2560, 40),  # T4
        ((8, 0), 6912, 108),  # A100
        ((8, 6), 9216, 72),  # A10
        ((8, 9), 7424, 58),  # L4
        ((9, 0), 16896, 132),  # H100
        ((10, 0), 18944, 148),  # B200
        ((12, 0), 24064, 188),  # RTX PRO 6000
        ((12, 1), 6144, 48),  # GB10
        ((3, 5), 2880, None),  # Kepler: not known here
        ((99, 0), 1280, None),
        ((9, 0), 100, None),
    ],
)
def test_sms_follow_from_cores_where_their_number_is_known(
    capability: tuple[int, int], cores: int, sms: int | None
) -> None:
    (board,) = read(
        a_board(
            "a",
            nvmlDeviceGetCudaComputeCapability=capability,
            nvmlDeviceGetNumGpuCores=cores,
        )
    )
    assert (board.sm_count, board.fault) == (sms, "")


def test_sms_that_nvml_tells_itself_are_preferred() -> None:
    told = SimpleNamespace(multiprocessorCount=78, memorySizeMB=1)
    (board,) = read(a_board("a", nvmlDeviceGetAttributes=told))
    assert board.sm_count == 78


@pytest.mark.parametrize("code", [UNKNOWN, pynvml.NVML_ERROR_INVALID_ARGUMENT])
def test_a_board_that_is_no_instance_has_no_attributes(code: int) -> None:
    assert read(a_board("a", nvmlDeviceGetAttributes=fails(code))) == (as_read("a", 0),)


# -- MIG


def test_a_board_with_mig_on_is_its_instances() -> None:
    a100 = with_mig("a", {0: a_slice("x"), 3: a_slice("y")})
    first, second, other = read(a100, a_board("b"))
    assert other == as_read("b", 1)
    assert first == BoardReading(
        index=0,
        uuid="MIG-x",
        name="NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        parent="GPU-a",
        power_w=251.5,
        power_limit_w=300.0,
        sm_clock_mhz=1380.0,
        max_sm_clock_mhz=1530.0,
        memory_used_bytes=1 << 30,
        memory_total_bytes=5 << 30,
        clock_event_reasons=4,
        temperature_c=61.0,
        sm_count=14,
        pci="00000000:A0:00.0",
    )
    assert (second.uuid, second.index, second.parent) == ("MIG-y", 0, "GPU-a")


def test_instances_come_and_go() -> None:
    host = Host([with_mig("a", {0: a_slice("x")})])
    reader = host.reader()
    assert [board.uuid for board in reader.read()] == ["MIG-x"]
    larger = SimpleNamespace(multiprocessorCount=42, memorySizeMB=19968)
    host.boards[0]["slices"] = {0: a_slice("y", nvmlDeviceGetAttributes=larger), 1: a_slice("z")}
    assert [(b.uuid, b.sm_count) for b in reader.read()] == [("MIG-y", 42), ("MIG-z", 14)]
    host.boards[0]["slices"] = {0: a_slice("x", nvmlDeviceGetAttributes=larger)}
    assert [(b.uuid, b.sm_count) for b in reader.read()] == [("MIG-x", 42)]
    assert host.calls == ["nvmlInit"]


def test_a_board_with_mig_on_and_no_instance_says_so() -> None:
    (board,) = read(with_mig("a", {}))
    assert (board.uuid, board.sm_count, board.memory_total_bytes) == ("GPU-a", None, None)
    assert board.fault.startswith(
        "GPU 0 (GPU-a, NVIDIA A100-SXM4-40GB): MIG is on and it has no instances: make some"
    )


def test_a_failing_sensor_of_the_board_is_a_fault_of_its_instances() -> None:
    (board,) = read(with_mig("a", {0: a_slice("x")}, nvmlDeviceGetPowerUsage=fails(UNKNOWN)))
    assert (board.uuid, board.power_w, board.sm_count) == ("MIG-x", None, 14)
    assert board.fault.startswith("GPU 0 MIG instance 0 (MIG-x, NVIDIA A100-SXM4-40GB MIG 1g.5gb):")
    assert "power (Unknown Error)" in board.fault


@pytest.mark.parametrize("code", [UNKNOWN, pynvml.NVML_ERROR_GPU_IS_LOST])
def test_an_instance_in_trouble_leaves_the_others(code: int) -> None:
    ill = a_slice("y", nvmlDeviceGetMemoryInfo=fails(code))
    first, second = read(with_mig("a", {0: a_slice("x"), 1: ill}))
    assert (first.uuid, first.fault) == ("MIG-x", "")
    assert (second.uuid, second.memory_used_bytes) == ("MIG-y", None)
    assert second.fault


def test_an_instance_that_cannot_be_had_is_told_by_its_board() -> None:
    first, board = read(with_mig("a", {0: a_slice("x"), 1: fails(UNKNOWN)}))
    assert (first.uuid, first.fault) == ("MIG-x", "")
    assert (board.uuid, board.parent) == ("GPU-a", "")
    assert "cannot be read: MIG instance 1 (Unknown Error)" in board.fault


def test_a_lost_board_with_mig_on_is_told_as_the_board() -> None:
    host = Host([with_mig("a", {0: a_slice("x")})])
    reader = host.reader()
    reader.read()
    host.boards[0]["nvmlDeviceGetMigMode"] = lost
    (board,) = reader.read()
    assert board.uuid == "GPU-a"
    assert "it has fallen off the bus" in board.fault


def test_memory_of_an_instance_is_at_least_known_by_its_size() -> None:
    (board,) = read(with_mig("a", {0: a_slice("x", nvmlDeviceGetMemoryInfo=not_supported)}))
    assert (board.memory_used_bytes, board.memory_total_bytes) == (None, 4864 << 20)


def test_an_instance_without_a_uuid_is_named_after_its_place() -> None:
    (board,) = read(with_mig("a", {2: a_slice("x", nvmlDeviceGetUUID=fails(UNKNOWN))}))
    assert (board.uuid, board.parent, board.sm_count) == ("GPU-a/mig-2", "GPU-a", 14)


# -- whatever fails, on whichever board

CALLS = [*V100, "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo", "nvmlDeviceGetMigMode"]
CODES = [
    code
    for name, code in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(code, int)
]
WRONG = st.one_of(
    st.sampled_from(CODES).map(fails),
    st.sampled_from([TypeError("t"), ValueError("v"), AttributeError("a"), OSError("o")]).map(
        raises
    ),
    st.integers(),
    st.floats(),
    st.none(),
    st.text(),
    st.binary(),
    st.tuples(st.integers(), st.integers()),
    st.builds(
        SimpleNamespace,
        used=st.integers() | st.floats(),
        total=st.integers() | st.floats(),
        busId=st.text() | st.binary(),
    ),
)
TROUBLE = st.one_of(
    st.dictionaries(st.sampled_from(CALLS), WRONG),
    st.sampled_from(CODES).map(unanswered),
    st.dictionaries(st.sampled_from([*CALLS, "nvmlDeviceGetMaxMigDeviceCount"]), WRONG).map(
        lambda wrong: with_mig("b", {0: a_slice("x"), 1: a_slice("y", **wrong)}) | wrong
    ),
)


@given(st.lists(TROUBLE, min_size=1, max_size=4))
def test_no_trouble_of_one_board_is_another_boards(troubles: list[dict[str, Any]]) -> None:
    """Board 0 is well through everything that happens to board 1, one after the other."""
    host = Host([a_board("a"), a_board("b")])
    reader = host.reader()
    for trouble in troubles:
        host.boards[1] = a_board("b") | trouble
        for _ in range(2):
            readings = reader.read()
            assert readings[0] == as_read("a", 0)
            uuids = [board.uuid for board in readings]
            assert len(uuids) > 1, "a board in trouble is told of"
            assert len(set(uuids)) == len(uuids)
            assert all(uuid and not set(uuid) & set(" \t\n") for uuid in uuids)
            for board in readings:
                assert believable(board)
                assert board.fault.isprintable()
                assert not board.fault or f"GPU {board.index}" in board.fault or board.index < 0
        host.now_s += RENEW_MOST_S


def believable(board: BoardReading) -> bool:
    """Every number is one that a board can have."""
    numbers = [getattr(board, field.name) for field in fields(board)]
    return all(
        -50 <= number < 2**63
        for number in numbers
        if isinstance(number, int | float) and number is not board.index
    )


@given(
    st.sampled_from(["nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount"]),
    WRONG,
    st.dictionaries(st.sampled_from(CALLS), WRONG),
)
def test_whatever_nvml_does_only_our_own_errors_are_raised(
    name: str, wrong: Any, trouble: dict[str, Any]
) -> None:
    answer = wrong if callable(wrong) else lambda: wrong
    host = Host([a_board("a", **trouble)], overrides={name: answer})
    reader = host.reader()
    for _ in range(3):
        try:
            reader.read()
        except IgniterdError as error:
            assert isinstance(error, Unreachable | CannotRun)
        host.now_s += RENEW_MOST_S
    reader.close()


# -- the driver


def test_a_driver_that_was_replaced_is_named_while_calls_still_answer() -> None:
    host = Host([a_board("a"), a_board("b", nvmlDeviceGetPowerUsage=fails(UNKNOWN))])
    host.library.nvmlSystemGetDriverVersion = lambda: b"550.54.15"
    host.kernel = "550.54.15"
    reader = host.reader()
    assert reader.read()[0] == as_read("a", 0)
    host.kernel = "570.86.10"
    first, second = reader.read()
    words = "restart igniterd: the driver is now 570.86.10, the library loaded is 550.54.15"
    assert first.fault == words
    assert first.power_w == 251.5
    assert second.fault.endswith(f"; {words}")


@pytest.mark.parametrize("loaded", ["535.0-emulated", "", None])
def test_a_version_that_nobody_can_compare_says_nothing(loaded: Any) -> None:
    host = Host([a_board("a")], kernel="570.86.10")
    host.library.nvmlSystemGetDriverVersion = lambda: loaded
    assert host.reader().read() == (as_read("a", 0),)


def test_a_board_whose_calls_are_refused_names_the_driver() -> None:
    refused = fails(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    host = Host([a_board("a", nvmlDeviceGetPowerUsage=refused)], kernel="570.86.10")
    host.library.nvmlSystemGetDriverVersion = lambda: "550.54.15"
    (board,) = host.reader().read()
    words = "restart igniterd: the driver is now 570.86.10, the library loaded is 550.54.15"
    assert board.fault.startswith(f"GPU 0 (GPU-a, Tesla V100-SXM2-16GB): {words} (")
    assert board.fault.count("restart igniterd") == 1
