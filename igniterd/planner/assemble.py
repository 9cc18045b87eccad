"""From a mix of patterns to GPUs with workloads on them: who gets which cut, and which piece of it
goes where."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from igniterd.planner.alike import WorkloadType
from igniterd.planner.column_generation import Mix
from igniterd.planner.cuts import Offer
from igniterd.planner.patterns import Pattern


@dataclass(slots=True)
class FilledGpu:
    """A GPU with a pattern. ``who`` has for each piece of it the number of a workload, ``None``
    where nobody needs the piece."""

    pattern: Pattern
    who: list[int | None] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every piece has its workload."""
        return None not in self.who


def assemble(
    mix: Mix, offer: Offer, types: Sequence[WorkloadType]
) -> tuple[list[FilledGpu], list[int]]:
    """The GPUs, without those that stay empty, and the workloads that are left out.

    No two pieces of a workload are on one GPU.
    """
    gpus = [FilledGpu(p, [None] * (len(p) - 1)) for p, n in mix.gpus for _ in range(n)]
    seats: dict[int, deque[tuple[int, int]]] = {}
    for g, gpu in enumerate(gpus):
        for place, piece in enumerate(gpu.pattern[1:]):
            seats.setdefault(piece, deque()).append((g, place))
    waiting = [deque(one.members) for one in types]
    # cuts into most pieces first: they have least choice of seats
    order = sorted(range(len(offer.cuts)), key=lambda c: -len(offer.cuts[c][1]))
    for c in order:
        kind, pieces = offer.cuts[c]
        for _ in range(mix.cuts[c]):
            if waiting[kind]:
                _seat(waiting[kind].popleft(), pieces, gpus, seats)
    left_out = [n for members in waiting for n in members]
    return [gpu for gpu in gpus if gpu.who.count(None) < len(gpu.who)], left_out


def _seat(
    workload: int,
    pieces: Sequence[int],
    gpus: list[FilledGpu],
    seats: dict[int, deque[tuple[int, int]]],
) -> None:
    """Give each piece of a workload a seat, on GPUs it is not on yet. Where the seats left are all
    beside the workload itself, somebody else who has such a piece changes with it; where nobody
    can, it gets a GPU of its own."""
    taken: set[int] = set()
    for piece in pieces:
        free = seats.get(piece, deque())
        for _ in range(len(free)):
            g, place = free.popleft()
            if g not in taken:
                break
            free.append((g, place))
        else:
            g, place = _changed(piece, taken, free, gpus) or _opened(piece, gpus)
        gpus[g].who[place] = workload
        taken.add(g)


def _changed(
    piece: int, taken: set[int], free: deque[tuple[int, int]], gpus: list[FilledGpu]
) -> tuple[int, int] | None:
    """A seat for this piece whose workload went to a free one."""
    for _ in range(len(free)):
        to, seat = free.popleft()
        for g, gpu in enumerate(gpus):
            for place, one in enumerate(gpu.pattern[1:]):
                other = gpu.who[place]
                if one != piece or g in taken or other is None or other in gpus[to].who:
                    continue
                gpus[to].who[seat] = other
                return g, place
        free.append((to, seat))
    return None


def _opened(piece: int, gpus: list[FilledGpu]) -> tuple[int, int]:
    """The seat of a GPU more, for this piece alone."""
    kind = next(gpu.pattern[0] for gpu in gpus if piece in gpu.pattern[1:])
    gpus.append(FilledGpu((kind, piece), [None]))
    return len(gpus) - 1, 0
