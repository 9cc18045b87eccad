"""Which GPUs are looked into for the models of a GPU in trouble. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from igniterd.colocation import Demand
from igniterd.decide.moves import Host, Moves, Side
from igniterd.decide.state import Margins
from igniterd.fleet.sites import Seat, Site
from igniterd.fleet.working import Spot, Working

SHORTLIST = 8
"""GPUs that are looked into for each model that may go."""
MOST_SIDES = 24
"""GPUs that are looked into for one in trouble."""
MOST_LOOKED_INTO = 6
"""Moves that are planned in full for one GPU in trouble."""
SECOND_LOOKS = 64
"""See :data:`igniterd.decide.moves.SECOND_LOOKS`: no tick waits for this."""


class Want(Enum):
    """Which GPUs are offered first: those with most ``ROOM``, those that serve something already,
    or only those."""

    ROOM = 0
    USED_FIRST = 1
    USED = 2


@dataclass(frozen=True, slots=True)
class Offers:
    """Where the ``movers`` of ``source`` may go: ``spots`` by mover and GPU."""

    source: Site
    movers: Mapping[str, Seat]
    spots: Mapping[str, Mapping[str, Spot]]
    want: Want = Want.ROOM

    @classmethod
    def to(
        cls, working: Working, source: Site, movers: Mapping[str, Seat], want: Want = Want.ROOM
    ) -> Offers:
        """The roomiest GPUs that can take each of ``movers``, of those that are wanted."""
        found: dict[str, dict[str, Spot]] = {key: {} for key in movers}
        sides: set[str] = set()
        short = set(movers)
        for gpu in _in_order(working, want):
            if not short:
                break
            site = working.site(gpu)
            full = site.name not in sides and len(sides) >= MOST_SIDES
            if full or gpu in source.group.gpus:
                continue
            for key in sorted(short):
                spot = working.spot(movers[key], gpu)
                if spot is not None:
                    found[key][gpu] = spot
                    sides.add(site.name)
                    if len(found[key]) == SHORTLIST:
                        short.discard(key)
        return cls(source, movers, found, want)

    def allow(self, moves: Moves) -> bool:
        """Whether these moves are among them."""
        return all(gpu in self.spots.get(key, {}) for key, gpu in moves.items())

    def key(self, working: Working) -> Hashable:
        """The same where the same sites are offered to the same models."""
        return tuple(
            (key, gpu, working.site(gpu)) for key, spots in self.spots.items() for gpu in spots
        )

    def search(self, working: Working) -> Host:
        """The search for moves among them."""
        gpus = dict.fromkeys(gpu for spots in self.spots.values() for gpu in spots)
        sites = {site.name: site for site in map(working.site, gpus)}
        sides = [Side(site.group, site) for site in (self.source, *sites.values())]

        def demand_on(key: str, gpu: str, margins: Margins) -> Demand | None:
            spot = self.spots[key].get(gpu)
            return None if spot is None else working.demand_on(self.movers[key], spot, margins)

        return Host(
            sides,
            {key: seat.gpus[0] for key, seat in self.movers.items()},
            demand_on,
            needs_known={
                s.name: dict(s.published)
                for s in sites.values()
                if s.published.keys() >= set(s.group.gpus)
            },
            most_confirmed=MOST_LOOKED_INTO,
            second_looks=SECOND_LOOKS,
            used_first=self.want is Want.USED_FIRST,
            # who is in trouble already loses nothing by going
            rather=frozenset(self.source.shed),
        )


def _in_order(working: Working, want: Want) -> Iterator[str]:
    if want is Want.ROOM:
        yield from working.roomiest()
        return
    idle = []
    # as room was before the plan: who comes next joins who came before, and fewer GPUs are used
    for gpu in working.index.roomiest():
        if working.site(gpu).seats:
            yield gpu
        else:
            idle.append(gpu)
    if want is Want.USED_FIRST:
        yield from idle
