"""What physics says of a profile: a larger share or a smaller batch is never slower, a neighbour
never helps, within the noise of a measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igniterd.perf.api import capped_total

if TYPE_CHECKING:
    from igniterd.perf.profile import Profile, SoloPoint

_NOISE = 0.06
"""Two measurements that physics puts in order may be this far out of order (ratio): means of closed
loops repeat to a few percent."""


def board_problems(profile: Profile) -> list[str]:
    """What contradicts itself in the figures of the board, each with its field."""
    board, problems = profile.board, []
    if (
        board.idle_power_w is not None
        and board.power_limit_w is not None
        and board.idle_power_w >= board.power_limit_w
    ):
        problems.append(
            f"board.idle_power_w: {board.idle_power_w} is not below power_limit_w "
            f"{board.power_limit_w}"
        )
    if board.share_unit < 0.5 / board.sm_count:
        problems.append(
            f"board.share_unit: {board.share_unit} is less than half an SM of {board.sm_count}"
        )
    return problems


def model_problems(profile: Profile) -> list[str]:
    """What is twice, or out of order, in what was measured of each model alone."""
    problems = []
    for name, model in profile.models.items():
        if len({(p.batch, p.share) for p in model.solo}) < len(model.solo):
            problems.append(f"models.{name}.solo: the same (batch, share) is given twice")
        if len({p.batch for p in model.solo}) < 2 and len({p.share for p in model.solo}) < 2:
            problems.append(f"models.{name}.solo: all points are at one batch and one share")
        problems += [f"models.{name}.solo: {text}" for text in _disorder(model.solo)]
        top = profile.board.max_clock_mhz
        fast = [
            p
            for p in model.solo
            if top is not None and p.clock_mhz is not None and p.clock_mhz > top * 1.001
        ]
        problems += [
            f"models.{name}.solo: clock {p.clock_mhz} MHz is above the board's {top} MHz"
            for p in fast
        ]
    return problems


def _disorder(points: tuple[SoloPoint, ...]) -> list[str]:
    """Pairs of points where the harder one (batch no smaller, share no larger) was faster than
    noise allows."""
    found = []
    for easy in points:
        for hard in points:
            harder = hard.batch >= easy.batch and hard.share <= easy.share and hard != easy
            if harder and hard.latency_ms < easy.latency_ms * (1 - _NOISE):
                found.append(
                    f"latency_ms {hard.latency_ms:g} at batch {hard.batch}, share {hard.share:g} "
                    "is below "
                    f"{easy.latency_ms:g} at batch {easy.batch}, share {easy.share:g}: more work "
                    "on fewer SMs cannot be faster"
                )
    return found


def co_run_problems(profile: Profile) -> list[str]:
    """Co-runs of unknown models, of shares above one GPU, or faster than alone."""
    problems = []
    for index, run in enumerate(profile.co_runs):
        where = f"co_runs.{index}"
        unknown = sorted({t.model for t in run.tenants} - profile.models.keys())
        if unknown:
            problems.append(f"{where}: {', '.join(unknown)}: no such model in this profile")
        total = capped_total(t.share for t in run.tenants)
        if total > 1 + 1e-6:
            problems.append(
                f"{where}: shares add up to {total:g}, above 1 (leave out the share of a tenant "
                "that had none)"
            )
        for tenant in run.tenants:
            solo = [
                p
                for p in getattr(profile.models.get(tenant.model), "solo", ())
                if (p.batch, p.share) == (tenant.batch, tenant.share)
            ]
            if solo and tenant.latency_ms < solo[0].latency_ms * (1 - _NOISE):
                problems.append(
                    f"{where}: {tenant.model} takes {tenant.latency_ms:g} ms beside others, "
                    f"{solo[0].latency_ms:g} ms alone: "
                    "a neighbour cannot help"
                )
    return problems
