"""What is measured together: two co-runs of every pair of models. Pure.

One model has more of the GPU and small batches, the other less and large ones, then the other way
round, as in the shipped profile; in an order of few reloads. Where reloads are slow, every model
gets half the GPU once, and a pair's two co-runs differ in their batches alone. Every model is also
measured alone as it will be in its co-runs, so that what a neighbour costs is a difference of two
measurements.

A model whose small batches wait for their host is slowed in two ways: its host takes longer beside
anybody, and its GPU time grows beside who shares the GPU. Each is seen apart: one of its two
settings waits for the host, the other's time alone is well above the host's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from igniterd.arrays import F64
from igniterd.perf.surface import Surface
from igniterd.perf.trend import greater
from igniterd.profiler.points import Point

MORE, LESS = (0.6, 2), (0.4, 16)
"""(share, batch) of the two tenants of a co-run."""
EVEN = (4, 8)
"""Batches at half the GPU each."""
SLOW_RELOAD_S = 5.0
BELOW, ABOVE = 1.5, 2.5
"""How many times the GPU's time the host's is where a co-run is to wait for the host, and how many
times the host's the whole time is where it is not."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One tenant of a co-run."""

    model: str
    batch: int
    share: float


Run = tuple[Setting, Setting]


def operating_points(
    largest: int, unit: float, *, even: bool, surface: Surface | None = None
) -> tuple[Point, Point]:
    """(batch, share) of a model in its two settings, shares in whole units of the board, batches at
    most ``largest``; ``even``: half the GPU each, else with less of it first.

    ``surface`` is what is known of the model alone: where the host sets a floor, the setting of the
    smaller batch is below it and the other well above, as far as batches to ``largest`` go.
    """
    if even:
        half = _units(0.5, unit)
        few, many = (min(EVEN[0], largest), half), (min(EVEN[1], largest), half)
    else:
        less = _units(LESS[0], unit)
        few = min(MORE[1], largest), _units(1.0 - less, unit)
        many = min(LESS[1], largest), less
    if surface is not None and surface.floored:
        few, many = _on_the_floor(surface, few), _above_the_knee(surface, many, largest)
    return (few, many) if even else (many, few)


def _on_the_floor(surface: Surface, usual: Point) -> Point:
    """With the largest batch, halved from the usual one, that waits for the host beside others too;
    one item where none does."""
    batches = [usual[0] >> i for i in range(usual[0].bit_length())]
    gpu, host = _parts(surface, batches, usual[1])
    below = (b for b, waits in zip(batches, gpu * BELOW <= host, strict=True) if waits)
    return next(below, 1), usual[1]


def _above_the_knee(surface: Surface, usual: Point, largest: int) -> Point:
    """With the least batch, doubled from the usual one, whose time alone is well above the
    host's."""
    doubled = (usual[0] << i for i in range(largest.bit_length()))
    batches = [*(b for b in doubled if b < largest), largest]
    gpu, host = _parts(surface, batches, usual[1])
    above = (
        b for b, is_so in zip(batches, greater(host, gpu) > ABOVE * host, strict=True) if is_so
    )
    return next(above, largest), usual[1]


def _parts(surface: Surface, batches: Sequence[int], share: float) -> tuple[F64, F64]:
    """The GPU's part and the host's (ms), each (batches,)."""
    gpu, host, _ = surface.parts(np.array(batches, dtype=np.float64), np.full(len(batches), share))
    return gpu, host


def co_runs(points: Mapping[str, tuple[Point, Point]], *, even: bool) -> tuple[Run, ...]:
    """The co-runs of every pair of the models, ``points`` their :func:`operating_points`."""
    models = list(points)
    pairs = [(a, b) for a in models for b in models if a != b] if even else _few_flips(models)
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
