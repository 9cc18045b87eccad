"""Messages that are right, for tests."""

from __future__ import annotations

from typing import Any


def a_state(tick: int = 1, **more: Any) -> dict[str, Any]:
    """The state of ``gpu-a`` in the cluster ``lab``, with what ``more`` says."""
    return {
        "schema": 1,
        "host": "gpu-a",
        "cluster": "lab",
        "run": "0123456789abcdef",
        "tick": tick,
        "time_s": 1000.0 + tick,
        "models": [],
        **more,
    }


def a_model(name: str = "vgg19", **more: Any) -> dict[str, Any]:
    """One model of a state."""
    return {"name": name, "slo_p99_ms": 60.0, "seen": True, **more}


def a_hint(model: str = "vgg19", reason: str = "it does not fit") -> dict[str, Any]:
    """A model that is let go."""
    return {
        "kind": "shed",
        "model": model,
        "slo_p99_ms": 60.0,
        "rate_per_s": 200.0,
        "needs_share": 0.4,
        "reason": reason,
    }
