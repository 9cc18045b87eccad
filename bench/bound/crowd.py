"""The dearest sets of tenants that may share a GPU, at given prices; :mod:`bench.bound.proof`
says what for and why it is a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.bound.kernels import pricing
from igniterd.arrays import F64, I64

MOST = 12
"""Tenants of a GPU up to which compositions are told apart; further ones are only filled in."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """All that may be on a GPU of one kind: wholes first, then parts; n tenants, L levels of
    slowdown, U units, M models."""

    model: I64  # (n,)
    copies: I64  # (n,)
    need: I64  # (n, L) least units at each level
    # (n, U + 1, M, V) least slowdown that each, on so many units, adds to a neighbour of each model
    # and size
    harm: F64
    size: I64  # (U + 1,) which of the V sizes so many units are
    wholes: int


class Crowd:
    """Sets of more than ``more_than`` tenants, sorted by composition.

    ``begins``: where classes of harm begin, by the least that a whole of the model does on the
    units it needs alone. ``how``: what of each further neighbour's harm counts, and the step from
    level to level.
    """

    def __init__(
        self,
        tenants: Tenants,
        how: tuple[float, float],
        begins: Sequence[float],
        most: int,
        limit: int,
        *,
        more_than: int,
        last: bool,
    ) -> None:
        self.tenants, (overlap, step) = tenants, how
        top, models = tenants.harm.shape[1] - 1, tenants.harm.shape[2]
        levels_of = tenants.need.shape[1] - 1
        model, victim, ceiling, reach, harm, least = _classes(tenants, begins)
        stock = np.zeros(models, dtype=np.int64)
        np.add.at(stock, tenants.model, tenants.copies)
        counts, levels = np.zeros((2, limit, model.size), dtype=np.int64)
        found = -1
        self.most = most + 1
        while found < 0 and self.most > 1:
            self.most -= 1
            found = pricing.compositions(
                harm, victim, least, stock[model], overlap, step, top, self.most, counts, levels
            )
        found = max(found, 0)
        beyond = np.full((found, models), -1, dtype=np.int64)
        if last:
            pricing.beside(
                harm, models, overlap, step, levels_of, counts[:found], self.most, beyond
            )
        tenants_of = counts[:found].sum(axis=1)
        keep = tenants_of >= min(more_than + 1, self.most)
        self.counts, self.levels, self.beyond = (
            counts[:found][keep],
            levels[:found][keep],
            beyond[keep],
        )
        # after the classes, tenants of each model whatever harm they do
        self.model = np.append(model, np.arange(models))
        self.ceiling = np.append(ceiling, np.full(models, top))
        self.reach = np.hstack([reach, np.zeros((tenants.model.size, models), dtype=np.int64)])
        self.wanted = self._wanted(levels_of, top)
        self.worth = np.full(
            (self.model.size, levels_of + 1, int(self.wanted.max(initial=0)) + 1, top + 1), -np.inf
        )

    def _wanted(self, last: int, top: int) -> I64:
        """(C + M, L) up to how many tenants of a class, then of a model, are asked for at each
        level."""
        classes = self.counts.shape[1]
        wanted = np.zeros((self.model.size, last + 1), dtype=np.int64)
        for c in range(classes):
            np.maximum.at(wanted[c], self.levels[:, c], self.counts[:, c])
        for m in range(self.model.size - classes):
            levels = np.unique(self.beyond[:, m])
            need = self.tenants.need[self.tenants.model == m]
            for level in levels[levels >= 0].tolist():
                wanted[classes + m, level] = top // int(need[:, level].min(initial=top))
        return wanted

    def dearest(self, value: F64, limit: float, cuts: int) -> tuple[float, list[I64]]:
        """(The most any set is worth; up to ``cuts`` sets worth more than ``limit``, dearest
        first), at ``value`` (n,) of each tenant."""
        if not self.counts.size:
            return 0.0, []
        t, order = self.tenants, np.argsort(-value, kind="stable")
        own = (t.need, self.reach, t.model, t.copies, value, order, self.model, self.ceiling)
        top = self.worth.shape[3] - 1
        pricing.tabulate(*own, self.wanted, self.worth)
        further = self.worth[self.counts.shape[1] :].max(axis=2)
        found = np.empty(self.counts.shape[0])
        pricing.appraise(self.worth, further, self.counts, self.levels, self.beyond, found)
        above = np.flatnonzero(found > limit)
        sets = []
        for k in above[np.argsort(-found[above], kind="stable")][:cuts].tolist():
            chosen = np.empty(MOST + top * further.shape[0], dtype=np.int64)
            number = pricing.recover(
                *own, self.worth, further, self.counts[k], self.levels[k], self.beyond[k], chosen
            )
            sets.append(chosen[:number])
        return float(found.max()), sets


def _classes(tenants: Tenants, begins: Sequence[float]) -> tuple[I64, I64, I64, I64, F64, I64]:
    """Classes of tenants by model, size and harm.

    Their models (C,), what kind of victims they are (C,), the most units of one (C,), the units
    from which each tenant is in each (n, C), the harm they do at least (C, M V) and the fewest
    units of a tenant of each at each level (C, L).
    """
    models, sizes = tenants.harm.shape[2:]
    top = tenants.size.size - 1
    scale = tenants.harm.mean(axis=(2, 3))
    found: list[tuple[int, int, int, I64, F64, I64]] = []
    for m, v in np.ndindex(models, sizes):
        fits = (np.arange(top + 1) >= tenants.need[:, :1]) & (tenants.size == v)
        who = np.flatnonzero((tenants.model == m) & fits.any(axis=1))
        if not who.size:
            continue
        usual = who[
            (who < tenants.wholes) & (tenants.size[np.minimum(tenants.need[who, 0], top)] == v)
        ]
        usual = usual if usual.size else who
        edges = float(scale[usual, np.argmax(fits[usual], axis=1)].min()) * np.array(begins)
        level = np.searchsorted(edges, scale[who], side="right")
        most = int(np.flatnonzero(tenants.size == v).max())
        for rank in range(edges.size + 1):
            inside = (level == rank) & fits[who]
            if inside.any():
                at_most = (level <= rank) & fits[who]
                units = np.full(tenants.model.size, top + 1, dtype=np.int64)
                units[who] = np.where(at_most.any(axis=1), np.argmax(at_most, axis=1), top + 1)
                needed = np.maximum(tenants.need[who], units[who, None])
                fewest = np.where(needed <= most, needed, top + 1).min(axis=0)
                found.append(
                    (
                        m,
                        m * sizes + v,
                        most,
                        units,
                        tenants.harm[who][inside].min(axis=0).ravel(),
                        fewest,
                    )
                )
    known = [row for row in found if row[5][0] <= top]
    return (
        np.array([row[0] for row in known], dtype=np.int64),
        np.array([row[1] for row in known], dtype=np.int64),
        np.array([row[2] for row in known], dtype=np.int64),
        np.array([row[3] for row in known], dtype=np.int64)
        .reshape(len(known), tenants.model.size)
        .T.copy(),
        np.array([row[4] for row in known]).reshape(len(known), models * sizes),
        np.array([row[5] for row in known], dtype=np.int64).reshape(
            len(known), tenants.need.shape[1]
        ),
    )
