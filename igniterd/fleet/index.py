"""The sites of a cluster, kept from one plan to the next: only hosts that changed are looked at
again. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from igniterd.arrays import F64
from igniterd.fleet.cluster import Cluster, HostView
from igniterd.fleet.knowledge import Knowledge
from igniterd.fleet.matters import matters
from igniterd.fleet.sites import Site, sites_of
from igniterd.messages.state import ModelState


@dataclass(frozen=True, slots=True)
class HostSites:
    """One host: its sites; the Tritons that can load each model that is not served there, and the
    profiles that it has of such models; and those whose SLO does not hold and of which nothing can
    be predicted."""

    view: HostView
    mark: int  # of all in the view that matters
    sites: tuple[Site, ...]
    loadable: Mapping[str, tuple[str, ...]]  # a model as Triton has it -> Tritons
    profiles: Mapping[str, tuple[str, ...]]
    unknown: tuple[ModelState, ...]

    @classmethod
    def of(cls, view: HostView, knowledge: Knowledge) -> HostSites:
        sites = tuple(sites_of(view, knowledge))
        planned = {seat.model.name for site in sites for seat in site.seats}
        unknown = tuple(
            m for m in view.models.values() if m.feasible is False and m.name not in planned
        )
        profiles = {m.model or m.name: m.profiles for m in view.models.values() if m.absent}
        return cls(view, matters(view), sites, _loadable(view), profiles, unknown)


def _loadable(view: HostView) -> dict[str, tuple[str, ...]]:
    """What a Triton serves it cannot load a second time."""
    served = {(m.triton, m.model or m.name) for m in view.models.values() if not m.absent}
    found: dict[str, list[str]] = {}
    for triton in view.tritons.values():
        for model in triton.loadable:
            if (triton.name, model) not in served:
                found.setdefault(model, []).append(triton.name)
    return {model: tuple(names) for model, names in found.items()}


@dataclass(slots=True)
class Index:
    """All sites, and the GPUs by the room that their daemons say they have."""

    hosts: dict[str, HostSites] = field(default_factory=dict)
    site_of: dict[str, Site] = field(default_factory=dict)  # by GPU
    troubled: set[str] = field(default_factory=set)  # names of sites
    unknown: set[str] = field(default_factory=set)  # hosts with a model of which nothing is known
    changes: int = 0  # hosts that came, went or changed
    failed: dict[str, str] = field(default_factory=dict)  # hosts that could not be looked at
    _knowledge: Knowledge | None = None
    _seen: dict[str, HostView] = field(default_factory=dict)
    _slots: dict[str, int] = field(default_factory=dict)
    _gpus: list[str] = field(default_factory=list)
    _free: list[int] = field(default_factory=list)
    _room: F64 = field(default_factory=lambda: np.full(64, -np.inf))
    _order: list[int] | None = None

    def update(self, cluster: Cluster, knowledge: Knowledge) -> None:
        """Take up what changed since the last time. A host whose figures only wobble stays as it
        is, and what was planned with it stands."""
        again, self.failed = knowledge is not self._knowledge, {}
        self._knowledge = knowledge
        for name in [n for n in self.hosts if n not in cluster.hosts]:
            self._drop(name)
        for name, view in cluster.hosts.items():
            known = self.hosts.get(name)
            if known is not None and not again:
                if self._seen[name] is view:
                    continue
                self._seen[name] = view
                if known.mark == matters(view):
                    continue
            self._drop(name)
            try:
                found = HostSites.of(view, knowledge)
            except Exception as error:  # whatever it is, the others are planned
                self.failed[name] = repr(error)
                continue
            self._seen[name] = view
            self._add(found)

    def _drop(self, name: str) -> None:
        known = self.hosts.pop(name, None)
        if known is None:
            return
        self.changes += 1
        self.unknown.discard(name)
        self._seen.pop(name, None)
        self._order = None
        for site in known.sites:
            self.troubled.discard(site.name)
            for gpu in site.group.gpus:
                # another host may have it by now
                if self.site_of.get(gpu) is site:
                    slot = self._slots.pop(gpu)
                    self._room[slot] = -np.inf
                    self._free.append(slot)
                    del self.site_of[gpu]

    def _add(self, host: HostSites) -> None:
        self.hosts[host.view.name] = host
        self.changes += 1
        self._order = None
        if host.unknown:
            self.unknown.add(host.view.name)
        for site in host.sites:
            if site.shed:
                self.troubled.add(site.name)
            for gpu in site.group.gpus:
                self.site_of[gpu] = site
                slot = self._slot(gpu)  # which may make room for more
                self._room[slot] = site.room(gpu)

    def _slot(self, gpu: str) -> int:
        if gpu not in self._slots:
            if not self._free:
                first = len(self._gpus)
                if first == len(self._room):
                    self._room = np.concatenate([self._room, np.full(first, -np.inf)])
                self._gpus.append("")
                self._free.append(first)
            self._slots[gpu] = self._free.pop()
        slot = self._slots[gpu]
        self._gpus[slot] = gpu
        return slot

    def roomiest(self) -> Iterator[str]:
        """The GPUs, most room first; those with none are left out."""
        if self._order is None:
            order = np.argsort(-self._room, kind="stable")
            self._order = [int(slot) for slot in order[self._room[order] > 0]]
        return (self._gpus[slot] for slot in self._order)
