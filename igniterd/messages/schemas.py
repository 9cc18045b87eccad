"""The messages by kind, and their JSON Schemas: of the whole event. The schemas are shipped as
files in ``igniterd/data/schemas``."""

from __future__ import annotations

from typing import Any

from igniterd.messages.event import Event
from igniterd.messages.others import Hint, Status
from igniterd.messages.profile import ProfilePart
from igniterd.messages.rebalance import Rebalance, Speaker
from igniterd.messages.state import HostState
from igniterd.messages.topics import VERSION

EVENTS: dict[str, Any] = {
    "status": Event[Status],
    "state": Event[HostState],
    "hint": Event[Hint],
    "profile": Event[ProfilePart],
    "rebalance": Event[Rebalance],
    "speaker": Event[Speaker],
}
"""Kinds of messages, and the event of each."""


def json_schema(kind: str) -> dict[str, Any]:
    """The schema of a message of this kind, envelope and all."""
    schema = _worded(EVENTS[kind].model_json_schema())
    schema["properties"]["type"] |= {"pattern": rf"^igniterd\.{kind}(\.[a-z_]+)?$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"igniterd {kind} {VERSION}",
    }


_WORDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def _worded(part: Any) -> Any:
    """``part`` with JSON Schema's own words for limits: pydantic leaves its own where a validator
    stands before them, as with :data:`igniterd.documents.Whole`."""
    if isinstance(part, dict):
        limits = "type" in part
        return {_WORDS.get(k, k) if limits else k: _worded(value) for k, value in part.items()}
    return [_worded(value) for value in part] if isinstance(part, list) else part
