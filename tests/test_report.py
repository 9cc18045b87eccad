from pathlib import Path
from typing import Any

import pytest

from igniterd.records import (
    Actuation,
    Allocation,
    BoardReading,
    Estimate,
    Gap,
    Load,
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
