"""Who gets which cut, and which piece of it goes where."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from igniterd.planner.alike import WorkloadType
from igniterd.planner.assemble import FilledGpu, assemble
from igniterd.planner.column_generation import Mix
from igniterd.planner.cuts import Offer
from igniterd.planner.patterns import Pattern
from igniterd.planner.workloads import Workload

CUTS = [(0, (0,)), (0, (1, 1)), (0, (2, 3)), (1, (4,)), (1, (5, 5, 5)), (1, (5, 6))]
OFFER = Offer(np.array([1.0, 0.5, 0.75, 0.25, 1.0, 1 / 3, 2 / 3]), CUTS)


def types(counts: list[int]) -> list[WorkloadType]:
    """The workloads are numbered through."""
    first, found = 0, []
    for t, count in enumerate(counts):
        members = tuple(range(first, first + count))
        found.append(WorkloadType(Workload(f"T{t}", "alexnet", 10, 100), members))
        first += count
    return found


def placed(gpus: list[FilledGpu]) -> dict[int, list[int]]:
    """The pieces of each workload, rising."""
    pieces: dict[int, list[int]] = {}
    for gpu in gpus:
        for piece, who in zip(gpu.pattern[1:], gpu.who, strict=True):
            if who is not None:
                pieces.setdefault(who, []).append(piece)
    return {who: sorted(mine) for who, mine in pieces.items()}


def test_two_halves_are_on_two_gpus() -> None:
    """Two GPUs with two halves each hold two workloads, one half of each on each."""
    mix = Mix([((0, 1, 1), 2)], [0, 2, 0, 0, 0, 0], 0.0)
    gpus, left_out = assemble(mix, OFFER, types([2, 0]))
    assert left_out == []
    assert [sorted(n for n in gpu.who if n is not None) for gpu in gpus] == [[0, 1], [0, 1]]
    assert all(gpu.whole for gpu in gpus)


def test_who_has_a_choice_changes_seats_with_who_has_none() -> None:
    """The first workload took the GPUs with one seat each; the second cannot have both others."""
    mix = Mix([((0, 1), 2), ((0, 1, 1), 1)], [0, 2, 0, 0, 0, 0], 0.0)
    gpus, left_out = assemble(mix, OFFER, types([2, 0]))
    assert left_out == []
    assert len(gpus) == 3
    assert placed(gpus) == {0: [1, 1], 1: [1, 1]}
    assert all(len({*gpu.who}) == len(gpu.who) for gpu in gpus)


def test_a_gpu_more_where_all_seats_are_beside_the_workload_itself() -> None:
    mix = Mix([((0, 1, 1), 1)], [0, 1, 0, 0, 0, 0], 0.0)
    gpus, left_out = assemble(mix, OFFER, types([1, 0]))
    assert left_out == []
    assert [gpu.who.count(0) for gpu in gpus] == [1, 1]


def test_who_has_no_cut_is_left_out_and_empty_gpus_go() -> None:
    """One of three is served; the GPU for another type stays empty."""
    mix = Mix([((0, 0), 1), ((0, 4), 1)], [1, 0, 0, 0, 0, 0], 0.0)
    gpus, left_out = assemble(mix, OFFER, types([3, 0]))
    assert len(left_out) == 2
    assert [gpu.pattern for gpu in gpus] == [(0, 0)]
    assert gpus[0].who == [({0, 1, 2} - {*left_out}).pop()]


@st.composite
def mixes(draw: st.DrawFn) -> tuple[Mix, list[int]]:
    """Cuts, and GPUs of random company with a seat for each of their pieces, some with more."""
    cuts = draw(st.lists(st.integers(0, 5), min_size=len(CUTS), max_size=len(CUTS)))
    seats = [i for (_, pieces), n in zip(CUTS, cuts, strict=True) for i in pieces * n]
    seats += draw(st.lists(st.sampled_from(sorted({*seats}) or [0]), max_size=4))
    seats = draw(st.permutations(seats))
    gpus: Counter[Pattern] = Counter()
    while seats:
        size = draw(st.integers(1, 4))
        gpus[0, *sorted(seats[:size])] += 1
        seats = seats[size:]
    counts = [sum(n for (t, _), n in zip(CUTS, cuts, strict=True) if t == kind) for kind in (0, 1)]
    # the program may give out more cuts than there are workloads, or fewer
    counts = [max(0, count + draw(st.integers(-1, 1))) for count in counts]
    return Mix(list(gpus.items()), cuts, 0.0), counts


@given(mixes())
def test_everybody_gets_the_pieces_of_one_cut(drawn: tuple[Mix, list[int]]) -> None:
    """On different GPUs, in seats that the mix has; nobody is left out whom it has a cut for."""
    mix, counts = drawn
    gpus, left_out = assemble(mix, OFFER, types(counts))
    pieces = placed(gpus)
    assert sorted([*pieces, *left_out]) == list(range(sum(counts)))
    for who, mine in pieces.items():
        kind = int(who >= counts[0])
        assert mine in [sorted(cut) for t, cut in CUTS if t == kind]
    for gpu in gpus:
        on_it = [n for n in gpu.who if n is not None]
        assert on_it
        assert len({*on_it}) == len(on_it)
        assert len(gpu.who) == len(gpu.pattern) - 1
    for kind in (0, 1):
        given = sum(n for (t, _), n in zip(CUTS, mix.cuts, strict=True) if t == kind)
        missing = sum(int(n >= counts[0]) == kind for n in left_out)
        assert missing == max(0, counts[kind] - given)
    # beyond the GPUs of the mix only single pieces are opened
    more = Counter(gpu.pattern for gpu in gpus) - Counter(dict(mix.gpus))
    assert all(len(pattern) == 2 for pattern in more)
