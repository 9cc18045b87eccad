"""Topics: ``igniterd/<version>/<cluster>/…``. The version of the messages is a level of the topic.

- ``<cluster>/<host>/status``, ``/state`` (retained), ``/hint``: one host's daemon says these.
- ``<cluster>/profile/<hash>/<part>`` (retained): a profile by its content, whoever brought it.
- ``<cluster>/rebalance`` and ``<cluster>/speaker`` (retained): ``igniterd fleet`` says these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROOT = "igniterd"
VERSION = "v1"
PROFILE = "profile"
"""A level of the topic where a host's name is in others: no host may have it."""
_LONGEST = 6
_OF_HOST = ("status", "state", "hint")
_OF_CLUSTER = ("rebalance", "speaker")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic taken apart. ``kind``: status, state, hint, profile, rebalance or speaker; ``name``:
    the host, the profile's hash, or empty; ``part``: from 1."""

    version: str
    cluster: str
    kind: str
    name: str = ""
    part: int = 1


def is_name(text: str) -> bool:
    """Whether a host or a cluster can be called so."""
    return _NAME.fullmatch(text) is not None


def host_topic(cluster: str, host: str, kind: str, part: int = 1) -> str:
    """Of one host's ``kind``; a part after the first has its number behind it."""
    more = "" if part == 1 else f"/{part}"
    return f"{ROOT}/{VERSION}/{cluster}/{host}/{kind}{more}"


def profile_topic(cluster: str, digest: str, part: int | str) -> str:
    """Of one part of a profile; ``+`` for all of them."""
    return f"{ROOT}/{VERSION}/{cluster}/{PROFILE}/{digest}/{part}"


def cluster_topic(cluster: str, kind: str) -> str:
    """Of what ``igniterd fleet`` says of a cluster."""
    return f"{ROOT}/{VERSION}/{cluster}/{kind}"


def parse_topic(topic: str) -> Topic | None:
    """The topic taken apart; None for one that is not igniterd's. Versions are not judged here."""
    levels = topic.split("/")
    if levels[0] != ROOT or not 4 <= len(levels) <= _LONGEST or not all(levels):
        return None
    version, cluster, rest = levels[1], levels[2], levels[3:]
    if len(rest) == 1:
        return Topic(version, cluster, rest[0]) if rest[0] in _OF_CLUSTER else None
    number = rest[2] if len(rest) == 3 else "1"
    if not (number.isascii() and number.isdigit() and 0 < int(number) < 10_000):
        return None
    if rest[0] == PROFILE:
        return Topic(version, cluster, PROFILE, rest[1], int(number)) if len(rest) == 3 else None
    if rest[1] not in _OF_HOST:
        return None
    return Topic(version, cluster, rest[1], rest[0], int(number))
