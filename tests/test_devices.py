"""Which GPU each device number is: every rule by hand, and a CUDA made by hand that numbers as
NVIDIA documents it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.devices import Devices, ServerFacts, devices_of
from igniterd.records import BoardReading


def board(index: int, uuid: str, bus: int, name: str = "A100", parent: str = "") -> BoardReading:
    pci = f"00000000:{bus:02X}:00.0"
    return BoardReading(index, uuid, name, sm_count=108, pci=pci, parent=parent)


# NVML's indices are not the order of the bus here
PAIR = (board(0, "GPU-aa", 0x3B), board(1, "GPU-bb", 0x0A))
FOUR = tuple(board(i, f"GPU-{i}{i}", 0x10 + i) for i in range(4))
KINDS = (board(0, "GPU-old", 0x01, "T4"), board(1, "GPU-new", 0x02, "H100"))
MIG = (
    board(0, "MIG-11", 0x10, "A100 1g", "GPU-aa"),
    board(1, "MIG-22", 0x10, "A100 1g", "GPU-aa"),
)
MIXED = (*MIG[:1], board(2, "GPU-bb", 0x20))


def read(visible: str | None = None, *labels: str, order: str | None = None) -> ServerFacts:
    return ServerFacts(visible, order, readable=True, labels=labels)


@pytest.mark.parametrize(
    ("boards", "facts", "gpus"),
    [
        # one GPU of the host, of the list, of the page
        (PAIR[:1], ServerFacts(), ("GPU-aa",)),
        (PAIR[:1], read(), ("GPU-aa",)),
        (PAIR[:1], read("0,1"), ("GPU-aa",)),
        (MIXED[:1], read("0"), ("MIG-11",)),
        (KINDS, ServerFacts(labels=("GPU-new",)), ("GPU-new",)),
        (KINDS, read("0", "GPU-new"), ("GPU-new",)),
        (KINDS, read("GPU-new"), ("GPU-new",)),
        # equal boards are in the order of the bus
        (PAIR, read(), ("GPU-bb", "GPU-aa")),
        (PAIR, read("1,0"), ("GPU-aa", "GPU-bb")),
        (PAIR, read("1"), ("GPU-aa",)),
        (PAIR, read(None, "GPU-aa", "GPU-bb"), ("GPU-bb", "GPU-aa")),
        (KINDS, read(order="PCI_BUS_ID"), ("GPU-old", "GPU-new")),
        (KINDS, read("1,0", order="PCI_BUS_ID"), ("GPU-new", "GPU-old")),
        # UUIDs and what they begin with, of any kind and in any order
        (KINDS, read("GPU-new,GPU-old"), ("GPU-new", "GPU-old")),
        (KINDS, read("GPU-n,GPU-o", "GPU-old", "GPU-new"), ("GPU-new", "GPU-old")),
        # an entry that is not there ends the list
        (FOUR, read("2,0,-1,1"), ("GPU-22", "GPU-00")),
        (FOUR, read("2,9,1"), ("GPU-22",)),
        (FOUR, read("2,,1"), ("GPU-22",)),
        (FOUR, read("GPU-2,GPU-x,GPU-1"), ("GPU-22",)),
        # what the page names has its places in the same order, whatever the indices count
        (FOUR, replace(read("1,0", "GPU-22", "GPU-33"), confined=True), ("GPU-33", "GPU-22")),
        (FOUR, replace(read(None, "GPU-33", "GPU-22"), confined=True), ("GPU-22", "GPU-33")),
        (FOUR, replace(read("1,7,0", "GPU-33"), confined=True), ("GPU-33",)),
        # the environment cannot be read: every GPU, and nobody reorders them
        (PAIR, ServerFacts(labels=("GPU-aa", "GPU-bb")), ("GPU-bb", "GPU-aa")),
        # MIG: one instance, and the page names its parent
        (MIG, read("MIG-22"), ("MIG-22",)),
        (MIG, read("MIG-22,MIG-11", "GPU-aa"), ("MIG-22",)),
        (MIG, read(), ("MIG-11",)),
        (MIXED, read(None, "GPU-aa"), ("MIG-11",)),
        (MIXED, read("GPU-aa"), ("MIG-11",)),
        (MIXED, read("GPU-bb"), ("GPU-bb",)),
        (FOUR, replace(read("GPU-22"), confined=True), ("GPU-22",)),
    ],
)
def test_what_is_known(
    boards: tuple[BoardReading, ...], facts: ServerFacts, gpus: tuple[str, ...]
) -> None:
    found = devices_of("main", (), boards, facts)
    assert (found.gpus, found.ambiguous, found.wrong) == (gpus, "", "")
    assert found.rests_on


@pytest.mark.parametrize(
    ("boards", "facts", "why"),
    [
        (PAIR, ServerFacts(), "cannot be read, and its metrics page names no GPU"),
        (FOUR, ServerFacts(labels=("GPU-00", "GPU-11")), "some GPUs without their order"),
        (KINDS, ServerFacts(labels=("GPU-old", "GPU-new")), "several kinds (H100, T4)"),
        (KINDS, read(), "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        (KINDS, read("0"), "several kinds"),
        (PAIR, read(order="BY_NAME"), "CUDA_DEVICE_ORDER of the server's process is 'BY_NAME'"),
        (PAIR, read("0,0"), "names a GPU twice"),
        (PAIR, read("GPU-a,GPU-aa"), "names a GPU twice"),
        (PAIR, read("GPU-"), "stands for 2 GPUs"),
        (PAIR, read("GPU-x"), "no GPU of this host"),
        (PAIR, read("7"), "begins with 7"),
        (PAIR, read("0,GPU-bb"), "'GPU-bb' among indices"),
        (PAIR, read("GPU-bb,0"), "'0' among GPU-… UUIDs"),
        (PAIR, read("zero"), "'zero' among indices"),
        (PAIR, read("", "GPU-aa"), "shows it no GPU, and its metrics page names GPU-aa"),
        (PAIR, read("GPU-aa", "GPU-bb"), "does not show the GPUs that its metrics page names"),
        (FOUR, read("0,1", "GPU-11", "GPU-22"), "does not show the GPUs"),
        (FOUR, read("0", "GPU-11", "GPU-22"), "does not show the GPUs"),
        (FOUR, read(None, "GPU-11", "GPU-22"), "should see every GPU"),
        (PAIR, read(None, "GPU-elsewhere"), "GPU-elsewhere, and no GPU of this host"),
        (PAIR, ServerFacts(readable=True, confined=True), "its container shows it"),
        (PAIR, ServerFacts("0", readable=True, confined=True), "container shows it is not known"),
        (PAIR, ServerFacts("GPU-bb,GPU-aa", readable=True, confined=True), "its container shows"),
        (PAIR, ServerFacts("0", readable=True, remapped="1,0"), "MPS control runs with"),
        (PAIR, ServerFacts(readable=True, remapped="1,0"), "MPS control runs with"),
        (PAIR, ServerFacts(labels=("GPU-aa", "GPU-bb"), remapped="1,0"), "MPS control runs with"),
        ((replace(PAIR[0], pci=""), PAIR[1]), read(), "bus address"),
        (MIG, ServerFacts(labels=("GPU-aa",)), "without their order"),
        (MIG, read("0"), "MIG instances"),
        (MIG, read("GPU-aa"), "stands for 2 GPUs"),
        (MIG, read("MIG-GPU-aa/1/0"), "no MIG instance begins so"),
        (MIXED, read(), "which MIG instance"),
        (MIXED, read("GPU-bb,GPU-aa"), "a GPU with MIG instances among others"),
    ],
)
def test_what_is_not_known_is_said_with_the_line_that_tells_it(
    boards: tuple[BoardReading, ...], facts: ServerFacts, why: str
) -> None:
    found = devices_of("west", (), boards, facts)
    assert (found.gpus, found.rests_on, found.wrong) == ((), "", "")
    assert why in found.ambiguous
    assert 'put in: gpus = ["' in found.ambiguous
    assert 'under [[triton]] name = "west"' in found.ambiguous


def test_the_line_has_the_server_s_gpus_in_the_order_of_the_bus() -> None:
    said = devices_of("main", (), PAIR, ServerFacts()).ambiguous
    assert 'gpus = ["GPU-bb", "GPU-aa"]  #' in said
    said = devices_of("main", (), FOUR, ServerFacts(labels=("GPU-33", "GPU-11"))).ambiguous
    assert 'gpus = ["GPU-11", "GPU-33"]  #' in said


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", "-1,0"])
def test_a_server_without_a_gpu(visible: str) -> None:
    found = devices_of("main", (), PAIR, read(visible))
    assert (found.gpus, found.ambiguous) == ((), "")
    assert "shows it no GPU" in found.rests_on


def test_without_boards_nothing_is_said_to_be_missing() -> None:
    assert devices_of("main", (), (), read("0,1")) == Devices(
        rests_on="no GPU of this host is read"
    )


def test_a_parent_that_is_read_beside_its_instances_is_no_device() -> None:
    boards = (board(0, "GPU-aa", 0x10), replace(MIG[0], index=1))
    assert devices_of("main", (), boards, read()).gpus == ("MIG-11",)


def test_what_an_assumption_rests_on_is_said() -> None:
    found = devices_of("main", (), PAIR, ServerFacts(labels=("GPU-aa", "GPU-bb")))
    assert "on the assumption that no CUDA_VISIBLE_DEVICES reorders them" in found.rests_on


def test_what_is_configured_is_believed() -> None:
    given_ = ("GPU-aa", "GPU-bb")
    for facts in (ServerFacts(), read("1"), read(None, "GPU-bb", "GPU-aa")):
        found = devices_of("main", given_, PAIR, facts)
        assert (found.gpus, found.ambiguous, found.wrong) == (given_, "", "")
    assert devices_of("main", ("GPU-x",), (), ServerFacts()).gpus == ("GPU-x",)
    assert devices_of("main", ("MIG-11",), (), read(None, "GPU-aa")).wrong == ""
    assert devices_of("main", ("MIG-11",), MIG, read(None, "GPU-aa")).wrong == ""


def test_what_is_configured_and_not_so_is_named() -> None:
    found = devices_of("main", ("GPU-aa", "GPU-cc"), PAIR, ServerFacts())
    assert found.wrong == (
        "[[triton]] main: gpus names GPU-cc, and no GPU of this host is called so: it has GPU-aa, "
        "GPU-bb"
    )
    assert found.gpus == ("GPU-aa", "GPU-cc")
    found = devices_of("main", ("GPU-00", "GPU-11"), FOUR, read(None, "GPU-33", "GPU-00"))
    assert found.gpus == ()
    assert '[[triton]] main: gpus = ["GPU-00", "GPU-11"], and the server' in found.wrong
    assert "names GPU-33, GPU-00" in found.wrong
    assert 'put in: gpus = ["GPU-00", "GPU-33"]' in found.wrong


@dataclass(frozen=True)
class Cuda:
    """Numbers devices as NVIDIA documents it. ``speeds``: of each kind, 0 by default."""

    boards: tuple[BoardReading, ...]  # that the process may see
    speeds: dict[str, int]

    def plain(self, order: str | None) -> list[BoardReading]:
        by_bus = sorted(self.boards, key=lambda b: b.pci)
        if order == "PCI_BUS_ID":
            return by_bus
        return sorted(by_bus, key=lambda b: -self.speeds.get(b.name, 0))

    def devices(self, visible: str | None, order: str | None) -> tuple[str, ...]:
        whole = self.plain(order)
        found: list[BoardReading] = []
        for entry in [] if visible is None else visible.split(","):
            there = [
                b
                for i, b in enumerate(whole)
                if entry == str(i) or (entry[:4] == "GPU-" and b.uuid.startswith(entry))
            ]
            if len(there) != 1:
                break
            if there[0] in found:
                return ()
            found += there
        return tuple(b.uuid for b in (whole if visible is None else found))


@st.composite
def hosts(draw: st.DrawFn) -> tuple[tuple[BoardReading, ...], dict[str, int]]:
    count = draw(st.integers(1, 4))
    buses = draw(st.permutations(range(1, 6)))[:count]
    names = draw(st.lists(st.sampled_from(["A", "A", "B"]), min_size=count, max_size=count))
    boards = [board(i, f"GPU-{i}{i}", buses[i], names[i]) for i in range(count)]
    return tuple(boards), {"A": draw(st.integers(1, 2)), "B": draw(st.integers(1, 2))}


ENTRIES = st.sampled_from(
    ["0", "1", "2", "3", "-1", "", "GPU-0", "GPU-11", "GPU-2", "GPU-33", "GPU-9"]
)


@given(st.data())
def test_a_map_is_cuda_s_own_or_there_is_none(data: st.DataObject) -> None:
    boards, speeds = data.draw(hosts())
    confined = data.draw(st.booleans())
    seen = data.draw(st.lists(st.sampled_from(boards), min_size=1, unique=True))
    visible = data.draw(st.none() | st.lists(ENTRIES, max_size=4).map(",".join))
    order = data.draw(st.sampled_from([None, "FASTEST_FIRST", "PCI_BUS_ID"]))
    truth = Cuda(tuple(seen) if confined else boards, speeds).devices(visible, order)
    labels = tuple(data.draw(st.permutations(truth))) if data.draw(st.booleans()) else ()
    facts = ServerFacts(visible, order, True, labels, confined)
    found = devices_of("main", (), boards, facts)
    assert bool(found.rests_on) != bool(found.ambiguous)
    # a container may hide the one GPU that is named: then the server has no device to mistake
    assert found.gpus == truth or found.ambiguous or (confined and not truth)


@given(st.data())
def test_under_an_mps_control_that_renumbers_too(data: st.DataObject) -> None:
    boards, speeds = data.draw(hosts())
    remapped = ",".join(data.draw(st.permutations([str(i) for i in range(len(boards))])))
    whole = Cuda(boards, speeds).devices(remapped, "PCI_BUS_ID")
    entries = st.lists(st.integers(0, len(boards) - 1), unique=True, min_size=1)
    visible = data.draw(st.none() | entries)
    truth = whole if visible is None else tuple(whole[i] for i in visible)
    labels = tuple(data.draw(st.permutations(truth))) if data.draw(st.booleans()) else ()
    said = None if visible is None else ",".join(map(str, visible))
    facts = ServerFacts(said, None, True, labels, remapped=remapped)
    found = devices_of("main", (), boards, facts)
    assert found.gpus == truth or found.ambiguous


@given(hosts(), st.data())
def test_with_readable_facts_equal_boards_are_always_known(
    host: tuple[tuple[BoardReading, ...], dict[str, int]], data: st.DataObject
) -> None:
    boards = tuple(replace(b, name="A") for b in host[0])
    visible = data.draw(
        st.none() | st.permutations(range(len(boards))).map(lambda v: ",".join(map(str, v)))
    )
    truth = Cuda(boards, {}).devices(visible, None)
    assert devices_of("main", (), boards, read(visible)).gpus == truth
    assert devices_of("main", (), boards, read(visible, *sorted(truth))).gpus == truth
