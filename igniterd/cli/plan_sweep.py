"""What-if: the same workloads with all rates, or all SLOs, scaled along a range."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from igniterd.errors import ConfigError
from igniterd.planner.strategies import Request

DEFAULT_POINTS = 6
MAX_POINTS = 200
_FORM = re.compile(
    r"^(?P<what>rate|slo)=(?P<low>[0-9.eE+-]+)\.\.(?P<high>[0-9.eE+-]+)(?::(?P<points>\d+))?$"
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Factors that every workload's rate or SLO is multiplied by."""

    what: str  # "rate" or "slo"
    factors: tuple[float, ...]


def parse_sweep(text: str) -> Sweep:
    """``rate=0.5..3`` or ``slo=0.8..2:11`` (number of points after the colon). Raises
    :class:`ConfigError` saying what is wrong."""
    found = _FORM.match(text.strip())
    if not found:
        raise ConfigError(
            f"--sweep {text}",
            [
                "should be rate=LOW..HIGH or slo=LOW..HIGH, factors of what the file has, as in "
                "rate=0.5..3:11"
            ],
        )
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError as exc:
        raise ConfigError(
            f"--sweep {text}", ["LOW and HIGH should be numbers, as in rate=0.5..3"]
        ) from exc
    points = int(found["points"] or DEFAULT_POINTS)
    problems = (
        []
        if 0 < low <= high < math.inf
        else [f"LOW ({low:g}) should be above 0 and not above HIGH ({high:g})"]
    )
    if not 2 <= points <= MAX_POINTS:
        problems.append(f"{points} points; 2 to {MAX_POINTS} are possible")
    if problems:
        raise ConfigError(f"--sweep {text}", problems)
    return Sweep(found["what"], tuple(low + (high - low) * i / (points - 1) for i in range(points)))


def scaled(request: Request, what: str, factor: float) -> Request:
    """The request with every rate, or every SLO, multiplied."""
    field = "rate_per_s" if what == "rate" else "slo_p99_ms"
    return replace(
        request,
        workloads=[replace(w, **{field: getattr(w, field) * factor}) for w in request.workloads],
    )
