"""Which clusters a process of a pool plans for: those that say something and that nobody speaks
for. Pure.

The broker gives each hint to one process of the pool (a shared subscription), so that they share
clusters without knowing of each other. Two that take the same one settle it as always: one speaks,
and the other lets it go.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from igniterd.messages.topics import is_name

HINTS = "$share/igniterd-fleet/igniterd/v1/+/+/hint"
CLAIMS = "igniterd/v1/+/speaker"
EMPTY_S = 60.0
"""A cluster of which no host is known for so long is let go."""
_LEASES = 3.0  # for which somebody else speaks, until a cluster is let go
_MOST_HINTED = 1000  # clusters with a hint since the last look


@dataclass(frozen=True, slots=True)
class Held:
    """A cluster that is planned for: whether this process speaks, somebody else does, and whether
    it has hosts."""

    speaks: bool
    others: bool
    hosts: bool


class Pool:
    """What one process hears of all clusters."""

    def __init__(self, most: int, lease_s: float) -> None:
        self._most, self._lease_s = most, lease_s
        self._claimed_s: dict[str, float] = {}  # the last claim of each cluster
        self._hinted: set[str] = set()
        self._idle_s: dict[str, float] = {}  # since when a cluster that is held is of no use

    def hint(self, cluster: str) -> None:
        if is_name(cluster) and len(self._hinted) < _MOST_HINTED:
            self._hinted.add(cluster)

    def claim(self, cluster: str, at_s: float, *, released: bool) -> None:
        if released:
            self._claimed_s.pop(cluster, None)
        else:
            self._claimed_s[cluster] = at_s

    def taking(self, held: Set[str], at_s: float) -> list[str]:
        """Clusters to plan for from now on."""
        self._claimed_s = {
            cluster: s for cluster, s in self._claimed_s.items() if at_s - s < self._lease_s
        }
        hinted, self._hinted = self._hinted, set()
        free = sorted(hinted - held - self._claimed_s.keys())
        return free[: max(0, self._most - len(held))]

    def leaving(self, held: Mapping[str, Held], at_s: float) -> list[str]:
        """Clusters to plan for no more."""
        idle = {
            name: self._idle_s.get(name, at_s)
            for name, each in held.items()
            if (each.others and not each.speaks) or not each.hosts
        }
        self._idle_s = idle
        return [
            name
            for name, since_s in idle.items()
            if at_s - since_s >= (_LEASES * self._lease_s if held[name].others else EMPTY_S)
        ]
