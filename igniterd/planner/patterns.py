"""Patterns: what one GPU may hold, each evaluated exactly once and kept.

The search reads tables. They are off by a unit or two beside neighbours. So a pattern that fails
with the shares of the tables is tried again with shares moved from who has time to who misses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from igniterd.planner.evaluate import Placement, evaluate
from igniterd.planner.least_shares import Group, ShareSolver
from igniterd.planner.repair import place, slo_ms

Pattern = tuple[int, ...]
"""A kind of GPU, then the pieces on one of them, rising."""
_TRIES = 4
_HOLDS = 1.0 + 1e-9
_GIVES = 1.3
"""P99 grows about like this power of how much smaller a share is: who could give a unit."""
_FAR = 1.1
"""Who misses by more gets two units."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A pattern as evaluated: what each piece needs there, how it is placed, and the worst P99 as a
    fraction of its SLO."""

    group: Group
    placements: list[Placement]
    strain: float


@dataclass(slots=True)
class PatternBook:
    """What is known of patterns."""

    solver: ShareSolver
    level: float
    known: dict[Pattern, Evaluated] = field(default_factory=dict)

    def ask(self, patterns: Iterable[Pattern]) -> None:
        """Evaluate those not evaluated yet."""
        pending = []
        for pattern in (p for p in patterns if p not in self.known):
            group = self.solver.group(pattern[0], list(pattern[1:]))
            if group.total >= 2 * int(self.solver.problem.tables.units[group.kind]):
                self.known[pattern] = Evaluated(group, [], math.inf)  # far above the GPU
            else:
                pending.append((group, place(self.solver.problem, group)))
        for _ in range(_TRIES):
            pending = self._try(pending)

    def holds(self, pattern: Pattern) -> bool:
        """Whether every P99 of an evaluated pattern is within its SLO."""
        return self.known[pattern].strain <= _HOLDS

    def failing(self) -> list[Pattern]:
        """All patterns that were found not to hold."""
        return [p for p in self.known if not self.holds(p)]

    def _try(
        self, pending: Sequence[tuple[Group, list[Placement]]]
    ) -> list[tuple[Group, list[Placement]]]:
        """Evaluate these placements and keep what is better than before; those to be tried with
        other shares."""
        problem, left = self.solver.problem, []
        evaluate(
            [(problem.gpus[g.kind], placements) for g, placements in pending], level=self.level
        )
        for group, placements in pending:
            top = int(problem.tables.units[group.kind])
            pattern = (group.kind, *group.items)
            strains = [
                p.p99_ms / slo_ms(problem, i) for i, p in zip(group.items, placements, strict=True)
            ]
            worst = math.inf if group.total > top else max(strains)
            if pattern not in self.known or worst < self.known[pattern].strain:
                self.known[pattern] = Evaluated(group, placements, worst)
            if worst <= _HOLDS:
                continue
            units = shifted([round(top * p.share) for p in placements], strains, top)
            if units is not None:
                new = [replace(p, share=u / top) for p, u in zip(placements, units, strict=True)]
                left.append((replace(group, units=units, total=sum(units)), new))
        return left


def shifted(units: Sequence[int], strain: Sequence[float], top: int) -> list[int] | None:
    """Units after a shift, given P99 over SLO of each; ``None`` where nobody can give any."""
    new = [u + (s > 1.0) + (not s <= _FAR) for u, s in zip(units, strain, strict=True)]
    while sum(new) > top:
        after = [
            s * (u / (u - 1)) ** _GIVES if s <= 1.0 and u > 1 else math.inf
            for u, s in zip(new, strain, strict=True)
        ]
        least = min(after)
        if least > 1.0:
            return None
        new[after.index(least)] -= 1
    return new
