"""A rebalance in one message: as many whole moves as fit, and counts of what does not. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from igniterd.jsontext import dumps
from igniterd.messages.event import MOST_DATA

_LISTS = ("moves", "steps", "freed", "unsolved", "left_out", "rests_on")
_FOR_MOVES, _FOR_UNSOLVED = 0.7, 0.85  # of the room, so that each is heard of
_ROOM_FOR_COUNTS = 192  # and for the words of what was cut


def in_one_message(data: Mapping[str, Any], most: int = MOST_DATA) -> dict[str, Any]:
    """A ``Rebalance`` document of at most ``most`` bytes as JSON.

    The first moves are kept, each with all of its steps and the states of its hosts, so that what
    is said can be carried out as it stands. ``more_moves``, ``more_unsolved`` and ``more_left_out``
    count what is not said. ``feasible`` is of the moves that are said: a move that is not may be
    needed, but where nobody is in trouble.
    """
    if _size(data) <= most:
        return dict(data)
    said = {key: value for key, value in data.items() if key not in _LISTS}
    room = most - _size(said) - _ROOM_FOR_COUNTS
    taken = _Taken(room)
    moves, bases = _moves(data, taken, round(_FOR_MOVES * room))
    numbers = {move["number"] for move in moves}
    unsolved = taken.of(data.get("unsolved", ()), round(_FOR_UNSOLVED * room))
    left_out = taken.of(data.get("left_out", ()), room)

    cut = len(moves) < len(data["moves"])

    def more(kind: str, kept: list[Any]) -> int:
        before: int = data.get(f"more_{kind}", 0)
        return before + len(data.get(kind, ())) - len(kept)

    said |= {
        "feasible": data["feasible"] and not (cut and data["hosts"]["troubled"]),
        "why": data["why"] + (f"; the first {len(moves)} of the moves are here" if cut else ""),
        "moves": moves,
        "steps": [step for step in data["steps"] if step["move"] in numbers],
        "freed": _freed(moves) if cut else taken.of(data.get("freed", ()), room),
        "unsolved": unsolved,
        "left_out": left_out,
        "rests_on": bases,
        "more_moves": more("moves", moves),
        "more_unsolved": more("unsolved", unsolved),
        "more_left_out": more("left_out", left_out),
    }
    return said


def same_advice(one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    """Whether both say the same, whenever and from whatever ticks."""
    passing = ("number", "time_s", "rests_on")
    return one is not None and all(
        one.get(key) == other.get(key) for key in one.keys() | other.keys() if key not in passing
    )


class _Taken:
    """What is in the message so far, in bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.bytes = room, 0

    def add(self, items: Iterable[Any], most: int) -> bool:
        size = sum(_size(item) + 1 for item in items)
        if self.bytes + size > min(most, self.room):
            return False
        self.bytes += size
        return True

    def of(self, items: Iterable[Any], most: int) -> list[Any]:
        """The first ones, for as long as they fit."""
        kept: list[Any] = []
        for item in items:
            if not self.add([item], most):
                break
            kept.append(item)
        return kept


def _moves(data: Mapping[str, Any], taken: _Taken, most: int) -> tuple[list[Any], list[Any]]:
    """The first moves that fit with their steps, and the states they rest on."""
    known = {basis["host"]: basis for basis in data.get("rests_on", ())}
    steps: dict[int, list[Any]] = {}
    for step in data["steps"]:
        steps.setdefault(step["move"], []).append(step)
    kept: list[Any] = []
    bases: dict[str, Any] = {}
    for move in data["moves"]:
        hosts = {move["from"]["host"], move["to"]["host"]}
        new = {h: known[h] for h in sorted(hosts) if h in known and h not in bases}
        whole = [move, *steps.get(move["number"], ()), *new.values(), *_freed([move])]
        if not taken.add(whole, most):
            break
        kept.append(move)
        bases |= new
    return kept, list(bases.values())


def _freed(moves: Iterable[Any]) -> list[dict[str, str]]:
    """GPUs that these moves leave empty."""
    return [
        {"host": move["from"]["host"], "gpu_uuid": move["from"]["gpu_uuid"]}
        for move in moves
        if move["frees"].get("gpu")
    ]


def _size(value: Any) -> int:
    return len(dumps(value).encode())
