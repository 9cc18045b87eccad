"""Small clusters for Hypothesis, and the fewest moves for them by trying all."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from igniterd.decide.search import find
from igniterd.decide.state import ALL, Margins
from igniterd.fleet.cluster import Cluster, HostView
from igniterd.fleet.index import HostSites
from igniterd.fleet.sites import Site
from tests.fleet.clusters import MODELS, SHED, cluster, host, knowledge, tenant

# a host is judged while it is drawn, and the first one waits for the compiler
SMALL = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sites_in(where: Cluster) -> list[Site]:
    return [s for v in where.hosts.values() for s in HostSites.of(v, knowledge()).sites]


def least_moves(where: Cluster, most: int = 2) -> int | None:
    """By trying all of them: the fewest moves after which every GPU holds its SLOs."""
    every = sites_in(where)
    seats = [(site, seat) for site in every for seat in site.seats]
    for count in range(most + 1):
        for leavers in combinations(seats, count):
            for targets in product(every, repeat=count):
                if all(s is not t for (s, _), t in zip(leavers, targets, strict=True)) and all(
                    _holds(site, leavers, targets) for site in every
                ):
                    return count
    return None


def _holds(site: Site, leavers: Any, targets: Any) -> bool:
    gone = {seat.key for _, seat in leavers}
    demands = [d for d in site.demands(ALL) if d.model not in gone]
    for (_, seat), target in zip(leavers, targets, strict=True):
        if target is site:
            served = {s.served_as for s in site.seats}
            if seat.served_as in served:
                return False
            came = replace(seat, gpus=site.group.gpus)
            demands.append(came.demand(site.kind, site.level, site.slo_margin, ALL, several=False))
    return not demands or find(site.predictors.upper, demands).feasible


LOADS = {"alexnet": (15, 900), "resnet50": (40, 400), "vgg19": (60, 250), "ssd": (60, 120)}


@st.composite
def small_clusters(draw: st.DrawFn) -> Cluster:
    """Two or three hosts of one GPU; a host says itself what it cannot hold, by the search that its
    daemon has."""
    views = []
    for number in range(draw(st.integers(2, 3))):
        names = draw(st.lists(st.sampled_from(MODELS), unique=True, max_size=3))
        tenants = []
        for name in names:
            slo, most = LOADS[name]
            rate = most * draw(st.floats(0.1, 1.2))
            tenants.append(tenant(name, rate, slo, round(0.9 / len(names), 2)))
        views.append(judged(f"h{number}", tenants))
    return cluster(*views)


def judged(name: str, tenants: list[dict[str, Any]], margins: Margins = ALL) -> HostView:
    """A host that says of each model whether its SLO holds, with these margins."""
    view = host(name, *tenants)
    (site,) = HostSites.of(view, knowledge()).sites
    if not site.seats:
        return view
    found = find(site.predictors.at(margins), site.demands(margins))
    marked = [
        {**t, "feasible": f"{name}/{t['name']}" not in found.reasons, "reason": SHED}
        for t in tenants
    ]
    least = {} if not found.feasible else {f"GPU-{name}-0": found.least_share}
    return host(
        name,
        *marked,
        decision={"outcome": "hold", "feasible": found.feasible, "least_by_gpu": least},
    )
