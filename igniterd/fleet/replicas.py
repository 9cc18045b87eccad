"""Replicas for a model whose traffic no single GPU serves. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from igniterd.colocation import Demand
from igniterd.decide.fewest import fewest_changes
from igniterd.decide.room import Room
from igniterd.decide.search import find
from igniterd.decide.state import ALL
from igniterd.fleet.sites import Seat, Site
from igniterd.fleet.working import Spot, Working
from igniterd.records import Allocation

MOST_REPLICAS = 4
"""Of one model, that stay below one in trouble: more want a plan of their own."""
MOST_PLANNED = 12
"""GPUs that are planned in full for one model."""


def replicate(
    working: Working,
    site: Site,
    movers: Mapping[str, Seat],
    spots: Mapping[str, Mapping[str, Spot]],
) -> str:
    """Spread the one model of ``site`` that is shed over as few GPUs as serve it. Returns why that
    cannot be, or an empty string."""
    shed = [seat for seat in site.seats if seat.shed]
    nothing = "no move of up to three models to a GPU with room makes its SLO hold"
    if len(shed) != 1 or shed[0].key not in movers:
        return nothing
    seat = shed[0]
    for count in range(2, MOST_REPLICAS + 1):
        stays = _planned(site, [_part(d, seat, 1 / count) for d in site.demands(ALL)])
        if stays is None:
            continue
        new = _hosts(working, seat, spots[seat.key], count)
        if new is None:
            continue
        why = f"{site.host} cannot hold the SLO of {seat.model.name} ({seat.model.reason})"
        working.replicated(seat, stays, new, f"{why}, and no single GPU that was looked into can")
        return ""
    return f"{nothing}, and up to {MOST_REPLICAS} replicas do not"


def _part(demand: Demand, seat: Seat, weight: float) -> Demand:
    if demand.model != seat.key:
        return demand
    return replace(demand, rate_per_s=demand.rate_per_s * weight)


def _hosts(
    working: Working, seat: Seat, spots: Mapping[str, Spot], count: int
) -> dict[Spot, dict[str, Allocation]] | None:
    """GPUs for all but one of ``count`` replicas, and the allocations of all models there. A Triton
    has one at most; so have GPUs that are planned together, as each is planned as if alone."""
    found: dict[Spot, dict[str, Allocation]] = {}
    taken: set[tuple[str, str]] = set()
    for spot, site in _looked_into(working, spots):
        ends = {(site.host, spot.triton), (site.host, site.name)}
        if ends & taken:
            continue
        come = working.demand_on(seat, spot, ALL, 1 / count)
        if len(site.group.gpus) > 1:
            come = replace(come, gpus=(spot.gpu,) * come.instances)
        target = _planned(site, [*site.demands(ALL), come])
        if target is not None:
            found[spot] = target
            taken |= ends
            if len(found) == count - 1:
                return found
    return None


def _looked_into(working: Working, spots: Mapping[str, Spot]) -> Iterator[tuple[Spot, Site]]:
    for spot in list(spots.values())[:MOST_PLANNED]:
        yield spot, working.site(spot.gpu)


def _planned(site: Site, demands: Sequence[Demand]) -> dict[str, Allocation] | None:
    """Allocations under which all of them hold their SLO on these GPUs; None where none do."""
    predictor = site.predictors.at(ALL)
    found = find(predictor, demands, reserved=site.reserved)
    if not found.feasible:
        return None
    here = {d.model: site.here.get(d.model, found.allocations[d.model]) for d in demands}
    room = Room.of(demands, site.reserved)
    return fewest_changes(predictor, demands, here, found, room)
