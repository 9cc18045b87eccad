"""When two answers are the same, and when one is too slow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from igniterd.engines.compare import Timing, allowed_ms, compare_outputs, values_of


def one(kind: str, owner: Any, hosted: Any) -> Any:
    (found,) = compare_outputs({"y": (kind, np.asarray(owner))}, {"y": (kind, np.asarray(hosted))})
    return found


@pytest.mark.parametrize(
    ("kind", "owner", "hosted", "same"),
    [
        ("FP32", [1.0, 1000.0], [1.5, 1000.9], True),  # a thousandth of the largest value
        ("FP32", [1.0, 1000.0], [1.0, 1001.5], False),
        ("FP64", [1.0, 1000.0], [1.0, 1000.1], False),
        ("FP16", [1.0, 100.0], [1.0, 100.9], True),
        ("INT32", [1, 2], [1, 3], False),
        ("BOOL", [True], [True], True),
        ("FP32", [np.nan, np.inf, 1.0], [np.nan, np.inf, 1.0], True),
        ("FP32", [np.nan, 1.0], [0.0, 1.0], False),
        ("FP32", [np.inf, 1.0], [-np.inf, 1.0], False),
        ("FP32", [], [], True),
    ],
)
def test_tolerance_by_type(kind: str, owner: list[Any], hosted: list[Any], same: bool) -> None:
    assert one(kind, owner, hosted).same is same


def test_what_differs_is_said() -> None:
    assert one("FP32", [1.0, 1000.0], [1.0, 1002.0]).why == "differs by 2, 1 is allowed"
    assert one("INT8", [1, 2, 3], [1, 0, 0]).why == "2 of 3 values differ"
    assert one("FP32", [np.nan], [0.0]).why == "1 values are infinite or no number in one only"
    values = np.zeros((2, 3))
    (found,) = compare_outputs({"y": ("FP32", values)}, {"y": ("FP32", values.T)})
    assert found.why == "FP32 [3, 2] instead of FP32 [2, 3]"
    (found,) = compare_outputs({"y": ("FP32", values)}, {})
    assert found.why == "missing"


def test_values_of_every_kind_of_bytes() -> None:
    assert values_of("BF16", [2], np.array([0x3F80, 0xC000], np.uint16).tobytes()).tolist() == [
        1.0,
        -2.0,
    ]
    assert values_of("BYTES", [2, 1], b"\x01\0\0\0a\0\0\0\0").tolist() == [[b"a"], [b""]]
    assert values_of("INT16", [1, 2], b"\x01\0\x02\0").tolist() == [[1, 2]]


def test_a_short_batch_may_take_what_any_hosting_costs() -> None:
    assert allowed_ms(0.1, 1.5, 0.5) == pytest.approx(0.65)
    assert Timing(1, 0.1, 0.6, 0.65).fast_enough
    assert not Timing(1, 10.0, 16.0, 15.5).fast_enough
