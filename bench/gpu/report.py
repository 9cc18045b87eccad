"""The results in JSON, as tables in text, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INK, MUTED = "#222222", "#777777"
COLOURS = ("#3b6fb6", "#d1702a", "#3d8f5f", "#8a5aa8")
MARKERS = {"alone": "o", "pair": "s", "triple": "^"}


def save(results: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def errors(
    records: Sequence[Mapping[str, Any]], kind: str, key: str = "predicted_ms"
) -> list[float]:
    """Predicted over measured less 1, for every tenant of the co-locations of one kind."""
    return [
        t[key] / t["measured_ms"] - 1
        for r in records
        if r["kind"] == kind
        for t in r["tenants"]
        if key in t
    ]


def summed(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Errors of predicted mean service times, a row a kind."""
    rows = []
    for kind, key, title in (
        ("alone", "predicted_ms", "alone"),
        ("pair", "predicted_ms", "pairs"),
        ("pair", "withheld_ms", "pairs, never co-run"),
        ("triple", "predicted_ms", "triples"),
    ):
        found = np.array(errors(records, kind, key))
        if found.size:
            upper = [
                t["upper_ms"] >= t["measured_ms"]
                for r in records
                if r["kind"] == kind
                for t in r["tenants"]
            ]
            size = np.abs(found)
            row = {
                "what": title,
                "points": int(found.size),
                "mean_error": size.mean(),
                "p95_error": np.quantile(size, 0.95),
            }
            row |= {
                "largest_error": size.max(),
                "bias": found.mean(),
                "under_by_5pct": (found < -0.05).mean(),
            }
            rows.append(
                {k: round(float(v), 4) if isinstance(v, np.floating) else v for k, v in row.items()}
            )
            if key == "predicted_ms":
                rows[-1]["bound_covers"] = round(float(np.mean(upper)), 4)
    return rows


def text(results: Mapping[str, Any]) -> str:
    """The summary for people."""
    return "\n".join(_lines(results))


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    machine, kind = results["machine"], results["mode"]
    gpu = results.get("gpu", {})
    yield (
        f"{kind}: {gpu.get('name', 'no GPU')}, {machine['processor']}, {machine['cores']} "
        f"cores, {results['took_s']:.0f} s"
    )
    yield results["remark"]
    if found := results.get("profile"):
        models = ", ".join(f"{n} {m['points']} points" for n, m in found["models"].items())
        yield (
            f"\nprofile: {models}, {found['co_runs']} co-runs in "
            f"{results['spent_s'].get('profile', 0.0):.0f} s"
        )
    if rows := results.get("service_time"):
        yield (
            "\nmean service time       points   mean error    p95   bias  under by >5 %   95 % "
            "bound covers"
        )
        for r in rows:
            cover = f"{r['bound_covers']:.0%}" if "bound_covers" in r else "-"
            yield (
                f"  {r['what']:21s} {r['points']:6d} {r['mean_error']:11.1%} "
                f"{r['p95_error']:7.1%} {r['bias']:+6.1%} "
                f"{r['under_by_5pct']:13.0%} {cover:>15s}"
            )
    if tails := results.get("tails"):
        yield (
            "\nPoisson arrivals        rate/s  requests   P50 measured / predicted   P99 "
            "measured (90 % interval) / predicted, ms"
        )
        for r in tails:
            p99 = (
                f"{_ms(r['p99_ms'])} ({_ms(r['p99_low_ms'])} to {_ms(r['p99_high_ms'])}) / "
                f"{_ms(r['predicted_p99_ms'])}"
            )
            p50 = f"{_ms(r['p50_ms'])} / {_ms(r['predicted_p50_ms'])}"
            yield (
                f"  {r['model']:12s} {r['load']:4.0%} {r['rate_per_s']:9.1f} "
                f"{r['requests']:9d} {p50}      {p99}"
            )
    if loop := results.get("loop"):
        yield "\nclosed loop             rate/s  requests  failed      P99      SLO   attained"
        for f in loop["figures"]:
            attained = "-" if f["attainment"] is None else f"{f['attainment']:.1%}"
            counts = f"{f['rate_per_s']:8.1f} {f['requests']:8d} {f['failed']:7d}"
            missed = "" if f["held"] else "   missed"
            yield (
                f"  {f['phase']:8s} {f['model']:10s} {counts} {_ms(f['p99_ms'])} "
                f"{f['slo_ms']:8g} {attained:>8s}{missed}"
            )
        yield (
            f"  {len(loop['moves'])} changes, {loop['failed']} of {loop['requests']} requests "
            "failed"
        )
    for note in results["notes"]:
        yield f"note: {note}"
    for gap in results["incomplete"]:
        yield f"NOT MEASURED: {gap}"


def _ms(value: float | None) -> str:
    return f"{'none':>8s}" if value is None else f"{value:8.1f}"


# ---------------------------------------------------------------- the picture


def draw(results: Mapping[str, Any], path: Path) -> None:
    """What was measured, as much as there is of it, into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": MUTED,
        }
    )
    figure, ((service, tail), (times, shares)) = plt.subplots(
        2, 2, figsize=(12, 8), constrained_layout=True
    )
    gpu = results.get("gpu", {}).get("name", results["mode"])
    figure.suptitle(
        f"igniterd on {gpu}, {results['date']}\n{results['remark']}", fontsize=10, color=INK
    )
    _service(service, results.get("together", []))
    _tails(tail, results.get("tails", []))
    _loop(times, shares, results.get("loop"))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _empty(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])


def _service(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    title = "Mean service time of co-locations that were not profiled"
    if not records:
        _empty(axes, title)
        return
    axes.set_title(title, loc="left")
    span = [t["measured_ms"] for r in records for t in r["tenants"]]
    line = np.array([min(span) * 0.8, max(span) * 1.25])
    axes.fill_between(line, 0.95 * line, 1.05 * line, color="#e8e8e8", label="within 5 %")
    axes.plot(line, line, color=MUTED, lw=0.8)
    for (kind, marker), colour in zip(MARKERS.items(), COLOURS, strict=False):
        points = [
            (t["measured_ms"], t["predicted_ms"])
            for r in records
            if r["kind"] == kind
            for t in r["tenants"]
        ]
        if points:
            x, y = np.array(points).T
            axes.plot(
                x,
                y,
                marker,
                color=colour,
                ms=5,
                alpha=0.8,
                ls="none",
                label=f"{kind}, mean error {np.mean(abs(y / x - 1)):.1%}",
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=line,
        ylim=line,
        xlabel="measured, ms",
        ylabel="predicted, ms",
    )
    axes.legend(frameon=False, fontsize=8)


def _tails(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    title = "P99 under Poisson arrivals, three models together"
    usable = [r for r in records if None not in (r["p99_ms"], r["p99_low_ms"], r["p99_high_ms"])]
    if not usable:
        _empty(axes, title)
        return
    axes.set_title(title, loc="left")
    at = np.arange(len(usable))
    p99, low, high = (
        np.array([r[k] for r in usable]) for k in ("p99_ms", "p99_low_ms", "p99_high_ms")
    )
    axes.bar(
        at, p99, color=COLOURS[0], alpha=0.75, width=0.6, label="measured, with sampling error"
    )
    axes.errorbar(
        at, p99, yerr=[p99 - low, high - p99], fmt="none", ecolor=INK, elinewidth=0.8, capsize=2
    )
    told = [
        (i, r["predicted_p99_ms"])
        for i, r in enumerate(usable)
        if r["predicted_p99_ms"] is not None
    ]
    axes.plot(
        *zip(*told, strict=True), "_", color=COLOURS[1], ms=26, mew=2.5, label="predicted"
    ) if told else None
    axes.set_xticks(at, [f"{r['model']}\n{r['load']:.0%} load" for r in usable], fontsize=8)
    axes.set(ylabel="ms", ylim=(0, 1.25 * float(high.max())))
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _loop(times: Any, shares: Any, loop: Mapping[str, Any] | None) -> None:
    titles = "Closed loop: P99 of each second over the SLO", "Closed loop: share of the GPU"
    if not loop:
        _empty(times, titles[0])
        _empty(shares, titles[1])
        return
    end_s = loop["phases"][-1]["end_s"]
    for axes, title in zip((times, shares), titles, strict=True):
        axes.set_title(title, loc="left", pad=16)
        for phase in loop["phases"]:
            axes.axvline(phase["begin_s"], color=MUTED, lw=0.8, ls=":")
            axes.axvspan(phase["measured_s"], phase["end_s"], color="#f2f2f2", lw=0)
            axes.text(
                phase["begin_s"] + 0.5,
                1.01,
                phase["title"],
                transform=axes.get_xaxis_transform(),
                fontsize=8,
                color=MUTED,
            )
        axes.set(xlim=(0, end_s), xlabel="s (grey: counted)")
    for (name, seconds), colour in zip(loop["p99_by_second"].items(), COLOURS, strict=False):
        known = [(s + 0.5, v / loop["slos_ms"][name]) for s, v in seconds if v is not None]
        if known:
            times.plot(
                *zip(*known, strict=True),
                color=colour,
                lw=1.2,
                label=f"{name}, SLO {loop['slos_ms'][name]:g} ms",
            )
        held = [(s["at_s"], s[name]) for s in loop["shares"] if s.get(name) is not None]
        if held:
            held.append((end_s, held[-1][1]))
            shares.step(*zip(*held, strict=True), where="post", color=colour, lw=1.6, label=name)
    times.axhline(1.0, color=INK, lw=0.8)
    times.set(yscale="log", ylabel="P99 / SLO")
    times.legend(frameon=False, fontsize=8)
    shares.set(ylim=(0, 1), ylabel="share (none before the daemon)")
    if shares.get_legend_handles_labels()[0]:
        shares.legend(frameon=False, fontsize=8)
