"""A share is proven, or it is not a share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.config import Mps
from igniterd.evidence import stubs_of
from igniterd.prove import CONNECT_S, DEAD_TICKS, Proofs, planned_view, prove
from igniterd.records import (
    Actuation,
    Allocation,
    Effect,
    Gap,
    Load,
    ModelReading,
    MpsReading,
    Observation,
    Outcome,
    ShareTest,
    Step,
    StepKind,
    Stub,
)

SHARE = 0.3
READING = ModelReading(
    "m", "1", "main", True, "python", Allocation(SHARE, 8), success_count=5, instance_names=frozenset({"m_0_0", "m_0_1"})
)
STUB = Stub(10, (10,), 5, 8001, "/models/m/1/model.py", "m_0_0", SHARE, "receipt")
TWO = Allocation(SHARE, 8, instances=2)
BARE = replace(STUB, share=None, by="")
MPS = MpsReading((7,), 1.0, {7: "ACTIVE"}, frozenset({10}), at_s=100.0)


def seen(*stubs: Stub, at_s: float = 100.0, mps: MpsReading | None = MPS, **more: Any) -> Observation:
    reading = replace(READING, **more)
    return Observation(at_s, models={"m": reading}, stubs=stubs, mps=mps)


def proven(
    observation: Observation,
    before: Proofs | None = None,
    *,
    emulated: bool = False,
    loads: Mapping[str, Load] | None = None,
    outcome: Outcome | None = None,
) -> Proofs:
    return prove(
        observation,
        loads or {},
        before or old(),
        outcome or Outcome(),
        rules=Mps(),
        emulated=emulated,
        ports={"main": 8001},
    )


def old() -> Proofs:
    """A process that is there for long."""
    return prove(seen(STUB, at_s=0.0, mps=None), {}, Proofs(), Outcome(), rules=Mps(), emulated=True, ports={})


def test_a_receipt_of_a_client_of_mps_proves() -> None:
    state = proven(seen(STUB)).states["m"]
    assert (state.effect, state.effective) == (Effect.PROVEN, SHARE)
    assert state.by == "receipt of process 10; a client of MPS"


@pytest.mark.parametrize(
    ("observation", "effect", "said"),
    [
        (seen(replace(STUB, share=0.5)), Effect.REFUTED, "process 10 has 0.5 by its receipt, not 0.3"),
        (
            seen(replace(BARE, environment_read=True, virtual_env="/shares/30")),
            Effect.REFUTED,
            "Triton 25.08 or later) does not run bin/activate",
        ),
        (seen(replace(BARE, environment_read=True)), Effect.REFUTED, "without the share's environment"),
        (seen(BARE), Effect.UNPROVEN, "left no receipt, and its environment is another user's"),
        (seen(), Effect.UNPROVEN, "no process of it is seen on this host"),
        (seen(STUB, allocation=TWO), Effect.UNPROVEN, "1 of 2 processes are alive"),
        (seen(STUB, mps=replace(MPS, client_pids=frozenset({4}))), Effect.REFUTED, "is no client of MPS"),
        (seen(STUB, mps=replace(MPS, client_pids=frozenset())), Effect.REFUTED, "no --ipc=host"),
        (seen(STUB, mps=MpsReading((), 1.0, {}, frozenset())), Effect.REFUTED, "MPS control has no server"),
        (seen(STUB, mps=replace(MPS, states={7: "FAULT"})), Effect.UNPROVEN, "in FAULT"),
        (seen(STUB, mps=replace(MPS, default_share=0.2)), Effect.REFUTED, "caps every client at 20%"),
        (
            replace(seen(STUB, mps=None), gaps=(Gap("mps", "no answer", 100.0),)),
            Effect.UNPROVEN,
            "MPS control: no answer",
        ),
    ],
)
def test_whatever_is_against_it_counts_and_is_said(observation: Observation, effect: Effect, said: str) -> None:
    state = proven(observation).states["m"]
    assert (state.effect, state.by) == (effect, "")
    assert said in state.reason


@pytest.mark.parametrize(
    "mps",
    [
        replace(MPS, client_pids=None),  # an older MPS does not tell its clients
        replace(MPS, client_pids=frozenset({0, 4})),  # its pids are those of another namespace
        replace(MPS, client_pids=frozenset({77})),
    ],
)
def test_the_receipt_alone_proves_where_mps_cannot_tell(mps: MpsReading) -> None:
    stub = replace(STUB, pids=(10, 77))  # 77 where MPS control runs
    assert proven(seen(stub, mps=mps)).states["m"].effect is Effect.PROVEN


def test_clients_are_judged_by_an_answer_of_after_the_process_came() -> None:
    fresh = replace(STUB, pid=11, pids=(11,))
    after = proven(seen(fresh, at_s=100.0), proven(seen(STUB)))
    assert "not been asked since" in after.states["m"].reason
    assert after.states["m"].effective == SHARE  # it has time to be proven
    later = replace(MPS, at_s=100.0 + CONNECT_S, client_pids=frozenset({11}))
    now = proven(seen(fresh, at_s=103.0, mps=later), after)
    assert now.states["m"].effect is Effect.PROVEN


def test_an_emulated_board_has_no_mps_server_and_needs_none_until_one_was_there() -> None:
    without = MpsReading((), 1.0, {}, frozenset())
    first = proven(seen(STUB, mps=without), emulated=True)
    assert first.states["m"].effect is Effect.PROVEN
    with_server = proven(seen(STUB), first, emulated=True)
    gone = proven(seen(STUB, mps=without), with_server, emulated=True)
    assert gone.states["m"].reason == "MPS control: its server is gone"
    control_gone = replace(seen(STUB, mps=None), gaps=(Gap("mps", "no answer", 100.0),))
    assert proven(control_gone, first, emulated=True).states["m"].reason == "MPS control: no answer"


def test_times_refute_what_everything_else_says_and_prove_what_nothing_else_can() -> None:
    def load(verdict: Effect, share: float = SHARE) -> dict[str, Load]:
        test = ShareTest(share, verdict, "its executions take 0.5 times")
        return {"m": Load("m", 1.0, 1.0, True, share_test=test)}

    refuted = proven(seen(STUB), loads=load(Effect.REFUTED)).states["m"]
    assert (refuted.effect, refuted.reason) == (Effect.REFUTED, "its executions take 0.5 times")
    assert proven(seen(STUB), loads=load(Effect.REFUTED, 0.5)).states["m"].effect is Effect.PROVEN
    hidden = replace(seen(), stubs=None, mps=replace(MPS, client_pids=None))
    assert proven(hidden, loads=load(Effect.PROVEN)).states["m"].by.startswith("service times")
    assert proven(hidden).states["m"].effect is Effect.UNPROVEN


def test_unproven_for_too_long_is_planned_as_no_share() -> None:
    first = proven(seen(BARE, at_s=100.0))
    assert planned_view(seen(BARE), first).models["m"].allocation.share == SHARE
    late = seen(BARE, at_s=100.0 + Mps().prove_within_s, mps=replace(MPS, at_s=130.0))
    view = planned_view(late, proven(late, first))
    reading = view.models["m"]
    assert (reading.allocation.share, reading.claimed_share, reading.bare) == (None, SHARE, False)
    assert "its share is unproven" in reading.share_fixed
    assert [gap.source for gap in view.gaps] == ["share:m"]


def test_a_refuted_share_is_given_once_more_and_then_left() -> None:
    observation = seen(replace(BARE, environment_read=True))
    first = proven(observation)
    assert planned_view(observation, first).models["m"].bare  # it goes through the take-over
    step = Step("m", StepKind.SHRINK, Allocation(None, 8), Allocation(SHARE, 8))
    again = proven(observation, first, outcome=Outcome((Actuation(step, True, 1.0),)))
    assert "its share is refuted" in planned_view(observation, again).models["m"].share_fixed
    restarted = seen(replace(BARE, environment_read=True, server_pid=6))
    assert planned_view(restarted, proven(restarted, again)).models["m"].bare


def test_a_process_that_has_just_come_is_looked_at_once_more() -> None:
    """Triton was restarted without its shares, and the configuration has not been read since."""
    fresh = replace(BARE, pid=11, pids=(11,), environment_read=True)
    first = proven(seen(fresh))
    assert first.states["m"].reason == "its process has just come"
    assert proven(seen(fresh, at_s=101.0), first).states["m"].effect is Effect.REFUTED


def test_while_one_copy_takes_another_s_place_the_one_that_serves_counts() -> None:
    ending = replace(STUB, pid=9, pids=(9,), share=0.5, started=1)
    assert proven(seen(ending, replace(STUB, started=2))).states["m"].effect is Effect.PROVEN
    coming = replace(ending, started=3)
    assert proven(seen(STUB, coming)).states["m"].effect is Effect.PROVEN


def test_a_model_whose_process_is_gone_is_dead_after_a_moment() -> None:
    proofs = proven(seen(STUB))
    for ticks in range(1, DEAD_TICKS + 1):
        assert not proofs.dead
        proofs = proven(seen(at_s=100.0 + ticks), proofs)
    assert proofs.dead == {"m"}
    assert not proven(seen(STUB), proofs).dead
    assert not proven(seen(loading=True), proofs).dead


def test_servers_that_run_models_of_one_name_are_told_apart() -> None:
    there = replace(STUB, pid=20, server_pid=6, grpc_port=9001)
    reading = READING
    assert stubs_of(reading, (STUB, there), 9001) == [there]
    assert stubs_of(reading, (STUB, there), 7000) == [STUB, there]  # not told: all of them count
    named = replace(STUB, instance="group_0", path="/models/other/1/model.py")
    mine = replace(named, path="/models/m/1/model.py")
    assert stubs_of(replace(reading, instance_names=frozenset({"group_0"})), (named, mine), None) == [mine]
    sent = replace(named, path="/tmp/folderAbc/1/model.py")
    assert stubs_of(replace(reading, instance_names=frozenset({"group_0"})), (sent,), None) == [sent]


STUBS = st.lists(
    st.builds(
        Stub,
        st.integers(1, 30),
        st.just((1,)),
        st.integers(1, 3),
        st.sampled_from([None, 8001]),
        st.just("/models/m/1/model.py"),
        st.sampled_from(["m_0_0", "m_0_1"]),
        st.sampled_from([None, SHARE, 0.5]),
        st.just(""),
        st.integers(0, 9),
        st.booleans(),
    ),
    max_size=4,
)


@given(STUBS, st.sampled_from([None, MPS, replace(MPS, client_pids=None)]), st.booleans())
def test_only_processes_that_all_have_the_share_prove_it(stubs: list[Stub], mps: MpsReading | None, emulated: bool) -> None:
    observation = seen(*stubs, mps=mps, allocation=TWO)
    state = proven(observation, emulated=emulated).states["m"]
    if state.effect is Effect.PROVEN:
        mine = stubs_of(observation.models["m"], stubs, 8001)
        assert sum(stub.share == SHARE for stub in mine) >= 2
    else:
        assert state.reason
    assert (state.effective is None) == (state.effect is Effect.REFUTED)
