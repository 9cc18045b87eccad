"""What service times say of a share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.estimators.bias import Measured
from igniterd.estimators.effect import LEAST_EXECUTIONS, OPEN_S, ShareTrial
from igniterd.records import Effect

SHARE_MS, WHOLE_MS = np.array([8.0, 12.0]), np.array([4.0, 6.0])  # twice as fast with the whole GPU


def after(trial: ShareTrial, ratio: float, executions: int = 30, at_s: float = 1.0) -> ShareTrial:
    return trial.measured([Measured(1, executions, ratio)], SHARE_MS, WHOLE_MS, at_s)


def verdict(trial: ShareTrial) -> Effect | None:
    result = trial.result()
    return None if result is None else result.verdict


def test_half_the_share_and_no_slower_refutes_within_seconds_of_traffic() -> None:
    before = after(ShareTrial(1.0, 0.0), 1.0)
    trial = after(before.again(0.5, 0.0), 0.5)
    assert verdict(trial) is Effect.REFUTED
    said = trial.result()
    assert said is not None
    assert said.said == (
        "its executions take 0.50 times what 50.0% of the GPU predicts, where the whole GPU "
        "predicts 0.50 times"
    )


def test_as_slow_as_predicted_proves() -> None:
    assert verdict(after(after(ShareTrial(1.0, 0.0), 1.0).again(0.5, 0.0), 1.05)) is Effect.PROVEN


def test_a_profile_that_is_wrong_everywhere_is_allowed_for() -> None:
    """Thirty per cent faster than its profile before, and still so with half the share: it has
    it."""
    trial = after(ShareTrial(1.0, 0.0), 0.7).again(0.5, 0.0)
    assert verdict(after(trial, 0.72)) is Effect.PROVEN
    assert verdict(after(trial, 0.36)) is Effect.REFUTED


def test_a_share_that_buys_nothing_cannot_be_told() -> None:
    trial = ShareTrial(0.5, 0.0)
    for at_s in (1.0, OPEN_S + 1.0):
        trial = trial.measured([Measured(1, 1000, 1.0)], WHOLE_MS, WHOLE_MS, at_s)
    assert verdict(trial) is None


def test_few_executions_say_nothing_and_an_answer_stays() -> None:
    assert after(ShareTrial(0.5, 0.0), 0.5, LEAST_EXECUTIONS - 1).result() is None
    proven = after(ShareTrial(0.5, 0.0), 1.0, 200)
    # the model became faster, not the share
    assert verdict(after(proven, 0.3, 1000)) is Effect.PROVEN


def test_a_refuted_share_is_no_reference() -> None:
    refuted = after(after(ShareTrial(1.0, 0.0), 1.0).again(0.5, 0.0), 0.5, 100)
    assert refuted.again(0.25, 0.0).reference is None


def test_a_new_copy_with_the_same_share_may_be_faster_by_itself() -> None:
    again = after(ShareTrial(0.5, 0.0), 1.0).again(0.5, 0.0)
    test = after(again, 0.5).result()
    assert test is not None
    assert (test.verdict, test.weak) == (Effect.REFUTED, True)
    # a copy that has not executed is no new reference; and another share is what its times are
    # about
    changed = after(again.again(0.25, 0.0), 0.5).result()
    assert changed is not None
    assert (changed.verdict, changed.weak) == (Effect.REFUTED, False)
    assert after(again, 0.5).again(0.25, 0.0).weak  # of what it became nothing is known


@given(
    st.floats(0.7, 1.4),
    st.floats(0.02, 0.12),
    st.integers(20, 200),
    st.floats(1.5, 6.0),
    st.integers(0, 2**32 - 1),
)
def test_noise_refutes_no_real_share_and_proves_no_missing_one(
    bias: float, cv: float, executions: int, gain: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    def noisy(ratio: float) -> list[Measured]:
        return [
            Measured(1, 5, ratio * math.exp(rng.normal(0, cv / math.sqrt(5))))
            for _ in range(executions // 5)
        ]

    whole = SHARE_MS / gain
    before = ShareTrial(1.0, 0.0).measured(noisy(bias), SHARE_MS, SHARE_MS, 1.0)
    real = before.again(0.5, 0.0).measured(noisy(bias), SHARE_MS, whole, 1.0)
    missing = before.again(0.5, 0.0).measured(noisy(bias / gain), SHARE_MS, whole, 1.0)
    assert verdict(real) is not Effect.REFUTED
    assert verdict(missing) is not Effect.PROVEN


@pytest.mark.parametrize("ratio", [0.0, -1.0])
def test_measurements_that_are_none_are_left_out(ratio: float) -> None:
    assert after(ShareTrial(0.5, 0.0), ratio).result() is None


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.0, Effect.PROVEN), (0.82, None), (0.5, Effect.REFUTED)]
)
def test_what_contention_may_explain_refutes_nothing(ratio: float, expected: Effect | None) -> None:
    """The whole GPU takes half as long, with contention up to 0.75 times as long."""
    trial = after(ShareTrial(1.0, 0.0), 1.0).again(0.5, 0.0)
    seen = [Measured(2, 200, ratio)]
    now = trial.measured(seen, SHARE_MS, 0.75 * SHARE_MS, 1.0, 0.5 * SHARE_MS)
    found = now.result()
    assert found is not None and found.verdict is expected
    assert "where the whole GPU predicts 0.50 to 0.75 times" in found.said
