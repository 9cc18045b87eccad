"""All retained messages of a cluster in, the cluster as it is now out. Pure.

A message may come at any time, in any order and any number of times, and may say anything. Only the
latest of each host counts. What is odd is counted, and named in words; a host that cannot be relied
on is left out with the reason, and the others stay. ``at_s`` is one monotonic clock, of whoever
receives; clocks of hosts are asked for nothing.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from igniterd.errors import Refused
from igniterd.fleet.claims import Claims
from igniterd.fleet.cluster import Cluster, HostView
from igniterd.fleet.host_record import FORGET_S, HostRecord
from igniterd.fleet.matters import matters
from igniterd.fleet.notes import Notes
from igniterd.fleet.profile_store import ProfileStore
from igniterd.messages.event import Event, read_event
from igniterd.messages.others import Status
from igniterd.messages.state import HostState
from igniterd.messages.topics import PROFILE, VERSION, Topic, is_name, parse_topic
from igniterd.perf import Profile

MOST_HOSTS = 20_000
MOST_BYTES = 512 * 2**20
"""Bytes of all states that are kept, as they were sent; read, they take some ten times as many."""
_SCAN_EVERY_S = 1.0
_FULL = "hosts"


class _Message(NamedTuple):
    text: str  # the topic
    topic: Topic
    payload: bytes
    at_s: float
    left_s: float | None
    retained: bool


class ClusterView:
    """One cluster. ``counts``: messages by kind and by what became of them: taken, malformed,
    unknown_version, stale, old, again, contradictory, foreign, unwanted, too_many, cleared,
    ignored, unexpected."""

    def __init__(
        self, cluster: str, *, most_hosts: int = MOST_HOSTS, most_bytes: int = MOST_BYTES
    ) -> None:
        self.name = cluster
        self.counts: Counter[tuple[str, str]] = Counter()
        self._most_hosts, self._most_bytes = most_hosts, most_bytes
        self._records: dict[str, HostRecord] = {}
        self._profiles = ProfileStore()
        self._claims = Claims()
        self._notes = Notes()
        self._held = 0
        self._due: list[tuple[float, str]] = []
        self._scan_again_s = -math.inf
        self._used: dict[str, HostView] = {}
        self._left_out: dict[str, str] = {}
        self._mattered: dict[str, int] = {}
        self._shown = Cluster(cluster)
        self._copy_used = self._copy_left_out = self._changed = False

    # ------------------------------------------------------------ in

    def take(
        self, topic: str, payload: bytes, *, at_s: float, left_s: float | None, retained: bool
    ) -> None:
        """Take one message. ``left_s``: seconds until it expires, as the broker says; an empty
        ``payload`` takes a retained message away. Never raises."""
        found = parse_topic(topic)
        try:
            self._pass(at_s)
            if found is None or found.cluster != self.name:
                outcome = self._odd(
                    topic, f"is no topic of the messages of cluster {self.name}", at_s
                )
            else:
                outcome = self._take(_Message(topic, found, payload, at_s, left_s, retained))
        except Exception as error:  # one message must not end the service: it is named
            outcome = self._unforeseen(topic, found, error, at_s)
        self.counts["other" if found is None else found.kind, outcome] += 1

    def _take(self, message: _Message) -> str:
        topic = message.topic
        if topic.kind == PROFILE:
            return self._take_profile(message)
        if topic.kind not in ("state", "status"):
            return "ignored"
        if not is_name(topic.name):
            return self._odd(message.text, "names a host as no host can be named", message.at_s)
        if not message.payload:
            return self._clear(message)
        record = self._record(topic.name, len(message.payload), message.at_s)
        if record is None:
            return "too_many"
        record.heard_s = message.at_s
        before = record.held
        try:
            return self._take_of_host(record, message)
        finally:
            self._held += record.held - before
            self._settle(record, message.at_s)

    def _take_of_host(self, record: HostRecord, message: _Message) -> str:
        if message.topic.version != VERSION:
            record.add_version(message.topic.version)
            return "unknown_version"
        take = self._take_status if message.topic.kind == "status" else self._take_state
        return take(record, message)

    def _take_status(self, record: HostRecord, message: _Message) -> str:
        try:
            said = read_event(message.payload, "status", Event[Status]).data
        except Refused as error:
            self._notes.add(message.text, str(error), message.at_s)
            return "malformed"
        if message.topic.part != 1:
            self._notes.add(message.text, "a status has one part", message.at_s)
            return "contradictory"
        self._notes.drop(message.text)
        record.set_status(said.status, said.reason)
        return "taken"

    def _take_state(self, record: HostRecord, message: _Message) -> str:
        topic = message.topic
        try:
            part = read_event(message.payload, "state", Event[HostState]).data
        except Refused as error:
            record.refuse(f"its state is malformed: {error}")
            return "malformed"
        if (part.host, part.cluster) != (topic.name, topic.cluster):
            record.refuse(f"its state says it is host {part.host} of cluster {part.cluster}")
            return "foreign"
        if part.part != topic.part:
            record.refuse(f"part {topic.part} of its state says it is part {part.part}")
            return "contradictory"
        before, needed = record.view, record.needs
        outcome = record.take_part(
            part,
            len(message.payload),
            at_s=message.at_s,
            left_s=message.left_s,
            retained=message.retained,
        )
        self._profiles.need(record.name, needed, record.needs)
        anew = record.view is not None and record.view is not before
        if anew and record.status == "offline" and not message.retained:
            record.set_status("", "")  # it lives: the word of the broker was of before
        return outcome

    def _take_profile(self, message: _Message) -> str:
        topic = message.topic
        if topic.version != VERSION:
            return "unknown_version"
        if not message.payload:
            return "cleared"
        outcome = self._profiles.take(topic.name, topic.part, message.payload)
        if outcome not in ("unwanted", "again"):
            for host in self._profiles.hosts_of(topic.name):
                self._settle(self._records[host], message.at_s)
        return outcome

    def _unforeseen(self, topic: str, found: Topic | None, error: Exception, at_s: float) -> str:
        self._notes.add(topic, f"could not be read: {type(error).__name__}: {error}", at_s)
        record = self._records.get(found.name) if found is not None else None
        if found is not None and found.kind == "state" and record is not None:
            before = record.held
            record.refuse("its state could not be read")
            self._held += record.held - before
            self._settle(record, at_s)
        return "unexpected"

    def _odd(self, topic: str, text: str, at_s: float) -> str:
        self._notes.add(topic, text, at_s)
        return "foreign"

    def _clear(self, message: _Message) -> str:
        topic, record = message.topic, self._records.get(message.topic.name)
        if record is not None and topic.version == VERSION and topic.part == 1:
            before = record.held
            if topic.kind == "status":
                record.set_status("", "")
            else:
                record.clear()
            self._held += record.held - before
            self._settle(record, message.at_s)
        return "cleared"

    # ------------------------------------------------------------ out

    def wanted_profiles(self) -> frozenset[str]:
        """The hashes of the profiles that hosts need and that are not here."""
        return self._profiles.wanted

    def give_up(self, digests: Iterable[str], at_s: float) -> None:
        """These profiles do not come: the hosts that need them are left out with that reason."""
        for digest in digests:
            self._profiles.give_up(digest)
            for host in self._profiles.hosts_of(digest):
                self._settle(self._records[host], at_s)

    def profiles(self) -> Mapping[str, Profile]:
        """The profiles that hosts need, by hash: checked. It is not changed afterwards."""
        return dict(self._profiles.ready)

    def cluster(self, at_s: float) -> Cluster:
        """The cluster at ``at_s``. What was given out is not changed afterwards."""
        self._pass(at_s)
        if self._copy_used or self._copy_left_out:
            self._shown = Cluster(
                self.name,
                dict(self._used) if self._copy_used else self._shown.hosts,
                dict(self._left_out) if self._copy_left_out else self._shown.left_out,
                self._offline() if self._copy_left_out else self._shown.offline,
            )
            self._copy_used = self._copy_left_out = False
        return self._shown

    def _offline(self) -> frozenset[str]:
        records = map(self._records.__getitem__, self._left_out)
        return frozenset(record.name for record in records if record.status == "offline")

    def troubles(self, at_s: float) -> Mapping[str, str]:
        """What is odd now, in words, by host or topic."""
        cluster = self.cluster(at_s)
        degraded = {
            name: f"degraded: {host.degraded}"
            for name, host in cluster.hosts.items()
            if host.degraded
        }
        return {**self._notes.at(at_s), **degraded, **cluster.left_out}

    def changed(self) -> bool:
        """Whether something that matters for planning changed since this was last asked. What only
        time changed is seen by :meth:`cluster`."""
        changed, self._changed = self._changed, False
        return changed

    # ------------------------------------------------------------ hosts

    def _record(self, name: str, size: int, at_s: float) -> HostRecord | None:
        """The record of a host, a new one where there is room."""
        record = self._records.get(name)
        full = record is None and len(self._records) >= self._most_hosts
        if full or self._held + size > self._most_bytes:
            self._make_room(at_s, keep=name)
            full = record is None and len(self._records) >= self._most_hosts
            if full or self._held + size > self._most_bytes:
                self._notes.add(
                    _FULL,
                    f"more than {self._most_hosts} hosts or {self._most_bytes} bytes of states: "
                    f"what {name} says was not taken",
                    at_s,
                )
                return None
        if record is None:
            record = self._records[name] = HostRecord(name, at_s)
        return record

    def _make_room(self, at_s: float, keep: str) -> None:
        """Forget those left out that were silent longest, some at once."""
        if at_s < self._scan_again_s:
            return
        idle = sorted((self._records[name].heard_s, name) for name in self._left_out)
        some = max(1, self._most_hosts // 100)
        for _, name in [each for each in idle if each[1] != keep][:some]:
            self._forget(name, at_s)
        if not idle:
            self._scan_again_s = at_s + _SCAN_EVERY_S

    def _pass(self, at_s: float) -> None:
        """What time alone changes: states that are stale now, hosts that are forgotten."""
        while self._due and self._due[0][0] <= at_s:
            due_s, name = heapq.heappop(self._due)
            record = self._records.get(name)
            if record is None or record.due_s != due_s:
                continue
            record.due_s = math.inf
            if at_s >= record.heard_s + FORGET_S:
                self._forget(name, at_s)
            else:
                self._settle(record, at_s)

    def _settle(self, record: HostRecord, at_s: float) -> None:
        """Judge one host again, and those that have a GPU of its own."""
        before = record.held
        due_s = record.settle(at_s)
        self._held += record.held - before
        if due_s < record.due_s:  # one that was heard again is due later: then that look plans it
            record.due_s = due_s
            heapq.heappush(self._due, (due_s, record.name))
        record.own = record.reason(at_s) or self._profiles.why_not(record.needs)
        gpus = () if record.own or record.view is None else record.view.boards
        rivals = self._claims.set(record.name, gpus)
        self._place(record)
        for rival in rivals:
            self._place(self._records[rival])

    def _place(self, record: HostRecord) -> None:
        """Put a host among those used or left out."""
        name, why = record.name, record.own or self._claims.clash(record.name)
        if why or record.view is None:
            if self._left_out.get(name) != why:
                self._left_out[name] = why
                self._copy_left_out = self._changed = True
            if self._used.pop(name, None) is not None:
                self._copy_used = True
                self._mattered.pop(name, None)
            return
        if self._left_out.pop(name, None) is not None:
            self._copy_left_out = self._changed = True
        if self._used.get(name) is not record.view:
            self._used[name] = record.view
            self._copy_used = True
            now = matters(record.view)
            if self._mattered.get(name) != now:
                self._mattered[name], self._changed = now, True

    def _forget(self, name: str, at_s: float) -> None:
        record = self._records.pop(name)
        self._held -= record.held
        self._profiles.need(name, record.needs, ())
        for rival in self._claims.set(name, ()):
            self._place(self._records[rival])
        if self._left_out.pop(name, None) is not None:
            self._copy_left_out = self._changed = True
        if self._used.pop(name, None) is not None:
            self._copy_used = self._changed = True
        self._mattered.pop(name, None)
