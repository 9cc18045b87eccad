"""What is advised for small clusters, worked out by hand; and what holds of every advice."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, product
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.decide.search import find
from igniterd.decide.state import ALL, Margins
from igniterd.fleet import planning, sites
from igniterd.fleet.cluster import Cluster, HostView
from igniterd.fleet.index import HostSites
from igniterd.fleet.planning import Planner
from igniterd.fleet.sites import Site
from igniterd.messages.rebalance import Rebalance
from tests.fleet.clusters import (
    GIB,
    MODELS,
    absent,
    cluster,
    host,
    knowledge,
    slow_profile,
    tenant,
)

SHED = "does not fit"


CROWD = (
    tenant("alexnet", 600, 15, 0.3),
    tenant("resnet50", 300, 40, 0.4, shed=SHED),
    tenant("vgg19", 200, 60, 0.3),
)
"""Three models that do not hold their SLOs on one GPU, and any two of them do."""


def crowded(name: str = "hot") -> HostView:
    return host(name, *CROWD)


def advised(where: Cluster, *, consolidate: bool = False, planner: Planner | None = None) -> Any:
    """The document, which is checked as its readers check it."""
    advice = (planner or Planner("c")).plan(where, knowledge(), consolidate=consolidate)
    document = advice.document(speaker="me", term=1, number=1, time_s=1000.0)
    return Rebalance.model_validate_json(json.dumps(document))


def moved(found: Any) -> list[tuple[str, str, str]]:
    return [(m.model, m.source.host, m.to.host) for m in found.moves]


class TestRelief:
    def test_the_model_in_trouble_goes_to_the_host_with_most_room(self) -> None:
        found = advised(
            cluster(crowded(), host("full", tenant("ssd", 50, 60, 0.9)), host("idle", gpus=2))
        )
        assert moved(found) == [("resnet50", "hot", "idle")]
        assert found.feasible
        assert [s.action for s in found.steps] == ["load", "route", "unload"]
        assert [s.host for s in found.steps] == ["idle", "idle", "hot"]
        (move,) = found.moves
        fares = {f.model: f for f in move.at_source}
        assert fares["resnet50"].after_p99_ms is None
        assert all(
            f.after_p99_ms is not None and f.after_p99_ms <= f.slo_p99_ms
            for f in (*move.at_source, *move.at_target)
            if f.model != "resnet50" or f in move.at_target
        )

    def test_nothing_is_advised_where_every_slo_holds(self) -> None:
        found = advised(cluster(host("a", tenant("alexnet", 100, 15, 0.3)), host("b")))
        assert (moved(found), found.feasible) == ([], True)

    def test_tenants_at_the_target_shrink_before_the_model_is_loaded(self) -> None:
        roomy = host("roomy", tenant("ssd", 20, 200, 1.0), board={"reserved": 0.0})
        found = advised(cluster(crowded(), roomy))
        actions = [(s.action, s.host, s.model) for s in found.steps]
        assert actions[0] == ("shrink", "roomy", "ssd")
        assert [a for a, *_ in actions] == ["shrink", "load", "route", "unload"]
        shrink, load, *_ = found.steps
        assert shrink.before.share == 1.0
        assert shrink.allocation.share + load.allocation.share <= 1 + 1e-9

    def test_at_a_source_that_only_looks_on_the_others_shrink_before_they_grow(self) -> None:
        """All of it is granted there: in another order it would be more than there is."""
        hot = host(
            "hot",
            tenant("alexnet", 600, 15, 0.2),
            tenant("vgg19", 200, 60, 0.2),
            tenant("resnet50", 300, 40, 0.1, shed=SHED),
            tenant("ssd", 5, 200, 0.5),
            mode="observe",
        )
        found = advised(cluster(hot, host("idle")))
        there = [s for s in found.steps if s.host == "hot"]
        assert [(s.action, s.model) for s in there] == [
            ("unload", "resnet50"),
            ("shrink", "ssd"),
            ("grow", "vgg19"),
        ]
        shares = {"alexnet": 0.2, "ssd": 0.5, "vgg19": 0.2}
        for step in there[1:]:
            shares[step.model] = step.allocation.share
            assert sum(shares.values()) <= 1 + 1e-9

    def test_one_that_had_no_share_gets_its_own_once_there_is_room(self) -> None:
        roomy = host("roomy", tenant("alexnet", 300, 15, None), tenant("ssd", 5, 200, 0.9))
        found = advised(cluster(crowded(), roomy))
        there = [(s.action, s.model) for s in found.steps if s.action in ("shrink", "grow")]
        assert there == [("shrink", "ssd"), ("shrink", "alexnet")]

    def test_a_host_that_lacks_the_model_in_its_repository_is_no_target(self) -> None:
        found = advised(cluster(crowded(), host("other", loadable=["ssd"])))
        assert moved(found) == []
        assert not found.feasible
        assert [(u.host, u.model) for u in found.unsolved] == [("hot", "resnet50")]

    def test_unless_every_host_is_said_to_have_all_models(self) -> None:
        where = cluster(crowded(), host("other", loadable=[]))
        assert len(advised(where, planner=Planner("c", anywhere=True)).moves) == 1

    def test_a_host_without_memory_for_the_model_is_no_target(self) -> None:
        tight = host("tight", board={"memory_used_bytes": 16 * GIB - 1})
        assert moved(advised(cluster(crowded(), tight))) == []

    def test_a_model_that_stays_is_not_moved(self) -> None:
        held = host(
            "hot",
            tenant("alexnet", 600, 15, 0.3, stays="its owner says so"),
            tenant("resnet50", 300, 40, 0.4, shed=SHED, stays="its owner says so"),
            tenant("vgg19", 200, 60, 0.3),
        )
        assert moved(advised(cluster(held, host("idle")))) == [("vgg19", "hot", "idle")]

    def test_a_gpu_in_trouble_is_no_target_for_another(self) -> None:
        found = advised(cluster(crowded("a"), crowded("b")))
        assert moved(found) == []
        assert {u.host for u in found.unsolved} == {"a", "b"}

    def test_two_hosts_in_trouble_do_not_get_the_same_room(self) -> None:
        one = advised(cluster(crowded("a"), crowded("b"), host("idle")))
        two = advised(cluster(crowded("a"), crowded("b"), host("idle"), host("idle2")))
        assert {m.to.host for m in two.moves} == {"idle", "idle2"}
        names = [m.model for m in one.moves]
        assert len(set(names)) == len(names)  # a name is once on a Triton

    def test_two_models_go_where_one_is_not_enough(self) -> None:
        hot = host(
            "hot",
            tenant("alexnet", 500, 15, 0.3, shed=SHED),
            tenant("resnet50", 380, 30, 0.4, shed=SHED),
            tenant("vgg19", 220, 50, 0.3),
            tenant("ssd", 110, 60, 0.3),
        )
        found = advised(cluster(hot, host("x"), host("y")))
        assert found.feasible
        assert len(found.moves) == least_moves(cluster(hot, host("x"), host("y"))) == 2

    def test_traffic_that_no_gpu_serves_gets_a_replica(self) -> None:
        hot = host("hot", tenant("vgg19", 900, 60, 1.0, shed="900/s are more than it serves"))
        found = advised(cluster(hot, host("x"), host("y"), host("z")))
        assert found.feasible
        assert {m.kind for m in found.moves} == {"replicate"}
        part = 1 / (1 + len(found.moves))
        assert all(m.weight == pytest.approx(part, abs=1e-4) for m in found.moves)
        assert "unload" not in {s.action for s in found.steps}

    def test_gpus_that_share_a_model_get_one_replica(self) -> None:
        """They are planned together, and each is looked into as if the other got none."""
        uuids = ["GPU-x-0", "GPU-x-1"]
        ssd = tenant("ssd", 10, 200, 0.2, triton="both")
        ssd |= {"gpus": [0, 1], "applied": ssd["applied"] | {"devices": [0, 1], "instances": 2}}
        tritons = [
            {"name": "both", "gpus": uuids},
            {"name": "first", "gpus": uuids[:1], "loadable": ["vgg19"]},
            {"name": "second", "gpus": uuids[1:], "loadable": ["vgg19"]},
        ]
        hot = host("hot", tenant("vgg19", 900, 60, 1.0, shed="900/s are more than it serves"))
        two = host("x", ssd, gpus=2, tritons=tritons)
        assert moved(advised(cluster(hot, two))) == []
        found = advised(cluster(hot, two, host("y"), host("z")))
        assert found.feasible
        assert len({m.to.host for m in found.moves}) == len(found.moves) > 1

    def test_gpus_that_share_a_model_of_which_nothing_is_known(self) -> None:
        """On one of them is nobody else."""
        shared = tenant("ssd", 10, 200, 0.05, profiles=[], triton="both")
        shared |= {"gpus": [0, 1], "applied": shared["applied"] | {"devices": [0, 1]}}
        uuids = ["GPU-hot-0", "GPU-hot-1"]
        tritons = [{"name": "main", "gpus": uuids[:1]}, {"name": "both", "gpus": uuids}]
        hot = host("hot", *CROWD, shared, gpus=2, tritons=tritons)
        found = advised(cluster(hot, host("idle")))
        assert [(m.source.host, m.to.host) for m in found.moves] == [("hot", "idle")]
        assert found.feasible

    def test_what_only_its_daemon_can_predict_keeps_its_share(self) -> None:
        """It reserves nothing for what it plans itself."""
        odd = host("odd", tenant("ssd", 10, 60, 0.9, profiles=[]))
        assert moved(advised(cluster(crowded(), odd))) == []
        odd = host("odd", tenant("ssd", 10, 60, None, profiles=[], busy=0.9))
        assert moved(advised(cluster(crowded(), odd))) == []

    def test_what_cannot_be_predicted_is_named(self) -> None:
        odd = host("odd", tenant("ssd", 10, 60, 0.5, shed=SHED, profiles=[]))
        found = advised(cluster(odd, host("idle")))
        assert not found.feasible
        assert [(u.host, u.model) for u in found.unsolved] == [("odd", "ssd")]

    def test_hosts_left_out_are_named(self) -> None:
        found = advised(cluster(crowded(), host("idle"), liar="shares add up to 140 %"))
        assert [(x.host, x.reason) for x in found.left_out] == [("liar", "shares add up to 140 %")]
        assert (found.hosts.known, found.hosts.used, found.hosts.troubled) == (3, 2, 1)

    def test_what_its_daemon_could_do_itself_is_left_to_it(self) -> None:
        """Two GPUs of one Triton: the daemon moves models between them, or knows why not."""
        assert moved(advised(cluster(host("hot", *CROWD, gpus=2, loadable=MODELS)))) == []

    def test_between_the_tritons_of_one_host_it_is_advised(self) -> None:
        uuids = ["GPU-hot-0", "GPU-hot-1"]
        tritons = [
            {"name": "main", "gpus": uuids[:1]},
            {"name": "second", "gpus": uuids[1:], "loadable": list(MODELS)},
        ]
        (move,) = advised(cluster(host("hot", *CROWD, gpus=2, tritons=tritons))).moves
        assert (move.to.host, move.to.triton, move.to.device) == ("hot", "second", 0)


class TestFaultsOfOurs:
    """What goes wrong for one GPU or host costs the others nothing."""

    def test_of_one_gpu_in_trouble(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = planning._relieve

        def failing(working: Any, site: Site, *rest: Any) -> str:
            said = real(working, site, *rest)
            if site.host == "a":
                raise ZeroDivisionError("a kernel")
            return said

        monkeypatch.setattr(planning, "_relieve", failing)
        found = advised(cluster(crowded("a"), crowded("b"), host("idle", gpus=2)))
        assert moved(found) == [("resnet50", "b", "idle")]
        assert [(u.host, "ZeroDivisionError" in u.reason) for u in found.unsolved] == [("a", True)]

    def test_of_one_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = sites.sites_of

        def failing(view: HostView, *rest: Any) -> Any:
            return real(view, *rest) if view.name != "odd" else 1 / 0

        monkeypatch.setattr("igniterd.fleet.index.sites_of", failing)
        found = advised(cluster(crowded("a"), host("odd"), host("idle")))
        assert moved(found) == [("resnet50", "a", "idle")]
        assert [(x.host, "ZeroDivisionError" in x.reason) for x in found.left_out] == [
            ("odd", True)
        ]


class TestKindsOfBoards:
    SLOW: ClassVar[dict[str, Any]] = {"name": "slow", "sm_count": 40, "memory_total_bytes": None}

    def test_a_model_goes_to_another_kind_of_board_where_that_has_a_profile_of_it(self) -> None:
        """It is predicted as on that board, and what was learnt on the other one is left there."""
        there = host("there", absent("resnet50", 40, slow_profile()[0]), board=self.SLOW)
        bias = {"share": 0.4, "pressure": 0.5, "level": 0.05, "tilt": 0.0, "sd": 0.02}
        learnt = [dict(t) for t in CROWD]
        learnt[1] |= {"learnt": bias, "bias": 1.05}
        (move,) = advised(cluster(host("hot", *learnt), there)).moves
        (same,) = advised(cluster(host("hot", *learnt), host("idle"))).moves
        fares = [{f.model: f.after_p99_ms for f in m.at_target} for m in (move, same)]
        assert (move.model, move.to.host) == ("resnet50", "there")
        # twice the time, and less of a queue on the other: more than twice, without the bias
        assert fares[0]["resnet50"] > 1.9 * fares[1]["resnet50"]

    def test_and_nowhere_where_no_profile_is_of_that_board(self) -> None:
        where = cluster(host("hot", *CROWD), host("there", board=self.SLOW))
        assert moved(advised(where)) == []


class TestStability:
    def test_advice_stays_while_traffic_changes_a_little(self) -> None:
        planner = Planner("c")
        said = [
            moved(
                advised(
                    cluster(
                        replace_rates(crowded(), factor),
                        host("x", gpus=2),
                        host("y", tenant("ssd", 10 * factor, 200, share)),
                    ),
                    planner=planner,
                )
            )
            for factor, share in ((1.0, 0.2), (1.03, 0.05), (0.97, 0.4), (1.01, 0.1))
        ]
        assert len(said[0]) == 1
        assert said == said[:1] * 4

    def test_a_plan_of_nothing_new_says_the_same(self) -> None:
        """Also where two hosts in trouble lead to one target, and where GPUs are emptied."""
        small = [host(n, tenant("ssd", 10, 200, 0.4)) for n in ("s1", "s2", "s3")]
        where = cluster(crowded("a"), crowded("b"), host("x", gpus=2), *small)
        planner = Planner("c")
        first = advised(where, planner=planner, consolidate=True)
        again = advised(where, planner=planner, consolidate=True)
        fresh = advised(where, consolidate=True)
        assert first.moves == again.moves == fresh.moves
        assert first.steps == again.steps
        assert len(first.moves) >= 3

    def test_where_many_are_in_trouble_all_get_their_turn(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("igniterd.fleet.planning.MOST_SOURCES", 2)
        many = [crowded(f"hot{n}") for n in range(5)]
        where = cluster(*many, *(host(f"idle{n}") for n in range(5)))
        planner = Planner("c")
        said = [advised(where, planner=planner) for _ in range(3)]
        assert [len(each.moves) for each in said] == [2, 4, 5]
        assert [each.feasible for each in said] == [False, False, True]
        # and that there is more to be found is known
        planner = Planner("c")
        unfinished = [planner.plan(where, knowledge()).unfinished for _ in range(3)]
        assert unfinished == [True, True, False]
        assert set(moved(said[0])) < set(moved(said[1])) < set(moved(said[2]))

    def test_it_goes_when_the_trouble_is_over(self) -> None:
        planner = Planner("c")
        assert advised(cluster(crowded(), host("x")), planner=planner).moves
        calm = host("hot", tenant("alexnet", 60, 15, 0.3))
        assert not advised(cluster(calm, host("x")), planner=planner).moves

    def test_a_host_that_is_gone_is_no_target_any_more(self) -> None:
        planner = Planner("c")
        first = advised(cluster(crowded(), host("x"), host("y")), planner=planner)
        gone = first.moves[0].to.host
        other = {"x": "y", "y": "x"}[gone]
        again = advised(cluster(crowded(), host(other)), planner=planner)
        assert [m.to.host for m in again.moves] == [other]

    def test_it_makes_way_where_it_takes_the_only_room_that_another_could_use(self) -> None:
        planner = Planner("c")
        hosts = [
            crowded(),
            host("x", tenant("ssd", 25, 60, 0.4)),
            host("y", tenant("ssd", 40, 60, 0.6), loadable=["resnet50"]),
        ]
        first = advised(cluster(*hosts), planner=planner)
        assert moved(first) == [("resnet50", "hot", "x")]
        alexnet, resnet50, vgg19 = (dict(t) for t in CROWD)
        alexnet["stays"] = resnet50["stays"] = "its owner says so"
        where = cluster(*hosts, host("warm", alexnet, resnet50, vgg19))
        again = advised(where, planner=planner)
        assert set(moved(again)) == {("resnet50", "hot", "y"), ("vgg19", "warm", "x")}
        assert moved(advised(where, planner=planner)) == moved(again)

    def test_what_fills_up_is_no_target_any_more(self) -> None:
        """A stranger takes the memory, or each request becomes sixteen."""
        planner = Planner("c")
        ssd = tenant("ssd", 10, 200, 0.4)
        first = advised(cluster(crowded(), host("x", ssd)), planner=planner)
        assert [m.to.host for m in first.moves] == ["x"]
        for full in (
            host("x", ssd, board={"memory_used_bytes": 16 * GIB - 1}),
            host("x", ssd | {"items": 16, "items_per_request": 16.0}),
        ):
            assert not advised(cluster(crowded(), full), planner=planner).moves
            again = advised(cluster(crowded(), host("x", ssd)), planner=planner)
            assert moved(again) == moved(first)


class TestConsolidation:
    def test_a_gpu_is_free_once_the_last_has_gone(self) -> None:
        two = (tenant("alexnet", 20, 40, 0.2), tenant("resnet50", 10, 200, 0.2))
        found = advised(
            cluster(host("a", *two), host("b", tenant("ssd", 10, 200, 0.4))), consolidate=True
        )
        assert [(m.source.host, m.frees.gpu) for m in found.moves] == [("a", False), ("a", True)]
        assert [f.gpu_uuid for f in found.freed] == ["GPU-a-0"]

    def test_a_gpu_is_emptied_where_its_model_fits_elsewhere(self) -> None:
        where = cluster(
            host("a", tenant("alexnet", 40, 40, 0.2)), host("b", tenant("ssd", 10, 200, 0.4))
        )
        assert moved(advised(where)) == []
        found = advised(where, consolidate=True)
        assert moved(found) == [("alexnet", "a", "b")]
        assert [(f.host, f.gpu_uuid) for f in found.freed] == [("a", "GPU-a-0")]
        assert found.moves[0].frees.gpu

    def test_not_into_an_empty_one(self) -> None:
        where = cluster(host("a", tenant("alexnet", 40, 40, 0.2)), host("b"))
        assert moved(advised(where, consolidate=True)) == []

    def test_who_is_in_trouble_comes_first(self) -> None:
        """The room that would take what is on a little used GPU is needed by another."""
        small = host("small", tenant("ssd", 10, 200, 0.4), loadable=["resnet50"])
        lone = host("lone", tenant("alexnet", 40, 40, 0.2), loadable=["resnet50"])
        found = advised(cluster(crowded(), small, lone), consolidate=True)
        assert moved(found)[0][:2] == ("resnet50", "hot")
        assert found.feasible

    def test_trouble_goes_to_gpus_in_use_before_it_goes_to_an_empty_one(self) -> None:
        small = host("small", tenant("alexnet", 40, 40, 0.2))
        where = cluster(crowded(), small, host("idle", gpus=2))
        assert moved(advised(where)) == [("resnet50", "hot", "idle")]
        assert moved(advised(where, consolidate=True)) == [("resnet50", "hot", "small")]

    def test_not_a_gpu_on_which_something_unknown_runs(self) -> None:
        a = host("a", tenant("alexnet", 40, 40, 0.2), board={"reserved": 0.1})
        found = advised(cluster(a, host("b", tenant("ssd", 10, 200, 0.4))), consolidate=True)
        assert "GPU-a-0" not in {f.gpu_uuid for f in found.freed}


# ------------------------------------------------------------ properties


def replace_rates(view: HostView, factor: float) -> HostView:
    models = tuple(
        m.model_copy(
            update={
                "rate_per_s": (m.rate_per_s or 0) * factor,
                "rate_upper_per_s": (m.rate_upper_per_s or 0) * factor,
            }
        )
        for m in view.state.models
    )
    return HostView.of(view.state.model_copy(update={"models": models}))


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


@given(small_clusters())
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=40, deadline=None)
def test_what_is_advised_holds_when_it_is_predicted_anew(where: Cluster, consolidate: bool) -> None:
    """With the allocations that the steps name, on both sides, by the predictor alone."""
    advice = Planner("c").plan(where, knowledge(), consolidate=consolidate)
    for _, after in advice.touched.values():
        demands = after.demands(ALL)
        served = after.predictors.upper.together(demands, after.here) if demands else {}
        for demand in demands:
            assert served[demand.model].p99_ms <= demand.slo_ms / (1 - after.slo_margin) * 1.001
