"""The sites of a cluster while moves are being planned: what each move makes of them. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge

from igniterd.colocation import Demand
from igniterd.decide.moves import Found
from igniterd.decide.state import Margins
from igniterd.fleet.index import Index
from igniterd.fleet.sites import Seat, Site
from igniterd.records import Allocation

_HEADROOM = 1.05  # of the memory a model was profiled with: what a loader needs beside it


@dataclass(frozen=True, slots=True)
class Spot:
    """A GPU that a model may go to: the Triton there that can load it, and the GPU's number in
    that."""

    gpu: str
    triton: str
    device: int


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """One seat that goes to a spot, or that gets a replica there with ``weight`` of its traffic.
    ``kind`` as in ``messages.rebalance.Move``."""

    kind: str
    seat: Seat  # as it is now
    spot: Spot
    why: str
    weight: float = 1.0

    @property
    def home(self) -> str:
        """The GPU that it is on."""
        return self.seat.gpus[0]


@dataclass(frozen=True, slots=True)
class Part:
    """What was found for one site: moves, or none and ``why``. ``before`` and ``after``: the sites
    that the moves touch, by name."""

    source: Site
    offers: Hashable
    moves: tuple[PlannedMove, ...]
    before: Mapping[str, Site]
    after: Mapping[str, Site]
    why: str = ""


@dataclass(slots=True)
class Working:
    """What the cluster would be after the moves found so far. ``anywhere``: every Triton is taken
    to be able to load every model."""

    index: Index
    anywhere: bool = False
    moves: list[PlannedMove] = field(default_factory=list)
    _now: dict[str, Site] = field(default_factory=dict)  # by the site's name, where it changed
    _came: set[tuple[str, str, str]] = field(default_factory=set)  # host, Triton, model

    def site(self, gpu: str) -> Site:
        site = self.index.site_of[gpu]
        return self._now.get(site.name, site)

    def roomiest(self) -> Iterator[str]:
        """The GPUs, most room first, after the moves found so far."""
        left = (
            gpu for gpu in self.index.roomiest() if self.index.site_of[gpu].name not in self._now
        )
        gpus = [gpu for site in self._now.values() for gpu in site.group.gpus]
        return merge(left, sorted(gpus, key=self._full), key=self._full)

    def _full(self, gpu: str) -> float:
        return -self.site(gpu).room(gpu)

    def copy(self) -> Working:
        """The same, to go back to."""
        return replace(self, moves=[*self.moves], _now=dict(self._now), _came=set(self._came))

    def back_to(self, before: Working) -> None:
        """As it was when ``before`` was copied from it."""
        self.moves, self._now, self._came = before.moves, before._now, before._came

    def part(self, first: int, source: Site, offers: Hashable, why: str) -> Part:
        """What the moves from number ``first`` on made."""
        moves = tuple(self.moves[first:])
        ends = [gpu for move in moves for gpu in (move.home, move.spot.gpu)]
        after = {site.name: site for site in map(self.site, ends)}
        before = {name: site.was or site for name, site in after.items()}
        return Part(source, offers, moves, before, after, why)

    def again(self, part: Part) -> bool:
        """Make the moves of ``part`` once more, where all is as it was when they were found."""
        known = self.index.site_of
        if any(n not in known or self.site(n) is not s for n, s in part.before.items()):
            return False
        came = [self._came_as(move) for move in part.moves]
        if self._came.intersection(came):
            return False
        self._now |= part.after
        self._came.update(came)
        self.moves += part.moves
        return True

    def touched(self) -> dict[str, tuple[Site, Site]]:
        """By GPU: the sites of all moves as they are now, and as they are after all moves."""
        gpus = [gpu for move in self.moves for gpu in (move.home, move.spot.gpu)]
        return {gpu: (self.index.site_of[gpu], self.site(gpu)) for gpu in gpus}

    def spot(self, seat: Seat, gpu: str) -> Spot | None:
        """Where on this GPU the model may go; None where it may not."""
        site = self.site(gpu)
        seat = self._known_at(seat, site.host)
        if site.waits or site.shed or gpu in seat.gpus or seat.name_on(site.kind) is None:
            return None
        if not self._fits_memory(site, gpu, seat):
            return None
        view = self.index.hosts[site.host].view
        able = self.index.hosts[site.host].loadable.get(seat.served_as, ())
        for triton in view.tritons.values():
            if gpu not in triton.gpus or not (self.anywhere or triton.name in able):
                continue
            if (site.host, triton.name) == (seat.host, seat.model.triton):
                continue  # its own daemon moves it between the GPUs of a Triton, or knows why not
            if (site.host, triton.name, seat.served_as) in self._came:
                continue
            if self.anywhere and self._served(site.host, triton.name, seat.served_as):
                continue
            return Spot(gpu, triton.name, triton.gpus.index(gpu))
        return None

    def _known_at(self, seat: Seat, host: str) -> Seat:
        """``seat`` with the profiles that the host has of this model too: they may be of another
        kind of board."""
        known = self.index.hosts[host].profiles.get(seat.served_as, ())
        if set(known) <= set(seat.model.profiles):
            return seat
        both = tuple(dict.fromkeys((*seat.model.profiles, *known)))
        return replace(seat, model=seat.model.model_copy(update={"profiles": both}))

    def _served(self, host: str, triton: str, model: str) -> bool:
        return any(
            m.triton == triton and (m.model or m.name) == model and not m.absent
            for m in self.index.hosts[host].view.models.values()
        )

    def _fits_memory(self, site: Site, gpu: str, seat: Seat) -> bool:
        """What nobody tells is taken to fit."""
        need, free = _memory(site, seat), site.memory_free.get(gpu)
        return need is None or free is None or need * _HEADROOM <= free

    def arriving(self, seat: Seat, spot: Spot, weight: float = 1.0) -> Seat:
        """``seat`` as it will be there, before it is known what it is given."""
        count, host = seat.here.instances, self.site(spot.gpu).host
        there = self._known_at(seat, host)
        return replace(
            there if host == seat.host else there.as_new(),
            here=replace(seat.here, devices=(spot.device,) * count),
            gpus=(spot.gpu,) * count,
            weight=seat.weight * weight,
            fixed=True,
        )

    def demand_on(self, seat: Seat, spot: Spot, margins: Margins, weight: float = 1.0) -> Demand:
        """What to plan for of ``seat`` there, as if it were a GPU planned alone."""
        site = self.site(spot.gpu)
        arriving = self.arriving(seat, spot, weight)
        return arriving.demand(site.kind, site.level, site.slo_margin, margins, several=False)

    def take(
        self,
        found: Found,
        seats: Mapping[str, Seat],
        offered: Mapping[str, Mapping[str, Spot]],
        why: str,
    ) -> None:
        """Make the moves of ``found``; ``seats``: those that may go, and ``offered`` where to, by
        key."""
        to, target = found.relocation.to, found.relocation.target
        spots = {key: offered[key][gpu] for key, gpu in to.items()}
        arrived = {
            key: _given(self.arriving(seats[key], spot), target[key]) for key, spot in spots.items()
        }
        ends = [*to.values(), *(seats[key].gpus[0] for key in to)]
        for site in {site.name: site for site in map(self.site, ends)}.values():
            stay = [_given(s, target.get(s.key, s.here)) for s in site.seats if s.key not in to]
            come = [arrived[key] for key, gpu in to.items() if gpu in site.group.gpus]
            self._change(site, [*stay, *come], come)
        for key, spot in spots.items():
            self._record(PlannedMove("move", seats[key], spot, why))

    def replicated(
        self,
        seat: Seat,
        stays: Mapping[str, Allocation],
        new: Mapping[Spot, Mapping[str, Allocation]],
        why: str,
    ) -> None:
        """A replica of ``seat`` on each of the GPUs of ``new``, all with an equal part of its
        traffic. ``stays``, and the values of ``new``: the allocations of all models of each
        site."""
        weight = 1.0 / (1 + len(new))
        source = self.site(seat.gpus[0])
        less = replace(seat, weight=seat.weight * weight)
        kept = [_given(less if s is seat else s, stays[s.key]) for s in source.seats]
        self._change(source, kept, [])
        for spot, target in new.items():
            site = self.site(spot.gpu)
            came = _given(self.arriving(seat, spot, weight), target[seat.key])
            stay = [_given(s, target[s.key]) for s in site.seats]
            self._change(site, [*stay, came], [came])
            self._record(PlannedMove("replicate", seat, spot, why, weight))

    def _change(self, site: Site, seats: Sequence[Seat], come: Sequence[Seat]) -> None:
        self._now[site.name] = site.with_seats(seats, _taken(site, come))

    def _record(self, move: PlannedMove) -> None:
        self._came.add(self._came_as(move))
        self.moves.append(move)

    def _came_as(self, move: PlannedMove) -> tuple[str, str, str]:
        return self.site(move.spot.gpu).host, move.spot.triton, move.seat.served_as


def _memory(site: Site, seat: Seat) -> int | None:
    """Bytes that all its instances take."""
    name = seat.name_on(site.kind)
    each = None if name is None else site.kind.copy_bytes(name)
    return None if each is None else each * seat.here.instances


def _taken(site: Site, come: Iterable[Seat]) -> dict[str, int]:
    taken: dict[str, int] = {}
    for seat in come:
        taken[seat.gpus[0]] = taken.get(seat.gpus[0], 0) + (_memory(site, seat) or 0)
    return taken


def _given(seat: Seat, allocation: Allocation) -> Seat:
    """It stays on the GPUs that it is on."""
    return replace(seat, here=replace(allocation, devices=seat.here.devices))
