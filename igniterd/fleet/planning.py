"""The fewest moves after which every SLO of a cluster holds, or that leave GPUs empty. Pure.

Where a host cannot hold an SLO it says so. For each GPU in trouble, hosts that say they have room
are shortlisted, and the same search that moves models between the GPUs of one host
(:mod:`igniterd.decide.moves`) looks for the fewest tenants whose going is enough: one, else two,
else three. What it finds is planned in full on both sides with the predictors of both boards. A
model whose traffic no single GPU serves gets replicas. GPUs are emptied only after that, with what
nobody in trouble could use.

A plan says again what the one before said as long as that still holds, and no other would help
more models: advice that changes with every state could not be followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from igniterd.decide.moves import Moves
from igniterd.fleet.advice import Advice, Open
from igniterd.fleet.cluster import Cluster
from igniterd.fleet.index import Index
from igniterd.fleet.knowledge import Knowledge
from igniterd.fleet.offers import Offers, Want
from igniterd.fleet.replicas import replicate
from igniterd.fleet.sites import Site
from igniterd.fleet.working import Part, Working

MOST_SOURCES = 12
"""GPUs in trouble that one plan searches moves for: others come with the next."""
EMPTYING_TRIES = 12
"""GPUs that could not be emptied before no more are tried."""
MOST_EMPTIED = 16
"""GPUs that one plan empties: others come with the next."""


@dataclass(slots=True)
class Planner:
    """Plans one cluster, again and again. It is called by one thread at a time.

    What was found for a GPU stands as long as it and the GPUs it leads to are as they were.
    """

    cluster_name: str
    anywhere: bool = False
    _index: Index = field(default_factory=Index)
    _relieved: dict[str, Part] = field(default_factory=dict)  # by the site in trouble
    _emptied: dict[str, Part] = field(default_factory=dict)  # by the site that is emptied
    _tried: dict[str, int] = field(default_factory=dict)  # site in trouble -> the plan it was in
    _anew: int = -1  # changes of the index when all was last planned anew
    _count: int = 0
    _later: int = 0  # GPUs in trouble that the present plan does not look into
    _want: Want = Want.ROOM

    def plan(self, cluster: Cluster, knowledge: Knowledge, *, consolidate: bool = False) -> Advice:
        """What to advise now."""
        self._count += 1
        self._index.update(cluster, knowledge)
        self._want = Want.USED_FIRST if consolidate else Want.ROOM
        working, opened = self._best_relief()
        opened += [
            Open(host, model.name, "it has no profile of its GPU here, or is not planned with")
            for host in sorted(self._index.unknown)
            for model in self._index.hosts[host].unknown
        ]
        if consolidate and self._later == 0:  # of what nobody in trouble could use
            self._empty(working)
        hosts = {self._index.site_of[gpu].host for gpu in self._index.troubled}
        return Advice(
            cluster=cluster,
            aim="consolidate" if consolidate else "feasible",
            moves=tuple(working.moves),
            touched=working.touched(),
            unsolved=tuple(opened),
            troubled=len(hosts | self._index.unknown),
            unfinished=self._later > 0,
            failed=dict(self._index.failed),
        )

    # ------------------------------------------------------------ trouble

    def _best_relief(self) -> tuple[Working, list[Open]]:
        """Everybody in trouble. Who comes first may take the room without which another cannot be
        helped: then all is planned once more, with the others first, and what helps more stays."""
        working = Working(self._index, self.anywhere)
        opened = self._relieve_all(working)
        few = len(self._index.troubled) <= MOST_SOURCES
        if not (opened and working.moves and few) or self._anew == self._index.changes:
            return working, opened
        self._anew = self._index.changes
        before = self._relieved, self._tried
        unhelped = {name: -1 for name, part in self._relieved.items() if not part.moves}
        self._relieved, self._tried = {}, unhelped
        anew = Working(self._index, self.anywhere)
        still = self._relieve_all(anew)
        if len(still) < len(opened):
            return anew, still
        self._relieved, self._tried = before
        return working, opened

    def _relieve_all(self, working: Working) -> list[Open]:
        troubled = self._index.troubled
        self._relieved = {k: v for k, v in self._relieved.items() if k in troubled}
        self._tried = {k: v for k, v in self._tried.items() if k in troubled}
        opened: list[Open] = []
        searched = self._later = 0
        order = {name: number for number, name in enumerate(self._relieved)}
        for site in sorted(map(working.site, troubled), key=lambda s: self._turn(s, order)):
            known = self._relieved.get(site.name)
            if searched >= MOST_SOURCES and not self._advised(site):
                opened += _open(site, "not looked into yet: other GPUs come first")
                self._later += 1
                continue
            part = _alone(self._relief, working, site)
            self._relieved.pop(site.name, None)  # so that it comes after those of this plan
            self._relieved[site.name] = part
            searched += part is not known  # what stands from before costs nothing
            self._tried[site.name] = self._count
            opened += _open(site, part.why) if not part.moves else []
        return opened

    def _advised(self, site: Site) -> bool:
        part = self._relieved.get(site.name)
        return part is not None and bool(part.moves)

    def _turn(self, site: Site, order: Mapping[str, int]) -> tuple[bool, int, int, str]:
        """What was advised is looked at first, in its order, so that it stays; then what has waited
        longest."""
        first = min(seat.model.priority for seat in site.seats if seat.shed)
        if self._advised(site):
            return False, order[site.name], first, site.name
        return True, self._tried.get(site.name, 0), first, site.name

    def _relief(self, working: Working, site: Site) -> Part:
        """Moves after which this GPU holds its SLOs, or why there are none."""
        known = self._relieved.get(site.name)
        if known is not None and known.source is site and known.moves and working.again(known):
            return known
        movers = {seat.key: seat for seat in site.seats if not seat.fixed}
        wants = dict.fromkeys((self._want, Want.ROOM))  # who is in trouble may end elsewhere yet
        offers = [Offers.to(working, site, movers, want) for want in wants]
        key = tuple(each.key(working) for each in offers)
        if known is not None and known.source is site and not known.moves and known.offers == key:
            return known
        number, why = len(working.moves), "none of the models on its GPU may be moved"
        if movers:
            before = {} if known is None else {m.seat.key: m.spot.gpu for m in known.moves}
            why = _relieve(working, site, offers, before)
        return working.part(number, site, key, why)

    # ------------------------------------------------------------ consolidation

    def _empty(self, working: Working) -> None:
        """Empty GPUs into others: those that were advised before, then those with least on them."""
        kept: dict[str, Part] = {}
        failed = 0
        for site in sorted(emptying_order(self._index), key=lambda s: not self._was_emptied(s)):
            if failed >= EMPTYING_TRIES or len(kept) - failed >= MOST_EMPTIED:
                break
            now = working.site(site.name)
            if now.changed:
                continue  # somebody has come
            part = kept[site.name] = _alone(self._emptying, working, now)
            failed += not part.moves
        self._emptied = kept

    def _was_emptied(self, site: Site) -> bool:
        part = self._emptied.get(site.name)
        return part is not None and bool(part.moves)

    def _emptying(self, working: Working, site: Site) -> Part:
        known = self._emptied.get(site.name)
        if known is not None and known.source is site and known.moves and working.again(known):
            return known
        movers = {seat.key: seat for seat in site.seats}
        offers = Offers.to(working, site, movers, Want.USED)
        key, number = offers.key(working), len(working.moves)
        if known is not None and known.source is site and not known.moves and known.offers == key:
            return known
        found = offers.search(working).emptied(site.name)
        if found is not None:
            working.take(found, movers, offers.spots, f"{site.name} of {site.host} is free then")
        return working.part(number, site, key, "")


def _alone(find: Callable[[Working, Site], Part], working: Working, site: Site) -> Part:
    """What ``find`` finds for a site. A fault of ours in it costs this site its moves and no
    other."""
    before = working.copy()
    try:
        return find(working, site)
    except Exception as error:  # whatever it is
        working.back_to(before)
        return Part(site, None, (), {}, {}, f"it could not be planned for: {error!r}")


def _relieve(working: Working, site: Site, offers: Sequence[Offers], before: Moves) -> str:
    """Make the fewest moves that help, among the first of ``offers`` that have some; ``before``:
    those that were advised before. Returns why there are none, or an empty string."""
    for each in sorted(offers, key=lambda o: not o.allow(before)):  # advice should stay as it is
        first = [before] if before and each.allow(before) else []
        found = each.search(working).relieved(site.name, first=first)
        if found is not None:
            working.take(found, each.movers, each.spots, _relief_of(site))
            return ""
    return replicate(working, site, offers[-1].movers, offers[-1].spots)


def _relief_of(site: Site) -> str:
    names = ", ".join(f"{s.model.name} ({s.model.reason})" for s in site.seats if s.shed)
    return f"{site.host} cannot hold the SLO of {names}"


def _open(site: Site, why: str) -> list[Open]:
    return [Open(site.host, s.model.name, why) for s in site.seats if s.shed]


def emptying_order(index: Index) -> list[Site]:
    """The GPUs that could be emptied, those with least on them first: nothing else is on them, and
    all that is may be moved."""
    able = [
        site
        for site in dict.fromkeys(index.site_of.values())
        if site.seats
        and len(site.group.gpus) == 1
        and not site.others
        and not any(seat.fixed for seat in site.seats)
        and not any(site.taken.values())
    ]
    return sorted(able, key=lambda site: (-site.room(site.name), site.name))
