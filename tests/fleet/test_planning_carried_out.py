"""A rebalance that is carried out on a model of its cluster: nothing more is advised then, and what
is said of a larger one is safe however it is cut."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from igniterd.decide.state import NONE
from igniterd.fleet.cluster import Cluster
from igniterd.fleet.fitting import in_one_message
from igniterd.fleet.planning import Planner
from igniterd.jsontext import dumps
from igniterd.messages.rebalance import Rebalance
from tests.fleet.clusters import cluster, knowledge
from tests.fleet.drawn import SMALL, judged, small_clusters

RATES = ("rate_per_s", "rate_upper_per_s")


def carried_out(where: Cluster, said: Rebalance) -> Cluster:
    """The cluster once all steps are done, with what its hosts then say."""
    tenants: dict[str, dict[str, Any]] = {
        name: {m.name: _tenant(m) for m in view.models.values()}
        for name, view in where.hosts.items()
    }
    for step in said.steps:
        there, move = tenants[step.host], said.moves[step.move - 1]
        if step.action == "load":
            new = tenants[move.source.host][move.model]
            rates = {key: new[key] * move.weight for key in RATES}
            there[step.model] = {**new, **rates, "gpus": [0]}
        if step.action in ("load", "shrink", "grow"):
            assert step.allocation is not None
            applied = step.allocation.model_dump(mode="json", exclude_none=True)
            there[step.model] = {**there[step.model], "applied": applied}
        if step.action == "unload":
            del there[step.model]
    for move in said.moves:
        if move.kind == "replicate":
            kept = tenants[move.source.host][move.model]
            left = kept["left"] = kept.get("left", 1.0) - move.weight
            was = where.hosts[move.source.host].models[move.model]
            kept.update({key: getattr(was, key) * left for key in RATES})
    for models in tenants.values():
        for model in models.values():
            model.pop("left", None)
    # a daemon gives up its margins before it gives up a model
    views = (judged(name, list(models.values()), NONE) for name, models in tenants.items())
    return cluster(*views)


def _tenant(model: Any) -> dict[str, Any]:
    said: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
    return {**said, "gpus": [0]}


def advised(where: Cluster, consolidate: bool) -> dict[str, Any]:
    advice = Planner("c").plan(where, knowledge(), consolidate=consolidate)
    return advice.document(speaker="me", term=1, number=1, time_s=1000.0)


def in_trouble(where: Cluster) -> set[str]:
    return {
        name
        for name, view in where.hosts.items()
        if any(model.feasible is False for model in view.models.values())
    }


@given(small_clusters(), st.booleans())
@SMALL
def test_once_all_is_done_nothing_more_is_advised(where: Cluster, consolidate: bool) -> None:
    said = Rebalance.model_validate_json(dumps(advised(where, consolidate)))
    if not said.moves:
        return
    after = carried_out(where, said)
    again = Rebalance.model_validate_json(dumps(advised(after, consolidate)))
    assert not again.moves or not said.feasible
    if said.feasible:
        assert in_trouble(after) == set()


@given(small_clusters(), st.booleans(), st.integers(900, 6000))
@SMALL
def test_the_moves_of_a_cut_rebalance_trouble_nobody(
    where: Cluster, consolidate: bool, most: int
) -> None:
    whole = advised(where, consolidate)
    said = Rebalance.model_validate_json(dumps(in_one_message(whole, most)))
    left = in_trouble(carried_out(where, said)) - in_trouble(where)
    assert left == set()
