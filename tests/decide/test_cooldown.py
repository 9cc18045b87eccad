from dataclasses import replace

import pytest

from igniterd.config import Decide
from igniterd.decide.cooldown import (
    REFUSED_S,
    after,
    came_after_all,
    rebalanced,
    rollbacks,
    why_not_now,
)
from igniterd.decide.state import (
    DecisionState,
    GpuHold,
    ModelHold,
    Pause,
    Probation,
    Relocation,
    Underway,
)
from igniterd.decide.steps import ordered
from igniterd.decisions import ActResult, Actuation, Step, StepKind
from igniterd.loads import Load
from igniterd.records import Allocation
from igniterd.states import Cause

RULES = Decide()
SMALL, LARGE = Allocation(0.2, 8), Allocation(0.4, 8)
GROW = Step("m", StepKind.GROW, SMALL, LARGE)


def load(mean_ms: float | None, expected_ms: float | None, rate: float = 100.0) -> dict[str, Load]:
    return {
        "m": Load(
            "m", rate, rate, confident=True, measured_mean_ms=mean_ms, predicted_mean_ms=expected_ms
        )
    }


def done(step: Step, ok: bool = True, cause: Cause = Cause.REFUSED) -> ActResult:
    return ActResult((Actuation(step, ok, 1.0, "" if ok else "no", Cause.NONE if ok else cause),))


def on_probation(before: Allocation, **more: float) -> DecisionState:
    watch = Probation(before, 0.0, 10.0, 100.0)
    return DecisionState({"m": ModelHold(probation=watch, **more)})  # type: ignore[arg-type]


def test_a_change_that_made_things_worse_is_taken_back() -> None:
    held = on_probation(LARGE)
    late = RULES.watch_s + 1
    (step,) = rollbacks(held, load(20.0, 12.0), {"m": SMALL}, RULES, late)
    assert (step.kind, step.before, step.after) == (StepKind.ROLLBACK, SMALL, LARGE)
    assert not rollbacks(held, load(20.0, 12.0), {"m": SMALL}, RULES, 1.0)  # too early to tell
    assert not rollbacks(held, load(20.0, 18.0), {"m": SMALL}, RULES, late)  # as predicted
    # hardly worse than before
    assert not rollbacks(held, load(12.0, 8.0), {"m": SMALL}, RULES, late)
    # more traffic than before
    assert not rollbacks(held, load(20.0, 12.0, 150.0), {"m": SMALL}, RULES, late)
    assert not rollbacks(held, load(None, 12.0), {"m": SMALL}, RULES, late)
    # no room to go back to
    assert not rollbacks(held, load(20.0, 12.0), {"m": SMALL, "n": Allocation(0.9, 1)}, RULES, late)
    grown = on_probation(SMALL)
    # less share would only be worse
    assert not rollbacks(grown, load(20.0, 12.0), {"m": LARGE}, RULES, late)


def test_what_a_model_that_was_let_go_gave_to_others_is_not_taken_back() -> None:
    late = RULES.watch_s + 1
    held = on_probation(LARGE)
    let_go = held.with_model("m", shed_why="does not fit")
    assert not rollbacks(let_go, load(20.0, 12.0), {"m": SMALL}, RULES, late)
    again = let_go.with_model("m", shed_why=None)
    assert rollbacks(again, load(20.0, 12.0), {"m": SMALL}, RULES, late)


def test_who_was_let_go_need_not_wait_where_another_has_left_its_gpu() -> None:
    waits = ModelHold(gpu="one", shed_why="does not fit", shed=Pause(3, 240.0))
    held = DecisionState({"m": waits, "n": ModelHold(gpu="one"), "o": ModelHold(gpu="two")})
    assert held.pruned({"m": "one", "n": "one"}).of("m") == waits, "o was elsewhere"
    for gone in ({"m": "one", "o": "two"}, {"m": "one", "n": "two", "o": "two"}):
        found = held.pruned(gone).of("m")
        assert (found.shed_why, found.shed) == ("does not fit", None)


def test_a_model_that_was_moved_since_is_not_taken_back_to_where_it_was() -> None:
    held = on_probation(replace(LARGE, devices=(0,)))
    late, loads = RULES.watch_s + 1, load(20.0, 12.0)
    assert rollbacks(held, loads, {"m": replace(SMALL, devices=(0,))}, RULES, late)
    assert not rollbacks(held, loads, {"m": replace(SMALL, devices=(1,))}, RULES, late)


def test_a_refused_change_waits() -> None:
    held = after(
        DecisionState(
            {"m": ModelHold(gpu="a")},
            {"a": GpuHold(Underway({"m": LARGE})), "b": GpuHold(Underway({"n": LARGE}))},
        ),
        done(GROW, ok=False),
        {},
        RULES,
        100.0,
    )
    assert held.target == {"n": LARGE}, "another GPU's plan goes on"
    assert "its last change failed; next try in 50 s" in why_not_now(held, (GROW,), RULES, 110.0)
    assert why_not_now(held, (GROW,), RULES, 101.0 + REFUSED_S) == ""
    held = after(held, done(GROW, ok=False), {}, RULES, 200.0)
    assert "next try in 120 s" in why_not_now(held, (GROW,), RULES, 200.0)
    held = after(held, done(GROW), load(1.0, 1.0), RULES, 400.0)
    assert held.of("m").refusals == 0


@pytest.mark.parametrize("cause", [Cause.HELD, Cause.BY_HAND])
def test_what_was_not_asked_of_triton_is_no_refusal_and_no_reload(cause: Cause) -> None:
    held = after(
        DecisionState({"m": ModelHold(gpu="a")}, {"a": GpuHold(Underway({"m": LARGE}))}),
        done(GROW, ok=False, cause=cause),
        {},
        RULES,
        100.0,
    )
    assert (held.reloads, held.of("m"), held.gpu("a").plan) == ((), ModelHold(gpu="a"), None)
    assert why_not_now(held, (GROW,), RULES, 100.0) == ""
    assert held.gpu("a").held_until_s > 100.0, "the GPU is looked at anew, not at once"


def test_a_server_lost_in_the_middle_is_no_refusal_unless_it_is_lost_each_time() -> None:
    held = after(DecisionState(), done(GROW, ok=False, cause=Cause.LOST), {}, RULES, 100.0)
    assert why_not_now(held, (GROW,), RULES, 105.0) == ""
    held = after(held, done(GROW, ok=False, cause=Cause.LOST), {}, RULES, 110.0)
    assert "next try in" in why_not_now(held, (GROW,), RULES, 111.0), (
        "its load may be what ends the server"
    )
    assert len(held.reloads) == 2


def test_a_change_that_is_to_be_taken_back_goes_through_the_same_gate() -> None:
    used_up = tuple(float(i) for i in range(RULES.max_reloads_per_hour))
    held = replace(on_probation(LARGE), reloads=used_up)
    late = RULES.watch_s + 100
    assert not rollbacks(held, load(20.0, 12.0), {"m": SMALL}, RULES, late), (
        "the hour's reloads are used up"
    )
    held = on_probation(LARGE, refused_until_s=late + 60)
    assert not rollbacks(held, load(20.0, 12.0), {"m": SMALL}, RULES, late), (
        "its last change was refused"
    )
    bare = {"m": SMALL, "in process": Allocation(None, 8)}
    assert rollbacks(on_probation(LARGE), load(20.0, 12.0), bare, RULES, late), (
        "one without a share holds none"
    )


def test_reloads_an_hour_are_capped() -> None:
    rules = Decide(max_reloads_per_hour=2)
    held = DecisionState(reloads=(10.0, 20.0))
    assert "max_reloads_per_hour is 2" in why_not_now(held, (GROW,), rules, 30.0)
    assert why_not_now(held, (GROW,), rules, 3700.0) == ""


def test_first_shares_are_given_to_any_number_of_models_within_the_hour() -> None:
    rules = Decide(max_reloads_per_hour=2)
    bare = {f"m{number}": Allocation(None, 8) for number in range(70)}
    steps, held = (
        tuple(ordered(bare, {name: Allocation(0.01, 4) for name in bare})),
        DecisionState(),
    )
    assert len(steps) == 139, "two for each model but the last"
    assert why_not_now(held, steps, rules, 0.0) == ""
    for number, step in enumerate(steps):
        held = after(held, done(step), {}, rules, float(number))
    assert held.reloads == ()
    assert why_not_now(held, (GROW, GROW), rules, 140.0) == ""
    assert "max_reloads_per_hour is 2" in why_not_now(held, (GROW, GROW, GROW), rules, 140.0)


def test_a_first_share_that_is_refused_is_counted() -> None:
    bare = Step("m", StepKind.SHRINK, Allocation(None, 8), SMALL)
    assert after(DecisionState(), done(bare, ok=False), {}, RULES, 5.0).reloads == (5.0,)


def test_first_shares_that_somebody_takes_away_again_are_counted() -> None:
    bare, held = Step("m", StepKind.SHRINK, Allocation(None, 8), SMALL), DecisionState()
    for turn in range(5):
        held = after(held, done(bare), {}, RULES, turn * 60.0)
    assert len(held.reloads) == 4, "the first of the hour is free"


def test_a_change_that_came_after_its_deadline_did_not_fail() -> None:
    step = Step("m", StepKind.GROW, SMALL, Allocation(0.35000000000000003, 8))
    held = DecisionState()
    for turn in range(3):  # a model that always takes longer than is waited
        held = after(held, done(step, ok=False, cause=Cause.UNANSWERED), {}, RULES, turn * 1000.0)
    assert came_after_all(held, {"m": SMALL}) is held
    assert why_not_now(held, (GROW,), RULES, 2000.0)
    came = came_after_all(held, {"m": Allocation(0.35, 8)})
    assert why_not_now(came, (GROW,), RULES, 2000.0) == ""
    assert came.of("m") == ModelHold(refused_why="no")
    assert not after(held, done(step), load(1.0, 1.0), RULES, 2001.0).asked


@pytest.mark.parametrize("kind", [StepKind.ADOPT, StepKind.REVIVE])
def test_a_load_that_changes_nothing_to_see_and_fails_is_tried_again_after_growing_pauses(
    kind: StepKind,
) -> None:
    step, held, tries = Step("m", kind, SMALL, SMALL), DecisionState(), list[float]()
    for second in range(2000):
        held = came_after_all(held, {"m": SMALL})
        if not why_not_now(held, (step,), RULES, float(second)):
            tries.append(float(second))
            held = after(held, done(step, ok=False), {}, RULES, float(second))
    assert tries == [0.0, 60.0, 180.0, 420.0, 900.0, 1860.0]


def test_a_model_without_a_process_of_its_own_keeps_no_other_change_waiting() -> None:
    step = Step("m", StepKind.ADOPT, SMALL, SMALL)
    held = after(
        DecisionState(gpus={"a": GpuHold(Underway({"n": LARGE}))}),
        done(step, ok=False),
        {},
        RULES,
        0.0,
    )
    assert why_not_now(held, (GROW,), RULES, 1.0) == ""
    assert "it could not be given a process of its own; next try in 59 s" in why_not_now(
        held, (step,), RULES, 1.0
    )
    held = after(held, done(step), {}, RULES, 100.0)
    assert held.of("m").unhosted is None


def test_what_a_rebalance_changed_ends_the_plan_of_its_gpu_and_may_settle() -> None:
    """Else the plan would be carried on, and undo it."""
    plan = Underway({"m": LARGE, "other": SMALL})
    watch = Probation(LARGE, 0.0, 10.0, 100.0)
    moves = Relocation({"m": "g1"}, {"m": LARGE}, frozenset({"g0", "g1"}))
    held = DecisionState(
        {
            "m": ModelHold(gpu="g0", probation=watch, refusals=2, asked=SMALL, pending_share=0.2),
            "other": ModelHold(gpu="g1"),
        },
        {"g0": GpuHold(plan=plan, moved_at_s=1.0), "g1": GpuHold(plan=plan, moved_at_s=2.0)},
        reloads=(5.0,),
        relocation=moves,
    )
    now = rebalanced(held, ["m"], 50.0)
    assert now.gpu("g0") == GpuHold(moved_at_s=50.0)
    assert now.gpu("g1") == held.gpu("g1")
    assert now.of("m") == ModelHold(gpu="g0", refusals=2)
    assert now.relocation is None
    assert now.reloads == (5.0,), "no reload of ours"
    assert rebalanced(held, [], 50.0) == held
