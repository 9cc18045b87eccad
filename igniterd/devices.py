"""Which GPU of this host each device number of one Triton is.

Triton says ``instance_group { gpus: [1] }`` in CUDA's numbers, NVML says UUIDs. CUDA's numbers
depend on the server's process:

- ``CUDA_VISIBLE_DEVICES`` lists indices or UUIDs (a unique beginning is enough). Devices are
  numbered in the order of the list. The first entry that is not there ends it. An empty list shows
  no device. See "CUDA Environment Variables" of NVIDIA's CUDA programming guide.
- ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` numbers by bus address. The default, ``FASTEST_FIRST``, puts the
  faster kinds first. The guide does not say how equal boards are ordered; drivers order them by bus
  address. So several kinds without ``PCI_BUS_ID`` have no order that is known here.
- A process uses one MIG instance: the first that the list names, or the first there is. No GPU
  without MIG is shown beside it ("Device Enumeration" of NVIDIA's MIG user guide).
- An MPS control daemon with a list of its own renumbers the devices of its clients
  ("CUDA_VISIBLE_DEVICES" of NVIDIA's MPS documentation).

The metrics page tells the set of GPUs and not their order: Triton's ``metrics.cc`` adds a gauge for
each CUDA device by its bus address, and prometheus-cpp prints a family in the order of a hash
table. It names a MIG instance by its parent.

What is not known is said with the line that tells it. It is not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from igniterd.records import BoardReading

_PCI, _FASTEST = "PCI_BUS_ID", "FASTEST_FIRST"
_NONE = ("-1", "NoDevFiles")  # first entries that show no device
_UUIDS = ("GPU-", "MIG-")


@dataclass(frozen=True, slots=True)
class Devices:
    """The GPUs of one Triton."""

    gpus: tuple[str, ...] = ()
    """UUIDs by the server's device number; empty: not known, or none."""
    rests_on: str = ""
    """In words: what the map rests on."""
    ambiguous: str = ""
    """Why it is not known, with the line to put into the configuration; empty where it is."""
    wrong: str = ""
    """How the configuration contradicts what is seen; empty where it does not."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What was seen of one Triton's process."""

    visible: str | None = None
    """``CUDA_VISIBLE_DEVICES`` of its process; ``None``: not readable, or not set."""
    order: str | None = None
    """``CUDA_DEVICE_ORDER``, the same."""
    readable: bool = False
    """Whether the process's environment could be read at all."""
    labels: tuple[str, ...] = ()
    """``gpu_uuid`` of its metrics page's GPUs, in the page's order."""
    confined: bool = False
    """Whether it is in a container, which may show it fewer GPUs than the host has."""
    remapped: str | None = None
    """``CUDA_VISIBLE_DEVICES`` of an MPS control daemon of this host; ``None``: none has it."""


class _Unclear(Exception):
    """The numbers are not known: why."""


def devices_of(
    name: str, configured: Sequence[str], boards: Sequence[BoardReading], facts: ServerFacts
) -> Devices:
    """The GPUs of the ``[[triton]]`` called ``name``.

    ``configured`` is its ``gpus``: believed, and compared with what is seen. Without it the map
    follows from ``facts``, or is ambiguous. Without boards there is none.
    """
    parents = {board.parent for board in boards if board.parent}
    usable = [board for board in boards if board.uuid not in parents]
    if configured:
        return _told(name, configured, usable, facts)
    if not usable:
        return Devices(rests_on="no GPU of this host is read")
    try:
        gpus, rests_on = _Seen(usable, facts).devices()
    except _Unclear as why:
        return Devices(ambiguous=f"{why}; {_line(name, usable, facts)}")
    return Devices(gpus, rests_on)


def _told(
    name: str, configured: Sequence[str], boards: Sequence[BoardReading], facts: ServerFacts
) -> Devices:
    where, by_uuid = f"[[triton]] {name}: gpus", {board.uuid: board for board in boards}
    rests_on = f"gpus of [[triton]] {name}"
    missing = [uuid for uuid in configured if uuid not in by_uuid]
    if boards and missing:
        wrong = (
            f"{where} names {_and(missing)}, and no GPU of this host is called so: it has "
            f"{_and(by_uuid)}"
        )
        return Devices(tuple(configured), rests_on, wrong=wrong)
    # the page names a MIG instance by its parent; without boards that is not known
    named = {by_uuid[u].parent or u if u in by_uuid else u for u in configured}
    comparable = bool(boards) or not any(u.startswith("MIG-") for u in configured)
    if facts.labels and comparable and named != set(facts.labels):
        wrong = (
            f"{where} = {_listed(configured)}, and the server's metrics page names "
            f"{_and(facts.labels)}: {_line(name, boards, facts)}"
        )
        return Devices(wrong=wrong)
    return Devices(tuple(configured), rests_on)


class _Seen:
    """What follows from the facts. Methods raise :class:`_Unclear` with the reason."""

    def __init__(self, boards: Sequence[BoardReading], facts: ServerFacts) -> None:
        self._boards, self._facts = boards, facts
        self._mig = any(board.parent for board in boards)
        self._shown = self._labelled()
        """The boards that the page's labels stand for; empty without labels."""

    def devices(self) -> tuple[tuple[str, ...], str]:
        """UUIDs by device number, and what that rests on."""
        facts = self._facts
        if not facts.readable:
            return self._unread()
        said = "CUDA_VISIBLE_DEVICES of the server's process"
        if facts.visible is None:
            return self._all()
        entries = _entries(facts.visible)
        if not entries:
            if self._shown:
                raise _Unclear(
                    f"{said} ({facts.visible!r}) shows it no GPU, and its metrics page "
                    f"names {_and(facts.labels)}"
                )
            return (), f"{said} ({facts.visible!r}) shows it no GPU"
        found = self._by_uuid(entries) if entries[0][:4] in _UUIDS else self._by_index(entries)
        also = ", and the GPUs that its metrics page names" if self._shown else ""
        return found, f"{said} ({facts.visible}){self._order_said(entries)}{also}"

    def _labelled(self) -> list[BoardReading]:
        shown = [b for b in self._boards if {b.uuid, b.parent} & set(self._facts.labels)]
        known = {uuid for board in shown for uuid in (board.uuid, board.parent)}
        if foreign := [label for label in self._facts.labels if label not in known]:
            raise _Unclear(
                f"its metrics page names {_and(foreign)}, and no GPU of this host is called so"
            )
        return shown

    def _unread(self) -> tuple[tuple[str, ...], str]:
        """Its environment cannot be read."""
        candidates = self._shown or list(self._boards)
        what = "the only GPU its metrics page names" if self._shown else "the only GPU of this host"
        if len(candidates) == 1:
            return (candidates[0].uuid,), what
        unread = "the environment of the server's process cannot be read"
        if not self._shown:
            raise _Unclear(f"{unread}, and its metrics page names no GPU")
        if len(self._shown) < len(self._boards) or self._mig:
            # somebody chose among the GPUs, perhaps with a CUDA_VISIBLE_DEVICES of another order
            raise _Unclear(f"{unread}, and its metrics page names some GPUs without their order")
        self._not_remapped()
        return self._ordered(self._shown), (
            "its metrics page names every GPU of this host and they are of one kind: bus order, on "
            f"the assumption that no CUDA_VISIBLE_DEVICES reorders them ({unread})"
        )

    def _all(self) -> tuple[tuple[str, ...], str]:
        """There is no ``CUDA_VISIBLE_DEVICES``."""
        facts = self._facts
        unset = "the server's process has no CUDA_VISIBLE_DEVICES"
        visible = self._shown or list(self._boards)
        if len(visible) == 1:
            why = "its metrics page names one GPU" if self._shown else "this host has one GPU"
            return (visible[0].uuid,), f"{unset}, and {why}"
        if facts.confined and not self._shown:
            raise _Unclear(f"{unset}, and which GPUs its container shows it is not known")
        if not facts.confined and len(visible) < len(self._boards) and not self._mig:
            raise _Unclear(
                f"{unset}, so that it should see every GPU, and its metrics page names only "
                f"{_and(facts.labels)}"
            )
        self._not_remapped()
        if self._mig:
            return (self._first_instance(visible),), f"{unset}: CUDA takes the first MIG instance"
        which = "the GPUs that its metrics page names" if self._shown else "every GPU of this host"
        return self._ordered(visible), f"{unset}: {which}{self._order_said()}"

    def _first_instance(self, visible: Sequence[BoardReading]) -> str:
        if self._facts.confined or len({board.parent for board in self._boards}) > 1:
            raise _Unclear("which MIG instance is the first one that CUDA shows it is not known")
        return min(visible, key=lambda board: board.index).uuid

    def _by_index(self, entries: Sequence[str]) -> tuple[str, ...]:
        """``CUDA_VISIBLE_DEVICES`` as indices into what CUDA would show without it."""
        if wrong := [entry for entry in entries if not entry.strip().isdecimal()]:
            raise _Unclear(f"CUDA_VISIBLE_DEVICES has {wrong[0]!r} among indices")
        indices = [int(entry) for entry in entries]
        _once(indices)
        if len(self._shown) == 1:
            return (self._shown[0].uuid,)
        if len(self._boards) > 1:
            self._not_remapped()
            if self._mig:
                raise _Unclear("CUDA_VISIBLE_DEVICES has indices, and this host has MIG instances")
        return self._placed(indices) if self._shown else self._counted(indices)

    def _counted(self, indices: Sequence[int]) -> tuple[str, ...]:
        """Indices into all GPUs of the host: nothing else tells what they count."""
        if self._facts.confined and len(self._boards) > 1:
            raise _Unclear("which GPUs the server's container shows it is not known")
        found = _counted(self._ordered(self._boards), indices)
        if not found:
            raise _Unclear(f"CUDA_VISIBLE_DEVICES begins with {indices[0]}: no GPU of this host")
        return found

    def _placed(self, indices: Sequence[int]) -> tuple[str, ...]:
        """Whatever the indices count, the GPUs of the page have their places in the same order."""
        kept = indices[: len(self._shown)]
        counted = None if self._facts.confined else self._whole(indices)
        shown = {board.uuid for board in self._shown}
        if len(kept) < len(shown) or (counted is not None and set(counted) != shown):
            raise _Unclear(self._not_shown())
        ordered = self._ordered(self._shown)
        return tuple(ordered[sorted(kept).index(index)] for index in kept)

    def _by_uuid(self, entries: Sequence[str]) -> tuple[str, ...]:
        """``CUDA_VISIBLE_DEVICES`` as UUIDs, or as what they begin with."""
        kind = entries[0][:4]
        if wrong := [entry for entry in entries if not entry.startswith(kind)]:
            raise _Unclear(f"CUDA_VISIBLE_DEVICES has {wrong[0]!r} among {kind}… UUIDs")
        found: list[BoardReading] = []
        for entry in entries:
            board = self._begins_with(entry)
            if board is None:
                break  # CUDA ends the list here
            found.append(board)
        if not found:
            raise _Unclear(f"CUDA_VISIBLE_DEVICES begins with {entries[0]}: no GPU of this host")
        _once([board.uuid for board in found])
        if kind == "MIG-":
            found = found[:1]  # a process uses one instance
        if not self._shown and self._facts.confined and len(found) > 1:
            raise _Unclear("which of CUDA_VISIBLE_DEVICES its container shows it is not known")
        if self._shown:
            pages = {board.parent or board.uuid for board in self._shown}
            found = found[: len(pages)]
            if {board.parent or board.uuid for board in found} != pages:
                raise _Unclear(self._not_shown())
        if kind == "GPU-" and len(found) > 1 and any(board.parent for board in found):
            raise _Unclear("CUDA_VISIBLE_DEVICES has a GPU with MIG instances among others")
        return tuple(board.uuid for board in found)

    def _begins_with(self, entry: str) -> BoardReading | None:
        """The board that an entry stands for; a GPU with one MIG instance stands for that."""
        fits = [b for b in self._boards if b.uuid.startswith(entry)]
        fits += [b for b in self._boards if b.parent.startswith(entry) and b not in fits]
        if len(fits) > 1:
            raise _Unclear(f"{entry} of CUDA_VISIBLE_DEVICES stands for {len(fits)} GPUs")
        if not fits and entry.startswith("MIG-"):  # older drivers call instances otherwise
            raise _Unclear(f"CUDA_VISIBLE_DEVICES has {entry}, and no MIG instance begins so")
        return fits[0] if fits else None

    def _not_shown(self) -> str:
        return (
            "CUDA_VISIBLE_DEVICES does not show the GPUs that its metrics page names, "
            f"{_and(self._facts.labels)}"
        )

    def _not_remapped(self) -> None:
        if self._facts.remapped is not None:
            raise _Unclear(
                f"MPS control runs with CUDA_VISIBLE_DEVICES={self._facts.remapped}, and numbers "
                "the GPUs of its clients anew"
            )

    def _whole(self, indices: Sequence[int]) -> tuple[str, ...] | None:
        """``indices`` into all GPUs of the host, where their order is known."""
        try:
            return _counted(self._ordered(self._boards), indices)
        except _Unclear:
            return None

    def _ordered(self, boards: Sequence[BoardReading]) -> tuple[str, ...]:
        """``boards`` as CUDA numbers them without ``CUDA_VISIBLE_DEVICES``."""
        if len(boards) == 1:
            return (boards[0].uuid,)
        order = self._facts.order or _FASTEST
        if order not in (_PCI, _FASTEST):
            raise _Unclear(f"CUDA_DEVICE_ORDER of the server's process is {order!r}")
        if len({_bus(board) for board in boards}) < len(boards) or any(
            not _bus(board) for board in boards
        ):
            raise _Unclear("not every GPU of this host tells its bus address")
        kinds = sorted({board.name for board in boards})
        if order != _PCI and not _of_one_kind(boards):
            raise _Unclear(
                f"this host has GPUs of several kinds ({_and(kinds)}), and CUDA numbers the "
                "fastest first unless the server runs with CUDA_DEVICE_ORDER=PCI_BUS_ID"
            )
        return tuple(board.uuid for board in sorted(boards, key=_bus))

    def _order_said(self, entries: Sequence[str] = ()) -> str:
        if (entries and entries[0][:4] in _UUIDS) or len(self._shown or self._boards) == 1:
            return ""
        if self._facts.order == _PCI:
            return ", with CUDA_DEVICE_ORDER=PCI_BUS_ID"
        return ", of one kind and so in bus order"


def _entries(visible: str) -> list[str]:
    """The list up to the first entry that surely ends it."""
    entries: list[str] = []
    for entry in visible.split(","):
        if entry.strip() in _NONE or not entry.strip():
            break
        entries.append(entry)
    return entries


def _counted(ordered: Sequence[str], indices: Iterable[int]) -> tuple[str, ...]:
    """What the indices before the first that is too large stand for."""
    kept = takewhile(lambda index: index < len(ordered), indices)
    return tuple(ordered[index] for index in kept)


def _once(entries: Sequence[int | str]) -> None:
    if len(set(entries)) < len(entries):
        raise _Unclear("CUDA_VISIBLE_DEVICES names a GPU twice, and CUDA then shows none")


def _of_one_kind(boards: Sequence[BoardReading]) -> bool:
    """Whether nothing that was read of them differs."""
    readings = (
        [board.name for board in boards],
        [board.sm_count for board in boards],
        [board.memory_total_bytes for board in boards],
        [board.max_sm_clock_mhz for board in boards],
    )
    return all(len({value for value in values if value is not None}) <= 1 for values in readings)


def _bus(board: BoardReading) -> tuple[int, ...]:
    """The bus address as numbers, in order; empty where it is not known."""
    try:
        return tuple(int(part, 16) for part in board.pci.replace(".", ":").split(":"))
    except ValueError:
        return ()


def _line(name: str, boards: Sequence[BoardReading], facts: ServerFacts) -> str:
    """What to put into the configuration: a candidate in bus order."""
    labels = set(facts.labels)
    named = [board for board in boards if {board.uuid, board.parent} & labels] or list(boards)
    ordered = [b.uuid for b in sorted(named, key=lambda b: (_bus(b), b.index))] or [*facts.labels]
    return (
        f'put in: gpus = {_listed(ordered)}  # under [[triton]] name = "{name}"; the GPU that the '
        "server calls 0 first"
    )


def _listed(uuids: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{uuid}"' for uuid in uuids) + "]"


def _and(names: Iterable[str]) -> str:
    return ", ".join(names)
