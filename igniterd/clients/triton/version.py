"""Which tritonserver this is, and whether igniterd steers it. Pure."""

from __future__ import annotations

import re

OLDEST = (2, 41)
"""The oldest tritonserver that igniterd steers: the oldest on which reading, giving a share,
changing the batching, a refused load and putting back were tried, under traffic. Older ones may do;
nobody has looked."""

_MONTHS = {
    23: (12,),
    24: (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
    25: (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12),
    26: (1, 2, 3, 4, 5, 6),
}
CONTAINERS = {
    (2, 41 + place): month
    for place, month in enumerate(
        f"{year}.{month:02}" for year in _MONTHS for month in _MONTHS[year]
    )
}
"""The container of each version, from published releases: 2.41, 2.43, 2.44, 2.46, 2.51, 2.53, 2.54,
2.56, 2.59, 2.68, 2.69 and 2.70 are told with both names, and between two of them there are as many
months as versions (25.07 was a second 2.59). What came later is not guessed."""


def version_of(text: str) -> tuple[int, int] | None:
    """``"2.51.0"`` -> ``(2, 51)``; ``None`` for what is no version, as of a build of one's own."""
    found = re.match(r"(\d+)\.(\d+)(?!\d)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def named(text: str) -> str:
    """The version with its container where that is known: ``2.51.0 (24.10)``."""
    month = CONTAINERS.get(version_of(text) or (0, 0))
    return f"{text} ({month})" if month else text


def too_old(text: str) -> str:
    """Why a server of this version is not steered, or an empty string; a version that cannot be
    read is not in the way."""
    version = version_of(text)
    if version is None or version >= OLDEST:
        return ""
    oldest = f"{OLDEST[0]}.{OLDEST[1]} ({CONTAINERS[OLDEST]})"
    return (
        f"tritonserver {named(text)} is older than {oldest}, the oldest that igniterd steers: "
        "it is watched only"
    )
