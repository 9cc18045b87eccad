"""Figures and verdicts from made-up runs."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.demo.measure import figures, problems, short_of_cpu, trace
from igniterd.lab.load.load import RequestLog
from tests.demo.runs import log, on_two, phase, recording


def test_figures_are_of_the_measured_part() -> None:
    found = {(f.phase, f.model): f for f in figures(log(slow={"vgg19": 300.0}), recording())}
    steered = found["steered", "vgg19"]
    assert (steered.requests, steered.rate_per_s, steered.p50_ms, steered.p99_ms) == (
        100,
        10.0,
        300.0,
        300.0,
    )
    assert (steered.attainment, steered.held) == (0.0, False)
    assert found["bare", "vgg19"].requests == 80
    assert found["bare", "vgg19"].held


def test_a_run_without_fault_has_no_problems() -> None:
    seen, run = log(), recording()
    assert problems(seen, run, figures(seen, run)) == []


def test_a_missed_slo_is_named_in_judged_phases_only() -> None:
    seen, run = log(slow={"vgg19": 300.0}), recording()
    assert problems(seen, run, figures(seen, run)) == [
        "phase steered: P99 of vgg19 is 300.0 ms, above its SLO of 240 ms"
    ]
    unjudged = run.model_copy(
        update={"phases": [run.phases[0], phase("steered", 1010.0, 1020.0, 1030.0)]}
    )
    assert problems(seen, unjudged, figures(seen, unjudged)) == []


def test_on_two_gpus_a_model_must_have_been_moved() -> None:
    run = on_two()
    assert problems(log(), run, figures(log(), run)) == []
    refused = [m.model_copy(update={"ok": not m.relocates}) for m in run.moves]
    for moves in (run.moves[:1], refused):
        still = run.model_copy(update={"moves": moves})
        assert problems(log(), still, figures(log(), still)) == [
            "no model was moved to another GPU"
        ]


@pytest.mark.parametrize(
    "at_s", [1001.0, 1005.0, 1012.0, 1025.0], ids=["settling", "bare", "settling again", "measured"]
)
def test_a_failed_request_counts_wherever_it_failed(at_s: float) -> None:
    seen, run = log(failed_at_s=(at_s,)), recording()
    found = problems(seen, run, figures(seen, run))
    assert any("2 of 900 requests failed, most with: UNAVAILABLE: gone" in said for said in found)


def test_failures_under_a_plan_frozen_on_purpose_are_its_result() -> None:
    run = recording(
        phases=[
            phase("bare", 1000.0, 1002.0, 1010.0),
            phase("frozen", 1010.0, 1020.0, 1030.0, mode="observe"),
        ]
    )
    frozen, elsewhere = log(failed_at_s=(1025.0,)), log(failed_at_s=(1005.0,))
    assert problems(frozen, run, figures(frozen, run)) == []
    assert problems(elsewhere, run, figures(elsewhere, run)) != []


def test_a_late_generator_is_told_of_by_phase() -> None:
    seen, phases = log(), recording().phases
    assert short_of_cpu(seen, phases) == []
    late = dataclasses.replace(
        seen, sent_s=np.where(seen.scheduled_s > 1020, seen.scheduled_s + 0.05, seen.sent_s)
    )
    (said,) = short_of_cpu(late, phases)
    assert said.startswith("phase steered: this machine was short of CPU") and "50 ms late" in said


def test_windows_slide_and_show_failures_as_endless() -> None:
    # 100 requests a window: two failed ones are more than one in a hundred
    seen = trace(
        log(failed_at_s=(1012.0, 1012.05)), "alexnet", 1000.0, 1030.0, window_s=5, step_s=1
    )
    assert seen.at_s[0] == 1005.0 and seen.at_s[-1] == 1030.0
    assert np.allclose(seen.rate_per_s, 20.0)
    endless = seen.at_s[np.isinf(seen.p99_ms)]
    assert list(endless) == [1013.0, 1014.0, 1015.0, 1016.0, 1017.0]


def test_a_window_without_requests_has_no_p99() -> None:
    seen = trace(log(), "resnet50", 1000.0, 1030.0)
    assert np.isnan(seen.p99_ms).all() and not seen.rate_per_s.any()


@given(st.lists(st.floats(0.1, 500.0), min_size=1, max_size=300), st.floats(1.0, 400.0))
def test_held_means_that_99_in_100_were_within_the_slo(
    latencies: list[float], slo_ms: float
) -> None:
    count = len(latencies)
    at = 1020.0 + np.arange(count) / count * 9.9
    seen = RequestLog(
        np.full(count, "alexnet"),
        np.full(count, "steered"),
        at,
        at,
        np.asarray(latencies),
        np.ones(count, dtype=bool),
        np.full(count, ""),
    )
    found = figures(seen, recording(slos_ms={"alexnet": slo_ms}))[-1]
    assert found.held == (sum(x <= slo_ms for x in latencies) >= math.ceil(0.99 * count))
    assert found.p50_ms <= found.p99_ms
