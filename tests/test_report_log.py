"""What a day of the daemon writes to the log: news, and few lines of what comes and goes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from igniterd.config import parse_config
from igniterd.decisions import ActResult, DecisionKind, Plan, Tick
from igniterd.hands import Rebalanced
from igniterd.loads import Estimate
from igniterd.records import Allocation, Gap, Observation, Window
from igniterd.report import Reporter

HOUR = 3600
CONFIG = (
    '[host]\nname = "h"\n[[model]]\nname = "vgg19"\nslo_p99_ms = 1\n[[model]]\nname = '
    '"resnet50"\nslo_p99_ms = 1\n'
)


def a_tick(n: int, plan: Plan, *gaps: Gap) -> Tick:
    seen = Observation(float(n), gaps=gaps)
    return Tick(
        n, float(n), 1.7e9 + n, seen, Window(float(n), 1.0), Estimate(float(n)), plan, ActResult()
    )


def an_hour(tick: Callable[[int], Tick]) -> list[dict[str, object]]:
    reporter = Reporter(parse_config(CONFIG, source="test"))
    with capture_logs() as said:
        for n in range(HOUR):
            reporter(tick(n))
    return list(said)


@pytest.mark.parametrize(
    "source",
    [
        "nvml",
        "nvml:GPU-a",
        "triton:main",
        "metrics:main",
        "share:vgg19",
        "model:vgg19",
        "processes",
    ],
)
@pytest.mark.parametrize("period", [2, 3, 60])
def test_a_source_that_flaps_is_summed_up(source: str, period: int) -> None:
    def tick(n: int) -> Tick:
        gaps = [Gap(source, "no answer in 0.4 s", float(n))] if n % period else []
        return a_tick(n, Plan(float(n), DecisionKind.HOLD, "every SLO holds"), *gaps)

    said = [line for line in an_hour(tick) if line["event"] != "decision"]
    assert 3 <= len(said) <= 3 * HOUR / 600
    assert said[0]["log_level"] == "warning"
    if period == 2:
        assert sum(int(str(line.get("times", 0))) for line in said) > HOUR / 2 - 700


def test_two_outages_of_an_hour_are_both_told_with_their_ends() -> None:
    def tick(n: int) -> Tick:
        gaps = [Gap("triton:main", "gone", float(n))] if 100 <= n < 400 or 2000 <= n < 2500 else []
        return a_tick(n, Plan(float(n), DecisionKind.HOLD, "every SLO holds"), *gaps)

    said = [line["event"] for line in an_hour(tick) if line["event"] != "decision"]
    assert said == ["source silent", "source answers again"] * 2


SENTENCES: dict[str, Callable[[int], str]] = {
    "an address": lambda n: f"vgg19: its last change failed: handle 0x{n * 2654435761 % 2**32:x}",
    "an identifier": lambda n: f"vgg19: its last change failed: request a{n:06x}b-{n * 7919:x}9",
    "figures": lambda n: f"vgg19: {n / 7:.3f} ms of {n * 1.3:.1e}",
    "a path": lambda n: f"vgg19: /tmp/python_env_{n}x/0 is not there",
}


@pytest.mark.parametrize("outcome", [DecisionKind.WAIT, DecisionKind.INFEASIBLE])
@pytest.mark.parametrize("kind", SENTENCES)
def test_a_sentence_with_another_figure_each_time_is_one_sentence(
    outcome: DecisionKind, kind: str
) -> None:
    said = an_hour(lambda n: a_tick(n, Plan(float(n), outcome, SENTENCES[kind](n))))
    assert 1 <= len(said) <= HOUR / 600 + 1


def test_models_with_figures_in_their_names_are_told_apart() -> None:
    names = ("vgg19", "resnet50")
    said = an_hour(
        lambda n: a_tick(
            n, Plan(float(n), DecisionKind.WAIT, f"{names[n // 1800]}: its last change failed")
        )
    )
    assert [str(line["why"]).partition(":")[0] for line in said] == ["vgg19", "resnet50"]


@pytest.mark.parametrize("outcome", [DecisionKind.WAIT, DecisionKind.INFEASIBLE])
def test_a_host_at_its_limit_does_not_fill_the_log(outcome: DecisionKind) -> None:
    plans = (
        Plan(0.0, DecisionKind.HOLD, "every SLO holds"),
        Plan(0.0, outcome, "vgg19 does not fit"),
    )
    assert 2 <= len(an_hour(lambda n: a_tick(n, plans[n % 2]))) <= 2 * HOUR / 600 + 2


def test_a_lost_board_is_told_once_and_once_when_it_is_back() -> None:
    def tick(n: int) -> Tick:
        why = f"GPU 1 (GPU-a): cannot be read: power (NVML said {n})"
        gaps = [Gap("nvml:GPU-a", why, float(n))] if 100 <= n < 400 else []
        return a_tick(n, Plan(float(n), DecisionKind.HOLD, "every SLO holds"), *gaps)

    told = [line for line in an_hour(tick) if line["event"] != "decision"]
    assert [line["event"] for line in told] == ["source silent", "source answers again"]
    assert [line["source"] for line in told] == ["nvml:GPU-a"] * 2


def test_what_a_rebalance_changed_is_told_once_and_stands_among_the_moves() -> None:
    change = Rebalanced(Allocation(0.4, 8), Allocation(0.2, 8))

    def tick(n: int) -> Tick:
        holds = a_tick(n, Plan(float(n), DecisionKind.HOLD, "every SLO holds"))
        return replace(holds, rebalanced={"vgg19": change} if n == 100 else {})

    (said,) = [line for line in an_hour(tick) if line["event"] == "moved"]
    assert (said["model"], said["kind"]) == ("vgg19", "rebalance")
    assert said["why"] == "a rebalance of the cluster (igniterd fleet apply) changed it"
    reporter = Reporter(parse_config(CONFIG, source="test"))
    for n in range(99, 103):
        reporter(tick(n))
    (move,) = reporter.state["last_moves"]
    assert (move["before"]["share"], move["after"]["share"], move["ok"]) == (0.4, 0.2, True)
