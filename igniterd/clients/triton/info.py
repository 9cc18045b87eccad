"""What a Triton says of itself and of its repository."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Control(StrEnum):
    """Triton's model control mode as far as it can be told from outside."""

    EXPLICIT = "explicit"
    NOT_EXPLICIT = "not explicit"  # none or poll: Triton refuses to load with another configuration
    # --grpc-restricted-protocol wants a header for the model repository API
    RESTRICTED = "restricted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """``ready`` is false while startup models load; ``control_reason`` is Triton's own sentence
    where control is not explicit."""

    live: bool
    ready: bool
    version: str
    extensions: tuple[str, ...]
    control: Control
    control_reason: str = ""
    too_old: str = ""
    """Why a server of its version is not steered."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One model of the repository; ``state`` is Triton's word (READY, UNAVAILABLE, LOADING, …),
    empty for one never loaded."""

    name: str
    version: str
    state: str
    reason: str
