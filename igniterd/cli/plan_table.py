"""A plan for people: one table per plan with a bar for every share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from igniterd.planner.plan import PlannedGpu, PlannedTenant, ProvisionPlan

_BAR = 20
_NAMED = 8
_COLUMNS = (
    "GPU",
    "share",
    "",
    "workload",
    "model",
    "rate/s",
    "batch",
    "delay",
    "busy",
    "mean ms",
    "P99 ms",
    "SLO ms",
)
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "bright_cyan", "bright_green")


def plan_table(plan: ProvisionPlan, *, most_gpus: int = 40) -> list[Table | Text]:
    """The plan as rich renderables: a row a tenant, GPUs apart, then totals and what could not be
    planned."""
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for column in (1, *range(5, 12)):
        table.columns[column].justify = "right"
    weights = plan.weights()
    for index, gpu in enumerate(plan.gpus[:most_gpus]):
        if index:
            table.add_section()
        _gpu_rows(table, index, gpu, weights[index])
    parts: list[Table | Text] = [table]
    if len(plan.gpus) > most_gpus:
        parts.append(
            Text(f"… and {len(plan.gpus) - most_gpus} more GPUs (--format json has them all)")
        )
    parts += [Text(line) for line in ("", *summary(plan))]
    return parts


def summary(plan: ProvisionPlan) -> list[str]:
    """What the plan comes to, in lines."""
    kinds = sorted({gpu.gpu for gpu in plan.gpus})
    counted = (
        ", ".join(f"{sum(gpu.gpu == kind for gpu in plan.gpus)} {kind}" for kind in kinds)
        or "no GPU"
    )
    cost = "" if plan.cost_per_hour is None else f", {plan.cost_per_hour:.2f} an hour"
    lines = [f"{plan.strategy}: {counted}{cost}, planned in {plan.planning_s * 1e3:.1f} ms"]
    lines += _bound(plan)
    if plan.needed_gpus is not None:
        lines.append(f"shares needed beside these neighbours: {plan.needed_gpus:.2f} GPUs")
    if plan.uneven():
        lines.append("a balancer must weigh replicas: their parts are beside the workloads' names")
    lines += [*plan.notes]
    if plan.advice:
        lines += ["what an SLO costs:", *(f"  {entry.sentence}" for entry in plan.advice)]
    if plan.moves:
        lines += [
            f"{len(plan.moves)} moves against the plan it started from:",
            *(f"  {move}" for move in plan.moves),
        ]
    if plan.infeasible:
        lines.append(f"{len(plan.infeasible)} not planned: {_named(plan)}")
    return lines


def _gpu_rows(table: Table, index: int, gpu: PlannedGpu, weights: Sequence[float]) -> None:
    for place, seat in enumerate(gpu.tenants):
        colour = _COLOURS[place % len(_COLOURS)]
        before = sum(other.share for other in gpu.tenants[:place])
        table.add_row(
            f"{index} {gpu.gpu} {gpu.allocated:.0%}" if place == 0 else "",
            f"{100 * seat.share:.1f} %",
            Text(_bar(before, seat.share), style=colour),
            seat.workload if weights[place] == 1.0 else f"{seat.workload} {_part(weights[place])}",
            seat.model,
            f"{seat.rate_per_s:.5g}",
            str(seat.max_batch_size),
            f"{seat.max_queue_delay_us / 1000:g} ms" if seat.max_queue_delay_us else "",
            "" if seat.utilisation is None else f"{seat.utilisation:.0%}",
            "" if seat.mean_ms is None else f"{seat.mean_ms:.2f}",
            _p99(seat),
            f"{seat.slo_p99_ms:g}",
        )


def _part(weight: float) -> str:
    """A replica's part of the traffic; a small one is not shown as nothing."""
    return f"{100 * weight:.0f} %" if weight >= 0.01 else f"{100 * weight:.2g} %"


def _p99(seat: PlannedTenant) -> Text:
    if seat.p99_ms is None:
        return Text("")
    if not math.isfinite(seat.p99_ms):
        return Text("overload", style="bold red")
    return Text(f"{seat.p99_ms:.2f}", style="" if seat.p99_ms <= seat.slo_p99_ms else "bold red")


def _bar(start: float, length: float) -> str:
    """A bar of ``_BAR`` cells for the whole GPU with the tenant's part filled."""
    first, last = round(start * _BAR), max(round(start * _BAR) + 1, round((start + length) * _BAR))
    return "".join("█" if first <= cell < last else "·" for cell in range(_BAR))


def sweep_table(what: str, points: Sequence[tuple[float, ProvisionPlan]]) -> Table:
    """A row a factor: GPUs by kind, bound, cost, what could not be planned."""
    table = Table(
        f"{what} x",
        "GPUs",
        "",
        "lower bound",
        "cost/h",
        "planned in",
        "not planned",
        box=None,
        pad_edge=False,
    )
    for column in (0, 1, 3, 4, 5):
        table.columns[column].justify = "right"
    most = max((len(plan.gpus) for _, plan in points), default=1) or 1
    for factor, plan in points:
        table.add_row(
            f"{factor:.3g}",
            str(len(plan.gpus)),
            "█" * round(30 * len(plan.gpus) / most),
            "" if plan.lower_bound_gpus is None else f"{plan.lower_bound_gpus:.2f}",
            "" if plan.cost_per_hour is None else f"{plan.cost_per_hour:.2f}",
            f"{1e3 * plan.planning_s:.0f} ms",
            _named(plan),
        )
    return table


def _named(plan: ProvisionPlan) -> str:
    """Who could not be planned, without filling the screen."""
    names = [entry.workload for entry in plan.infeasible]
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _bound(plan: ProvisionPlan) -> list[str]:
    """How far from the least possible: in GPUs, or in money where kinds of GPU could be mixed."""
    gpus, cost = plan.lower_bound_gpus, plan.lower_bound_cost_per_hour
    if plan.infeasible or gpus is None or plan.gap is None:
        return []
    if plan.kinds > 1 and cost and plan.cost_per_hour is not None:
        return [f"lower bound {cost:.2f} an hour; gap {plan.cost_per_hour / cost - 1:.1%}"]
    by = " (patterns of the cuts offered)" if plan.bound_by == "patterns" else ""
    return [f"lower bound {gpus:.2f} GPUs{by}, so {math.ceil(gpus - 1e-9)}; gap {plan.gap:.1%}"]
