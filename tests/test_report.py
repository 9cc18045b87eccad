from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from igniterd.records import (
    Actuation,
    Allocation,
    BoardReading,
    Changed,
    Estimate,
    Gap,
    Learnt,
    LiveService,
    Load,
    MpsReading,
    Observation,
    Outcome,
    Outcomes,
    Plan,
    Step,
    StepKind,
    Tick,
    Verdict,
    Window,
)
from igniterd.report import Reporter, hints_of, state_of
from tests.hosts import config


class Published:
    def __init__(self) -> None:
        self.sent: list[tuple[str, str, dict[str, Any]]] = []

    def publish(self, suffix: str, kind: str, data: dict[str, Any], **_: Any) -> None:
        self.sent.append((suffix, kind, data))


def tick(number: int, plan: Plan, gaps: tuple[Gap, ...] = (), outcome: Outcome = Outcome()) -> Tick:  # noqa: B008
    seen = Observation(float(number), boards=(BoardReading(0, "GPU-1", "V100", memory_used_bytes=4, memory_total_bytes=16),), gaps=gaps)
    loads = {"vgg19": Load("vgg19", 200.0, 210.0, confident=True)}
    return Tick(number, float(number), 1000.0 + number, seen, Window(0.0, 1.0), Estimate(0.0, loads), plan, outcome)


HOLD = Plan(0.0, Outcomes.HOLD, "every SLO holds, with rates free to grow by 12%", headroom=1.12, least_share=0.8)
LET_GO = Plan(
    0.0,
    Outcomes.INFEASIBLE,
    "vgg19 is let go: does not fit",
    {"vgg19": Verdict("vgg19", Allocation(0.3, 32), False, None, 60.0, reason="does not fit", needs_share=0.45)},
    feasible=False,
)


def test_hints_by_hand(tmp_path: Path) -> None:
    settings = config(tmp_path)
    assert list(hints_of(tick(1, HOLD), settings)) == [{"kind": "offer", "gpu": "V100", "share": 0.2, "memory_free_bytes": 12}]
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
    state = state_of(tick(3, LET_GO), config(tmp_path))
    assert [(m["name"], m["seen"]) for m in state["models"]] == [("alexnet", False), ("resnet50", False), ("vgg19", False)]
    assert state["models"][2]["feasible"] is False
    assert state["decision"]["outcome"] == "infeasible"


def test_says_a_silence_once_and_its_end_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(config(tmp_path))
    gap = Gap("triton:main", "no answer", 0.0)
    for number in range(10):
        reporter(tick(number, HOLD, (gap,) if 3 <= number < 7 else ()))
    said = capsys.readouterr().out
    assert said.count("source silent") == 1
    assert said.count("source answers again") == 1
    assert said.count("every SLO holds") == 1


def test_publishes_state_when_it_moves_and_hints_when_they_change(tmp_path: Path) -> None:
    broker = Published()
    reporter = Reporter(config(tmp_path), publisher=broker)
    moved = Outcome((Actuation(Step("vgg19", StepKind.GROW, Allocation(0.2, 8), Allocation(0.3, 8), "more traffic"), True, 1.5),))
    reporter(tick(0, HOLD))
    reporter(tick(1, HOLD))
    reporter(tick(2, LET_GO, outcome=moved))
    assert [(suffix, kind) for suffix, kind, _ in broker.sent] == [
        ("state", "igniterd.state"),
        ("hint", "igniterd.hint.offer"),
        ("state", "igniterd.state"),
        ("hint", "igniterd.hint.shed"),
    ]
    assert broker.sent[2][2]["last_moves"][0]["why"] == "more traffic"


def test_what_was_learnt_is_in_the_state_and_a_changed_model_is_logged_once(tmp_path: Path) -> None:
    settings = config(tmp_path)
    load = Load(
        "vgg19",
        200.0,
        210.0,
        confident=True,
        bias=1.1,
        bias_upper=1.13,
        learnt=Learnt(0.4, 0.3, 0.0953, 0.0, 0.012),
        live=LiveService(None, (5.0, 7.0, 9.0, 11.0, 13.0), (0.01,) * 5, "batches 1 to 5 within 2 %"),
        changed=Changed(7.0, "version 1 -> 2"),
    )
    report = Reporter(settings)
    with capture_logs() as logs:
        for number in (7, 8):
            now = tick(number, HOLD)
            report(replace(now, observation=replace(now.observation, at_s=float(number)), estimate=Estimate(0.0, {"vgg19": load})))
    assert [log["why"] for log in logs if log["event"] == "model changed"] == ["version 1 -> 2"]
    (vgg19,) = [model for model in report.state["models"] if model["name"] == "vgg19"]
    assert vgg19["learnt"] == {"share": 0.4, "pressure": 0.3, "level": 0.0953, "tilt": 0.0, "sd": 0.012, "upper": 1.13}
    assert vgg19["live"]["said"] == "batches 1 to 5 within 2 %"
    assert [point["batch"] for point in vgg19["live"]["points"]] == [1, 2, 3, 4, 5]
    assert vgg19["changed"] == {"time_s": 1007.0, "why": "version 1 -> 2"}


def test_a_cap_on_every_client_is_said_when_it_begins_and_when_it_is_over(tmp_path: Path) -> None:
    reporter = Reporter(config(tmp_path))
    with capture_logs() as said:
        for number, share in enumerate((1.0, 0.5, 0.5, None, 1.0, 1.0)):
            seen = tick(number, HOLD)
            reporter(replace(seen, observation=replace(seen.observation, mps=MpsReading((), share))))
    caps = [(line["event"], line.get("reason", "")) for line in said if line.get("what") == "cap"]
    assert caps == [("failing", "MPS control caps every client at 50%: set_default_active_thread_percentage 100"), ("recovered", "")]


def test_a_process_of_its_own_that_is_refused_again_and_again_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(config(tmp_path))
    there = Allocation(None, 8)
    step = Step("alexnet", StepKind.ADOPT, there, there, "its owner wants it in a process of its own")
    for number in range(3):
        refused = Outcome((Actuation(step, False, 1.0, f"takes {number}.5 ms where 0.2 ms is allowed"),))
        reporter(tick(2 * number, Plan(float(number), Outcomes.MOVE, step.why, steps=(step,))))
        reporter(tick(2 * number + 1, HOLD, outcome=refused))
    said = capsys.readouterr().out
    assert said.count("move refused") == 1
    assert said.count("its owner wants it") == 2  # as the plan, and with the refusal
