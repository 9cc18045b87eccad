"""A plan, or a sweep of plans, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from igniterd import pictures
from igniterd.planner.plan import PlannedTenant, ProvisionPlan

_MOST_BARS = 60
_MOST_NAMED = 24  # GPUs; with more of them there is no room for names
_LEAST_NAMED = 0.08  # share
_LONGEST = 10


def plot_plan(plan: ProvisionPlan, path: Path) -> None:
    """GPUs as stacked bars of shares, and every tenant's predicted P99 against its SLO."""
    from matplotlib.figure import Figure

    shown = plan.gpus[:_MOST_BARS]
    named = len(shown) <= _MOST_NAMED
    colours = _colours(sorted({seat.model for gpu in plan.gpus for seat in gpu.tenants}))
    width = min(max(4.0, (0.75 if named else 0.25) * len(shown)), 18.0)
    figure = Figure(figsize=(width + 5.0, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(width, 4.5))
    for g, gpu in enumerate(shown):
        base = 0.0
        for seat in gpu.tenants:
            left.bar(
                g,
                100 * seat.share,
                bottom=100 * base,
                color=colours[seat.model],
                alpha=0.8,
                edgecolor="white",
                linewidth=1.0,
            )
            if named and seat.share >= _LEAST_NAMED:
                middle = 100 * (base + seat.share / 2)
                left.text(
                    g,
                    middle,
                    f"{_short(seat.workload)}\nbatch {seat.max_batch_size}",
                    ha="center",
                    va="center",
                    fontsize=7,
                )
            base += seat.share
    left.set(
        xlabel="GPU",
        ylabel="share of the SMs (%)",
        xlim=(-0.6, max(len(shown), 1) - 0.4),
        ylim=(0, 100),
        title=_title(plan, len(shown)),
    )
    every = 1 if named else 5
    ticks = range(0, len(shown), every)
    left.set_xticks(
        ticks, [f"{g}\n{_short(shown[g].gpu)}" if named else str(g) for g in ticks], fontsize=7
    )
    _p99_panel(right, [seat for gpu in plan.gpus for seat in gpu.tenants], colours)
    pictures.save(figure, path, 150)


def plot_sweep(what: str, points: Sequence[tuple[float, ProvisionPlan]], path: Path) -> None:
    """GPUs, their lower bound, and cost along the range; factors at which something could not be
    planned are crossed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    costs = [plan.cost_per_hour for _, plan in points]
    priced = [cost for cost in costs if cost is not None]
    figure = Figure(figsize=(8.0, 6.0 if len(priced) == len(costs) else 4.2), layout="constrained")
    rows = figure.subplots(2 if len(priced) == len(costs) else 1, 1, sharex=True, squeeze=False)[
        :, 0
    ]
    factors = [factor for factor, _ in points]
    # all lines go straight from point to point: beside steps, a bound's line would cross above the
    # plan's
    rows[0].plot(factors, [len(plan.gpus) for _, plan in points], marker="o", label="GPUs")
    rows[0].plot(
        factors,
        [plan.lower_bound_gpus or math.nan for _, plan in points],
        linestyle=":",
        marker=".",
        label="lower bound",
    )
    failed = [(factor, len(plan.gpus)) for factor, plan in points if not plan.feasible]
    if failed:
        rows[0].plot(
            *zip(*failed, strict=True),
            "x",
            color="tab:red",
            markersize=11,
            markeredgewidth=2,
            label="not everything planned",
        )
    rows[0].set(ylabel="GPUs", ylim=(0, None))
    rows[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    rows[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    if len(rows) > 1:
        rows[1].plot(factors, priced, marker="o", color="tab:green")
        rows[1].set(ylabel="cost an hour", ylim=(0, None))
    rows[-1].set_xlabel("factor on every rate" if what == "rate" else "factor on every SLO")
    for axes in rows:
        axes.grid(alpha=0.25)
    pictures.save(figure, path, 150)


def _p99_panel(axes, seats: Sequence[PlannedTenant], colours: dict[str, str]) -> None:  # type: ignore[no-untyped-def]  # matplotlib's Axes
    """Predicted P99 over SLO, a dot a tenant; above the line it would miss."""
    for model, colour in colours.items():
        known = [
            s
            for s in seats
            if s.model == model and s.p99_ms is not None and math.isfinite(s.p99_ms)
        ]
        axes.scatter(
            [s.slo_p99_ms for s in known],
            [s.p99_ms for s in known],
            color=colour,
            alpha=0.8,
            label=model,
            s=22,
        )
    top = 1.1 * max([s.slo_p99_ms for s in seats], default=1.0)
    axes.plot([0, top], [0, top], color="grey", linewidth=1)
    worse = sum(s.p99_ms is None or not s.p99_ms <= s.slo_p99_ms for s in seats)
    title = f"{worse} of {len(seats)} tenants above their SLO"
    axes.set(
        xlabel="SLO (ms)", ylabel="predicted P99 (ms)", xlim=(0, top), ylim=(0, top), title=title
    )
    axes.grid(alpha=0.25)
    if colours:
        axes.legend(fontsize=7, loc="upper left")


def _short(name: str) -> str:
    """What fits into a bar."""
    return name if len(name) <= _LONGEST else f"{name[:4]}…{name[5 - _LONGEST :]}"


def _title(plan: ProvisionPlan, shown: int) -> str:
    cost = "" if plan.cost_per_hour is None else f", {plan.cost_per_hour:.2f} an hour"
    part = "" if shown == len(plan.gpus) else f" (first {shown})"
    return f"{plan.strategy}: {len(plan.gpus)} GPU{'' if len(plan.gpus) == 1 else 's'}{cost}{part}"


def _colours(models: Sequence[str]) -> dict[str, str]:
    return {model: f"C{n % 10}" for n, model in enumerate(models)}
