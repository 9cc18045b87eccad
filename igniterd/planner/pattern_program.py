"""The linear and the integer program over patterns and cuts, solved by HiGHS through scipy.

    least   sum_p cost(p) x_p + LEFT_OUT sum_t u_t
    where   sum_c y_c + u_t           >= workloads of type t      c: cuts of t
            sum_p n(p, i) x_p         >= sum_c m(c, i) y_c        each piece i
            sum_(p of kind k) x_p     <= GPUs there are of kind k

x: GPUs with each pattern; y: workloads with each cut; u: workloads left out.
See P. C. Gilmore, R. E. Gomory, A linear programming approach to the cutting stock problem,
Operations Research 9(6), 1961, for patterns as columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from igniterd.arrays import F64
from igniterd.planner.cuts import Offer
from igniterd.planner.patterns import Pattern

_LEFT_OUT = 1e4
"""What a workload left out counts, in the dearest GPU: nobody is left out while a GPU is."""
_REPLICA = 1e-4
"""What one replica more counts, in the cheapest GPU, where the GPUs are the same; nothing above
``_FEW`` workloads, as the solver rounds a count of GPUs far sooner."""
_NONE = 1e-7
_FEW, _GAP = 200, 5e-4
_NEAR = 0.9
_MANY, _WIDE_GAP = 5000, 0.03
"""Rounding is done when it is so near the linear program: relative up to ``_FEW`` workloads; then
in GPUs of the cheapest kind, of which a whole one cannot be gained any more; above ``_MANY``
relative to what is left over of them."""
_NODES = 100
_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The linear program's answer. ``used``: the patterns in it. ``duals``: (P,) what each piece
    is worth, (K,) what one GPU more of each kind would save."""

    used: list[Pattern]
    cost: float
    duals: tuple[F64, F64]


@dataclass(frozen=True, slots=True)
class Rounded:
    """The integer program's answer: GPUs with each pattern, workloads with each cut."""

    gpus: list[int]
    cuts: list[int]


class PatternProgram:
    """Everything of the programs but the patterns."""

    def __init__(
        self, offer: Offer, counts: Sequence[int], prices: Sequence[float], most: Sequence[float]
    ) -> None:
        self.offer, self.prices = offer, np.array(prices)
        self.counts, self.most = np.array(counts, dtype=np.float64), np.array(most)
        pieces, types = offer.fraction.size, len(counts)
        rows: list[tuple[int, int, float]] = []
        for c, (kind, parts) in enumerate(offer.cuts):
            rows.append((pieces + kind, c, 1.0))
            rows += [(i, c, -float(n)) for i, n in Counter(parts).items()]
        rows += [(pieces + t, len(offer.cuts) + t, 1.0) for t in range(types)]
        row, column, value = (np.array(x) for x in zip(*rows, strict=True))
        self._rows = pieces + types + len(prices)
        shape = (self._rows, len(offer.cuts) + types)
        self._cuts = sparse.csc_array((value, (row, column)), shape=shape)
        self._least = np.concatenate([np.zeros(pieces), self.counts, -self.most])
        self._replicas = np.array([len(parts) - 1.0 for _, parts in offer.cuts])

    def relax(self, patterns: Sequence[Pattern]) -> Relaxed:
        """Solve the linear program over these patterns. Raises :class:`ArithmeticError` where the
        solver gives up."""
        matrix, cost = self._stated(patterns, 0.0)
        x, dual = self._solve(matrix, cost)
        n, pieces = len(patterns), self.offer.fraction.size
        return Relaxed(
            [p for p, used in zip(patterns, x[:n], strict=True) if used > _NONE],
            float(cost @ x),
            (
                np.maximum(dual[:pieces], 0.0),
                np.maximum(dual[pieces + self.counts.size :], 0.0),
            ),
        )

    def _solve(self, matrix: sparse.csc_array, cost: F64) -> tuple[F64, F64]:
        """(Columns used, duals of the rows)."""
        finite = np.isfinite(self._least)
        answer = linprog(
            cost,
            A_ub=-matrix[finite],
            b_ub=-self._least[finite],
            method="highs",
            options={"time_limit": _DEADLINE_S},
        )
        if answer.status != 0 or answer.x is None:
            raise ArithmeticError(f"the linear program over patterns: {answer.message}")
        dual = np.zeros(self._rows)
        dual[finite] = -answer.ineqlin.marginals
        return answer.x, dual

    def dual_cost(self, value: F64, scarce: F64) -> float:
        """What the dual program comes to at these values of pieces and scarcities of kinds."""
        least = np.full(self.counts.size, _LEFT_OUT * self.prices.max())
        for kind, parts in self.offer.cuts:
            least[kind] = min(least[kind], float(value[list(parts)].sum()))
        limited = np.isfinite(self.most)
        return float(self.counts @ least - self.most[limited] @ scarce[limited])

    def round(self, patterns: Sequence[Pattern]) -> Rounded | None:
        """Solve the integer program over these patterns; ``None`` where no answer was found.

        It knows no workload from another. Where the parts of one would have to share a GPU, it is
        solved again without the patterns that have such a part twice. The answer that leaves fewer
        out, then the cheaper one, stays.
        """
        found = self._round(patterns)
        if found is None or not (crowded := self._crowded(patterns, found)):
            return found
        apart = [all(p[1:].count(i) < 2 for i in crowded) for p in patterns]
        other = self._round([p for p, kept in zip(patterns, apart, strict=True) if kept])
        if other is None:
            return found
        left = iter(other.gpus)
        other = Rounded([next(left) if kept else 0 for kept in apart], other.cuts)
        more = self.prices.min() * sum(crowded.values())
        left_out, cost = self._left_out_and_cost(patterns, found)
        better = self._left_out_and_cost(patterns, other) < (left_out, cost + more)
        return other if better else found

    def _crowded(self, patterns: Sequence[Pattern], found: Rounded) -> dict[int, int]:
        """The pieces that some workload has more of than there are GPUs with one, and how many."""
        there: Counter[int] = Counter()
        for pattern, gpus in zip(patterns, found.gpus, strict=True):
            there.update(dict.fromkeys({*pattern[1:]}, gpus))
        lacking: dict[int, int] = {}
        for (_, parts), n in zip(self.offer.cuts, found.cuts, strict=True):
            for piece, most in Counter(parts if n else ()).items():
                if most > there[piece]:
                    lacking[piece] = max(lacking.get(piece, 0), most - there[piece])
        return lacking

    def _left_out_and_cost(
        self, patterns: Sequence[Pattern], found: Rounded
    ) -> tuple[float, float]:
        served = np.zeros(self.counts.size)
        for (kind, _), n in zip(self.offer.cuts, found.cuts, strict=True):
            served[kind] += n
        cost = sum(n * self.prices[p[0]] for p, n in zip(patterns, found.gpus, strict=True))
        return float(np.maximum(self.counts - served, 0.0).sum()), float(cost)

    def _round(self, patterns: Sequence[Pattern]) -> Rounded | None:
        workloads = self.counts.sum()
        matrix, cost = self._stated(patterns, _REPLICA if workloads <= _FEW else 0.0)
        base, gap = np.zeros(cost.size), _GAP
        if workloads > _FEW:
            x = self._solve(matrix, cost)[0]
            gap = _NEAR * float(self.prices.min()) / max(float(cost @ x), 1e-9)
            if workloads > _MANY:  # whole parts are kept, what is left over is rounded
                base, gap = np.floor(x + _NONE), _WIDE_GAP
        cost /= self.prices.min()  # a count, where there is one kind
        answer = milp(
            cost,
            constraints=LinearConstraint(matrix, self._least - matrix @ base, np.inf),
            integrality=np.ones(cost.size, dtype=np.int64),
            bounds=Bounds(0.0, np.inf),
            options={"mip_rel_gap": gap, "node_limit": _NODES, "time_limit": _DEADLINE_S},
        )
        if answer.x is None:
            return None
        n = len(patterns)
        whole = (base + np.rint(answer.x)).astype(np.int64).tolist()
        return Rounded(whole[:n], whole[n : n + len(self.offer.cuts)])

    def _stated(self, patterns: Sequence[Pattern], replica: float) -> tuple[sparse.csc_array, F64]:
        pieces, types = self.offer.fraction.size, self.counts.size
        sizes = np.array([len(p) - 1 for p in patterns], dtype=np.int64)
        kinds = np.array([p[0] for p in patterns], dtype=np.int64)
        row = np.concatenate(
            [np.array([i for p in patterns for i in p[1:]], np.int64), pieces + types + kinds]
        )
        number = np.arange(len(patterns))
        column = np.concatenate([np.repeat(number, sizes), number])
        value = np.concatenate([np.ones(int(sizes.sum())), -np.ones(len(patterns))])
        mine = sparse.csc_array((value, (row, column)), shape=(self._rows, len(patterns)))
        cost = np.concatenate(
            [
                self.prices[kinds],
                replica * self.prices.min() * self._replicas,
                np.full(types, _LEFT_OUT * self.prices.max()),
            ]
        )
        return sparse.csc_array(sparse.hstack([mine, self._cuts])), cost
