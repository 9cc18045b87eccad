"""Kinds of emulated boards. Only the V100 is measured; the others are scaled from it, and their
names say so.

A scaled board is a V100 of other size. What is scaled, all of it:

Alone
    A roofline. The time of a batch is taken to go with ``2 x MACs x batch / peak FP32 + bytes /
    bandwidth``. The bytes are the weights and the activations that ``truth.py`` counts as memory;
    the MACs are those of torchvision's table of models. The measured time is multiplied by the two
    boards' ratio of that. So a small batch, which mostly reads weights, goes with the bandwidth.
Beside others
    The V100's excess, as a fraction.
Shares
    The same 40 units of 2.5 %.
Power, clock
    In the ratio of the power limits and of the largest clocks.

Published figures: NVIDIA's data sheets of the V100 (SXM2: 15.7 TFLOPS, 900 GB/s, 300 W), of the T4
(8.1 TFLOPS, 320 GB/s, 70 W) and of the A100 (SXM4 40 GB: 19.5 TFLOPS, 1,555 GB/s, 400 W); numbers
of SMs and clocks from the white papers of Volta, Turing and Ampere and the T4's product brief.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from igniterd.arrays import F64
from igniterd.lab.gpu.truth import (
    ACTIVATION_BYTES,
    BOARD_MEMORY_BYTES,
    MAX_BATCH,
    WEIGHTS_BYTES,
    Truth,
    TruthTables,
)

_GMACS = {"alexnet": 0.71, "resnet50": 4.09, "vgg19": 19.63, "ssd": 34.86}  # an item


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of board, by its published figures."""

    name: str
    capability: tuple[int, int]
    sm_count: int
    cores: int  # FP32, in all
    max_clock_mhz: int
    memory_clock_mhz: int
    memory_bytes: int
    peak_tflops: float
    bandwidth_gb_s: float
    power_limit_w: float


KINDS = {
    "v100": Kind(
        "Tesla V100-SXM2-16GB (emulated)",
        (7, 0),
        80,
        5120,
        1530,
        877,
        BOARD_MEMORY_BYTES,
        15.7,
        900.0,
        300.0,
    ),
    "t4": Kind(
        "Tesla T4 (emulated, scaled from a V100)",
        (7, 5),
        40,
        2560,
        1590,
        5001,
        15_360 * 2**20,
        8.1,
        320.0,
        70.0,
    ),
    "a100": Kind(
        "A100-SXM4-40GB (emulated, scaled from a V100)",
        (8, 0),
        108,
        6912,
        1410,
        1215,
        40_960 * 2**20,
        19.5,
        1555.0,
        400.0,
    ),
}


@cache
def truth_of(kind: str) -> Truth:
    """The tables of a kind. Raises ``KeyError`` for one that there is not."""
    measured, to, of = Truth.v100(), KINDS[kind], KINDS["v100"]
    if to is of:
        return measured
    tables, board = measured.tables(), measured.board
    power, clock = to.power_limit_w / of.power_limit_w, to.max_clock_mhz / of.max_clock_mhz
    slower = np.stack([_roofline(m, to) / _roofline(m, of) for m in tables.models])
    return Truth(
        TruthTables(
            tables.models,
            tables.solo_ms * slower[:, :, np.newaxis],
            tables.excess,
            tables.power_w * power,
            tables.clock_mhz * clock,
            tables.idle_power_w * power,
        ),
        board
        | {
            "maxGPUpower": to.power_limit_w,
            "maxGPUfrequency": float(to.max_clock_mhz),
            "power": [watts * power for watts in board["power"]],
            "frequency": [mhz * clock for mhz in board["frequency"]],
        },
    )


def _roofline(model: str, kind: Kind) -> F64:
    """Milliseconds of a model's batches 0..32 at the published peaks, shape (33,)."""
    batch = np.arange(MAX_BATCH + 1, dtype=np.float64)
    moved = WEIGHTS_BYTES[model] + ACTIVATION_BYTES[model] * batch
    return 2.0 * _GMACS[model] * batch / kind.peak_tflops + moved / kind.bandwidth_gb_s / 1e6
