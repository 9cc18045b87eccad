"""What no plan can do without that splits no more than it must: a lower bound on GPUs, or their
cost, that knows what neighbours cost.

It holds for plans that leave whole every workload which fits some GPU alone, as the planner's do
but for sets of up to 60. (Where all may be split, parts fill the gaps that neighbours make, and the
sum of least shares is about as high.)

Linear programming duality. Give every workload i a price y_i >= 0 such that on no GPU of kind k,
whatever share of it everybody has, the tenants that hold their SLOs together are worth more than
the GPU costs. Then every plan costs at least sum y_i, as each of its GPUs costs at least what is on
it. So any y, scaled down until the dearest GPU there can be is worth its cost (Farley, Operations
Research 38(5), 1990), proves a bound; cutting planes only look for a good one, and where they stop
the bound holds.

What the dearest GPU is worth is limited from above as follows; each step admits more GPUs than
there are.

- *Parts*: a workload that fits no GPU is split. A part is worth so much of y_i that, whatever the
  split, its parts are worth y_i together, or more (:mod:`bench.bound.parts`). Of all parts
  that need as many units alone, the rate is taken to be the least, with which it needs least beside
  others and disturbs them least, and the worth to be the most.
- *Tenants*, wholes and parts, slow each other. One that takes u units adds at least harm(u) to the
  slowdown of a neighbour: least over all largest batches, over the neighbour's size and with nobody
  slowing itself, which would only make it busier and its batches larger. Tenants are put in classes
  by model and harm, each class as harmful as its least member. How many tenants of each class a GPU
  has fixes how much everybody is slowed at least, hence the units (again: more units may do less
  harm, so a tenant is in each class that it has a size for).
- The dearest tenants of a composition that fit the GPU are a knapsack, solved exactly. With too
  many compositions, those of the most tenants stand for larger ones too: further tenants, slowed by
  these, fill what is left over and disturb nobody.
- Memory, stock and the bar on two replicas of a workload on one GPU are ignored.

Everything is read from the search's tables, at the SLO itself, not the margin below it that the
search keeps. So the bound is as true as these are; what it takes for granted of them is that slower
service never lowers a P99, a utilisation or a mean batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from bench.bound.crowd import MOST, Crowd, Tenants
from bench.bound.kernels import pricing
from bench.bound.parts import part_worth
from igniterd.arrays import F64, I64
from igniterd.planner.kernels.shares import Items
from igniterd.planner.lower_bound import Curves, curves
from igniterd.queueing.kernels.lookup import Tables


@dataclass(frozen=True, slots=True)
class Effort:
    """How close to look; each field makes the bound better and slower."""

    groups: int  # workloads alike are one row of the linear program; at most about so many
    # classes of harm for GPUs with up to so many tenants (crowd.py)
    crowds: tuple[tuple[tuple[float, ...], int], ...]
    step: float  # of slowdown
    compositions: int  # at most
    rounds: int  # of cutting planes
    gap: float  # relative, to what the cutting planes can still reach, at which they stop
    sizes: int  # of workloads, for each model, that are priced apart
    alike: float  # factor within which SLOs are one to whoever splits workloads
    cuts: int = 150  # a round


EFFORT = Effort(
    groups=1500,
    crowds=(((0.6, 0.8, 0.9, 1.0, 1.1, 1.2), 2), ((0.6, 0.85, 1.0, 1.15), 3), ((1.0,), MOST)),
    step=0.005,
    compositions=60_000,
    rounds=40,
    gap=0.001,
    sizes=6,
    alike=1.02,
    cuts=300,
)
_MOST_SLOWED = 1.4
_APART = 200
"""Up to so many groups are priced one by one."""
_BOX = 1.5
"""Most of one pattern."""
_PATTERNS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2)
"""Slowdowns at which what workloads need are patterns of prices."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A bound and the prices that prove it."""

    total: float
    worth: F64  # (W,) y by workload


@dataclass(frozen=True, slots=True)
class _Groups:
    """Workloads in groups, each as easy as its easiest member in every respect; and groups in
    families, which are split alike.

    A family has one model, arrival process and need alone.
    """

    of: I64  # (W,) group of each workload
    copies: I64  # (G,)
    model: I64  # (G,)
    queue: I64  # (G,)
    rate: F64  # (G,) least
    needs: list[I64]  # by kind: (G, L) of the wholes
    heads: I64  # (F,) first group of each family
    parts: list[F64]  # by kind: (F, U + 1) what of y a part that needs u units alone is worth
    curves: list[I64]  # by family: the cells of its members


def prove(t: Tables, whole: Items, prices: Sequence[float], effort: Effort = EFFORT) -> Proof:
    """The bound on the sum of ``prices`` (one a kind) of the GPUs of any plan for these workloads,
    unsplit and at their SLO.

    Seconds for 1000 workloads. Of more than ``effort.groups`` those alike are taken together, so
    that time grows slowly.
    """
    if not whole.model.size:
        return Proof(0.0, np.empty(0))
    stretches: F64 = 1.0 + effort.step * np.arange(
        round((_MOST_SLOWED - 1.0) / effort.step) + 1, dtype=np.float64
    )
    found = curves(t, whole, effort.alike)
    groups = _grouped(t, whole, prices, found, stretches, effort)
    kinds = [
        _Kind(t, kind, groups, found, price, stretches, effort) for kind, price in enumerate(prices)
    ]
    total, worth = _cutting_planes(groups, kinds, effort)
    return Proof(total, worth[groups.of])


def _grouped(
    t: Tables, whole: Items, prices: Sequence[float], found: Curves, stretches: F64, effort: Effort
) -> _Groups:
    needs = []
    for kind in range(len(prices)):
        need = np.empty((whole.model.size, stretches.size), dtype=np.int64)
        pricing.needs_slowed(t, whole, kind, stretches, need)
        needs.append(need)
    sums = np.sum([need.sum(axis=1) for need in needs], axis=0)
    order = np.lexsort(
        (whole.rate, sums, *(need[:, 0] for need in needs), whole.queue, whole.model)
    )
    keys = np.stack([whole.model, whole.queue, *(need[:, 0] for need in needs)], axis=1)[order]
    start = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(axis=1)))
    # place within its family
    run = np.arange(order.size) - np.repeat(start, np.diff(np.append(start, order.size)))
    length = max(1, -(-order.size // max(1, effort.groups - start.size)))
    heads = np.flatnonzero(run % length == 0)
    of = np.empty(order.size, dtype=np.int64)
    of[order] = np.cumsum(run % length == 0) - 1
    parts = part_worth(found, whole.rate, prices, order, start)
    fits = np.any(
        [need[order][start, 0] <= units for need, units in zip(needs, t.units, strict=True)], axis=0
    )
    for table in parts:
        table[fits] = 0.0
    return _Groups(
        of,
        np.diff(np.append(heads, order.size)),
        whole.model[order][heads],
        whole.queue[order][heads],
        np.minimum.reduceat(whole.rate[order], heads),
        [np.minimum.reduceat(need[order], heads, axis=0) for need in needs],
        np.searchsorted(heads, start),
        parts,
        [np.unique(cells) for cells in np.split(found.of[order], start[1:])],
    )


class _Kind:
    """What GPUs of one kind can hold, and which of them are dearest at given prices of the
    groups."""

    def __init__(
        self,
        t: Tables,
        kind: int,
        groups: _Groups,
        found: Curves,
        price: float,
        stretches: F64,
        effort: Effort,
    ) -> None:
        self.price, self.top, self.alone = price, int(t.units[kind]), groups.needs[kind]
        self._tenants(t, kind, groups, found, stretches)
        self.step = effort.step
        how = float(t.overlap[kind]), effort.step
        self.crowds: list[Crowd] = []
        for begins, most in effort.crowds:
            before = self.crowds[-1].most if self.crowds else 0
            last = most == effort.crowds[-1][1]
            self.crowds.append(
                Crowd(
                    self.tenants,
                    how,
                    begins,
                    most,
                    effort.compositions,
                    more_than=before,
                    last=last,
                )
            )

    def _tenants(
        self, t: Tables, kind: int, groups: _Groups, found: Curves, stretches: F64
    ) -> None:
        """Wholes, then parts: their groups, what of y they are worth, what they need (n, L) and the
        harm they do (n, U + 1, M)."""
        top, models = self.top, t.curve_ms.shape[1]
        rates = found.rates[kind]
        cell, size = np.nonzero(rates)
        below = Items(
            found.model[cell],
            found.queue[cell],
            found.goal_ms[cell],
            np.maximum(rates[cell, size - 1], 1e-9),
        )
        part_need = np.full((*rates.shape, stretches.size), top + 1, dtype=np.int64)
        need = np.empty((cell.size, stretches.size), dtype=np.int64)
        pricing.needs_slowed(t, below, kind, stretches, need)
        part_need[cell, size] = np.maximum(need, size[:, None])
        harm = np.zeros((cell.size, top + 1, models, t.gain_units.size))
        pricing.harms(t, below, kind, size, harm)
        part_harm = np.full((*rates.shape, *harm.shape[1:]), np.inf)
        part_harm[cell, size] = harm
        wholes = Items(groups.model, groups.queue, np.zeros(groups.rate.size), groups.rate)
        harm = np.zeros((groups.rate.size, top + 1, models, t.gain_units.size))
        pricing.harms(t, wholes, kind, self.alone[:, 0], harm)
        families, factors, all_needs, all_harms = (
            [np.empty(0, np.int64)],
            [np.empty(0)],
            [self.alone],
            [harm],
        )
        for family, (cells, head) in enumerate(
            zip(groups.curves, groups.heads.tolist(), strict=True)
        ):
            sizes = np.flatnonzero(groups.parts[kind][family])
            # the largest part is at most as large as the whole
            sizes = sizes[sizes <= self.alone[head, 0]]
            families.append(np.full(sizes.size, family))
            factors.append(groups.parts[kind][family, sizes])
            all_needs.append(part_need[cells][:, sizes].min(axis=0))
            all_harms.append(part_harm[cells][:, sizes].min(axis=0))
        self.wholes, self.heads = groups.rate.size, groups.heads
        self.family, self.factor = np.concatenate(families), np.concatenate(factors)  # of the parts
        self.tenants = Tenants(
            np.append(groups.model, groups.model[groups.heads[self.family]]),
            np.append(groups.copies, np.full(self.family.size, top)),
            np.concatenate(all_needs),
            np.concatenate(all_harms),
            np.argmin(np.abs(t.gain_units[:, None] - np.arange(top + 1)), axis=0),
            self.wholes,
        )

    def _worth(self, y: F64) -> tuple[F64, I64, F64]:
        """Of every tenant: what it is worth, whose worth that is a part of, and the part; a part is
        one of the dearest of its family."""
        edges = [*self.heads.tolist(), self.wholes]
        dearest = np.array(
            [first + int(np.argmax(y[first:last])) for first, last in itertools.pairwise(edges)],
            dtype=np.int64,
        )
        group = np.append(np.arange(self.wholes), dearest[self.family])
        factor = np.append(np.ones(self.wholes), self.factor)
        return y[group] * factor, group, factor

    def dearest(self, y: F64, cuts: int) -> tuple[float, list[F64]]:
        """(The most a GPU is worth, over its price; GPUs above their price, as how much of each
        group, dearest first)."""
        value, group, factor = self._worth(y)
        most = 0.0
        gpus: list[F64] = []
        for crowd in self.crowds:
            found, sets = crowd.dearest(value, self.price * (1.0 + 1e-7), cuts)
            most = max(most, found)
            gpus += [_amounts(group[chosen], factor[chosen], y.size) for chosen in sets]
        return most / self.price, gpus


def _amounts(groups: I64, parts: F64, size: int) -> F64:
    """How much of each group a GPU holds."""
    found = np.zeros(size)
    np.add.at(found, groups, parts)
    return found


def _cutting_planes(groups: _Groups, kinds: Sequence[_Kind], effort: Effort) -> tuple[float, F64]:
    """(The bound, y by group): prices as high as the GPUs seen so far allow, and from the dearest
    GPUs they leave, the next to see.

    y is a mixture of a few patterns, so that the linear program stays small however many groups
    there are.
    """
    patterns = _patterns(groups, kinds, effort)
    gain = groups.copies @ patterns
    best, best_y = 0.0, np.zeros(groups.copies.size)
    rows: list[F64] = []
    limits: list[float] = []
    reachable, y = math.inf, best_y
    trial = _first(groups, kinds)
    for _ in range(effort.rounds):
        dearest, seen = 0.0, len(rows)
        for kind in kinds:
            over, gpus = kind.dearest(trial, effort.cuts)
            dearest = max(dearest, over)
            rows += [gpu @ patterns for gpu in gpus]
            limits += [kind.price] * len(gpus)
        if float(groups.copies @ trial) > best * dearest:
            best, best_y = float(groups.copies @ trial) / dearest, trial / dearest
        if len(rows) == seen and trial is y:  # nothing is above its price: the best there is
            break
        before = reachable
        if len(rows) > seen or not math.isfinite(reachable):
            y = patterns @ _highest(gain, rows, limits)
            reachable = float(groups.copies @ y)
        if best >= reachable * (1.0 - effort.gap):
            break
        trial = 0.5 * (best_y + y) if len(rows) > seen and reachable < before * (1.0 - 1e-9) else y
    return best, best_y


def _first(groups: _Groups, kinds: Sequence[_Kind]) -> F64:
    """Prices to start from: what each group needs when slowed a little."""
    return _cost(groups, kinds, round(0.08 / kinds[0].step))


def _cost(groups: _Groups, kinds: Sequence[_Kind], level: int) -> F64:
    """(G,) what the units each group needs at a level of slowdown cost, on the best kind; else what
    its densest parts do."""
    costs = [
        np.where(
            k.alone[:, 0] <= k.top, np.minimum(k.alone[:, level], k.top) / k.top * k.price, np.inf
        )
        for k in kinds
    ]
    found = np.min(costs, axis=0)
    with np.errstate(divide="ignore"):
        parts = [
            (k.price / k.top * np.arange(k.top + 1)[1:] / found[:, 1:]).min(axis=1)
            for k, found in zip(kinds, groups.parts, strict=True)
        ]
    split = np.repeat(np.min(parts, axis=0), np.diff(np.append(groups.heads, found.size)))
    return np.asarray(np.where(np.isfinite(found), found, np.where(np.isfinite(split), split, 0.0)))


def _patterns(groups: _Groups, kinds: Sequence[_Kind], effort: Effort) -> F64:
    """(G, P) what each group needs at some levels of slowdown, for each model and range of sizes
    apart."""
    size = _cost(groups, kinds, 0)
    if size.size <= _APART:
        return np.diag(size)
    split = np.all([kind.alone[:, 0] > kind.top for kind in kinds], axis=0)
    columns = []
    for m in np.unique(groups.model):
        who = (groups.model == m) & ~split
        edges = (
            np.quantile(
                np.repeat(size[who], np.minimum(groups.copies[who], 1000)),
                np.arange(1, effort.sizes) / effort.sizes,
            )
            if who.any()
            else ()
        )
        rank = np.searchsorted(np.unique(edges), size, side="right")
        for r in np.unique(rank[who]):
            chosen = who & (rank == r)
            columns += [
                np.where(chosen, _cost(groups, kinds, round(slowed / kinds[0].step)), 0.0)
                for slowed in _PATTERNS
            ]
        chosen = (groups.model == m) & split
        if chosen.any():
            columns.append(np.where(chosen, size, 0.0))
    return np.stack(columns, axis=1)


def _highest(gain: F64, rows: Sequence[F64], limits: Sequence[float]) -> F64:
    """How much of each pattern makes prices of most worth in all under which no GPU of ``rows`` is
    worth more than its limit."""
    table = np.array(rows).reshape(len(rows), gain.size)
    answer = linprog(-gain, A_ub=table, b_ub=np.array(limits), bounds=(0.0, _BOX), method="highs")
    if answer.x is None:  # the solver gave up: nothing is proved by nothing
        return np.zeros(gain.size)
    return np.asarray(np.maximum(answer.x, 0.0), dtype=np.float64)
