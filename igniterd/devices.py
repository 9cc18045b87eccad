"""Which of a Triton's device numbers is which GPU of the host. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from igniterd.records import BoardReading


@dataclass(frozen=True, slots=True)
class Devices:
    """The GPUs of one Triton."""

    gpus: tuple[str, ...] = ()
    rests_on: str = ""
    ambiguous: str = ""
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What was seen of one Triton's process."""

    visible: str | None = None
    order: str | None = None
    readable: bool = False
    labels: tuple[str, ...] = ()


def devices_of(
    name: str, configured: Sequence[str], boards: Sequence[BoardReading], facts: ServerFacts
) -> Devices:
    """The map."""
    if configured:
        return Devices(tuple(configured), "the configuration")
    return Devices(tuple(board.uuid for board in boards), "order")
