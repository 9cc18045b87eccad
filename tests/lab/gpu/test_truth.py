"""The ground truth reads the measured tables exactly where they were measured, and sensibly
between."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.lab.gpu.floor import HostFloor
from igniterd.lab.gpu.truth import MAX_BATCH, UNITS, Neighbour, Truth, share_units

DATA = Path(__file__).parents[3] / "igniterd" / "data" / "v100"
TRUTH = Truth.v100()

names = st.sampled_from(TRUTH.models)
batches = st.integers(1, MAX_BATCH)
shares = st.integers(1, UNITS).map(lambda u: u / UNITS)


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_solo_point_is_met() -> None:
    for row in rows("solo.csv"):
        got = TRUTH.solo_ms(row["model"], int(row["batch"]), float(row["share_pct"]) / 100)
        assert got == pytest.approx(float(row["latency_ms"]), rel=1e-9), row


def test_every_pair_is_met() -> None:
    for row in rows("pairs.csv"):
        a = Neighbour(row["model_a"], int(row["batch_a"]), float(row["share_a_pct"]) / 100)
        b = Neighbour(row["model_b"], int(row["batch_b"]), float(row["share_b_pct"]) / 100)
        assert TRUTH.latency_ms(a.model, a.batch, a.share, [b]) == pytest.approx(
            float(row["latency_a_ms"]), rel=1e-9
        ), row
        assert TRUTH.latency_ms(b.model, b.batch, b.share, [a]) == pytest.approx(
            float(row["latency_b_ms"]), rel=1e-9
        ), row


def test_profile_points_outside_solo_csv_are_met() -> None:
    # profile.json, vgg19, batch 32, 10 %: 501.6830909 ms on the GPU and 606,112 bytes an item at
    # 1e7 bytes/ms
    assert TRUTH.solo_ms("vgg19", 32, 0.1) == pytest.approx(
        501.6830909090908 + 32 * 606112 / 1e7, rel=1e-9
    )
    assert TRUTH.solo_ms("ssd", 16, 1.0) == pytest.approx(
        43.615615441176466 + 16 * 4048880 / 1e7, rel=1e-9
    )


@given(names, batches, shares)
def test_more_share_is_never_slower_and_a_bigger_batch_never_quicker(
    model: str, batch: int, share: float
) -> None:
    here = TRUTH.solo_ms(model, batch, share)
    assert TRUTH.solo_ms(model, batch, min(1.0, share + 1 / UNITS)) <= here
    assert TRUTH.solo_ms(model, min(MAX_BATCH, batch + 1), share) >= here


@given(names, batches, shares, st.lists(st.builds(Neighbour, names, batches, shares), max_size=4))
def test_neighbours_only_slow_and_add_up(
    model: str, batch: int, share: float, neighbours: list[Neighbour]
) -> None:
    each = [TRUTH.slowdown(model, batch, share, [n]) - 1.0 for n in neighbours]
    assert all(0.0 < e < 0.25 for e in each)  # the largest excess ever measured is 23.4 %
    assert TRUTH.slowdown(model, batch, share, neighbours) == pytest.approx(1.0 + sum(each))


def test_a_neighbour_with_half_the_share_it_was_measured_with_disturbs_half() -> None:
    whole = TRUTH.slowdown("alexnet", 4, 0.2, [Neighbour("vgg19", 8, 0.8)]) - 1.0
    half = TRUTH.slowdown("alexnet", 4, 0.2, [Neighbour("vgg19", 8, 0.4)]) - 1.0
    assert half == pytest.approx(whole / 2)


def test_a_host_floor_by_hand() -> None:
    """alexnet at batch 2 and 20 % takes 2.5 ms alone, and 17 ms at 32."""
    floor, near = HostFloor(6.0, 0.4), [Neighbour("vgg19", 8, 0.8)]
    for share in (0.2, 0.5, 1.0):
        assert TRUTH.solo_ms("alexnet", 2, share) < 6.0
        assert TRUTH.latency_ms("alexnet", 2, share, floor=floor) == 6.0
        assert TRUTH.latency_ms("alexnet", 2, share, near, floor) == pytest.approx(8.4)
        assert TRUTH.latency_ms("alexnet", 2, share, near * 3, floor) == pytest.approx(8.4)
    bound_by_gpu = TRUTH.latency_ms("alexnet", 32, 0.2, near)
    assert bound_by_gpu > 8.4
    assert TRUTH.latency_ms("alexnet", 32, 0.2, near, floor) == bound_by_gpu


def test_a_neighbour_that_keeps_the_gpu_busy_a_third_of_the_time_disturbs_a_third() -> None:
    whole, third = (
        TRUTH.slowdown("alexnet", 4, 0.2, [Neighbour("vgg19", 8, 0.8, busy)]) - 1.0
        for busy in (1.0, 1 / 3)
    )
    assert third == pytest.approx(whole / 3)
    power_w = TRUTH.board_power_w([Neighbour("alexnet", 16, 0.5, 0.5)])
    assert power_w == pytest.approx((53.5 + 184.57142857142858) / 2)


@given(
    names,
    batches,
    shares,
    st.lists(st.builds(Neighbour, names, batches, shares, st.floats(0.01, 1.0)), max_size=3),
    st.builds(HostFloor, st.floats(0.1, 100.0), st.floats(0.0, 0.6)),
)
def test_a_floor_is_never_beaten_never_quickens_and_never_turns_a_share_around(
    model: str, batch: int, share: float, neighbours: list[Neighbour], floor: HostFloor
) -> None:
    took_ms = TRUTH.latency_ms(model, batch, share, neighbours, floor)
    assert took_ms >= floor.least_ms(beside=bool(neighbours))
    assert took_ms >= TRUTH.latency_ms(model, batch, share, neighbours)
    assert took_ms >= TRUTH.latency_ms(model, batch, share, floor=floor)
    more = min(1.0, share + 1 / UNITS)
    assert TRUTH.latency_ms(model, batch, more, floor=floor) <= TRUTH.latency_ms(
        model, batch, share, floor=floor
    )


def test_a_copy_of_itself() -> None:
    # profile.json: vgg19's active time grows from 52.02463450160937 to 58.58459793125798 ms beside
    # a copy
    got = TRUTH.slowdown("vgg19", 16, 0.5, [Neighbour("vgg19", 16, 0.5)])
    assert got == pytest.approx(58.58459793125798 / 52.02463450160937)


@pytest.mark.parametrize(
    ("share", "units"),
    [(0.025, 1), (0.001, 1), (0.1, 4), (0.125, 5), (0.13, 6), (0.3, 12), (0.999, 40), (1.0, 40)],
)
def test_shares_round_up_to_two_sms(share: float, units: int) -> None:
    assert share_units(share) == units


def test_wrong_questions_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"share 0\.0 is not a fraction"):
        TRUTH.solo_ms("alexnet", 1, 0.0)
    with pytest.raises(ValueError, match="batch 33 was not measured: give 1 to 32"):
        TRUTH.solo_ms("alexnet", 33, 0.5)
    with pytest.raises(KeyError, match=r"'bert' was not measured; measured are alexnet"):
        TRUTH.solo_ms("bert", 1, 0.5)


def test_dense_tables_hold_the_same_figures_in_the_order_asked_for() -> None:
    tables = TRUTH.tables(["vgg19", "alexnet"])
    assert tables.solo_ms.shape == (2, 33, 41)
    assert tables.excess.shape == (2, 2, 33, 33, 41)
    assert tables.solo_ms[1, 6, 8] == TRUTH.solo_ms("alexnet", 6, 0.2)
    full = TRUTH.slowdown("alexnet", 6, 0.2, [Neighbour("vgg19", 3, 0.8)])
    assert 1.0 + tables.excess[1, 0, 6, 3, 8] == pytest.approx(full)
    assert np.isfinite(tables.excess).all()
    assert (tables.solo_ms[:, 1:, 1:] > 0).all()


def test_power_and_clock() -> None:
    assert TRUTH.board_power_w([]) == 53.5
    assert TRUTH.board_power_w([Neighbour("alexnet", 16, 0.5)]) == pytest.approx(184.57142857142858)
    assert TRUTH.board_power_w([Neighbour("vgg19", 32, 1.0)] * 2) == 300.0
    assert TRUTH.board_clock_mhz([]) == 1530.0
    assert TRUTH.board_clock_mhz([Neighbour("vgg19", 32, 1.0)]) == pytest.approx(1429.25)
    quiet, loud = [Neighbour("vgg19", 1, 0.2)] * 2, [Neighbour("vgg19", 1, 0.2)] * 6
    assert TRUTH.board_clock_mhz(loud) < TRUTH.board_clock_mhz(quiet) == 1530.0
