"""What is advised for small clusters, worked out by hand."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest

from igniterd.fleet import planning, sites
from igniterd.fleet.cluster import HostView
from igniterd.fleet.offers import SHORTLIST
from igniterd.fleet.planning import Planner
from igniterd.fleet.sites import Site
from tests.fleet.clusters import (
    CROWD,
    GIB,
    MODELS,
    SHED,
    absent,
    advised,
    cluster,
    crowded,
    host,
    knowledge,
    moved,
    slow_profile,
    tenant,
)
from tests.fleet.drawn import least_moves


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
        assert names
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


class TestManyInTrouble:
    @staticmethod
    def heavy(number: int) -> list[dict[str, Any]]:
        """Either leaves too little of a GPU for another one of these."""
        return [
            tenant(f"{like}-{number}", rate, slo_ms, 0.5, shed=shed, profile_model=like)
            for like, rate, slo_ms, shed in (("vgg19", 256, 60, SHED), ("resnet50", 646, 40, ""))
        ]

    @pytest.mark.parametrize("consolidate", [False, True])
    def test_each_goes_to_a_gpu_that_none_before_it_has_filled(self, consolidate: bool) -> None:
        """More of them than GPUs are looked into for one."""
        count = SHORTLIST + 4
        hot = [host(f"hot-{n}", *self.heavy(n)) for n in range(count)]
        names = [each["name"] for n in range(count) for each in self.heavy(n)]
        idle = [host(f"idle-{n}", loadable=names) for n in range(count)]
        found = advised(cluster(*hot, *idle), consolidate=consolidate)
        assert found.unsolved == ()
        assert len({move.to.host for move in found.moves}) == len(found.moves) == count

    def test_one_that_says_nothing_of_its_room_is_not_taken_for_idle(self) -> None:
        said = host("quiet", tenant("ssd", 10, 200, 0.9))
        state = said.state.model_copy(update={"decision": None})
        (quiet,) = sites.sites_of(HostView.of(state), knowledge())
        assert quiet.room("GPU-quiet-0") == pytest.approx(0.1)

    @pytest.mark.parametrize("share", [1.0, 0.7])
    def test_and_is_looked_into_though_all_of_it_is_given(self, share: float) -> None:
        """A daemon that began anew, and has nothing to mend, has not searched."""
        calm = host("calm", tenant("ssd", 10, 200, share))
        assert calm.state.decision
        decision = calm.state.decision.model_copy(update={"least_by_gpu": {}})
        quiet = HostView.of(calm.state.model_copy(update={"decision": decision}))
        found = advised(cluster(crowded(), quiet))
        assert found.unsolved == ()
        assert [move.to.host for move in found.moves] == ["calm"]
        # but after those that say that they have room
        found = advised(cluster(crowded(), quiet, host("idle")))
        assert [move.to.host for move in found.moves] == ["idle"]


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

    @pytest.mark.parametrize(
        ("level", "sd", "as_slow"), [(-0.2, 0.02, 1.0), (0.0, 0.01, 1.0), (0.1, 0.02, 1.1)]
    )
    def test_a_host_that_has_not_seen_its_traffic_gives_it_what_its_profile_asks_for(
        self, level: float, sd: float, as_slow: float
    ) -> None:
        """So the daemon there, which starts without what was learnt, agrees; slower it may be."""
        bias = {"share": 0.4, "pressure": 0.0, "level": level, "tilt": 0.0, "sd": sd, "cv": 0.02}
        learnt = [dict(t) for t in CROWD]
        learnt[1] |= {"learnt": bias, "bias": math.exp(level)}
        (as_profiled,) = advised(cluster(host("hot", *CROWD), host("idle"))).moves
        (move,) = advised(cluster(host("hot", *learnt), host("idle"))).moves
        plain, found = (next(f.after_p99_ms for f in m.at_target) for m in (as_profiled, move))
        assert move.model == as_profiled.model == "resnet50"
        assert (move.share or 0) >= (as_profiled.share or 1)
        assert found >= plain * as_slow * (1 - 1e-9)
        if level <= 0:
            assert (move.share, move.max_batch_size, found) == (
                as_profiled.share,
                as_profiled.max_batch_size,
                plain,
            )

    def test_and_nowhere_where_no_profile_is_of_that_board(self) -> None:
        where = cluster(host("hot", *CROWD), host("there", board=self.SLOW))
        assert moved(advised(where)) == []


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
