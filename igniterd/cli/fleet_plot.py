"""A rebalance as a picture: the shares of every GPU of a cluster before and after."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from igniterd import pictures
from igniterd.fleet.checks import instances_on
from igniterd.fleet.cluster import Cluster
from igniterd.perf.api import UNCAPPED

_MOST_NAMED = 16  # GPUs; with more of them there is no room for names in the bars
_MOST_MODELS = 24  # in the legend
_LEAST_NAMED = 0.09  # share
_LONGEST = 12
_LEVEL_HOSTS = 10  # with more of them their names stand upright

Gpu = tuple[str, str]  # host, UUID
Shares = dict[Gpu, dict[str, float]]


def shares_before(cluster: Cluster) -> Shares:
    """The share of each model on each GPU now, all its instances there together, by the name that
    its Triton has for it; a model without a share may take a whole GPU."""
    found: Shares = {
        (name, uuid): {} for name, host in sorted(cluster.hosts.items()) for uuid in host.boards
    }
    for name, host in cluster.hosts.items():
        for model in host.models.values():
            share = None if model.applied is None else model.applied.share
            triton = host.tritons.get(model.triton)
            for uuid in model.gpus:
                part = _together(share, instances_on(model, uuid, triton))
                found.setdefault((name, uuid), {})[model.model or model.name] = part
    return found


def shares_after(cluster: Cluster, before: Shares, document: Mapping[str, Any]) -> Shares:
    """The same once all steps are done."""
    after = copy.deepcopy(before)
    for step in document["steps"]:
        if step["action"] == "unload":
            after.setdefault((step["host"], step["gpu_uuid"]), {}).pop(step["model"], None)
        elif step["action"] in ("shrink", "grow", "load"):
            share = (step.get("allocation") or {}).get("share")
            for gpu, count in _places(cluster, step).items():
                there = after.setdefault(gpu, {})
                kept = there.get(step["model"], UNCAPPED)
                there[step["model"]] = kept if share is None else _together(share, count)
    return after


def _together(share: float | None, instances: int) -> float:
    """The part of a GPU that so many instances may take; a share of 1 confines nobody."""
    return UNCAPPED if share is None or share >= UNCAPPED else share * max(1, instances)


def _places(cluster: Cluster, step: Mapping[str, Any]) -> Mapping[Gpu, int]:
    """How many instances of a step's allocation are on which GPU."""
    allocation = step.get("allocation") or {}
    host, devices = cluster.hosts.get(step["host"]), allocation.get("devices", ())
    triton = None if host is None else host.tritons.get(step.get("triton", "main"))
    if triton is None or len(set(devices)) < 2 or max(devices) >= len(triton.gpus):
        return {(step["host"], step["gpu_uuid"]): allocation.get("instances", 1)}
    return Counter((step["host"], triton.gpus[device]) for device in devices)


def plot_rebalance(cluster: Cluster, document: Mapping[str, Any], path: Path) -> None:
    """GPUs as stacked bars of shares by model, host names below, moved models hatched."""
    from matplotlib.figure import Figure

    before = shares_before(cluster)
    after = shares_after(cluster, before, document)
    gpus = sorted(after)
    moved = {(m["served_as"], m[k]["host"]) for m in document["moves"] for k in ("from", "to")}
    models = sorted({model for shares in (*before.values(), *after.values()) for model in shares})
    width = min(max(6.0, 0.85 * len(gpus) if len(gpus) <= _MOST_NAMED else 0.17 * len(gpus)), 22.0)
    figure = Figure(figsize=(width + 2.5, 7.0), layout="constrained")
    rows = figure.subplots(2, 1, sharex=True, sharey=True)
    colours = _colours(models)
    for axes, shares, title in zip(rows, (before, after), ("now", _title(document)), strict=True):
        _bars(axes, gpus, shares, colours, moved)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylabel("share of the SMs (%)")
    highest = max([sum(s.values()) for s in (*before.values(), *after.values())], default=1.0)
    rows[0].set(xlim=(-0.7, max(len(gpus), 1) - 0.3), ylim=(0, 100 * max(1.0, highest)))
    _host_names(rows[1], gpus)
    _legend(figure, colours, moved=bool(moved))
    pictures.save(figure, path, 150)


def _title(document: Mapping[str, Any]) -> str:
    moves = len(document["moves"])
    holds = "every SLO holds" if document["feasible"] else "not every SLO holds"
    return f"after {moves} move{'' if moves == 1 else 's'}: {holds}"


def _colours(models: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    tints = colormaps["tab20"].colors  # type: ignore[attr-defined]
    return {model: tints[n % len(tints)] for n, model in enumerate(models)}


def _bars(
    axes: Any, gpus: Sequence[Gpu], shares: Shares, colours: dict[str, Any], moved: set[Gpu]
) -> None:
    """A bar a GPU. A model that moves is hatched where it was and where it is to be."""
    named = len(gpus) <= _MOST_NAMED
    for x, gpu in enumerate(gpus):
        base = 0.0
        for model, share in sorted(shares.get(gpu, {}).items()):
            moves = (model, gpu[0]) in moved
            axes.bar(
                x,
                100 * share,
                0.8,
                bottom=100 * base,
                color=colours[model],
                edgecolor="black" if moves else "white",
                hatch="///" if moves else None,
                linewidth=1.2 if moves else 0.6,
                zorder=3 if moves else 2,
            )
            if named and share >= _LEAST_NAMED:
                _name(axes, x, 100 * (base + share / 2), model)
            base += share
    axes.axhline(100, color="grey", linewidth=0.8, zorder=1)
    axes.set_xticks([])


def _name(axes: Any, x: int, y: float, model: str) -> None:
    text = model if len(model) <= _LONGEST else model[: _LONGEST - 1] + "…"
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8}
    axes.text(x, y, text, ha="center", va="center", fontsize=7, zorder=4, bbox=box)


def _host_names(axes: Any, gpus: Sequence[Gpu]) -> None:
    """Below the GPUs of each host, and a line between hosts."""
    places, names, end = [], [], 0
    for host, group in groupby(gpus, key=lambda gpu: gpu[0]):
        count = len(list(group))
        places.append(end + (count - 1) / 2)
        names.append(host)
        end += count
        for each in axes.figure.axes:
            each.axvline(end - 0.5, color="lightgrey", linewidth=0.8, zorder=0)
    upright = 90 if len(names) > _LEVEL_HOSTS else 0
    size = 9 if len(names) <= 2 * _LEVEL_HOSTS else 6
    axes.set_xticks(places, names, rotation=upright, fontsize=size)


def _legend(figure: Any, colours: dict[str, Any], *, moved: bool) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=tint, edgecolor="white", label=model)
        for model, tint in list(colours.items())[:_MOST_MODELS]
    ]
    if (more := len(colours) - _MOST_MODELS) > 0:
        patches.append(Patch(facecolor="none", edgecolor="none", label=f"… and {more} more"))
    if moved:
        hatched = Patch(facecolor="none", edgecolor="black", hatch="///", label="moves")
        patches.append(hatched)
    if patches:
        figure.legend(handles=patches, loc="outside right upper", fontsize=8, frameon=False)
