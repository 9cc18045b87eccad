"""A share is proven, or it is not a share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.config import Mps
from igniterd.decisions import ActResult, Actuation, Step, StepKind
from igniterd.evidence import stubs_of
from igniterd.loads import Load, ShareTest
from igniterd.prove import CONNECT_S, DEAD_TICKS, MEND_AGAIN_S, Proofs, planned_view, prove
from igniterd.records import Allocation, Effect, Gap, ModelReading, MpsReading, Observation, Stub

SHARE = 0.3
READING = ModelReading(
    "m",
    "1",
    "main",
    True,
    "python",
    Allocation(SHARE, 8),
    success_count=5,
    instance_names=frozenset({"m_0_0", "m_0_1"}),
)
STUB = Stub(10, (10,), 5, 8001, "/models/m/1/model.py", "m_0_0", SHARE, "receipt")
TWO = Allocation(SHARE, 8, instances=2)
BARE = replace(STUB, share=None, by="")
MPS = MpsReading((7,), 1.0, {7: "ACTIVE"}, frozenset({10}), at_s=100.0)


def seen(
    *stubs: Stub, at_s: float = 100.0, mps: MpsReading | None = MPS, **more: Any
) -> Observation:
    reading = replace(READING, **more)
    return Observation(at_s, models={"m": reading}, stubs=stubs, mps=mps)


def proven(
    observation: Observation,
    before: Proofs | None = None,
    *,
    emulated: bool = False,
    loads: Mapping[str, Load] | None = None,
    outcome: ActResult | None = None,
    loaded: Collection[str] = (),
) -> Proofs:
    return prove(
        observation,
        loads or {},
        before or old(),
        outcome or ActResult(),
        rules=Mps(),
        emulated=emulated,
        ports={"main": 8001},
        loaded=loaded,
    )


def old() -> Proofs:
    """A process that is there for long."""
    return prove(
        seen(STUB, at_s=0.0, mps=None),
        {},
        Proofs(),
        ActResult(),
        rules=Mps(),
        emulated=True,
        ports={},
    )


def test_a_receipt_of_a_client_of_mps_proves() -> None:
    state = proven(seen(STUB)).states["m"]
    assert (state.effect, state.effective) == (Effect.PROVEN, SHARE)
    assert state.by == "receipt of process 10; a client of MPS"


@pytest.mark.parametrize(
    ("observation", "effect", "said"),
    [
        (
            seen(replace(STUB, share=0.5)),
            Effect.REFUTED,
            "process 10 has 0.5 by its receipt, not 0.3",
        ),
        (
            seen(replace(BARE, environment_read=True, virtual_env="/shares/30")),
            Effect.REFUTED,
            "Triton 25.08 or later) does not run bin/activate",
        ),
        (
            seen(replace(BARE, environment_read=True)),
            Effect.REFUTED,
            "without the share's environment",
        ),
        (seen(BARE), Effect.UNPROVEN, "left no receipt, and its environment is another user's"),
        (seen(), Effect.UNPROVEN, "no process of it is seen on this host"),
        (seen(STUB, allocation=TWO), Effect.UNPROVEN, "1 of 2 processes are alive"),
        (
            seen(STUB, mps=replace(MPS, client_pids=frozenset({4}))),
            Effect.REFUTED,
            "is no client of MPS",
        ),
        (seen(STUB, mps=replace(MPS, client_pids=frozenset())), Effect.REFUTED, "no --ipc=host"),
        (
            seen(STUB, mps=MpsReading((), 1.0, {}, frozenset())),
            Effect.REFUTED,
            "MPS control has no server",
        ),
        (seen(STUB, mps=replace(MPS, states={7: "FAULT"})), Effect.UNPROVEN, "in FAULT"),
        (
            seen(STUB, mps=replace(MPS, default_share=0.2)),
            Effect.REFUTED,
            "caps every client at 20%",
        ),
        (
            replace(seen(STUB, mps=None), gaps=(Gap("mps", "no answer", 100.0),)),
            Effect.UNPROVEN,
            "MPS control: no answer",
        ),
    ],
)
def test_whatever_is_against_it_counts_and_is_said(
    observation: Observation, effect: Effect, said: str
) -> None:
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
    assert (reading.allocation.share, reading.claimed_share, reading.lacks_share) == (
        None,
        SHARE,
        False,
    )
    assert "its share is unproven" in reading.share_fixed
    assert [gap.source for gap in view.gaps] == ["share:m"]


def test_a_refuted_share_is_given_once_more_and_then_left() -> None:
    observation = seen(replace(BARE, environment_read=True))
    first = proven(observation)
    assert planned_view(observation, first).models["m"].lacks_share  # it goes through the take-over
    step = Step("m", StepKind.SHRINK, Allocation(None, 8), Allocation(SHARE, 8))
    again = proven(observation, first, outcome=ActResult((Actuation(step, True, 1.0),)))
    assert "its share is refuted" in planned_view(observation, again).models["m"].share_fixed
    restarted = seen(replace(BARE, environment_read=True, server_pid=6))
    assert planned_view(restarted, proven(restarted, again)).models["m"].lacks_share


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
    assert stubs_of(
        replace(reading, instance_names=frozenset({"group_0"})), (named, mine), None
    ) == [mine]
    sent = replace(named, path="/tmp/folderAbc/1/model.py")
    assert stubs_of(
        replace(reading, instance_names=frozenset({"group_0"})), (named, sent), None
    ) == [sent]
    assert stubs_of(replace(reading, instance_names=frozenset({"group_0"})), (sent,), None) == [
        sent
    ]


def test_another_server_s_model_of_the_same_name_is_not_taken_for_a_hosted_one() -> None:
    """Its code lies in a folder of the model's name, ours came with the load."""
    theirs = replace(STUB, pid=20, server_pid=6, grpc_port=9001, share=None, environment_read=True)
    hosted = replace(STUB, path="/tmp/folderAbc/1/model.py")
    assert stubs_of(READING, (theirs, hosted), 8001) == [hosted]
    assert proven(seen(theirs, hosted)).states["m"].effect is Effect.PROVEN


def test_a_model_that_lost_its_process_is_not_given_another_server_s() -> None:
    theirs = replace(STUB, pid=20, server_pid=6, grpc_port=9001)
    beside = replace(STUB, pid=30, instance="n_0_0", path="/models/n/1/model.py")
    assert stubs_of(READING, (theirs, beside), 8001) == []
    assert stubs_of(READING, (theirs,), 8001) == [theirs]  # a port that a container maps


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
def test_only_processes_that_all_have_the_share_prove_it(
    stubs: list[Stub], mps: MpsReading | None, emulated: bool
) -> None:
    observation = seen(*stubs, mps=mps, allocation=TWO)
    state = proven(observation, emulated=emulated).states["m"]
    if state.effect is Effect.PROVEN:
        mine = stubs_of(observation.models["m"], stubs, 8001)
        assert sum(stub.share == SHARE for stub in mine) >= 2
    else:
        assert state.reason
    assert (state.effective is None) == (state.effect is Effect.REFUTED)


NO_SHARE = replace(BARE, environment_read=True)


def test_what_was_disbelieved_is_not_believed_because_nothing_can_be_seen() -> None:
    refuted = proven(seen(NO_SHARE, at_s=101.0), proven(seen(NO_SHARE)))
    hidden = replace(seen(at_s=102.0), stubs=None)
    out_of_sight = proven(hidden, refuted)
    assert (out_of_sight.states["m"].effect, out_of_sight.states["m"].effective) == (
        Effect.UNPROVEN,
        None,
    )
    # nor because it was not read
    assert proven(replace(hidden, models={}), refuted).states["m"].effective is None
    assert proven(seen(STUB, at_s=103.0), out_of_sight).states["m"].effective == SHARE
    outcome = ActResult((Actuation(MEND, True, 1.0),))
    # a new copy has its time
    assert proven(hidden, refuted, outcome=outcome).states["m"].effective == SHARE
    assert proven(hidden, refuted, loaded={"m"}).states["m"].effective == SHARE


MEND = Step("m", StepKind.SHRINK, Allocation(None, 8), Allocation(SHARE, 8))


def test_a_share_whose_mending_is_refused_is_left_for_a_while_and_then_longer() -> None:
    observation, refused = seen(NO_SHARE), ActResult((Actuation(MEND, False, 1.0, "no memory"),))
    proofs, waits = proven(observation), []
    for _ in range(2):
        assert planned_view(observation, proofs).models["m"].lacks_share
        proofs = proven(observation, proofs, outcome=refused)
        assert "its share is refuted" in planned_view(observation, proofs).models["m"].share_fixed
        waits.append(proofs.tried["m"].until_s - observation.at_s)
        observation = seen(NO_SHARE, at_s=proofs.tried["m"].until_s)
        proofs = proven(observation, proofs)
    assert waits == [MEND_AGAIN_S, 2 * MEND_AGAIN_S]


def test_a_model_that_has_just_executed_for_the_first_time_may_not_be_a_client_yet() -> None:
    idle = seen(
        STUB, at_s=50.0, success_count=0, mps=replace(MPS, at_s=40.0, client_pids=frozenset({4}))
    )
    first = proven(idle, Proofs())
    assert first.states["m"].effect is Effect.PROVEN  # nothing is expected of it
    executes = proven(seen(STUB, at_s=51.0, mps=idle.mps), first)
    assert "not been asked since" in executes.states["m"].reason
    asked = replace(MPS, at_s=51.0 + CONNECT_S, client_pids=frozenset({4}))
    assert proven(seen(STUB, at_s=54.0, mps=asked), executes).states["m"].effect is Effect.REFUTED


def test_a_process_that_hides_is_loaded_again_once_and_then_only_if_its_requests_fail() -> None:
    outcome = ActResult((Actuation(replace(MEND, kind=StepKind.REVIVE), True, 1.0),))
    proofs = proven(seen(at_s=101.0), proven(seen(STUB)), outcome=outcome)
    for tick in range(2 * DEAD_TICKS):
        proofs = proven(seen(at_s=102.0 + tick), proofs)
    assert not proofs.dead
    for tick in range(DEAD_TICKS):
        proofs = proven(seen(at_s=110.0 + tick, success_count=0, failure_count=7), proofs)
    assert proofs.dead == {"m"}


def test_a_process_that_hides_after_a_rebalance_loaded_it_is_none_that_is_gone() -> None:
    proofs = proven(seen(at_s=101.0), proven(seen(STUB)), loaded={"m"})
    for tick in range(2 * DEAD_TICKS):
        proofs = proven(seen(at_s=102.0 + tick), proofs)
    assert not proofs.dead


def test_a_process_that_was_gone_before_anybody_looked_is_missed_beside_others_and_said() -> None:
    other = replace(READING, model="n", instance_names=frozenset({"n_0_0"}))
    theirs = replace(STUB, pid=20, pids=(20,), instance="n_0_0", path="/models/n/1/model.py")
    observation, proofs = seen(theirs, mps=None, failure_count=3), Proofs()
    observation = replace(observation, models={**observation.models, "n": other})
    for _ in range(DEAD_TICKS):
        proofs = proven(observation, proofs)
    assert proofs.dead == {"m"}
    assert "a process of it is gone" in next(
        gap.reason for gap in planned_view(observation, proofs).gaps if gap.source == "model:m"
    )
    lasting = ShareTest(SHARE, Effect.PROVEN, "as slow as predicted")
    loads = {"m": Load("m", 1.0, 1.0, True, share_test=lasting)}
    # nobody is left who has it
    assert proven(observation, proofs, loads=loads).states["m"].effect is Effect.UNPROVEN


def test_two_servers_that_nothing_tells_apart_must_agree() -> None:
    here, there = STUB, replace(STUB, pid=20, pids=(20,), server_pid=6)
    mps = replace(MPS, client_pids=frozenset({10, 20}))
    before = proven(seen(here, there, mps=mps))
    assert (
        proven(seen(here, there, at_s=103.0, mps=replace(mps, at_s=103.0)), before)
        .states["m"]
        .effect
        is Effect.PROVEN
    )
    theirs = replace(there, share=None, by="", environment_read=True)
    state = proven(seen(here, theirs, at_s=103.0, mps=replace(mps, at_s=103.0)), before).states["m"]
    assert (state.effect, "servers 5 and 6" in state.reason) == (Effect.UNPROVEN, True)


def test_a_host_without_mps_has_no_shares() -> None:
    rules = Mps(enabled=False)
    proofs = prove(
        seen(STUB, mps=None), {}, old(), ActResult(), rules=rules, emulated=False, ports={}
    )
    assert (proofs.states["m"].effect, proofs.states["m"].mendable) == (Effect.REFUTED, False)


def test_however_soon_a_share_is_to_be_proven_mps_control_is_asked_first() -> None:
    rules, fresh = Mps(prove_within_s=0.1), replace(STUB, pid=11, pids=(11,))
    proofs, effective = old(), []
    for tick in range(8):
        observation = seen(fresh, at_s=100.0 + tick)  # MPS control was asked at 100
        proofs = prove(
            observation, {}, proofs, ActResult(), rules=rules, emulated=False, ports={"main": 8001}
        )
        effective.append(proofs.states["m"].effective)
    assert effective == [SHARE] * 6 + [None] * 2


def test_a_model_that_may_have_become_faster_by_itself_refutes_no_share_that_its_processes_show() -> (  # noqa: E501
    None
):
    test = ShareTest(SHARE, Effect.REFUTED, "its executions take 0.5 times", weak=True)
    loads = {"m": Load("m", 1.0, 1.0, True, share_test=test)}
    assert proven(seen(STUB), loads=loads).states["m"].effect is Effect.PROVEN
    hidden = replace(seen(), stubs=None, mps=replace(MPS, client_pids=None))
    assert proven(hidden, loads=loads).states["m"].effect is Effect.REFUTED


def test_a_model_that_answers_is_not_missed_because_its_process_was_never_seen() -> None:
    other = replace(READING, model="n", instance_names=frozenset({"n_0_0"}))
    theirs = replace(STUB, pid=20, pids=(20,), instance="n_0_0", path="/models/n/1/model.py")
    observation, proofs = seen(theirs, mps=None), Proofs()
    observation = replace(observation, models={**observation.models, "n": other})
    for _ in range(2 * DEAD_TICKS):
        proofs = proven(observation, proofs)
    assert not proofs.dead
