"""Two answers to the same request, and two times: are they the same, is one worse. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Answer = Mapping[str, tuple[str, Array]]
"""{output: (Triton's type, values)}."""

TOLERANCE = {"FP16": 1e-2, "BF16": 4e-2, "FP32": 1e-3, "FP64": 1e-6}
"""Largest difference that is the same, as a fraction of the output's largest absolute value.
Engines of another version round differently. Every other type must be the same to the bit."""


@dataclass(frozen=True, slots=True)
class OutputCompared:
    """One output. ``largest`` and ``allowed`` are in the output's own unit."""

    name: str
    datatype: str
    largest: float
    allowed: float
    why: str = ""

    @property
    def same(self) -> bool:
        return not self.why


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds that a batch takes, owner's and hosted, and the most that is taken."""

    batch: int
    owner_ms: float
    hosted_ms: float
    allowed_ms: float

    @property
    def fast_enough(self) -> bool:
        return self.hosted_ms <= self.allowed_ms


def allowed_ms(owner_ms: float, max_slowdown: float, allowance_ms: float) -> float:
    """The longest time of a hosted batch: a factor, and what any hosting costs."""
    return owner_ms * max_slowdown + allowance_ms


def compare_outputs(owner: Answer, hosted: Answer) -> tuple[OutputCompared, ...]:
    """Every output of ``owner`` against that of ``hosted``."""
    return tuple(_output(name, owner[name], hosted.get(name)) for name in owner)


def _output(
    name: str, owner: tuple[str, Array], hosted: tuple[str, Array] | None
) -> OutputCompared:
    kind, one = owner
    if hosted is None:
        return OutputCompared(name, kind, float("inf"), 0.0, "missing")
    if hosted[0] != kind or hosted[1].shape != one.shape:
        told = f"{hosted[0]} {list(hosted[1].shape)} instead of {kind} {list(one.shape)}"
        return OutputCompared(name, kind, float("inf"), 0.0, told)
    other = hosted[1]
    if kind not in TOLERANCE:
        differs = int(np.count_nonzero(one != other))
        why = f"{differs} of {one.size} values differ" if differs else ""
        return OutputCompared(name, kind, float(bool(differs)), 0.0, why)
    return _numbers(name, kind, one.astype(np.float64), other.astype(np.float64))


def _numbers(name: str, kind: str, one: Array, other: Array) -> OutputCompared:
    finite = np.isfinite(one) & np.isfinite(other)
    odd = ~finite & ~((one == other) | (np.isnan(one) & np.isnan(other)))
    scale = float(np.abs(one[finite]).max(initial=0.0))
    allowed = TOLERANCE[kind] * scale
    largest = float(np.abs(one[finite] - other[finite]).max(initial=0.0))
    if odd.any():
        told = f"{int(odd.sum())} values are infinite or no number in one only"
        return OutputCompared(name, kind, float("inf"), allowed, told)
    why = f"differs by {largest:.3g}, {allowed:.3g} is allowed" if largest > allowed else ""
    return OutputCompared(name, kind, largest, allowed, why)


TYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
"""Triton's data types that numpy has."""


def values_of(datatype: str, shape: Sequence[int], raw: bytes) -> Array:
    """An output's bytes as an array; BF16 as FP32, text as an array of bytes."""
    if datatype == "BF16":
        wide = np.frombuffer(raw, np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    if datatype != "BYTES":
        return np.frombuffer(raw, TYPES[datatype]).reshape(shape)
    texts, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        texts.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    found = np.empty(len(texts), dtype=object)
    found[:] = texts
    return found.reshape(shape)
