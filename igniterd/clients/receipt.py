"""The receipt that a stub process leaves of its share: its own name, fifteen characters at most."""

from __future__ import annotations

VARIABLE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
PREFIX = "tritonpy@"
LONGEST = 15


def receipt_of(percent: str) -> str:
    """The name of a process with this share: ``30`` -> ``tritonpy@30%``."""
    return f"{PREFIX}{percent}%"[:LONGEST]


def share_of_receipt(name: str) -> float | None:
    """The share (a fraction) that a process name says; ``None`` where it says none."""
    text = name.removeprefix(PREFIX).removesuffix("%")
    if not name.startswith(PREFIX) or not text.replace(".", "", 1).isdecimal():
        return None
    share = float(text) / 100.0
    return share if 0.0 < share <= 1.0 else None
