"""When the cluster is told of a tick."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from igniterd.announce import Announcer
from igniterd.config import Config
from igniterd.decisions import Tick
from igniterd.profiled import Predictors
from igniterd.records import BoardReading
from igniterd.report import Reporter
from tests.hosts import config
from tests.test_report import HOLD, LET_GO, moved_in, reading, stuck, tick


class Published:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def publish_state(self, parts: Sequence[Mapping[str, Any]], *, expiry_s: int) -> None:
        assert expiry_s == 30
        self.sent.append(("state", list(parts)))

    def publish_hint(self, hint: Mapping[str, Any], *, expiry_s: int) -> None:
        assert expiry_s == 60
        self.sent.append((f"hint.{hint['kind']}", hint))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.sent]


def announced(settings: Config, *ticks: Tick) -> Published:
    """What is told of ticks that are reported one after the other."""
    broker = Published()
    announcer = Announcer(settings, Predictors(), broker, run="1234")
    reporter = Reporter(settings, announce=announcer)
    for each in ticks:
        reporter(each)
    return broker


def test_the_state_goes_when_it_moves_and_hints_when_they_change(tmp_path: Path) -> None:
    moved = tick(2, LET_GO, outcome=moved_in("vgg19"))
    broker = announced(config(tmp_path), tick(0, HOLD), tick(1, HOLD), moved)
    assert broker.kinds == ["state", "hint.offer", "state", "hint.shed"]


def test_the_state_and_hints_go_now_and_then_when_nothing_changes(tmp_path: Path) -> None:
    broker = announced(config(tmp_path), *(tick(number, HOLD) for number in range(11)))
    assert broker.kinds == ["state", "hint.offer", "state", "state", "hint.offer"]
    assert [parts[0]["tick"] for kind, parts in broker.sent if kind == "state"] == [0, 5, 10]


def test_each_offer_is_told(tmp_path: Path) -> None:
    now = tick(1, replace(HOLD, least_by_gpu={"GPU-0": 0.5, "GPU-1": 0.5}))
    there = {name: reading(name, gpu) for gpu, name in enumerate(("alexnet", "resnet50"))} | {
        "vgg19": reading("vgg19")
    }
    now = replace(now, observation=replace(now.observation, models=there))
    broker = announced(config(tmp_path), now)
    offers = [hint["gpu_uuid"] for kind, hint in broker.sent if kind == "hint.offer"]
    assert offers == ["GPU-0", "GPU-1"]


def test_the_cluster_is_not_told_that_every_slo_holds_where_one_was_not_judged(
    tmp_path: Path,
) -> None:
    broker = announced(config(tmp_path), stuck(tick(0, HOLD)))
    (state,) = broker.sent[0][1]
    assert "every SLO that was judged holds" in state["decision"]["why"]
    assert broker.sent[1][0] == "hint.not_answering"


def test_a_state_that_no_parts_hold_is_said_once_and_costs_no_hint(tmp_path: Path) -> None:
    """Boards that no host has so many of."""
    now = tick(0, HOLD)
    boards = tuple(BoardReading(n, f"GPU-{n}", "V100") for n in range(1000))
    many = replace(now, observation=replace(now.observation, boards=boards))
    again = replace(many, number=5, at_s=5.0)
    with capture_logs() as logs:
        broker = announced(config(tmp_path), many, again, tick(10, HOLD))
    assert broker.kinds == ["hint.offer", "state", "hint.offer"]
    said = [(line["event"], line.get("reason", "")) for line in logs if "told" in line["event"]]
    assert [event for event, _ in said] == ["the state is not told", "the state is told again"]
    assert "what is said of the host itself has" in said[0][1]


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    verdict = replace(LET_GO.verdicts["vgg19"], reason="x" * 5000)
    broker = announced(config(tmp_path), tick(0, replace(LET_GO, verdicts={"vgg19": verdict})))
    assert len(broker.sent[1][1]["reason"]) == 200


def test_the_state_does_not_wait_where_an_slo_no_longer_holds_or_does_again(
    tmp_path: Path,
) -> None:
    steps = (tick(0, HOLD), tick(1, LET_GO), tick(2, LET_GO), tick(3, HOLD))
    broker = announced(config(tmp_path), *steps)
    assert [parts[0]["tick"] for kind, parts in broker.sent if kind == "state"] == [0, 1, 3]


def test_a_board_that_is_not_read_for_a_tick_stays_in_the_state(tmp_path: Path) -> None:
    board = BoardReading(0, "GPU-0", "emulated", memory_total_bytes=2**34)
    silent = [tick(number, HOLD) for number in (5, 10, 40)]
    first = tick(0, HOLD)
    first = replace(first, observation=replace(first.observation, boards=(board,)))
    silent = [replace(t, observation=replace(t.observation, boards=())) for t in silent]
    broker = announced(config(tmp_path), first, *silent)
    told = [parts[0].get("boards", []) for kind, parts in broker.sent if kind == "state"]
    assert [[b["uuid"] for b in boards] for boards in told] == [["GPU-0"]] * 3 + [[]]
