"""The published model: its coefficients as the paper's prototype fits them, and its equations
worked by hand."""

import math

import numpy as np
import pytest

from igniterd.errors import ProfileError
from igniterd.perf.api import Tenant
from igniterd.perf.igniter_model import IgniterModel
from igniterd.perf.kernels import published
from igniterd.perf.profile import builtin_profile

REFERENCE = {  # k_sch, alpha_cache, k1..k5
    "alexnet": (0.00158841, 0.00237638, 0.00415351, 8.711584, 23.736069, 0.055520, 0.346011),
    "resnet50": (0.00092270, 0.00216306, -0.01751466, 58.264481, -0.011862, 0.344858, 1.909502),
    "vgg19": (0.00135343, 0.00201773, -0.00483465, 158.192970, 44.452131, 0.188407, 0.926192),
    "ssd": (0.00159008, 0.00228086, 0.02515960, 235.846932, -16.781574, 0.264273, 3.416978),
}


@pytest.fixture(scope="module")
def igniter() -> IgniterModel:
    return IgniterModel(builtin_profile("v100"))


@pytest.mark.parametrize("model", REFERENCE)
def test_the_coefficients_are_the_published_ones(igniter: IgniterModel, model: str) -> None:
    c = igniter.coefficients[model]
    assert (c.k_sch, c.alpha_cache, c.k1, c.k2, c.k3, c.k4, c.k5) == pytest.approx(
        REFERENCE[model], rel=1e-3
    )


def test_the_board_is_the_published_one(igniter: IgniterModel) -> None:
    b = igniter.board
    assert (b.alpha_f, b.alpha_sch, b.beta_sch) == pytest.approx(
        (-1.0254, 0.00475065, -0.00902243), rel=1e-4
    )
    assert (b.idle_power_w, b.power_limit_w, b.top_clock_mhz, b.bytes_per_ms) == (
        53.5,
        300,
        1530,
        1e7,
    )


def test_one_tenant_is_the_sum_of_its_parts(igniter: IgniterModel) -> None:
    c = igniter.coefficients["alexnet"]
    active = (c.k1 * 9 + c.k2 * 3 + c.k3) / (20 + c.k4) + c.k5
    transfers = 3 * (602112 + 4000) / 1e7
    (answer,) = igniter.predict([Tenant("alexnet", 3, 0.2)])
    assert answer.latency_ms == pytest.approx(active + c.gap_ms + transfers)
    assert answer.throughput_per_s == pytest.approx(3000 / (active + c.gap_ms + 3 * 4000 / 1e7))
    assert answer.inside


def test_two_tenants_slow_each_other_through_scheduling_and_cache(igniter: IgniterModel) -> None:
    me, other = igniter.coefficients["alexnet"], igniter.coefficients["resnet50"]

    def active(c: object, batch: int, share_pct: float) -> float:
        return (c.k1 * batch**2 + c.k2 * batch + c.k3) / (share_pct + c.k4) + c.k5  # type: ignore[attr-defined]

    l2 = other.a_l2 * 2 / active(other, 2, 30) + other.b_l2
    gap = me.gap_ms + me.kernels * (2 * igniter.board.alpha_sch + igniter.board.beta_sch)
    expected = gap + active(me, 2, 20) * (1 + me.alpha_cache * l2) + 2 * 606112 / 1e7
    answer, _ = igniter.predict([Tenant("alexnet", 2, 0.2), Tenant("resnet50", 2, 0.3)])
    assert answer.latency_ms == pytest.approx(expected)


def test_power_above_the_limit_slows_the_clock(igniter: IgniterModel) -> None:
    board = igniter.board.row()
    rows = np.stack([igniter.coefficients["vgg19"].row()] * 2)
    args = (np.zeros((2, 2)), np.array([32.0, 32.0]), np.array([0.5, 0.5]), np.ones(2))
    capped, free = np.empty((2, 2)), np.empty((2, 2))
    published.latencies(rows, args[0], board, *args[1:], capped)
    board[1] = math.inf
    published.latencies(rows, args[0], board, *args[1:], free)
    power = igniter.power_w([Tenant("vgg19", 32, 0.5)] * 2)
    assert power > 300
    assert capped[0, 0] / free[0, 0] == pytest.approx(1530 / (1530 - 1.0254136 * (power - 300)))


def test_an_idle_neighbour_costs_nothing_and_a_half_busy_one_less_than_a_busy_one(
    igniter: IgniterModel,
) -> None:
    def beside(utilisation: float) -> float:
        return igniter.predict([Tenant("ssd", 4, 0.4), Tenant("vgg19", 8, 0.5, utilisation)])[
            0
        ].latency_ms

    assert beside(0.0) == pytest.approx(igniter.predict([Tenant("ssd", 4, 0.4)])[0].latency_ms)
    assert beside(0.0) < beside(0.5) < beside(1.0)


def test_curves_are_the_predictions(igniter: IgniterModel) -> None:
    beside = [Tenant("vgg19", 8, 0.3, 0.7), Tenant("ssd", 4, 0.2)]
    shares = np.array([0.2, 0.5])
    mean, _ = igniter.share_curves_ms("resnet50", shares, beside, 8)
    for i, share in enumerate(shares):
        for batch in (1, 5, 8):
            single = igniter.predict([Tenant("resnet50", batch, float(share)), *beside])[
                0
            ].latency_ms
            assert mean[i, batch - 1] == pytest.approx(single)
            assert igniter.service_curve_ms("resnet50", float(share), beside, 8)[0][
                batch - 1
            ] == pytest.approx(single)


def test_more_power_than_the_clock_line_reaches_has_no_answer(igniter: IgniterModel) -> None:
    crowd = [Tenant("vgg19", 32, 1.0)] * 12
    with pytest.raises(ValueError, match="no answer"):
        igniter.predict(crowd)
    with pytest.raises(ValueError, match="no answer"):
        igniter.service_curve_ms("vgg19", 1.0, crowd, 4)


def test_compiled_and_plain_kernels_agree(igniter: IgniterModel) -> None:
    row = igniter.coefficients["ssd"].row()
    assert published.active_ms(row, 7.0, 0.3) == pytest.approx(
        published.active_ms.py_func(row, 7.0, 0.3)
    )


def test_outside_the_profiled_range_is_said(igniter: IgniterModel) -> None:
    assert not igniter.predict([Tenant("alexnet", 40, 0.5)])[0].inside
    assert not igniter.predict([Tenant("alexnet", 4, 0.05)])[0].inside
    assert not igniter.predict([Tenant("alexnet", 4, 0.6), Tenant("ssd", 4, 0.6)])[0].inside
    assert igniter.predict([Tenant("alexnet", 4, 0.6), Tenant("ssd", 4)])[0].inside


def test_a_profile_without_the_published_inputs_is_refused() -> None:
    profile = builtin_profile("v100")
    bare = profile.models["ssd"].model_copy(update={"igniter": None})
    with pytest.raises(ProfileError, match=r"models\.ssd"):
        IgniterModel(profile.model_copy(update={"models": {"ssd": bare}}))
    with pytest.raises(ProfileError, match="copies"):
        IgniterModel(
            profile.model_copy(update={"board": profile.board.model_copy(update={"copies": ()})})
        )
