"""What a model's arrival rate usually is at this time of day. Pure.

A day has ``BINS`` bins of a quarter of an hour. Each remembers, over the days, its mean rate, how
high the rate went, and how much the rate jumps where the bin begins: what starts on the hour (a
job, a shop's opening) is a step there, and known beforehand once it has come several days in a row,
or several weeks on the same day of the week: what comes on workdays only is expected on Mondays and
not on Saturdays. Means and heights are of all days alike; times are UTC, so that a change of summer
time moves the day by an hour until it is learnt again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

DAY_S = 86_400.0
BINS = 96
BIN_S = DAY_S / BINS
NEW_DAY = 0.3  # weight of the latest day
SETTLED_S = 10.0  # into a bin, when the rate shows whether there was a jump
SURE_DAYS = 3  # that a jump must have come ...
SURE_WEEKS = 2  # ... unless so many of this day of the week are known, which then decide alone
WEEK = 7  # days
NO_WEEKS = ((0.0, 0),) * WEEK
LEAST_JUMP, MOST_JUMP = math.log(1.2), math.log(5.0)
FULL = 0.5  # a bin counts when this much of it was seen


@dataclass(frozen=True, slots=True)
class Bin:
    """A quarter of an hour over the days: mean and highest rate (requests/s), least log jump at its
    beginning, days seen.

    ``weekly`` (WEEK,): least log jump and weeks seen, of every day of the week, counted from the
    epoch's.
    """

    mean_per_s: float
    high_per_s: float
    jump: float
    days: int
    weekly: tuple[tuple[float, int], ...] = NO_WEEKS


@dataclass(frozen=True, slots=True)
class Daily:
    """``bins`` (BINS,), None where a bin was never seen; the rest is of the bin that is running."""

    bins: tuple[Bin | None, ...] = (None,) * BINS
    at: int | None = None  # of the days since the epoch, in bins
    area: float = 0.0  # rate x seconds so far
    seen_s: float = 0.0
    high_per_s: float = 0.0
    last_per_s: float = 0.0
    before_per_s: float | None = None  # as the bin before ended
    jump: float | None = None

    def usual_per_s(self, wall_s: float) -> float:
        """How high the rate usually goes in the bin of ``wall_s``; 0 where that is not known."""
        known = self.bins[int(wall_s // BIN_S) % BINS]
        return known.high_per_s if known else 0.0

    def foreseen_per_s(self, upper_per_s: float, wall_s: float, horizon_s: float) -> float:
        """The rate to be ready for until ``wall_s + horizon_s``, given the upper quantile now; more
        than that where a jump is sure to come.

        A jump that is due is waited for until the rate shows whether it has come: the counts of its
        first seconds do not.
        """
        bin_now, bin_there = int(wall_s // BIN_S), int((wall_s + horizon_s) // BIN_S)
        if bin_there != bin_now:
            return upper_per_s * self._jump(bin_there)
        before, jump = self._before(bin_now), self._jump(bin_now)
        waits = wall_s % BIN_S < SETTLED_S
        return max(upper_per_s, before * jump) if before and jump > 1 and waits else upper_per_s

    def _before(self, bin_now: int) -> float | None:
        """The rate before the jump that ``bin_now`` may begin with; None once it has shown."""
        if self.at == bin_now and self.jump is None:
            return self.before_per_s
        return self.last_per_s if self.at == bin_now - 1 else None

    def _jump(self, at: int) -> float:
        """Factor by which the rate surely jumps up where the bin ``at`` begins; 1 where none is
        known."""
        known = self.bins[at % BINS]
        if known is None:
            return 1.0
        jump, weeks = known.weekly[at // BINS % WEEK]
        if weeks < SURE_WEEKS:
            jump = known.jump if known.days >= SURE_DAYS else 0.0
        return math.exp(jump) if jump >= LEAST_JUMP else 1.0


def update_daily(daily: Daily, wall_s: float, span_s: float, per_s: float) -> Daily:
    """``daily`` after ``span_s`` seconds at the rate ``per_s``."""
    at = int(wall_s // BIN_S)
    if at != daily.at:
        follows = daily.at is not None and at == daily.at + 1 and daily.last_per_s > 0
        return Daily(
            bins=_close_bin(daily),
            at=at,
            area=per_s * span_s,
            seen_s=span_s,
            high_per_s=per_s,
            last_per_s=per_s,
            before_per_s=daily.last_per_s if follows else None,
        )
    jump = daily.jump
    if jump is None and daily.before_per_s and wall_s % BIN_S >= SETTLED_S:
        jump = math.log(max(per_s, 1e-3) / daily.before_per_s)
    return Daily(
        bins=daily.bins,
        at=at,
        area=daily.area + per_s * span_s,
        seen_s=daily.seen_s + span_s,
        high_per_s=max(daily.high_per_s, per_s),
        last_per_s=per_s,
        before_per_s=daily.before_per_s,
        jump=jump,
    )


def _close_bin(daily: Daily) -> tuple[Bin | None, ...]:
    """The bins with the one just ended taken in."""
    if daily.at is None or daily.seen_s < FULL * BIN_S:
        return daily.bins
    place = daily.at % BINS
    old, mean, jump = daily.bins[place], daily.area / daily.seen_s, daily.jump or 0.0
    jump, day = min(MOST_JUMP, max(-MOST_JUMP, jump)), daily.at // BINS % WEEK
    if old is None:
        new = Bin(mean, daily.high_per_s, jump, 1, _update_week(NO_WEEKS, day, jump))
    else:
        new = Bin(
            old.mean_per_s + NEW_DAY * (mean - old.mean_per_s),
            max(daily.high_per_s, old.high_per_s + NEW_DAY * (daily.high_per_s - old.high_per_s)),
            _update_least(old.jump, jump),
            old.days + 1,
            _update_week(old.weekly, day, jump),
        )
    return (*daily.bins[:place], new, *daily.bins[place + 1 :])


def _update_least(least: float, jump: float) -> float:
    """The least jump of late: it forgets upwards slowly, downwards at once."""
    return jump if jump < least else least + NEW_DAY * (jump - least)


def _update_week(
    weekly: tuple[tuple[float, int], ...], day: int, jump: float
) -> tuple[tuple[float, int], ...]:
    least, weeks = weekly[day]
    return (
        *weekly[:day],
        (_update_least(least, jump) if weeks else jump, weeks + 1),
        *weekly[day + 1 :],
    )


def to_plain(daily: Daily) -> list[list[float] | None]:
    """For JSON: of every bin its four figures, and two of every day of the week."""
    return [b if b is None else _figures(b) for b in daily.bins]


def _figures(b: Bin) -> list[float]:
    weekly = [figure for jump, weeks in b.weekly for figure in (round(jump, 3), weeks)]
    return [_short(b.mean_per_s), _short(b.high_per_s), round(b.jump, 3), b.days, *weekly]


def _short(rate: float) -> float:
    return float(f"{rate:.4g}")


def from_plain(plain: Any) -> Daily:
    """What :func:`to_plain` gave. Raises ``ValueError`` for anything else."""
    if not isinstance(plain, list) or len(plain) != BINS:
        raise ValueError(f"a day has {BINS} bins")
    bins = tuple(b if b is None else _bin(b) for b in plain)
    if not all(b is None or _sound(b) for b in bins):
        raise ValueError("rates out of range")
    return Daily(bins)


def _bin(figures: Any) -> Bin:
    # before weeks were known there were four
    mean_per_s, high_per_s, jump, days, *weekly = map(float, figures)
    weeks = tuple((least, int(seen)) for least, seen in zip(weekly[::2], weekly[1::2], strict=True))
    if len(weeks) not in (0, WEEK):
        raise ValueError(f"a week has {WEEK} days")
    return Bin(mean_per_s, high_per_s, jump, int(days), weeks or NO_WEEKS)


def _sound(b: Bin) -> bool:
    rates = 0 <= b.mean_per_s < math.inf and 0 <= b.high_per_s < math.inf
    return rates and all(
        abs(jump) <= MOST_JUMP for jump in (b.jump, *(jump for jump, _ in b.weekly))
    )
