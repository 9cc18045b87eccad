from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from igniterd.decisions import (
    ActResult,
    Actuation,
    DecisionKind,
    Plan,
    Step,
    StepKind,
    Tick,
    Verdict,
)
from igniterd.hints import hints_of
from igniterd.loads import BiasEstimate, Changed, Estimate, LiveService, Load
from igniterd.records import (
    Allocation,
    BoardReading,
    Gap,
    ModelReading,
    MpsReading,
    Observation,
    Window,
)
from igniterd.report import Reporter, state_of
from igniterd.states import Standing, State
from tests.hosts import SLOS, config


def reading(name: str, gpu: int = 0) -> ModelReading:
    return ModelReading(
        name, "1", "main", True, "python", Allocation(0.25, 8), gpus=(f"GPU-{gpu}",)
    )


NOTHING_DONE = ActResult()


def tick(
    number: int, plan: Plan, gaps: tuple[Gap, ...] = (), outcome: ActResult = NOTHING_DONE
) -> Tick:
    boards = tuple(
        BoardReading(i, f"GPU-{i}", f"V100 {i}", memory_used_bytes=4 + i, memory_total_bytes=16)
        for i in (0, 1)
    )
    seen = Observation(
        float(number), boards=boards, models={name: reading(name) for name in SLOS}, gaps=gaps
    )
    loads = {"vgg19": Load("vgg19", 200.0, 210.0, confident=True)}
    return Tick(
        number,
        float(number),
        1000.0 + number,
        seen,
        Window(0.0, 1.0),
        Estimate(0.0, loads),
        plan,
        outcome,
    )


def stuck(now: Tick, name: str = "vgg19") -> Tick:
    return replace(
        now, estimate=Estimate(0.0, {name: Load(name, 80.0, 90.0, confident=True, stuck_s=31.0)})
    )


def moved_in(model: str) -> ActResult:
    """A step of ``model`` that was carried out."""
    step = Step(model, StepKind.GROW, Allocation(0.2, 8), Allocation(0.3, 8), "more traffic")
    return ActResult((Actuation(step, True, 1.5),))


HOLD = Plan(
    0.0,
    DecisionKind.HOLD,
    "every SLO holds, with rates free to grow by 12%",
    {name: Verdict(name, Allocation(0.25, 8), True, None, slo) for name, slo in SLOS.items()},
    headroom=1.12,
    least_share=0.8,
    least_by_gpu={"GPU-0": 0.8},
)
LET_GO = Plan(
    0.0,
    DecisionKind.INFEASIBLE,
    "vgg19 is let go: does not fit",
    {
        "vgg19": Verdict(
            "vgg19", Allocation(0.3, 32), False, None, 60.0, reason="does not fit", needs_share=0.45
        )
    },
    feasible=False,
)


def test_hints_by_hand(tmp_path: Path) -> None:
    settings = config(tmp_path)
    offer = {
        "kind": "offer",
        "gpu_uuid": "GPU-0",
        "gpu": "V100 0",
        "share": 0.2,
        "memory_free_bytes": 12,
    }
    assert list(hints_of(tick(1, HOLD), settings)) == [offer]
    (shed,) = hints_of(tick(1, LET_GO), settings)
    assert shed == {
        "kind": "shed",
        "model": "vgg19",
        "slo_p99_ms": 60.0,
        "rate_per_s": 210.0,
        "needs_share": 0.45,
        "reason": "does not fit",
    }


def test_state_has_every_configured_model_seen_or_not(tmp_path: Path) -> None:
    now = tick(3, LET_GO)
    state = state_of(
        replace(now, observation=replace(now.observation, models={})), config(tmp_path)
    )
    assert [(m["name"], m["seen"]) for m in state["models"]] == [
        ("alexnet", False),
        ("resnet50", False),
        ("vgg19", False),
    ]
    assert state["models"][2]["feasible"] is False
    assert state["decision"]["outcome"] == "infeasible"


def test_says_a_silence_once_and_its_end_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Reporter(config(tmp_path))
    gap = Gap("triton:main", "no answer", 0.0)
    for number in range(10):
        reporter(tick(number, HOLD, (gap,) if 3 <= number < 7 else ()))
    said = capsys.readouterr().out
    assert said.count("source silent") == 1
    assert said.count("source answers again") == 1
    assert said.count("every SLO holds") == 1


def test_what_is_not_steered_is_in_the_state(tmp_path: Path) -> None:
    settings = config(tmp_path)
    state = state_of(
        tick(1, replace(HOLD, takes={"vgg19": 0.15}, reserved={"GPU-0": 0.2})), settings
    )
    takes = {model["name"]: model["takes"] for model in state["models"] if model["seen"]}
    assert takes.pop("vgg19") == 0.15
    assert set(takes.values()) == {None}
    assert [board["reserved"] for board in state["boards"]] == [0.2, None]


def test_an_offer_is_less_what_is_not_steered(tmp_path: Path) -> None:
    plan = replace(HOLD, least_by_gpu={"GPU-0": 0.5}, reserved={"GPU-0": 0.2})
    (offer,) = hints_of(tick(1, plan), config(tmp_path))
    assert offer["share"] == 0.3


def test_what_was_learnt_is_in_the_state_and_a_changed_model_is_logged_once(tmp_path: Path) -> None:
    settings = config(tmp_path)
    load = Load(
        "vgg19",
        200.0,
        210.0,
        confident=True,
        bias=1.1,
        bias_upper=1.13,
        published_bias=BiasEstimate(0.4, 0.3, 0.0953, 0.0, 0.012, 0.03),
        live=LiveService(
            None, (5.0, 7.0, 9.0, 11.0, 13.0), (0.01,) * 5, "batches 1 to 5 within 2 %", 0.07
        ),
        changed=Changed(7.0, "version 1 -> 2"),
    )
    report = Reporter(settings)
    with capture_logs() as logs:
        for number in (7, 8):
            now = tick(number, HOLD)
            report(
                replace(
                    now,
                    observation=replace(now.observation, at_s=float(number)),
                    estimate=Estimate(0.0, {"vgg19": load}),
                )
            )
    assert [log["why"] for log in logs if log["event"] == "model changed"] == ["version 1 -> 2"]
    (vgg19,) = [model for model in report.state["models"] if model["name"] == "vgg19"]
    assert vgg19["learnt"] == {
        "share": 0.4,
        "pressure": 0.3,
        "level": 0.0953,
        "tilt": 0.0,
        "sd": 0.012,
        "cv": 0.03,
        "upper": 1.13,
    }
    assert (vgg19["live"]["said"], vgg19["live"]["cv"]) == ("batches 1 to 5 within 2 %", 0.07)
    assert [point["batch"] for point in vgg19["live"]["points"]] == [1, 2, 3, 4, 5]
    assert vgg19["changed"] == {"time_s": 1007.0, "why": "version 1 -> 2"}


def test_a_cap_on_every_client_is_said_when_it_begins_and_when_it_is_over(tmp_path: Path) -> None:
    reporter = Reporter(config(tmp_path))
    with capture_logs() as said:
        for number, share in enumerate((1.0, 0.5, 0.5, None, 1.0, 1.0)):
            seen = tick(number, HOLD)
            reporter(
                replace(seen, observation=replace(seen.observation, mps=MpsReading((), share)))
            )
    caps = [(line["event"], line.get("reason", "")) for line in said if line.get("what") == "cap"]
    assert caps == [
        (
            "failing",
            "MPS control caps every client at 50%: set_default_active_thread_percentage 100",
        ),
        ("recovered", ""),
    ]


def test_what_was_moved_is_in_the_state_and_the_cluster_is_told_of_it_at_once(
    tmp_path: Path,
) -> None:
    told: list[tuple[int, bool]] = []
    reporter = Reporter(
        config(tmp_path), announce=lambda now, moved: told.append((now.number, moved))
    )
    reporter(tick(0, HOLD))
    reporter(tick(1, HOLD, outcome=moved_in("vgg19")))
    assert told == [(0, False), (1, True)]
    assert reporter.state["last_moves"][0]["why"] == "more traffic"


def test_a_process_of_its_own_that_is_refused_again_and_again_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Reporter(config(tmp_path))
    there = Allocation(None, 8)
    step = Step(
        "alexnet", StepKind.ADOPT, there, there, "its owner wants it in a process of its own"
    )
    for number in range(3):
        refused = ActResult(
            (Actuation(step, False, 1.0, f"takes {number}.5 ms where 0.2 ms is allowed"),)
        )
        reporter(tick(2 * number, Plan(float(number), DecisionKind.MOVE, step.why, steps=(step,))))
        reporter(tick(2 * number + 1, HOLD, outcome=refused))
    said = capsys.readouterr().out
    assert said.count("move refused") == 1
    assert said.count("its owner wants it") == 2  # as the plan, and with the refusal


def test_room_is_offered_gpu_by_gpu(tmp_path: Path) -> None:
    settings, now = (
        config(tmp_path),
        tick(
            1,
            replace(
                HOLD, least_share=1.25, least_by_gpu={"GPU-0": 0.55, "GPU-1": 0.7, "GPU-2": 0.1}
            ),
        ),
    )
    there = {
        "alexnet": reading("alexnet"),
        "resnet50": reading("resnet50", 1),
        "vgg19": reading("vgg19", 1),
    }
    now = replace(now, observation=replace(now.observation, models=there, foreign={"GPU-1": 0.1}))
    offers = [
        (hint["gpu_uuid"], hint["gpu"], hint["share"], hint["memory_free_bytes"])
        for hint in hints_of(now, settings)
    ]
    assert offers == [("GPU-0", "V100 0", 0.45, 12), ("GPU-1", "V100 1", 0.2, 11)], (
        "nobody is on GPU 2 any more"
    )
    assert [(h["kind"], h.get("gpu_uuid")) for h in hints_of(stuck(now), settings)] == [
        ("not_answering", None),
        ("offer", "GPU-0"),
    ]
    unread = replace(
        now, observation=replace(now.observation, models={}, unread={"vgg19": "no answer"})
    )
    assert list(hints_of(unread, settings)) == []


def test_a_model_that_does_not_answer_is_never_one_whose_slo_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path)
    reporter = Reporter(settings)
    reporter(stuck(tick(0, HOLD)))
    words = (
        "every SLO that was judged holds, with rates free to grow by 12%; not judged: vgg19: "
        "requests wait for 31 s and nothing is executed"
    )
    assert reporter.state["decision"]["why"] == words
    assert "every SLO holds" not in capsys.readouterr().out
    (vgg19,) = [model for model in reporter.state["models"] if model["name"] == "vgg19"]
    assert vgg19["stuck_s"] == 31.0
    (hint,) = [h for h in hints_of(stuck(tick(0, HOLD)), settings) if h["kind"] == "not_answering"]
    assert (hint["model"], hint["stuck_s"]) == ("vgg19", 31.0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {
                "observation": {
                    "models": {"alexnet": reading("alexnet"), "resnet50": reading("resnet50")}
                }
            },
            "vgg19: not seen",
        ),
        (
            {"observation": {"unread": {"vgg19": "no answer in 0.4 s"}}},
            "vgg19: not read: no answer in 0.4 s",
        ),
        (
            {"estimate": {"left_out": {"vgg19": "a prediction for it failed"}}},
            "vgg19: a prediction for it failed",
        ),
        ({"standings": {"vgg19": Standing(State.NOT_ANSWERING, "it hangs")}}, "vgg19: it hangs"),
        (
            {"standings": {"vgg19": Standing(State.WATCHED, "it is decoupled")}},
            "vgg19: it is decoupled",
        ),
        (
            {"plan": {"verdicts": {n: HOLD.verdicts[n] for n in ("alexnet", "resnet50")}}},
            "vgg19: no plan speaks of it",
        ),
    ],
)
def test_every_slo_holds_only_where_every_model_was_judged(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    now = tick(1, HOLD)
    for part, values in changes.items():
        now = replace(
            now, **{part: values if part == "standings" else replace(getattr(now, part), **values)}
        )
    assert state_of(now, config(tmp_path))["decision"]["why"].endswith(f"; not judged: {why}")
    assert state_of(tick(1, HOLD), config(tmp_path))["decision"]["why"] == HOLD.why


def test_the_state_of_each_model_is_shown_where_it_is_known(tmp_path: Path) -> None:
    now = replace(
        tick(5, HOLD), standings={"vgg19": Standing(State.BY_HAND, "somebody loaded it", 2.0)}
    )
    shown = {
        m["name"]: (m["state"], m["why"], m.get("state_since_s"))
        for m in state_of(now, config(tmp_path))["models"]
    }
    assert shown == {
        "alexnet": (None, "", None),
        "resnet50": (None, "", None),
        "vgg19": ("by_hand", "somebody loaded it", 1002.0),
    }
