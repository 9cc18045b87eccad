"""Which co-runs to measure, in an order of few reloads. Pure.

Two co-runs a pair of models: one has more of the GPU and small batches, the other less and large
ones, then the other way round, as in the shipped profile. Where reloads are slow, every model gets
half the GPU once, and a pair's two co-runs differ in their batches alone. Every model is also
measured alone as it will be in its co-runs, so that what a neighbour costs is a difference of two
measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[int, float]
"""(batch, share)."""
MORE, LESS = (0.6, 2), (0.4, 16)
"""(share, batch) of the two tenants of a co-run."""
EVEN = (4, 8)
"""Batches at half the GPU each."""
SLOW_RELOAD_S = 5.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One tenant of a co-run."""

    model: str
    batch: int
    share: float


Run = tuple[Setting, Setting]


def operating_points(largest: int, unit: float, *, even: bool) -> tuple[Point, Point]:
    """(batch, share) of the two tenants of a co-run, shares in whole units of the board; ``even``:
    half the GPU each."""
    if even:
        half = _units(0.5, unit)
        return (min(EVEN[0], largest), half), (min(EVEN[1], largest), half)
    less = _units(LESS[0], unit)
    return (min(LESS[1], largest), less), (min(MORE[1], largest), _units(1.0 - less, unit))


def co_runs(largest: dict[str, int], unit: float, *, even: bool) -> tuple[Run, ...]:
    """The co-runs of every pair of the models, ``largest`` their largest batches."""
    models = list(largest)
    pairs = [(a, b) for a in models for b in models if a != b] if even else _few_flips(models)
    points = {m: operating_points(largest[m], unit, even=even) for m in models}
    return tuple((Setting(a, *points[a][0]), Setting(b, *points[b][1])) for a, b in pairs)


def _few_flips(models: Sequence[str]) -> list[tuple[str, str]]:
    """Every ordered pair (less, more), so that few models change their share from one to the next.

    The models take the lesser share one after another, and then give it back in the same order: 2 n
    - 1 changes in all.
    """
    order, done = list[tuple[str, str]](), set[tuple[str, str]]()

    def add(less: Sequence[str], more: Sequence[str]) -> None:
        fresh = [(s, g) for s in less for g in more if (s, g) not in done]
        order.extend(fresh)
        done.update(fresh)

    for count in range(1, len(models)):
        add(models[:count], models[count:])
    for count in range(1, len(models)):
        add(models[count:], models[:count])
    return order


def _units(share: float, unit: float) -> float:
    """``share`` as a whole number of units, at most the largest one that fits half the board
    twice."""
    units = round(1.0 / unit)
    return max(1, int(share * units + 1e-9)) / units
