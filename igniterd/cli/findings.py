"""What ``igniterd check`` finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``level``: ok, warn (runs, but less well) or bad (does not run)."""

    level: str
    what: str
    said: str
