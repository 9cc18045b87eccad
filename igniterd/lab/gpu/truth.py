"""Ground truth of the emulated GPU: the measured tables, read between their points by plain rules,
and nothing else.

Nothing here knows the daemon's model. The rules, all of them:

Shares
    A share counts in units of two SMs (2.5 % of a V100) and is rounded up to the next unit, as MPS
    does.
Alone (``solo.csv``: every batch 1..32 at 20, 40, 50, 60 and 80 %)
    Between two measured shares, log latency is linear in log share. The columns at 10 % and 100 %
    are the neighbouring column (20 or 80 %) times the measured ratio at batches 1, 16 and 32
    (``solo.csv`` for batch 1; ``profile.json`` with its transfers for 16 and 32), interpolated in
    log batch. Below 10 % the line from 20 to 10 % goes on.
Beside others (``pairs.csv``)
    The excess of ``a`` beside ``b`` is latency_a / solo_a - 1, measured with share_a + share_b = 1.
    It is linear in log2 of both batches and in share_a, and constant beyond the measured range
    (batches 2..32, shares 20..80 %). Beside a copy of itself it is ``activetime_2 / activetime_1 -
    1`` from ``profile.json``, one figure for all batches and shares. With several neighbours the
    excesses add. Each is scaled by share_b / (1 - share_a), at most 1: a neighbour that holds less
    of the GPU than it held when it was measured disturbs less.
Host (not measured in these tables; without a :class:`~igniterd.lab.gpu.floor.HostFloor` no effect)
    A batch takes the longer of the GPU's time, as above, and the host's. Beside any neighbour that
    executes the host takes 1 + ``rise`` times as long, whoever it is and however many there are. A
    model with a floor keeps the GPU busy for a part of its time: the GPU's time alone over the
    longer of that and the raised floor. Its excess on others, its part of an over-granted board,
    its turns and the power that it adds are multiplied by that part.
Power, clock (``profile.json``: 9 points a model, 1 to 5 copies of vgg19)
    Board power is idle power plus what each tenant adds when alone, at most the board's limit. The
    clock is the lowest any tenant has alone, and no higher than vgg19's copies ran at the same
    added-up power.
Memory
    Not measured in these tables: a context, the weights (fp32) and activations proportional to the
    largest batch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from igniterd.arrays import F64
from igniterd.lab.gpu.floor import NO_FLOOR, HostFloor

SHARE_UNIT = 0.025  # two of the V100's 80 SMs
UNITS = 40  # units in the whole board
MAX_BATCH = 32
BOARD_MEMORY_BYTES = 16_160 * 2**20  # what a V100-SXM2-16GB reports
# Dispersion of a single execution around its mean. The tables give means only; these are the
# emulator's own choice.
DISPERSION_CV = 0.05
STRAGGLER_CHANCE = 0.0005  # one execution in 2,000 ...
STRAGGLER_FACTOR = 1.5  # ... takes half as long again

_DATA = Path(__file__).parents[2] / "data" / "v100"
_MIB = 2**20
_CONTEXT_BYTES = 400 * _MIB  # CUDA context, cuDNN and workspace of one process
WEIGHTS_BYTES = {
    "alexnet": 233 * _MIB,
    "resnet50": 98 * _MIB,
    "vgg19": 548 * _MIB,
    "ssd": 100 * _MIB,
}
# for each item of a batch
ACTIVATION_BYTES = {
    "alexnet": 6 * _MIB,
    "resnet50": 24 * _MIB,
    "vgg19": 40 * _MIB,
    "ssd": 60 * _MIB,
}


def share_units(share: float) -> int:
    """Units of two SMs that a share (0, 1] grants, rounded up. Raises ``ValueError`` outside (0,
    1]."""
    if not 0.0 < share <= 1.0 + 1e-9:
        raise ValueError(
            f"share {share!r} is not a fraction of the GPU: give a number above 0 and at most 1"
        )
    return min(UNITS, max(1, ceil(share / SHARE_UNIT - 1e-6)))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A tenant executing at the same moment: its model, its batch (1..32), its share (0, 1] and the
    part of the time, in (0, 1], for which it keeps the GPU busy."""

    model: str
    batch: int
    share: float
    busy: float = 1.0


@dataclass(frozen=True, slots=True)
class TruthTables:
    """Dense tables of some models, in the order of ``models``; batch and share unit are indices,
    index 0 is unused (zero).

    ``solo_ms[m, batch, unit]``, ``excess[a, b, batch_a, batch_b, unit_a]`` (a fraction, before the
    scaling by shares), ``power_w[m, batch, unit]`` (whole board, alone), ``clock_mhz[m, batch,
    unit]``; batch 0..32, unit 0..40.
    """

    models: tuple[str, ...]
    solo_ms: F64
    excess: F64
    power_w: F64
    clock_mhz: F64
    idle_power_w: float

    def save(self, path: Path) -> None:
        """Write them to an ``.npz`` file, for the processes that emulate a model each."""
        with path.open("wb") as file:
            np.savez(
                file,
                models=np.asarray(self.models),
                solo_ms=self.solo_ms,
                excess=self.excess,
                power_w=self.power_w,
                clock_mhz=self.clock_mhz,
                idle_power_w=np.float64(self.idle_power_w),
            )

    @classmethod
    def load(cls, path: Path) -> TruthTables:
        """Read what :meth:`save` wrote."""
        with np.load(path) as kept:
            names = tuple(str(n) for n in kept["models"])
            return cls(
                names,
                kept["solo_ms"],
                kept["excess"],
                kept["power_w"],
                kept["clock_mhz"],
                float(kept["idle_power_w"]),
            )


class Truth:
    """The measured board. Make one with :meth:`v100`."""

    def __init__(self, solo: TruthTables, board: dict[str, Any]) -> None:
        self.board = board
        """The board's own figures, with the names of ``profile.json``'s ``hardware``."""
        self._tables = solo
        self._index = {name: i for i, name in enumerate(solo.models)}
        self.idle_power_w = solo.idle_power_w
        self.power_limit_w = float(board["maxGPUpower"])
        self.max_clock_mhz = float(board["maxGPUfrequency"])
        each = float(board["power"][0]) - self.idle_power_w
        self._demand_w = self.idle_power_w + each * np.arange(1, len(board["frequency"]) + 1)
        self._demand_mhz = np.asarray(board["frequency"], dtype=np.float64)

    @staticmethod
    @cache
    def v100() -> Truth:
        """The V100 of ``igniterd/data/v100``."""
        profile = json.loads((_DATA / "profile.json").read_text())
        return Truth(_build_tables(profile), profile["hardware"])

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models measured."""
        return self._tables.models

    def tables(self, models: Sequence[str] | None = None) -> TruthTables:
        """Dense tables of ``models`` in that order (all of them when not given). Raises
        ``KeyError`` for a model not measured."""
        if models is None:
            return self._tables
        pick = np.asarray([self._row(m) for m in models], dtype=np.int64)
        full = self._tables
        return TruthTables(
            tuple(models),
            np.ascontiguousarray(full.solo_ms[pick]),
            np.ascontiguousarray(full.excess[np.ix_(pick, pick)]),
            np.ascontiguousarray(full.power_w[pick]),
            np.ascontiguousarray(full.clock_mhz[pick]),
            full.idle_power_w,
        )

    def solo_ms(self, model: str, batch: int, share: float) -> float:
        """Mean latency (ms, both transfers included) of a closed loop alone on the GPU."""
        return float(self._tables.solo_ms[self._row(model), _batch(batch), share_units(share)])

    def slowdown(
        self, model: str, batch: int, share: float, neighbours: Sequence[Neighbour] = ()
    ) -> float:
        """The GPU's time beside these neighbours, all executing, as a multiple (>= 1) of its time
        alone."""
        row, own, units = self._row(model), _batch(batch), share_units(share)
        return 1.0 + sum(
            float(self._tables.excess[row, self._row(n.model), own, _batch(n.batch), units])
            * neighbour_weight(share_units(n.share), units)
            * n.busy
            for n in neighbours
        )

    def latency_ms(
        self,
        model: str,
        batch: int,
        share: float,
        neighbours: Sequence[Neighbour] = (),
        floor: HostFloor = NO_FLOOR,
    ) -> float:
        """Mean latency (ms) beside these neighbours: :meth:`solo_ms` times :meth:`slowdown`, or the
        host's ``floor`` where that is longer."""
        gpu_ms = self.solo_ms(model, batch, share) * self.slowdown(model, batch, share, neighbours)
        return floor.batch_ms(gpu_ms, beside=bool(neighbours))

    def added_power_w(self, model: str, batch: int, share: float) -> float:
        """Power (W) above idle that a model adds while it executes."""
        return (
            float(self._tables.power_w[self._row(model), _batch(batch), share_units(share)])
            - self.idle_power_w
        )

    def board_power_w(self, tenants: Sequence[Neighbour]) -> float:
        """Board power (W) while these tenants execute."""
        added = sum(self.added_power_w(t.model, t.batch, t.share) * t.busy for t in tenants)
        return min(self.power_limit_w, self.idle_power_w + added)

    def board_clock_mhz(self, tenants: Sequence[Neighbour]) -> float:
        """SM clock (MHz) while these tenants execute."""
        demand = self.idle_power_w + sum(
            self.added_power_w(t.model, t.batch, t.share) * t.busy for t in tenants
        )
        alone = [
            float(self._tables.clock_mhz[self._row(t.model), _batch(t.batch), share_units(t.share)])
            for t in tenants
        ]
        together = (
            float(np.interp(demand, self._demand_w, self._demand_mhz))
            if len(tenants) > 1
            else self.max_clock_mhz
        )
        return min([self.max_clock_mhz, together, *alone])

    def _row(self, model: str) -> int:
        try:
            return self._index[model]
        except KeyError:
            raise KeyError(
                f"model {model!r} was not measured; measured are {', '.join(self.models)}"
            ) from None


def memory_bytes(model: str, max_batch: int) -> int:
    """Board memory of one loaded copy of a measured model."""
    return _CONTEXT_BYTES + WEIGHTS_BYTES[model] + ACTIVATION_BYTES[model] * max(1, max_batch)


def neighbour_weight(units: int, own_units: int) -> float:
    """How much of its measured excess a neighbour with ``units`` causes to a tenant with
    ``own_units``."""
    return min(1.0, units / (UNITS - own_units)) if own_units < UNITS else 1.0


def _batch(batch: int) -> int:
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch {batch} was not measured: give 1 to {MAX_BATCH}")
    return batch


# ---------------------------------------------------------------- building the tables


def _read(name: str) -> list[dict[str, str]]:
    with (_DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _build_tables(profile: dict[str, Any]) -> TruthTables:
    points: dict[str, dict[tuple[int, int], float]] = {}
    for row in _read("solo.csv"):
        key = (int(row["batch"]), share_units(float(row["share_pct"]) / 100.0))
        points.setdefault(row["model"], {})[key] = float(row["latency_ms"])
    models = tuple(points)
    bandwidth = float(profile["hardware"]["bandwidth"])
    solo = np.stack([_solo(points[m], profile[m], bandwidth) for m in models])
    power = np.stack(
        [_coarse(profile[m]["power"], profile["hardware"]["idlepower"]) for m in models]
    )
    clock = np.stack(
        [_coarse(profile[m]["frequency"], profile["hardware"]["maxGPUfrequency"]) for m in models]
    )
    return TruthTables(
        models,
        solo,
        _excess(models, points, profile),
        power,
        clock,
        float(profile["hardware"]["idlepower"]),
    )


def _solo(measured: dict[tuple[int, int], float], profile: dict[str, Any], bandwidth: float) -> F64:
    """``solo_ms[batch, unit]`` of one model, shape (33, 41)."""
    batches = range(1, MAX_BATCH + 1)
    units = sorted({u for b, u in measured if b > 1})  # the columns measured at every batch
    grid = np.asarray([[measured[b, u] for u in units] for b in batches])
    ends = []
    for column, near in ((0, units[0]), (2, units[-1])):  # profile.json's columns: 10, 50, 100 %
        whole = [
            row[column] + profile["transferdata"] * b / bandwidth
            for row, b in zip(profile["gpulatency"], (1, 16, 32), strict=True)
        ]
        whole[0] = measured[1, 4 if column == 0 else UNITS]
        ratio = [w / measured[b, near] for w, b in zip(whole, (1, 16, 32), strict=True)]
        ends.append(np.interp(np.log(batches), np.log([1, 16, 32]), ratio))
    knots = np.asarray([4, *units, UNITS])
    full = np.column_stack([grid[:, 0] * ends[0], grid, grid[:, -1] * ends[1]])
    out = np.zeros((MAX_BATCH + 1, UNITS + 1))
    every = np.arange(1, UNITS + 1)
    for b in batches:
        row = np.log(full[b - 1])
        out[b, 1:] = np.exp(np.interp(np.log(every), np.log(knots), row))
        slope = (row[1] - row[0]) / np.log(knots[1] / knots[0])
        low = every[every < knots[0]]
        out[b, low] = np.exp(row[0] + slope * np.log(low / knots[0]))
    return out


def _excess(
    models: tuple[str, ...],
    points: dict[str, dict[tuple[int, int], float]],
    profile: dict[str, Any],
) -> F64:
    """``excess[a, b, batch_a, batch_b, unit_a]``, shape (n, n, 33, 33, 41)."""
    rows: dict[tuple[str, str], dict[tuple[int, int, int], float]] = {}
    for row in _read("pairs.csv"):
        a, b, batch_a, batch_b = (
            row["model_a"],
            row["model_b"],
            int(row["batch_a"]),
            int(row["batch_b"]),
        )
        unit_a, unit_b = (
            share_units(float(row[k]) / 100.0) for k in ("share_a_pct", "share_b_pct")
        )
        rows.setdefault((a, b), {})[batch_a, batch_b, unit_a] = (
            float(row["latency_a_ms"]) / points[a][batch_a, unit_a] - 1.0
        )
        rows.setdefault((b, a), {})[batch_b, batch_a, unit_b] = (
            float(row["latency_b_ms"]) / points[b][batch_b, unit_b] - 1.0
        )
    size = (MAX_BATCH + 1, MAX_BATCH + 1, UNITS + 1)
    out = np.zeros((len(models), len(models), *size))
    for i, a in enumerate(models):
        for j, b in enumerate(models):
            if a == b:
                out[i, j, 1:, 1:, 1:] = (
                    profile[a]["activetime_2"] / profile[a]["activetime_1"] - 1.0
                )
            else:
                out[i, j, 1:, 1:, 1:] = _spread(rows[a, b])
    return out


def _spread(measured: dict[tuple[int, int, int], float]) -> F64:
    """Excess at every (batch_a, batch_b, unit), shape (32, 32, 40), from the measured lattice."""
    own, other, units = (sorted({key[axis] for key in measured}) for axis in range(3))
    lattice = np.asarray([[[measured[a, b, u] for u in units] for b in other] for a in own])
    every = np.log2(np.arange(1, MAX_BATCH + 1))
    weights = (
        _hats(every, np.log2(own)),
        _hats(every, np.log2(other)),
        _hats(np.arange(1.0, UNITS + 1), np.asarray(units, dtype=np.float64)),
    )
    spread: F64 = np.einsum("xa,yb,zu,abu->xyz", *weights, lattice)
    return spread


def _hats(x: F64, knots: F64) -> F64:
    """Weights of linear interpolation, constant beyond the ends: shape (len(x), len(knots))."""
    return np.column_stack([np.interp(x, knots, unit) for unit in np.eye(len(knots))])


def _coarse(grid: list[list[float]], at_nothing: float) -> F64:
    """Board figures at (1, 16, 32) x (10, 50, 100 %) spread linearly to (33, 41); towards no share
    at all they tend to ``at_nothing``."""
    values = np.column_stack([np.full(3, at_nothing), np.asarray(grid)])
    batches = _hats(np.arange(1.0, MAX_BATCH + 1), np.asarray([1.0, 16.0, 32.0]))
    units = _hats(np.arange(1.0, UNITS + 1), np.asarray([0.0, 4.0, 20.0, float(UNITS)]))
    out = np.zeros((MAX_BATCH + 1, UNITS + 1))
    out[1:, 1:] = batches @ values @ units.T
    return out
