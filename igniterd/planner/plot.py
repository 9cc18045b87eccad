"""A plan, or a sweep of plans, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from igniterd.planner.records import ProvisionPlan, Seat

_MOST_BARS = 60


def plot_plan(plan: ProvisionPlan, path: Path) -> None:
    """GPUs as stacked bars of shares, and every tenant's predicted P99 against its SLO."""
    from matplotlib.figure import Figure

    shown = plan.gpus[:_MOST_BARS]
    colours = _colours(sorted({seat.model for gpu in shown for seat in gpu.tenants}))
    figure = Figure(figsize=(max(8.0, 0.55 * len(shown) + 6.0), 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(max(2.0, 0.25 * len(shown)), 2.0))
    for g, gpu in enumerate(shown):
        base = 0.0
        for seat in gpu.tenants:
            left.bar(g, 100 * seat.share, bottom=100 * base, color=colours[seat.model], edgecolor="white", linewidth=1.2)
            if len(shown) <= 24 and seat.share >= 0.06:
                left.text(
                    g, 100 * (base + seat.share / 2), f"{seat.workload}\nb{seat.max_batch_size}", ha="center", va="center", fontsize=7
                )
            base += seat.share
    left.set(xlabel="GPU", ylabel="share of the SMs (%)", ylim=(0, 100), title=_title(plan, len(shown)))
    left.set_xticks(range(len(shown)), [f"{g}\n{gpu.gpu}" if len(shown) <= 24 else str(g) for g, gpu in enumerate(shown)], fontsize=7)
    seats = [seat for gpu in plan.gpus for seat in gpu.tenants]
    _p99_panel(right, seats, colours if len(shown) == len(plan.gpus) else _colours(sorted({s.model for s in seats})))
    figure.savefig(path, dpi=150)


def plot_sweep(what: str, points: Sequence[tuple[float, ProvisionPlan]], path: Path) -> None:
    """GPUs, their lower bound, and cost along the range; factors at which something could not be planned are crossed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    factors = [factor for factor, _ in points]
    axes.step(factors, [len(plan.gpus) for _, plan in points], where="mid", marker="o", label="GPUs")
    axes.plot(factors, [plan.lower_bound_gpus or math.nan for _, plan in points], linestyle=":", label="lower bound")
    failed = [(factor, len(plan.gpus)) for factor, plan in points if not plan.feasible]
    if failed:
        axes.plot(*zip(*failed, strict=True), "x", color="tab:red", markersize=10, label="not everything planned")
    axes.set(xlabel=f"{'rates' if what == 'rate' else 'SLOs'} times", ylabel="GPUs", ylim=(0, None))
    costs = [plan.cost_per_hour for _, plan in points]
    if all(cost is not None for cost in costs):
        second = axes.twinx()
        second.plot(factors, [cost for cost in costs if cost is not None], color="tab:green", alpha=0.6)
        second.set_ylabel("cost an hour", color="tab:green")
        second.set_ylim(0, None)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=150)


def _p99_panel(axes, seats: Sequence[Seat], colours: dict[str, str]) -> None:  # type: ignore[no-untyped-def]  # matplotlib's Axes
    """Predicted P99 over SLO, a dot a tenant; above the line it would miss."""
    for model, colour in colours.items():
        known = [s for s in seats if s.model == model and s.p99_ms is not None and math.isfinite(s.p99_ms)]
        axes.scatter([s.slo_p99_ms for s in known], [s.p99_ms for s in known], color=colour, label=model, s=22)
    slos = [s.slo_p99_ms for s in seats] or [1.0]
    top = 1.1 * max(slos)
    axes.plot([0, top], [0, top], color="grey", linewidth=1)
    worse = sum(s.p99_ms is None or not s.p99_ms <= s.slo_p99_ms for s in seats)
    axes.set(xlabel="SLO (ms)", ylabel="predicted P99 (ms)", xlim=(0, top), ylim=(0, top), title=f"{worse} of {len(seats)} above their SLO")
    axes.legend(fontsize=7, loc="upper left")


def _title(plan: ProvisionPlan, shown: int) -> str:
    cost = "" if plan.cost_per_hour is None else f", {plan.cost_per_hour:.2f} an hour"
    part = "" if shown == len(plan.gpus) else f" (first {shown})"
    return f"{plan.strategy}: {len(plan.gpus)} GPUs{cost}{part}"


def _colours(models: Sequence[str]) -> dict[str, str]:
    return {model: f"C{n % 10}" for n, model in enumerate(models)}
