"""Re-planning: everybody stays where it fits, moves are counted, and none is made that is not
allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from igniterd.errors import ConfigError
from igniterd.planner.gpu_types import GpuType
from igniterd.planner.plan import ProvisionPlan, plan_from_json
from igniterd.planner.replan import first_shares
from igniterd.planner.strategies import Request, plan
from igniterd.planner.workloads import Workload


@pytest.fixture(scope="module")
def running(v100, v100_workloads) -> ProvisionPlan:
    return plan(Request(v100_workloads, (v100,), 1.0))


def homes(answer: ProvisionPlan) -> list[frozenset[str]]:
    return sorted(
        (frozenset(seat.workload for seat in gpu.tenants) for gpu in answer.gpus), key=sorted
    )


def moved(answer: ProvisionPlan) -> int:
    return sum("-> nowhere" not in line and ": new ->" not in line for line in answer.moves)


def test_nothing_changes_when_nothing_has_changed(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    answer = plan(Request(v100_workloads, (v100,), 1.0, start=running, max_moves=0))
    assert answer.feasible
    assert homes(answer) == homes(running)
    assert answer.moves == ()


def test_a_plan_survives_its_json(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    again = plan_from_json(running.as_json(), "here")
    assert homes(again) == homes(running)
    answer = plan(Request(v100_workloads, (v100,), 1.0, start=again, max_moves=0))
    assert homes(answer) == homes(running)


def test_growth_moves_few(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    grown = [
        replace(w, rate_per_s=w.rate_per_s * (1.6 if w.name == "W4" else 1.0))
        for w in v100_workloads
    ]
    answer = plan(Request(grown, (v100,), 1.0, start=running))
    assert answer.feasible
    assert all(seat.p99_ms <= seat.slo_p99_ms for gpu in answer.gpus for seat in gpu.tenants)
    assert 0 < moved(answer) <= 3


def test_no_move_is_made_that_is_not_allowed(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    grown = [replace(w, rate_per_s=w.rate_per_s * 1.6) for w in v100_workloads]
    free = plan(Request(grown, (v100,), 1.0, start=running))
    assert moved(free) > 2
    for most in (0, 2):
        answer = plan(Request(grown, (v100,), 1.0, start=running, max_moves=most))
        assert moved(answer) <= most
        assert not answer.feasible
        assert all("moves allowed are used up" in entry.reason for entry in answer.infeasible)


def test_a_new_workload_is_placed_without_a_move(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    answer = plan(
        Request(
            [*v100_workloads, Workload("N", "alexnet", 25, 100)],
            (v100,),
            1.0,
            start=running,
            max_moves=0,
        )
    )
    assert answer.feasible
    assert [line.split(":")[0] for line in answer.moves] == ["N"]


def test_workloads_that_left_leave_room(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    """With most of the traffic gone, GPUs are given back for few moves each."""
    stay = [w for w in v100_workloads if w.name in ("W1", "W2", "W3", "W6", "W11")]
    answer = plan(Request(stay, (v100,), 1.0, start=running))
    assert answer.feasible
    assert len(answer.gpus) < len(running.gpus)
    assert {seat.workload for gpu in answer.gpus for seat in gpu.tenants} == {w.name for w in stay}
    still = plan(Request(stay, (v100,), 1.0, start=running, max_moves=0))
    assert moved(still) == 0


NOTE = "had no share in the running plan and get one here: "


def unshared(running: ProvisionPlan, *names: str) -> ProvisionPlan:
    """``running`` as read from a file in which ``names`` have no share."""
    document: dict[str, Any] = running.as_json()
    for seat in (seat for gpu in document["gpus"] for seat in gpu["tenants"]):
        if seat["workload"] in names:
            del seat["share"]
    return plan_from_json(document, "here")


def test_who_had_no_share_and_gets_one_is_noted(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    start = unshared(running, "W6", "W4")
    answer = plan(Request(v100_workloads, (v100,), 1.0, start=start, max_moves=0))
    assert homes(answer) == homes(running)
    assert [note.startswith(f"{NOTE}W4, W6 (") for note in answer.notes] == [True]
    assert "igniterd adopt" in answer.notes[0]
    assert answer.as_json()["notes"] == list(answer.notes)


def test_who_left_had_a_share_or_gets_none_is_not_noted(v100: GpuType) -> None:
    alone = {"rate_per_s": 50.0, "max_batch_size": 4}
    seats = [tenant("A", share=None, **alone), tenant("B", share=1.0, **alone)]
    document = {"gpus": [{"gpu": "v100", "tenants": [seat]} for seat in seats]}
    start = plan_from_json(document, "here")
    assert start.uncapped == ("A",)
    both = [Workload(name, "ssd", 60, 50) for name in "AB"]
    together = plan(Request(both, (v100,), 1.0, start=start))
    assert len(together.gpus) == 1 and together.notes[0].startswith(f"{NOTE}A (")
    assert first_shares(start, together) == together.notes
    assert first_shares(start, start) == ()  # a whole GPU of its own: no cap
    assert plan(Request(both[1:], (v100,), 1.0, start=start)).notes == ()


@pytest.mark.parametrize("share", [None, 1.0])
def test_beside_others_a_share_of_1_is_none(share: float | None) -> None:
    seats = [tenant("A", share=share), tenant("B", share=0.4), tenant("C", share=0.6)]
    read = plan_from_json({"gpus": [{"gpu": "v100", "tenants": seats}]}, "here")
    assert [seat.share for seat in read.gpus[0].tenants] == [1.0, 0.4, 0.6]
    assert read.uncapped == ("A",)


def test_a_kind_that_is_not_offered(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    other = replace(running, gpus=tuple(replace(gpu, gpu="t4") for gpu in running.gpus))
    with pytest.raises(ConfigError, match="kind t4"):
        plan(Request(v100_workloads, (v100,), 1.0, start=other))


def test_only_igniterd_starts_from_a_plan(
    v100: GpuType, v100_workloads: tuple[Workload, ...], running: Any
) -> None:
    with pytest.raises(ConfigError, match="plans from nothing"):
        plan(Request(v100_workloads, (v100,), 1.0, start=running), "igniter")


def tenant(name: str = "A", **changed: object) -> dict[str, object]:
    return {
        "workload": name,
        "model": "ssd",
        "rate_per_s": 1,
        "share": 0.6,
        "max_batch_size": 1,
        **changed,
    }


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "list of GPUs"),
        ({"gpus": [{"gpu": "v100"}]}, "gpus[0]"),
        ({"gpus": [{"gpu": "v100", "tenants": [tenant(rate_per_s=0)]}]}, "rate_per_s is 0"),
        ({"gpus": [{"gpu": "v100", "tenants": [tenant(model="")]}]}, "model is ''"),
        ({"gpus": [{"gpu": "v100", "tenants": [tenant("A"), tenant("B")]}]}, "add up to 1.2"),
    ],
)
def test_what_is_no_plan_is_refused(document: Any, said: Any) -> None:
    with pytest.raises(ConfigError, match="here") as error:
        plan_from_json(document, "here")
    assert said in str(error.value)
