"""Profiles as they come in parts over MQTT: joined, checked against their hash, bounded. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from igniterd.errors import ProfileError, Refused
from igniterd.messages.event import Event, read_event
from igniterd.messages.profile import ProfilePart, unpacked
from igniterd.perf import Profile

MOST_WANTED = 4096
"""Profiles of a cluster."""
MOST_BYTES = 256 * 2**20
"""Bytes of parts and of JSON texts that are kept."""
_MOST_SPLITS = 4  # ways to cut one profile into parts that are kept beside each other


@dataclass(slots=True)
class _Pending:
    """One profile that is wanted: its parts by how many there are, then by number; another igniterd
    may have cut the same profile into more parts."""

    hosts: set[str] = field(default_factory=set)
    splits: dict[int, dict[int, ProfilePart]] = field(default_factory=dict)
    profile: Profile | None = None
    bad: str = ""
    held: int = 0  # bytes


class ProfileStore:
    """The profiles that hosts need. What nobody needs is not taken."""

    def __init__(self) -> None:
        self.ready: dict[str, Profile] = {}
        self._known: dict[str, _Pending] = {}
        self._held = 0

    @property
    def wanted(self) -> frozenset[str]:
        """The hashes that are needed and not there."""
        return frozenset(digest for digest, known in self._known.items() if not known.profile)

    def hosts_of(self, digest: str) -> tuple[str, ...]:
        """The hosts that need a profile."""
        known = self._known.get(digest)
        return tuple(known.hosts) if known else ()

    def need(self, host: str, before: Iterable[str], now: Iterable[str]) -> None:
        """``host`` needs the profiles ``now``, and did need ``before``."""
        before, now = frozenset(before), frozenset(now)
        for digest in before - now:
            self._drop(host, digest)
        for digest in now:  # those of before too: there may have been no room for them
            if digest in self._known or len(self._known) < MOST_WANTED:
                self._known.setdefault(digest, _Pending()).hosts.add(host)

    def why_not(self, needs: Iterable[str]) -> str:
        """Why a host that needs these profiles waits; empty where all are there."""
        for digest in sorted(d for d in needs if d not in self.ready):
            known = self._known.get(digest)
            if known is None:
                return f"the cluster names more than {MOST_WANTED} profiles: {digest} is left out"
            return known.bad or f"waits for profile {digest}"
        return ""

    def give_up(self, digest: str) -> None:
        """A profile does not come: :meth:`why_not` says so. It is taken all the same if it does."""
        known = self._known.get(digest)
        if known is None or known.profile is not None or known.bad:
            return
        kept = max(((len(h), parts) for parts, h in known.splits.items()), default=None)
        what = "no part of it" if kept is None else f"{kept[0]} of its {kept[1]} parts"
        known.bad = f"profile {digest} does not come: the broker gives {what}"

    def take(self, digest: str, number: int, payload: bytes) -> str:
        """Take part ``number`` of a profile. Returns what became of it; a fault is named by
        :meth:`why_not`."""
        known = self._known.get(digest)
        if known is None:
            return "unwanted"
        if known.profile is not None:
            return "again"
        try:
            part = read_event(payload, "profile", Event[ProfilePart]).data
        except Refused as error:
            known.bad = f"profile {digest}: part {number} {error}"
            return "malformed"
        if (part.profile, part.part) != (digest, number) or number > part.parts:
            known.bad = (
                f"profile {digest}: part {number} says it is part {part.part} of {part.parts} of "
                f"{part.profile}"
            )
            return "contradictory"
        if self._held + len(payload) > MOST_BYTES:
            known.bad = f"profile {digest}: all profiles are more than {MOST_BYTES} bytes"
            return "too_many"
        return self._keep(digest, known, part)

    def _keep(self, digest: str, known: _Pending, part: ProfilePart) -> str:
        have = known.splits.setdefault(part.parts, {})
        if have.get(part.part) == part:
            return "again"
        have[part.part] = part
        while len(known.splits) > _MOST_SPLITS:
            del known.splits[next(iter(known.splits))]
        known.bad, outcome = "", "taken"
        if len(have) == part.parts:
            try:
                self._open(digest, known, [have[n] for n in range(1, part.parts + 1)])
            except (Refused, ProfileError) as error:
                known.bad, outcome = str(error), "contradictory"
        self._weigh(known)
        return outcome

    def _open(self, digest: str, known: _Pending, parts: list[ProfilePart]) -> None:
        text = unpacked(digest, parts)
        profile = Profile.parse(text, source=f"profile {digest}")
        known.profile = self.ready[digest] = profile
        known.splits = {}
        known.held, self._held = len(text), self._held - known.held + len(text)

    def _weigh(self, known: _Pending) -> None:
        """Count the bytes of what is kept of a profile that is not there yet."""
        if known.profile is None:
            held = sum(len(p.content) for have in known.splits.values() for p in have.values())
            known.held, self._held = held, self._held - known.held + held

    def _drop(self, host: str, digest: str) -> None:
        known = self._known.get(digest)
        if known is None:
            return
        known.hosts.discard(host)
        if not known.hosts:
            self._held -= known.held
            del self._known[digest]
            self.ready.pop(digest, None)
