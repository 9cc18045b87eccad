"""The envelope: CloudEvents 1.0 as JSON (structured mode), ``application/cloudevents+json``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, ValidationError

from igniterd.documents import Document, faults
from igniterd.errors import Refused
from igniterd.jsontext import dumps

MOST_BYTES = 32 * 1024
"""No message is larger: a document that would be is split."""
_ROOM = 1024
MOST_DATA = MOST_BYTES - _ROOM
"""Bytes of a document, which leaves room for its envelope and topic."""
_LARGEST_TAKEN = 4 * MOST_BYTES  # bytes of a message that is looked into
_MOST_FAULTS = 3

Text = Annotated[str, Field(min_length=1, max_length=512)]
Data = TypeVar("Data")


class Event(Document, Generic[Data]):
    """What is around every document."""

    specversion: Annotated[str, Field(pattern=r"^1\.\d+$", description="a version of CloudEvents")]
    id: Annotated[Text, Field(description="unique among the events of a source")]
    source: Annotated[Text, Field(description="igniterd/<cluster>/<who>")]
    type: Annotated[Text, Field(description="igniterd.<kind>")]
    time: Annotated[Text, Field(description="an ISO 8601 time with its zone")]
    datacontenttype: Annotated[
        str, Field(pattern=r"^application/json$", description="application/json")
    ] = "application/json"
    data: Data


def event(kind: str, data: Mapping[str, Any], *, source: str, id: str, at: datetime) -> bytes:  # noqa: A002
    """The event of type ``igniterd.<kind>`` as JSON."""
    return dumps(
        {
            "specversion": "1.0",
            "id": id,
            "source": source,
            "type": f"igniterd.{kind}",
            "time": at.isoformat(timespec="milliseconds"),
            "datacontenttype": "application/json",
            "data": data,
        }
    ).encode()


def read_event(payload: bytes, kind: str, schema: type[Event[Data]]) -> Event[Data]:
    """A message of this kind, as ``Event[<its document>]``.

    Raises :class:`Refused` with the first faults, each with its path, what was found and what would
    be right.
    """
    if len(payload) > _LARGEST_TAKEN:
        raise Refused(f"has {len(payload)} bytes; igniterd sends {MOST_BYTES} at most")
    try:
        found = schema.model_validate_json(payload)
    except ValidationError as error:
        said = _said(error, schema)
        more = f"; and {len(said) - _MOST_FAULTS} more" if len(said) > _MOST_FAULTS else ""
        raise Refused("; ".join(said[:_MOST_FAULTS]) + more) from None
    if found.type != f"igniterd.{kind}" and not found.type.startswith(f"igniterd.{kind}."):
        raise Refused(f"type is {found.type!r}; should be 'igniterd.{kind}'")
    return found


def _said(error: ValidationError, schema: Any) -> list[str]:
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return ["is not JSON: " + first["msg"].removeprefix("Invalid JSON: ")]
    if not first["loc"]:
        return ["is no table: " + first["msg"]]
    return faults(error, schema)
