"""Kinds of boards that were not measured are scaled from the one that was."""

from __future__ import annotations

import pytest

from igniterd.lab.gpu.kinds import KINDS, truth_of
from igniterd.lab.gpu.truth import Neighbour, Truth

V100, T4, A100 = Truth.v100(), truth_of("t4"), truth_of("a100")


def test_the_measured_board_is_the_table() -> None:
    assert truth_of("v100") is V100
    assert "scaled" not in KINDS["v100"].name
    assert all("scaled from a V100" in KINDS[kind].name for kind in ("t4", "a100"))


@pytest.mark.parametrize("model", V100.models)
def test_times_lie_between_the_ratios_of_peak_and_bandwidth(model: str) -> None:
    for batch in (1, 32):
        slower = T4.solo_ms(model, batch, 0.5) / V100.solo_ms(model, batch, 0.5)
        assert 15.7 / 8.1 < slower < 900 / 320
        quicker = A100.solo_ms(model, batch, 0.5) / V100.solo_ms(model, batch, 0.5)
        assert 900 / 1555 < quicker < 15.7 / 19.5


def test_a_batch_that_mostly_reads_weights_goes_with_the_bandwidth() -> None:
    ratio = [T4.solo_ms("alexnet", b, 0.5) / V100.solo_ms("alexnet", b, 0.5) for b in (1, 32)]
    assert ratio[0] > 1.1 * ratio[1]


def test_power_and_clock_are_in_the_ratio_of_their_limits() -> None:
    busy = [Neighbour("vgg19", 32, 0.5), Neighbour("vgg19", 32, 0.5)]
    assert T4.power_limit_w == 70.0
    assert T4.board_power_w(busy) == pytest.approx(V100.board_power_w(busy) * 70 / 300)
    assert T4.board_clock_mhz(busy) == pytest.approx(V100.board_clock_mhz(busy) * 1590 / 1530)
    assert T4.slowdown("vgg19", 8, 0.5, busy) == V100.slowdown("vgg19", 8, 0.5, busy)


def test_another_kind_is_not_made_up() -> None:
    with pytest.raises(KeyError):
        truth_of("h100")
