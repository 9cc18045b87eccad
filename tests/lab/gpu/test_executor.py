"""Executions on the emulated GPU in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.lab.gpu.boardfile import BoardFile
from igniterd.lab.gpu.executor import Dispersion, Executor, Rates, Running
from igniterd.lab.gpu.floor import NO_FLOOR, HostFloor
from igniterd.lab.gpu.truth import MAX_BATCH, UNITS, Neighbour, Truth

TRUTH = Truth.v100()
TABLES = TRUTH.tables()
ALEXNET, RESNET50, VGG19, SSD = range(4)


class Clock:
    """Virtual time; ``at`` runs a function when a sleep reaches its time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[tuple[float, object]] = []
        self.sleeps = 0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self.now += seconds
        for when, event in sorted(self.events, key=lambda e: e[0]):
            if when <= self.now:
                event()  # type: ignore[operator]
        self.events = [e for e in self.events if e[0] > self.now]


def executor(
    path: Path, clock: Clock, model: int, units: int, floor: HostFloor = NO_FLOOR
) -> tuple[Executor, BoardFile]:
    board = BoardFile.create(path / "board", slow_factor=4.0, memory_bytes=10**10)
    slot = board.claim(model=model, units=units, memory_bytes=0)
    calm = Dispersion("x", cv=0.0, chance=0.0)
    rates = Rates(TABLES, model, units, floor)
    made = Executor(
        rates,
        slot,
        calm,
        slow_factor=4.0,
        slice_s=0.004,
        handover_s=0.0,
        clock=clock,
        sleep=clock.sleep,
    )
    return made, board


parts = st.floats(0.01, 1.0)  # of the time, for which the GPU is kept busy
shared = st.builds(Running, st.integers(0, 3), st.integers(1, 20), st.integers(1, MAX_BATCH), parts)


@given(
    st.integers(0, 3), st.integers(1, 20), st.integers(1, MAX_BATCH), st.lists(shared, max_size=3)
)
def test_rate_is_the_truth_while_shares_fit(
    model: int, units: int, batch: int, others: list[Running]
) -> None:
    granted = units + sum(o.units * o.busy for o in others)
    neighbours = [
        Neighbour(TABLES.models[o.model], o.batch, o.units / UNITS, o.busy) for o in others
    ]
    slowdown = TRUTH.slowdown(TABLES.models[model], batch, units / UNITS, neighbours) * max(
        1.0, granted / UNITS
    )
    assert Rates(TABLES, model, units).rate(batch, others) == pytest.approx(1.0 / slowdown)


def test_without_mps_the_board_is_time_sliced() -> None:
    bare = Rates(TABLES, ALEXNET, 0)
    assert bare.solo_ms[1] == pytest.approx(0.776568)  # all SMs
    assert bare.rate(1, []) == 1.0
    assert bare.rate(1, [Running(VGG19, 0, 8), Running(RESNET50, 0, 4)]) == pytest.approx(1 / 3)
    # all processes with a share together are one more in turn
    assert bare.rate(1, [Running(VGG19, 10, 8), Running(RESNET50, 10, 4)]) == pytest.approx(1 / 2)
    beside_bare = Rates(TABLES, VGG19, 10).rate(8, [Running(ALEXNET, 0, 1)])
    assert beside_bare == pytest.approx(1 / 2)


def test_the_rate_of_a_host_bound_copy_is_the_truth_with_its_floor() -> None:
    floor, alone_ms = HostFloor(6.0, 0.4), 6.0
    copy = Rates(TABLES, ALEXNET, 16, floor)
    assert copy.solo_ms[1] == alone_ms > TRUTH.solo_ms("alexnet", 1, 0.4)
    assert copy.rate(1, []) == 1.0
    beside = [Running(VGG19, 24, 8)]
    assert copy.rate(1, beside) == pytest.approx(1 / 1.4)
    assert copy.rate(32, beside) == pytest.approx(
        copy.solo_ms[32] / TRUTH.latency_ms("alexnet", 32, 0.4, [Neighbour("vgg19", 8, 0.6)], floor)
    )


def test_a_copy_that_is_host_bound_counts_for_the_time_that_it_keeps_the_gpu_busy() -> None:
    busy = Rates(TABLES, ALEXNET, 16, HostFloor(6.0, 0.4)).busy
    quarter = TRUTH.solo_ms("alexnet", 4, 0.4) / (6.0 * 1.4)
    assert busy[4] == pytest.approx(quarter)
    assert 0 < busy[1] < busy[4] < busy[32] == 1.0
    victim = Rates(TABLES, VGG19, 24)
    whole, part = (victim.rate(8, [Running(ALEXNET, 16, 4, b)]) for b in (1.0, busy[4]))
    assert 1 / part - 1 == pytest.approx((1 / whole - 1) * quarter)
    # turns and an over-granted board go with it as well
    bare = Rates(TABLES, VGG19, 0)
    assert bare.rate(8, [Running(ALEXNET, 0, 4, 0.25)]) == pytest.approx(1 / 1.25)
    assert bare.rate(8, [Running(ALEXNET, 16, 4, 0.25)] * 2) == pytest.approx(1 / 1.5)
    assert bare.rate(8, [Running(ALEXNET, 16, 4, 0.75)] * 2) == pytest.approx(1 / 2)
    greedy = Rates(TABLES, VGG19, 40).rate(8, [Running(ALEXNET, 40, 4, 0.25)])
    own = TRUTH.slowdown("vgg19", 8, 1.0, [Neighbour("alexnet", 4, 1.0, 0.25)])
    assert greedy == pytest.approx(1 / (own * 1.25))


others = st.builds(Running, st.integers(0, 3), st.integers(0, 20), st.integers(1, MAX_BATCH), parts)
floors = st.builds(HostFloor, st.floats(0.1, 50.0), st.floats(0.0, 0.6))


@given(
    st.integers(0, 3),
    st.integers(0, 39),
    st.integers(1, MAX_BATCH),
    st.lists(others, max_size=3),
    floors,
)
def test_a_floor_never_quickens_and_is_never_beaten(
    model: int, units: int, batch: int, beside: list[Running], floor: HostFloor
) -> None:
    floored, free = Rates(TABLES, model, units, floor), Rates(TABLES, model, units)
    took_ms = floored.solo_ms[batch] / floored.rate(batch, beside)
    assert took_ms >= floor.least_ms(beside=bool(beside)) * (1 - 1e-9)
    assert took_ms >= free.solo_ms[batch] / free.rate(batch, beside) * (1 - 1e-9)
    assert 0.0 < floored.rate(batch, beside) <= 1.0


def test_a_host_bound_copy_is_slower_while_a_neighbour_executes(tmp_path: Path) -> None:
    clock = Clock()
    one, board = executor(tmp_path, clock, ALEXNET, 12, HostFloor(6.0, 0.5))
    assert one.execute(1) * 1e3 == pytest.approx(4.0 * 6.0, abs=0.03)
    (copy,) = board.copies()
    added_w = TRUTH.added_power_w("alexnet", 1, 0.3)
    part = TRUTH.solo_ms("alexnet", 1, 0.3) / 9.0
    assert (copy.busy, copy.energy_j) == pytest.approx((part, added_w * part * 0.024), rel=2e-3)
    other = board.claim(model=VGG19, units=28, memory_bytes=0)
    comes = clock.now + 0.012  # half is done by then
    clock.events.append((comes, lambda: other.begin(8, 0.0, comes)))
    assert one.execute(1) * 1e3 == pytest.approx(12.0 + 12.0 * 1.5, abs=0.05)


def test_alone_it_takes_the_measured_time(tmp_path: Path) -> None:
    clock = Clock()
    one, board = executor(tmp_path, clock, VGG19, 12)
    took = one.execute(4)
    assert took * 1e3 == pytest.approx(4.0 * TRUTH.solo_ms("vgg19", 4, 0.3), abs=0.03)
    assert clock.now == pytest.approx(100.0 + took)
    (copy,) = board.copies()
    assert copy.executions == 1
    assert copy.energy_j == pytest.approx(TRUTH.added_power_w("vgg19", 4, 0.3) * took)


def test_a_neighbour_for_half_of_the_work_slows_that_half(tmp_path: Path) -> None:
    clock = Clock()
    one, board = executor(tmp_path, clock, VGG19, 12)
    other = board.claim(model=ALEXNET, units=28, memory_bytes=0)
    alone_s = 4.0 * TRUTH.solo_ms("vgg19", 4, 0.3) / 1e3
    comes = 100.0 + alone_s / 2 + 0.0011  # in the middle of a slice
    clock.events.append((comes, lambda: other.begin(8, 0.0, comes)))
    slowdown = TRUTH.slowdown("vgg19", 4, 0.3, [Neighbour("alexnet", 8, 0.7)])
    before = alone_s / 2 + 0.0011
    assert one.execute(4) == pytest.approx(before + (alone_s - before) * slowdown, abs=5e-5)


def test_late_sleeps_do_not_add_up(tmp_path: Path) -> None:
    class Late(Clock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds + 0.0005)

    clock = Late()
    one, _ = executor(tmp_path, clock, VGG19, 12)
    took = one.execute(4)
    alone_s = 4.0 * TRUTH.solo_ms("vgg19", 4, 0.3) / 1e3
    assert clock.sleeps > 10
    assert alone_s <= took + 3e-5
    assert took < alone_s + 0.0006  # one late sleep, not all of them


def test_dispersion_keeps_the_mean_and_is_repeatable() -> None:
    drawn = [d.draw() for d in [Dispersion("a", cv=0.05)] for _ in range(20_000)]
    mean = sum(drawn) / len(drawn)
    spread = (sum((x - mean) ** 2 for x in drawn) / len(drawn)) ** 0.5
    assert mean == pytest.approx(1.0, abs=0.002)
    assert 0.045 < spread < 0.06
    again = Dispersion("a", cv=0.05)
    assert [again.draw() for _ in range(5)] == drawn[:5]
    assert Dispersion("b").draw() != Dispersion("a").draw()
    assert Dispersion("a", cv=0.0, chance=0.0).draw() == 1.0


def test_the_way_to_the_process_counts_as_execution_but_never_twice(tmp_path: Path) -> None:
    clock = Clock()
    one, board = executor(tmp_path, clock, ALEXNET, 20)
    one._handover_s = 0.001
    alone_s = 4.0 * TRUTH.solo_ms("alexnet", 2, 0.5) / 1e3
    arrived = clock.now
    assert one.execute(2) == pytest.approx(alone_s, abs=3e-5)
    assert clock.now == pytest.approx(arrived + alone_s - 0.001, abs=3e-5)
    ended = clock.now
    # the next batch was at the door already: it can have begun no earlier than the last one ended
    clock.now += 0.0002
    one.execute(2)
    (copy,) = board.copies()
    assert copy.last_started_s == ended
