"""A profile for people: what was measured, how well the model fits it, and a picture of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from igniterd import pictures
from igniterd.arrays import F64
from igniterd.cli.host_bound import host_bound
from igniterd.cli.wording import share_text
from igniterd.perf.api import Tenant
from igniterd.perf.profile import ModelProfile, Profile, SoloPoint
from igniterd.perf.surface import Surface
from igniterd.perf.surface_model import SurfaceModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

LEVEL = 0.95
_TITLE_WIDTH = 110  # letters


@dataclass(frozen=True, slots=True)
class Residual:
    """A solo point against the fit: ``fitted_ms`` by all points, ``foretold_ms`` by all the others;
    ``None`` with too few others."""

    point: SoloPoint
    fitted_ms: float
    foretold_ms: float | None

    @property
    def fitted_error(self) -> float:
        """Fit over measurement, minus 1."""
        return self.fitted_ms / self.point.latency_ms - 1

    @property
    def foretold_error(self) -> float | None:
        return None if self.foretold_ms is None else self.foretold_ms / self.point.latency_ms - 1


def residuals(profile: Profile, fitted: SurfaceModel, name: str) -> tuple[Residual, ...]:
    """Every solo point of a model against ``fitted``, the model of ``profile``."""
    return tuple(
        Residual(p, _at(fitted, name, p), _without(profile, name, p))
        for p in profile.models[name].solo
    )


def _at(fitted: SurfaceModel, name: str, point: SoloPoint) -> float:
    return fitted.predict([Tenant(name, point.batch, point.share)])[0].latency_ms


def _without(profile: Profile, name: str, point: SoloPoint) -> float | None:
    """What the solo surface of all other points says of this one."""
    model = profile.models[name]
    rest = [p for p in model.solo if p != point]
    if len(rest) < 3:
        return None
    item_ms = (model.input_bytes + model.output_bytes) / profile.board.pcie_bytes_per_ms
    batch, share, latency, error = np.array(
        [(p.batch, p.share, p.latency_ms, p.latency_error or 0.0) for p in rest]
    ).T
    gpu_ms = np.maximum(latency - item_ms * batch, 0.05 * latency)
    mean, _ = Surface(batch, share, gpu_ms, error * latency / gpu_ms).at(
        np.array([float(point.batch)]), np.array([point.share])
    )
    return float(mean[0]) + item_ms * point.batch


def describe(profile: Profile) -> Iterator[Table | str]:
    """Tables and lines to print."""
    from rich.table import Table

    yield board_line(profile)
    fitted = SurfaceModel(profile)
    for name, model in profile.models.items():
        found = residuals(profile, fitted, name)
        yield f"\n{name}: {len(model.solo)} points alone{_memory(model)}, latency of one batch"
        table = Table(
            "batch",
            "share",
            "ms",
            "± %",
            "fit %",
            "from the others %",
            "W",
            "MHz",
            box=None,
            pad_edge=False,
        )
        for column in table.columns:
            column.justify = "right"
        for r in found:
            p = r.point
            cells = (
                f"{p.latency_ms:.3f}",
                _pct(p.latency_error),
                _pct(r.fitted_error),
                _pct(r.foretold_error),
            )
            table.add_row(
                str(p.batch), f"{p.share:.3g}", *cells, _whole(p.power_w), _whole(p.clock_mhz)
            )
        yield table
        bound = host_bound(fitted, name, min(p.share for p in model.solo))
        if bound is not None:
            yield f"{name}: {bound.sentence}"
        foretold = [abs(r.foretold_error) for r in found if r.foretold_error is not None]
        if foretold:
            yield (
                f"each foretold by the others: off by {100 * np.mean(foretold):.1f} % on "
                f"average, {100 * max(foretold):.1f} % at worst"
            )
    if profile.co_runs:
        yield f"\nbeside each other: {len(profile.co_runs)} co-runs"
        yield _pairs(profile, fitted)


def _pairs(profile: Profile, fitted: SurfaceModel) -> Table:
    from rich.table import Table

    table = Table(
        "model",
        "batch",
        "share",
        "beside",
        "ms",
        "alone ms",
        "slower %",
        "fit %",
        box=None,
        pad_edge=False,
    )
    for column in (table.columns[k] for k in (1, 2, 4, 5, 6, 7)):
        column.justify = "right"
    for run in profile.co_runs:
        predicted = fitted.predict([Tenant(t.model, t.batch, t.share) for t in run.tenants])
        for place, (t, p) in enumerate(zip(run.tenants, predicted, strict=True)):
            others = ", ".join(
                f"{o.model} b{o.batch} {share_text(o.share, '.3g')}"
                for k, o in enumerate(run.tenants)
                if k != place
            )
            alone = fitted.predict([Tenant(t.model, t.batch, t.share)])[0].latency_ms
            cells = (
                f"{t.latency_ms:.3f}",
                f"{alone:.3f}",
                _pct(t.latency_ms / alone - 1),
                _pct(p.latency_ms / t.latency_ms - 1),
            )
            table.add_row(t.model, str(t.batch), share_text(t.share, ".3g"), others, *cells)
    return table


def board_line(profile: Profile) -> str:
    """The board in one line."""
    board = profile.board
    parts = [
        f"{board.name}: {board.sm_count} SMs, shares in steps of {100 * board.share_unit:.3g} %"
    ]
    clocks = [
        p.clock_mhz for m in profile.models.values() for p in m.solo if p.clock_mhz is not None
    ]
    if board.idle_power_w is not None:
        parts.append(
            f"idle {board.idle_power_w:.0f} W"
            + (f" of {board.power_limit_w:.0f} W" if board.power_limit_w else "")
        )
    if clocks:
        parts.append(f"clock under load {min(clocks):.0f} to {max(clocks):.0f} MHz")
    parts.append(f"host to device {board.pcie_bytes_per_ms / 1e6:.3g} GB/s")
    return ", ".join(parts) + (f"\n{profile.origin}" if profile.origin else "")


def draw(profile: Profile, path: Path) -> None:
    """A picture: for each model its points with the fit and its bound, and the residuals; then the
    co-runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(profile.models)
    rows = len(names) + bool(profile.co_runs)
    figure, grid = plt.subplots(
        rows, 2, figsize=(11, 3.4 * rows), squeeze=False, layout="constrained"
    )
    fitted = SurfaceModel(profile)
    for axes, name in zip(grid, names, strict=False):
        _draw_curves(axes[0], fitted, profile, name)
        _draw_residuals(axes[1], residuals(profile, fitted, name), name)
    if profile.co_runs:
        _draw_pairs(grid[-1], fitted, profile)
    figure.suptitle(fill(board_line(profile).split("\n", maxsplit=1)[0], _TITLE_WIDTH), fontsize=11)
    pictures.save(figure, path, 110)
    plt.close(figure)


def _draw_curves(axes: Axes, fitted: SurfaceModel, profile: Profile, name: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    points = profile.models[name].solo
    batches = np.arange(1.0, max(p.batch for p in points) + 1)
    shown = sorted({p.share for p in points})
    for share, colour in zip(shown, _colours(shown), strict=True):
        mean, upper = fitted.service_curve_ms(name, share, (), int(batches[-1]), level=LEVEL)
        axes.plot(batches, mean, color=colour, lw=1.2)
        axes.fill_between(batches, mean, upper, color=colour, alpha=0.15, lw=0)
        own = [p for p in points if abs(p.share - share) < 1e-9]
        errors = [2 * (p.latency_error or 0.0) * p.latency_ms for p in own]
        axes.errorbar(
            [p.batch for p in own],
            [p.latency_ms for p in own],
            yerr=errors,
            fmt="o",
            ms=4,
            color=colour,
            label=f"{share:.3g}",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="batch",
        ylabel="latency alone (ms)",
        title=f"{name}: points, fit, 95 % bound",
    )
    ticks = sorted({2**i for i in range(int(np.log2(batches[-1])) + 1)} | {int(batches[-1])})
    axes.set_xticks(ticks, [str(b) for b in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(
        title="share",
        fontsize=7,
        title_fontsize=7,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
    )
    axes.grid(alpha=0.25)


def _draw_residuals(axes: Axes, found: Sequence[Residual], name: str) -> None:
    work: F64 = np.array([r.point.batch / r.point.share for r in found])
    axes.axhline(0.0, color="0.5", lw=0.8)
    axes.plot(work, [100 * r.fitted_error for r in found], "o", ms=4, label="fit by all points")
    foretold = [
        (w, 100 * r.foretold_error)
        for w, r in zip(work, found, strict=True)
        if r.foretold_error is not None
    ]
    if foretold:
        axes.plot(*zip(*foretold, strict=True), "x", ms=6, label="foretold by the others")
    axes.set(
        xscale="log",
        xlabel="batch / share",
        ylabel="fit over measured - 1 (%)",
        title=f"{name}: residuals",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.25)


def _draw_pairs(axes: Sequence[Axes], fitted: SurfaceModel, profile: Profile) -> None:
    measured, predicted, slower = list[float](), list[float](), list[float]()
    for run in profile.co_runs:
        for t, p in zip(
            run.tenants,
            fitted.predict([Tenant(t.model, t.batch, t.share) for t in run.tenants]),
            strict=True,
        ):
            alone = fitted.predict([Tenant(t.model, t.batch, t.share)])[0].latency_ms
            measured.append(100 * (t.latency_ms / alone - 1))
            predicted.append(100 * (p.latency_ms / alone - 1))
            slower.append(100 * (p.latency_ms / t.latency_ms - 1))
    span = [min(0.0, *measured, *predicted), max(*measured, *predicted)]
    axes[0].plot(span, span, color="0.5", lw=0.8)
    axes[0].plot(measured, predicted, "o", ms=4)
    axes[0].set(xlabel="slowdown measured (%)", ylabel="slowdown fitted (%)", title="co-runs")
    axes[0].grid(alpha=0.25)
    axes[1].hist(slower, bins=15)
    axes[1].set(xlabel="fit over measured - 1 (%)", ylabel="tenants", title="co-runs: residuals")


def _colours(shown: Sequence[float]) -> list[tuple[float, ...]]:
    from matplotlib import colormaps

    return [tuple(colormaps["viridis"](x)) for x in np.linspace(0.0, 0.9, len(shown))]


def _memory(model: ModelProfile) -> str:
    return "" if model.memory_bytes is None else f", {model.memory_bytes / 2**20:.0f} MiB a copy"


def _pct(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
