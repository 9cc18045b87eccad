"""The best mix of patterns: a linear program that asks for the patterns it lacks, and its rounding.

Patterns come from tables and are evaluated exactly before the program may count on them: whenever
it has what it wants by the tables, those it uses are asked of the book. Those that fail are
forbidden, and it goes on without.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64, I64
from igniterd.planner.kernels import pricing
from igniterd.planner.kernels.pricing import MOST_PIECES, Limits, Pieces
from igniterd.planner.kernels.sketch import slowdown_of
from igniterd.planner.least_shares import copied, sketched
from igniterd.planner.pattern_program import PatternProgram, Relaxed, Rounded
from igniterd.planner.patterns import Pattern, PatternBook
from igniterd.planner.problem import Problem
from igniterd.planner.progress import report
from igniterd.planner.repair import slo_ms

_SETS = (100, 1_000)
"""Sets the search for patterns looks at for each first piece: more once fewer find nothing."""
_CLOSING = 12
"""Rounds spent on the bound when the search is done."""
_DEEP = 100_000
"""The same once, for the bound."""
SMALL = 160
"""With more pieces the search is not widened: the last per cent would take most of the time."""
_WORK = 4_000
"""Pieces times rounds."""
_ROUNDS, _SETTLING = 12, 4
_PATIENCE = 1_000_000
"""Sets looked at before no more than the fewest are, each time: one to three seconds."""
_SLOW = 0.005
"""What the program uses is evaluated once it gains less in a round."""
_BROAD, _SO_MANY = 150, 500
"""Patterns offered to the integer program beyond those of the linear one, and workloads from which
on rounding costs too little for it."""
_MANY, _FAR = 1000, 0.1
"""With more patterns those are forgotten that are worth so much less than they cost."""
_OFTEN, _LESS = 3, 1e-3
"""A piece that missed so often bears so much less slowdown than it bore."""
_WORTH = 1e-6
_TIGHT = 0.9995
"""The program is done when its bound is this near."""
_STALLED, _OVER = 2e-4, (8, 3)
"""Done too when it gained less over so many rounds, fewer while the search can be widened."""


@dataclass(frozen=True, slots=True)
class Mix:
    """GPUs with each pattern, workloads with each cut, and what no mix of patterns can cost less
    than (0 where nothing was proven)."""

    gpus: list[tuple[Pattern, int]]
    cuts: list[int]
    bound: float


class _Search:
    """The patterns known so far, and the search for more."""

    def __init__(self, problem: Problem, program: PatternProgram, book: PatternBook) -> None:
        self.program, self.book = program, book
        n = program.offer.fraction.size
        # reproducible: a pattern is told by the sum of its pieces' codes
        code = np.random.default_rng(0).integers(0, 2**58, n)
        copies = program.counts.astype(np.int64)
        self.kinds = [
            Pieces(
                sketched(problem.tables, problem.items, kind),
                problem.items.model,
                problem.memory(kind),
                problem.parent,
                copies,
                code,
                float(problem.tables.overlap[kind]),
            )
            for kind in range(len(problem.gpus))
        ]
        self.slo_ms = [slo_ms(problem, item) for item in range(n)]
        self.tops = [int(units) for units in problem.tables.units]
        self.rooms = [problem.room(kind) for kind in range(len(problem.gpus))]
        self.patterns: dict[Pattern, None] = {}
        self.bound = 0.0
        self.best: tuple[F64, F64] | None = None
        self.patience = _PATIENCE
        self.offered = np.ones(n)  # pieces that patterns are sought with
        self.by_tables = self.kinds  # what bounds are found with
        self.misses: Counter[tuple[int, int]] = Counter()

    def add(self, patterns: Iterable[Pattern]) -> int:
        """Patterns that were not known; how many."""
        new = [p for p in patterns if p not in self.patterns]
        self.patterns.update(dict.fromkeys(new))
        return len(new)

    def widen(self, relaxed: Relaxed, sets: int) -> int:
        """Add patterns that would lower the program's cost; how many.

        Half way to the duals of the best bound so far comes first: duals of the program alone swing
        (P. Wentges, Int. Transactions in Operational Research 4(2), 1997).
        """
        if self.best is not None:
            half = [(a + b) / 2.0 for a, b in zip(self.best, relaxed.duals, strict=True)]
            new = self._widen((half[0], half[1]), sets)
            if new:
                return new
        return self._widen(relaxed.duals, sets)

    def _widen(self, duals: tuple[F64, F64], sets: int) -> int:
        value, scarce = duals
        found, most = [], 0.0
        for kind in range(len(self.kinds)):
            cost = float(self.program.prices[kind] + scarce[kind])
            patterns, worth = self._price(kind, value * self.offered, cost, sets)
            found += patterns
            most = max(most, worth / cost)
        # duals that no pattern exceeds are a bound, see A. A. Farley, Operations Research 38(5),
        # 1990
        bound = self.program.dual_cost(value, scarce) / max(1.0, most)
        if bound > self.bound and self.kinds is self.by_tables and self.offered.all():
            self.bound, self.best = bound, duals
        return self.add(found)

    def offer_equal_parts(self, alone: bool) -> None:
        """From now on patterns are sought with pieces of equal cuts only, or with all."""
        equal = {parts[0] for _, parts in self.program.offer.cuts if len({*parts}) == 1}
        self.offered[:] = 1.0
        if alone:
            self.offered[[i for i in range(self.offered.size) if i not in equal]] = 0.0

    def close(self) -> None:
        """Bring the bound near, by the tables alone; what is found for it is forgotten again."""
        held, learnt = dict(self.patterns), self.kinds
        self.patience = _PATIENCE
        self.kinds = self.by_tables
        for turn in range(_CLOSING + 1):
            relaxed = self.program.relax(list(self.patterns))
            if self.bound >= _TIGHT * relaxed.cost:
                break
            spent = turn == _CLOSING or self.patience <= 0
            if spent or not self.widen(relaxed, _SETS[-1]):
                self._widen(relaxed.duals, _DEEP)
                break
        self.patterns, self.kinds = held, learnt

    def _price(self, kind: int, value: F64, cost: float, sets: int) -> tuple[list[Pattern], float]:
        pieces = self.kinds[kind]
        packed = 2 if value.size <= SMALL else 1
        limits = Limits(self.tops[kind], self.rooms[kind], cost * (1.0 + _WORTH), sets, packed)
        rows = np.empty((value.size, MOST_PIECES), dtype=np.int64)
        count, most, looked = pricing.price(pieces, value, limits, self._banned(kind), rows)
        self.patience -= looked
        return [(kind, *sorted(row[row >= 0].tolist())) for row in rows[:count]], float(most)

    def _banned(self, kind: int) -> I64:
        code = self.kinds[kind].code
        sums = [int(code[list(p[1:])].sum()) for p in self.book.failing() if p[0] == kind]
        return np.sort(np.array(sums, dtype=np.int64))

    def broaden(self, relaxed: Relaxed) -> None:
        """Evaluate patterns that are nearly used too: whole numbers may need them."""
        if self.program.counts.sum() > _SO_MANY:
            return
        cost = self.program.prices + relaxed.duals[1]
        worth = {p: relaxed.duals[0][list(p[1:])].sum() / cost[p[0]] for p in self.patterns}
        near = sorted(self.patterns, key=lambda p: -worth[p])[:_BROAD]
        self.book.ask(p for p in near if worth[p] >= 1.0 - _FAR)

    def prune(self, relaxed: Relaxed) -> None:
        """Forget patterns that are far from being used, where they are many."""
        if len(self.patterns) <= _MANY:
            return
        cost = self.program.prices + relaxed.duals[1]
        self.patterns = {
            p: None
            for p in self.patterns
            if len(p) == 2 or relaxed.duals[0][list(p[1:])].sum() >= (1.0 - _FAR) * cost[p[0]]
        }

    def unserved(self) -> bool:
        """Whether there is a workload of which no cut has only pieces that hold alone."""
        alone = {p[1] for p in self.patterns if len(p) == 2}
        served = {w for w, parts in self.program.offer.cuts if alone.issuperset(parts)}
        return len(served) < self.program.counts.size

    def usable(self, pattern: Pattern) -> bool:
        """Whether a pattern was evaluated and holds."""
        return pattern in self.book.known and self.book.holds(pattern)

    def drop_failing(self, relaxed: Relaxed) -> int:
        """Evaluate what the program uses and forget what does not hold; how many."""
        self.book.ask(relaxed.used)
        failed = [p for p in relaxed.used if not self.usable(p)]
        for pattern in failed:
            del self.patterns[pattern]
            self.learn(pattern)
        return len(failed)

    def learn(self, pattern: Pattern) -> None:
        """Of pieces that have missed in several patterns: what they bore there is too much for the
        units they had. The tables are too hopeful for some by a fifth, for many patterns alike."""
        found, kind, top = self.book.known[pattern], pattern[0], self.tops[pattern[0]]
        chosen = np.array(found.group.items, dtype=np.int64)
        if not found.placements:  # so far above the GPU that it was never tried
            return
        for place, (piece, p) in enumerate(zip(found.group.items, found.placements, strict=True)):
            if p.p99_ms <= self.slo_ms[piece]:
                continue
            self.misses[kind, piece] += 1
            if self.misses[kind, piece] < _OFTEN:
                continue
            if self.kinds is self.by_tables:
                self.kinds = [one._replace(sketch=copied(one.sketch)) for one in self.by_tables]
            pieces = self.kinds[kind]
            bore = float(
                slowdown_of(pieces.sketch, pieces.model, pieces.overlap, chosen, chosen.size, place)
            )
            more = max(0, round(top * p.share) - int(pieces.sketch.alone[piece]))
            limits = pieces.sketch.slowdown_limit[piece, : more + 1]
            limits[:] = np.minimum(limits, bore - _LESS)


def best_mix(problem: Problem, program: PatternProgram, book: PatternBook) -> Mix | None:
    """The mix that serves every workload, or as many as the GPUs there are can; ``None`` where some
    piece of a workload holds nowhere even alone."""
    search = _Search(problem, program, book)
    alone = [
        (kind, i)
        for kind, top in enumerate(search.tops)
        for i in range(program.offer.fraction.size)
        if problem.alone[kind, i] <= top and problem.fits_memory(kind, [i])
    ]
    book.ask(alone)
    search.add(p for p in alone if book.holds(p))
    if search.unserved():
        return None
    search.offer_equal_parts(alone=True)  # a far smaller search, and often nearly the best
    _generate(search)
    search.offer_equal_parts(alone=False)
    if program.offer.fraction.size <= SMALL:  # with more, what is left is not worth the time
        _generate(search)
        search.close()
    _settle(search)
    search.broaden(program.relax(list(search.patterns)))
    patterns = [p for p in search.patterns if search.usable(p)]
    rounded = program.round(patterns)
    return None if rounded is None else _mix(patterns, rounded, search.bound)


def _settle(search: _Search) -> None:
    """Evaluate what the program uses until all of it holds; in the end without asking for more."""
    for turn in itertools.count():
        relaxed = search.program.relax(list(search.patterns))
        if not search.drop_failing(relaxed):
            return
        if turn < _SETTLING:
            search.widen(relaxed, _SETS[0])


def _generate(search: _Search) -> None:
    """Solve, ask for patterns, evaluate, until neither tables nor evaluation add anything, or the
    work allowed is done."""
    program = search.program
    size = program.offer.fraction.size
    ladder = list(_SETS if size <= SMALL else _SETS[:1])
    costs: list[float] = []
    for _ in range(max(_ROUNDS, _WORK // size)):
        if search.patience <= 0:
            ladder = list(_SETS[:1])
        relaxed = program.relax(list(search.patterns))
        report(f"{len(search.patterns)} patterns; the linear program is at {relaxed.cost:.1f}")
        new = search.widen(relaxed, ladder[0])
        slow = bool(costs) and relaxed.cost > costs[-1] * (1.0 - _SLOW)
        costs.append(relaxed.cost)
        if not slow or search.drop_failing(relaxed):
            continue
        if search.bound >= _TIGHT * relaxed.cost:
            return
        over = _OVER[len(ladder) > 1]
        stalled = len(costs) > over and costs[-1] > costs[-1 - over] * (1.0 - _STALLED)
        if new and not stalled:
            search.prune(relaxed)
        elif len(ladder) > 1:
            ladder.pop(0)
            costs = costs[-1:]
        else:
            return


def _mix(patterns: Sequence[Pattern], rounded: Rounded, bound: float) -> Mix:
    gpus = [(p, n) for p, n in zip(patterns, rounded.gpus, strict=True) if n > 0]
    return Mix(gpus, rounded.cuts, bound)
