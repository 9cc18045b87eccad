"""Compiled search for the patterns that a linear program over patterns lacks: the pricing problem.

A pattern is what one GPU holds: a multiset of pieces. Each piece has a value, the dual of its row.
Wanted are patterns worth more than a GPU costs. It is a knapsack whose sizes depend on the company:
what pieces need together is read from a :class:`igniterd.planner.kernels.sketch.Sketch`.

Theory. Depth first, pieces by value for each unit they need alone, best first. Needs only rise with
company. So what is added to a set is worth at most what the best pieces still to come are that fit
its spare units together, each with what it needs beside that set: a knapsack, solved exactly beside
few pieces, and by the best value for a unit beside more. No pattern of the sketch is missed
unless the search reaches its limit of sets; what any pattern is worth is given from above then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from igniterd.arrays import F64, I64
from igniterd.planner.kernels.sketch import Sketch, need_of, sum_needs

MOST_PIECES = 24
"""Most pieces of a pattern."""


class Pieces(NamedTuple):
    """Pieces on one kind of GPU, as the search sees them."""

    sketch: Sketch
    model: I64  # (n,)
    memory: I64  # (n,) bytes
    family: I64  # (n,) pieces of one type have one number
    copies: I64  # (families,) how many of a family one GPU may hold
    code: I64  # (n,) a random number; a pattern's is their sum
    overlap: float


class Limits(NamedTuple):
    """What a GPU has, what it costs, and where the search ends."""

    top: int  # units
    room: int  # bytes
    cost: float  # a pattern has to be worth more
    sets: int  # looked at for each first piece
    packed: int  # sets of up to so many pieces have a knapsack of their own


class _Path(NamedTuple):
    """The sets on the way to the one looked at, by how many pieces they have."""

    chosen: I64  # (D,) pieces
    at: I64  # (D,) place in the order of the piece to be tried next
    used: I64  # (D,) units
    worth: F64  # (D,)
    worst: F64  # (D, n) interference of the worst of the set on each piece, by place
    others: F64  # (D, n) interference of all of them
    need: I64  # (D, n) units of each piece beside the set
    ahead: F64  # (D, n + 1) best value for a unit among the pieces from each place on
    # (limits.packed + 1, n + 1, units + 1) most that pieces from each place on are worth in so
    # many units
    packed: F64


@njit(cache=True, nogil=True, error_model="numpy")
def price(
    pieces: Pieces, value: F64, limits: Limits, banned: I64, found: I64
) -> tuple[int, float, int]:
    """The best pattern worth more than ``limits.cost`` for each first piece; how many, the most
    that any pattern is worth, and how many sets were looked at.

    ``value`` (n,). ``banned``: codes of patterns that are known not to hold, rising. Writes the
    pieces of each pattern into ``found`` (n, MOST_PIECES), -1 behind the last.
    """
    alone, n = pieces.sketch.alone, value.shape[0]
    ratio = np.where(alone <= limits.top, value / alone, 0.0)
    order = np.argsort(-ratio)
    path = _Path(
        np.empty(MOST_PIECES, np.int64),
        np.empty(MOST_PIECES, np.int64),
        np.empty(MOST_PIECES, np.int64),
        np.empty(MOST_PIECES),
        np.zeros((MOST_PIECES, n)),
        np.zeros((MOST_PIECES, n)),
        np.zeros((MOST_PIECES, n), np.int64),
        np.empty((MOST_PIECES, n + 1)),
        np.zeros((limits.packed + 1, n + 1, limits.top + 1)),
    )
    best_set = np.empty(MOST_PIECES, np.int64)
    rows, most, looked = 0, 0.0, 0
    for p in range(n):
        ceiling = ratio[order[p]] * limits.top
        if ceiling <= limits.cost:  # nor does any later piece start one
            return rows, max(most, ceiling), looked
        count, above, sets = _best_with(pieces, order, p, value, limits, banned, path, best_set)
        looked += sets
        most = max(most, above)
        if count > 0:
            found[rows, :] = -1
            found[rows, :count] = best_set[:count]
            rows += 1
    return rows, most, looked


@njit(cache=True, nogil=True, error_model="numpy")
def _best_with(
    pieces: Pieces,
    order: I64,
    p: int,
    value: F64,
    limits: Limits,
    banned: I64,
    path: _Path,
    best_set: I64,
) -> tuple[int, float, int]:
    """The best pattern whose first piece in ``order`` is the one at place ``p``: pieces (0: none is
    worth more than a GPU costs), what none of them is worth more than, and sets looked at."""
    first = order[p]
    path.chosen[0], path.at[1] = first, p
    path.used[1], path.worth[1] = pieces.sketch.alone[first], value[first]
    best, count, sets, depth = limits.cost, 0, 0, 1
    if value[first] > best:
        best, count, best_set[0] = value[first], 1, first
    _look_ahead(pieces, order, value, limits.top, path, depth)
    while depth >= 1:
        place, spare, worth = path.at[depth], limits.top - path.used[depth], path.worth[depth]
        if (
            place == order.shape[0]
            or depth == MOST_PIECES - 1
            or worth + _more(path, depth, place, spare) <= best
        ):
            depth -= 1
            continue
        path.at[depth] += 1
        item, need = order[place], path.need[depth, place]
        if (
            need > spare
            or worth + value[item] + _more(path, depth, place, spare - need) <= best
            or not _admitted(pieces, limits.room, path.chosen, depth, item)
        ):
            continue
        sets += 1
        if sets > limits.sets:
            above = worth + value[item] + _more(path, depth, place, spare - need)
            for d in range(1, depth + 1):
                above = max(
                    above, path.worth[d] + _more(path, d, path.at[d], limits.top - path.used[d])
                )
            return count, max(best, above), sets
        path.chosen[depth] = item
        units = sum_needs(
            pieces.sketch, pieces.model, pieces.overlap, path.chosen, depth + 1, limits.top
        )
        if units > limits.top:
            continue
        worth += value[item]
        if worth > best and not _is_banned(pieces, banned, path.chosen, depth + 1):
            best, count = worth, depth + 1
            best_set[:count] = path.chosen[:count]
        depth += 1
        path.used[depth], path.worth[depth], path.at[depth] = units, worth, place
        _look_ahead(pieces, order, value, limits.top, path, depth)
    return count, max(best, value[first]), sets


@njit(cache=True, nogil=True, error_model="numpy")
def _more(path: _Path, depth: int, place: int, spare: int) -> float:
    """What pieces from a place on are worth at most in the spare units beside a set."""
    more = spare * path.ahead[depth, place]
    for d in range(1, min(depth, path.packed.shape[0] - 1) + 1):
        more = min(more, path.packed[d, place, spare])
    return more


@njit(cache=True, nogil=True, error_model="numpy")
def _look_ahead(pieces: Pieces, order: I64, value: F64, top: int, path: _Path, depth: int) -> None:
    """What each piece from the last chosen on needs beside the set, and the best value for a unit
    among those that still fit."""
    n, s = order.shape[0], pieces.sketch
    new, spare = path.chosen[depth - 1], top - path.used[depth]
    path.ahead[depth, n] = 0.0
    if depth < path.packed.shape[0]:
        path.packed[depth, n, :] = 0.0
    for q in range(n - 1, path.at[depth] - 1, -1):
        item = order[q]
        path.ahead[depth, q] = path.ahead[depth, q + 1]
        if depth < path.packed.shape[0]:
            path.packed[depth, q, : spare + 1] = path.packed[depth, q + 1, : spare + 1]
        if path.need[depth - 1, q] > spare and depth > 1:
            path.need[depth, q] = 2 * top
            continue
        adds = s.interference[new, pieces.model[item], s.size[item]]
        worst, others = path.worst[depth - 1, q], path.others[depth - 1, q] + adds
        worst = max(worst, adds)
        path.worst[depth, q], path.others[depth, q] = worst, others
        need = need_of(s, item, 1.0 + worst + pieces.overlap * (others - worst), top)
        path.need[depth, q] = need
        if need <= spare:
            path.ahead[depth, q] = max(path.ahead[depth, q], value[item] / need)
            if depth < path.packed.shape[0]:
                packed = path.packed[depth, q]
                for u in range(need, spare + 1):
                    packed[u] = max(packed[u], packed[u - need] + value[item])


@njit(cache=True, nogil=True, error_model="numpy")
def _admitted(pieces: Pieces, room: int, chosen: I64, count: int, item: int) -> bool:
    """Whether one more piece keeps to the GPU's memory and to the number of its family."""
    memory, same = pieces.memory[item], 1
    for k in range(count):
        memory += pieces.memory[chosen[k]]
        same += pieces.family[chosen[k]] == pieces.family[item]
    return bool(memory <= room and same <= pieces.copies[pieces.family[item]])


@njit(cache=True, nogil=True, error_model="numpy")
def _is_banned(pieces: Pieces, banned: I64, chosen: I64, count: int) -> bool:
    code = 0
    for k in range(count):
        code += pieces.code[chosen[k]]
    place = np.searchsorted(banned, code)
    return bool(place < banned.shape[0] and banned[place] == code)
