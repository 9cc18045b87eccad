"""What launching a batch costs the host, by hand."""

from __future__ import annotations

from math import inf, nan

import pytest

from igniterd.lab.gpu.floor import NO_FLOOR, HostFloor


def test_a_batch_takes_the_longer_of_host_and_gpu() -> None:
    floor = HostFloor(6.0, 0.5)
    assert [floor.batch_ms(g, beside=False) for g in (2.0, 6.0, 20.0)] == [6.0, 6.0, 20.0]
    assert [floor.batch_ms(g, beside=True) for g in (2.0, 8.0, 20.0)] == [9.0, 9.0, 20.0]


def test_what_it_leaves_of_the_gpu() -> None:
    floor = HostFloor(6.0, 0.5)
    assert [floor.busy(g) for g in (0.9, 4.5, 20.0)] == pytest.approx([0.1, 0.5, 1.0])


def test_without_a_floor_the_gpu_alone_counts() -> None:
    assert HostFloor() == NO_FLOOR
    assert NO_FLOOR.batch_ms(0.1, beside=True) == 0.1
    assert NO_FLOOR.busy(0.1) == 1.0


@pytest.mark.parametrize("wrong", [-0.1, nan, inf])
def test_what_is_no_time_or_fraction_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"ms is {wrong}: give a time in milliseconds, 0 or more"):
        HostFloor(wrong)
    with pytest.raises(ValueError, match=rf"rise is {wrong}: give a fraction, 0 or more"):
        HostFloor(6.0, wrong)


def test_a_rise_of_no_floor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rise is 0\.4 and ms is 0"):
        HostFloor(rise=0.4)
