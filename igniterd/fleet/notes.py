"""Oddities in words, bounded: the last ones, each for a while. Pure."""

from __future__ import annotations

from collections import OrderedDict

MOST_NOTES = 200
KEPT_S = 300.0
_SHOWN = 200  # letters of what a note is of


class Notes:
    """Text by what it is of, such as a topic."""

    def __init__(self) -> None:
        self._notes: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def add(self, of: str, text: str, at_s: float) -> None:
        self._notes[of[:_SHOWN]] = text, at_s
        self._notes.move_to_end(of[:_SHOWN])
        if len(self._notes) > MOST_NOTES:
            self._notes.popitem(last=False)

    def drop(self, of: str) -> None:
        """What it was of is mended."""
        self._notes.pop(of[:_SHOWN], None)

    def at(self, at_s: float) -> dict[str, str]:
        """Those of the last minutes."""
        for of in [of for of, (_, noted_s) in self._notes.items() if at_s >= noted_s + KEPT_S]:
            del self._notes[of]
        return {of: text for of, (text, _) in self._notes.items()}
