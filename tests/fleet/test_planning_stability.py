"""Advice from one plan to the next: it stays while it holds, and goes when it does not."""

from __future__ import annotations

import pytest

from igniterd.fleet.cluster import HostView
from igniterd.fleet.planning import Planner
from tests.fleet.clusters import (
    CROWD,
    GIB,
    advised,
    cluster,
    crowded,
    host,
    knowledge,
    moved,
    tenant,
)


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
