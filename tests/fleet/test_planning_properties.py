"""What holds of every advice for a small cluster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.decide.state import ALL
from igniterd.fleet.cluster import Cluster
from igniterd.fleet.planning import Planner
from tests.fleet.clusters import advised, knowledge
from tests.fleet.drawn import SMALL, least_moves, small_clusters


@given(small_clusters())
@SMALL
def test_as_few_moves_as_trying_all_of_them_finds(where: Cluster) -> None:
    found = advised(where)
    if any(m.kind == "replicate" for m in found.moves):
        return
    best = least_moves(where)
    if found.feasible:
        assert best is None or len(found.moves) <= best
    elif best is not None:
        # what moves of one GPU's own tenants do not solve is not found
        assert best > 1


@given(small_clusters(), st.booleans())
@SMALL
def test_after_every_step_it_is_safe_to_stop(where: Cluster, consolidate: bool) -> None:
    found = advised(where, consolidate=consolidate)
    granted = {
        (v.name, m.model or m.name, m.gpus[0]): m.applied.share or 0.0
        for v in where.hosts.values()
        for m in v.models.values()
        if m.applied
    }
    served = {m.number: 1 for m in found.moves}
    routed: set[int] = set()
    for step in found.steps:
        key = (step.host, step.model, step.gpu_uuid)
        if step.action in ("shrink", "grow"):
            assert granted[key] == pytest.approx(step.before.share, abs=1e-4)
            granted[key] = step.allocation.share
        elif step.action == "load":
            assert key not in granted
            granted[key] = step.allocation.share or 0.0
            served[step.move] += 1
        elif step.action == "route":
            assert served[step.move] == 2
            routed.add(step.move)
        else:
            assert step.move in routed
            granted.pop(key)
            served[step.move] -= 1
        for gpu in {g for *_, g in granted}:
            assert sum(s for (*_, g), s in granted.items() if g == gpu) <= 1 + 1e-6


@given(small_clusters(), st.booleans())
@SMALL
def test_what_is_advised_holds_when_it_is_predicted_anew(where: Cluster, consolidate: bool) -> None:
    """With the allocations that the steps name, on both sides, by the predictor alone."""
    advice = Planner("c").plan(where, knowledge(), consolidate=consolidate)
    for _, after in advice.touched.values():
        demands = after.demands(ALL)
        served = after.predictors.upper.together(demands, after.here) if demands else {}
        for demand in demands:
            assert served[demand.model].p99_ms <= demand.slo_ms / (1 - after.slo_margin) * 1.001
