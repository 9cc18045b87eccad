"""Elements of SVG as text, everything escaped; and a scale."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

Value = str | int | float


def el(tag: str, *children: object, **attributes: Value | None) -> Markup:
    """An element. Attribute names: ``class_`` is class, other underscores are hyphens; one that is
    None is left out."""
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{_value(v)}"'
        for key, v in attributes.items()
        if v is not None
    ]
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{tag}{''.join(parts)}>{inner}</{tag}>")  # noqa: S704  its parts are escaped


def _value(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return escape(value)


def points(pairs: Iterable[tuple[float, float]]) -> str:
    """Coordinates for a polyline or a path of straight lines."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


@dataclass(frozen=True, slots=True)
class Scale:
    """From [low, high] of the data to [start, end] of the drawing, straight; values outside are cut
    off."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


def nice_ticks(high: float, count: int = 4) -> list[float]:
    """Round figures from 0 to at most ``high``, about ``count`` of them."""
    step = high / count
    power = 10.0 ** (len(f"{int(step)}") - 1 if step >= 1 else -1)
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= step * 0.9)
    return [i * step for i in range(int(high / step + 1e-9) + 1)]
