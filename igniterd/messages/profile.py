"""A profile on MQTT: packed, in parts, named by the hash of its content.

Whoever has read the parts checks the hash, so that it does not matter who sent them.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from igniterd.documents import Document, Whole
from igniterd.errors import Refused
from igniterd.messages.event import MOST_DATA
from igniterd.messages.state import MOST_PARTS, Digest

MOST_TEXT = 16 * 2**20
"""Bytes of a profile's JSON: what unpacks to more is no profile."""
_PIECE = MOST_DATA - 512


class ProfilePart(Document):
    """One part of a profile: joined, ``content`` is base64 of gzip of canonical JSON."""

    profile: Digest
    part: Annotated[Whole, Field(ge=1, le=MOST_PARTS, description="1 to 64")]
    parts: Annotated[Whole, Field(ge=1, le=MOST_PARTS, description="1 to 64")]
    encoding: Literal["gzip+base64"]
    content: Annotated[str, Field(max_length=MOST_DATA, description="base64")]


def canonical(profile: Mapping[str, Any]) -> str:
    """The one JSON text of a profile: keys sorted, no blanks, nulls left out by whoever gives
    it."""
    return json.dumps(profile, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(text: str) -> str:
    """The name of a canonical text: the first 128 bits of its SHA-256, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def packed(text: str) -> tuple[dict[str, Any], ...]:
    """The parts of a profile's canonical text. Raises :class:`Refused` for one that is too
    large."""
    content = base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
    pieces = [content[at : at + _PIECE] for at in range(0, len(content), _PIECE)]
    if len(pieces) > MOST_PARTS or len(text) > MOST_TEXT:
        raise Refused(f"a profile of {len(text)} bytes is too large to be sent")
    digest = digest_of(text)
    return tuple(
        {
            "profile": digest,
            "part": number,
            "parts": len(pieces),
            "encoding": "gzip+base64",
            "content": piece,
        }
        for number, piece in enumerate(pieces, start=1)
    )


def unpacked(digest: str, parts: Sequence[ProfilePart]) -> str:
    """The text of a profile whose parts, in order, are all there.

    Raises :class:`Refused` where they are not of one profile, cannot be unpacked, or are not what
    ``digest`` names.
    """
    if [p.part for p in parts] != list(range(1, len(parts) + 1)) or any(
        p.parts != len(parts) for p in parts
    ):
        raise Refused(f"profile {digest}: its parts do not belong together")
    content = "".join(p.content for p in parts)
    try:
        unpacker = zlib.decompressobj(wbits=31)
        raw = unpacker.decompress(base64.b64decode(content, validate=True), MOST_TEXT)
        if unpacker.unconsumed_tail:
            raise Refused(f"profile {digest}: unpacks to more than {MOST_TEXT} bytes")
        text = raw.decode()
    except (ValueError, zlib.error) as error:  # of base64, of gzip, of UTF-8
        raise Refused(f"profile {digest}: cannot be unpacked: {error}") from None
    if (found := digest_of(text)) != digest:
        raise Refused(f"profile {digest}: its content has the hash {found}")
    return text
