"""What ``igniterd check`` finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``level``: ok, warn (runs, but less well) or bad (does not run).

    ``figures`` stand beside the words in JSON.
    """

    level: str
    what: str
    said: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """One entry of ``igniterd check --format json``."""
        return {"level": self.level, "what": self.what, "said": self.said, **self.figures}
