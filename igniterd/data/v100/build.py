"""Write the V100 profile that ships with igniterd from the measured tables beside this file:
``python -m igniterd.data.v100.build``.

The profile igniterd's own model is fitted from holds eleven solo points a model and one co-run an
ordered pair of models (a model and a copy of itself among them), at the same operating points for
every model. The published method's inputs (another nine points, without transfers, and the run
beside a copy) are carried along for the baseline; igniterd's own model does not read them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from igniterd.perf.interference import FEATURES, Prior, estimate_prior
from igniterd.perf.profile import (
    Board,
    Copies,
    CoRun,
    CoTenant,
    GpuPoint,
    IgniterInputs,
    ModelProfile,
    Profile,
    SoloPoint,
    json_schema,
)
from igniterd.perf.surface_model import SurfaceModel, observations

FOLDER = Path(__file__).parent
TOTAL_SMS = 80
MEMORY_BYTES = 16 * 1024**3

SOLO_POINTS = (
    (1, 100),
    (1, 80),
    (1, 60),
    (1, 50),
    (1, 40),
    (2, 60),
    (4, 80),
    (1, 10),
    (8, 80),
    (16, 80),
    (32, 20),
)
"""(batch, share in percent) of the solo points of every model: what
:func:`bench.design.solo_design` chooses from the points of ``solo.csv`` before any latency is
seen."""

CO_RUNS = ((2, 16, 60), (16, 2, 40))
"""(batch of the first, batch of the second, share of the first in percent): the co-runs of every
pair of models, first and second in the order of the table; one co-run for each ordered pair. A
model's run beside a copy of itself comes from ``profile.json``."""


def rows(name: str) -> list[dict[str, str]]:
    """The rows of one of the tables beside this file (``solo.csv``, ``pairs.csv``,
    ``workloads.csv``)."""
    with resources.files("igniterd").joinpath("data", "v100", name).open(encoding="utf-8") as table:
        return list(csv.DictReader(table))


def published() -> dict[str, Any]:
    """``profile.json``: the measurements of the published method."""
    return dict(json.loads((FOLDER / "profile.json").read_text(encoding="utf-8")))


def solo_points(
    model: str, wanted: Iterable[tuple[int, float]] | None = None
) -> Iterator[SoloPoint]:
    """The solo measurements of ``model``, all of them or those at the (batch, share in percent)
    ``wanted``."""
    chosen = None if wanted is None else set(wanted)
    for row in rows("solo.csv"):
        at = int(row["batch"]), float(row["share_pct"])
        if row["model"] == model and (chosen is None or at in chosen):
            yield SoloPoint(
                batch=at[0],
                share=at[1] / 100,
                latency_ms=float(row["latency_ms"]),
                l2_pct=float(row["l2_pct"]) if row["l2_pct"] else None,
                dram_pct=float(row["dram_pct"]) if row["dram_pct"] else None,
            )


def co_runs(wanted: Iterable[tuple[int, int, float]] | None = None) -> Iterator[CoRun]:
    """The co-runs of every pair, all of them or those at the (batch, batch, share in percent)
    ``wanted``."""
    chosen = None if wanted is None else set(wanted)
    for row in rows("pairs.csv"):
        if (
            chosen is None
            or (int(row["batch_a"]), int(row["batch_b"]), float(row["share_a_pct"])) in chosen
        ):
            yield CoRun(
                tenants=tuple(
                    CoTenant(
                        model=row[f"model_{side}"],
                        batch=int(row[f"batch_{side}"]),
                        share=float(row[f"share_{side}_pct"]) / 100,
                        latency_ms=float(row[f"latency_{side}_ms"]),
                    )
                    for side in "ab"
                )
            )


def copy_run(name: str, model: dict[str, Any], bytes_per_ms: float) -> CoRun:
    """The run of a model beside a copy of itself (batch 16, half the GPU each) that the published
    method takes.

    The published figure is the growth of the active time; it is applied to the GPU time of
    ``solo.csv`` at that point.
    """
    (alone,) = solo_points(name, [(16, 50)])
    transfers = alone.batch * (model["inputdata"] + model["outputdata"]) / bytes_per_ms
    growth = model["activetime_2"] / model["activetime_1"]
    one = CoTenant(
        model=name,
        batch=16,
        share=0.5,
        latency_ms=(alone.latency_ms - transfers) * growth + transfers,
    )
    return CoRun(tenants=(one, one), power_w=model["power_2"], clock_mhz=model["frequency_2"])


def board(data: dict[str, Any]) -> Board:
    """The V100 of the tables."""
    hardware = data["hardware"]
    ladder = zip(hardware["power"], hardware["frequency"], hardware["idletime"], strict=True)
    return Board(
        name="v100",
        sm_count=TOTAL_SMS,
        share_unit=hardware["unit"] / 100,
        pcie_bytes_per_ms=hardware["bandwidth"],
        memory_bytes=MEMORY_BYTES,
        max_clock_mhz=hardware["maxGPUfrequency"],
        power_limit_w=hardware["maxGPUpower"],
        idle_power_w=hardware["idlepower"],
        copies=tuple(
            Copies(copies=n, power_w=w, clock_mhz=f, gap_per_kernel_ms=g)
            for n, (w, f, g) in enumerate(ladder, 1)
        ),
    )


def _igniter_inputs(model: dict[str, Any]) -> IgniterInputs:
    batches, shares = (1, 16, 32), (0.1, 0.5, 1.0)
    return IgniterInputs(
        gpu_points=tuple(
            GpuPoint(
                batch=batch,
                share=share,
                gpu_ms=model["gpulatency"][i][j],
                power_w=model["power"][i][j],
                clock_mhz=model["frequency"][i][j],
                l2_pct=model["l2caches"][i] if i == j else None,
            )
            for i, batch in enumerate(batches)
            for j, share in enumerate(shares)
        ),
        active_solo_ms=model["activetime_1"],
        active_pair_ms=model["activetime_2"],
        pair_clock_mhz=model["frequency_2"],
        pair_l2_pct=model["l2cache"],
    )


def profile(
    solo: Iterable[tuple[int, float]] | None = SOLO_POINTS,
    runs: Iterable[tuple[int, int, float]] | None = CO_RUNS,
) -> Profile:
    """The V100 profile with the solo points and co-runs asked for (``None``: all of them), and each
    model's run beside a copy."""
    data = published()
    solo = None if solo is None else tuple(solo)
    models = {
        name: ModelProfile(
            input_bytes=model["inputdata"],
            output_bytes=model["outputdata"],
            kernels=model["kernel"],
            gap_ms=model["idletime_1"],
            solo=tuple(solo_points(name, solo)),
            igniter=_igniter_inputs(model),
        )
        for name, model in data.items()
        if name != "hardware"
    }
    copies = tuple(
        copy_run(name, model, data["hardware"]["bandwidth"])
        for name, model in data.items()
        if name != "hardware"
    )
    origin = (
        "F. Xu et al., IEEE TPDS 34(3), 2023 (arXiv 2211.01713): figures released with the "
        "prototype"
    )
    return Profile(
        board=board(data), models=models, co_runs=(*co_runs(runs), *copies), origin=origin
    )


def prior() -> Prior:
    """What pairs of models do on average, from every solo point and co-run of the tables."""
    everything = profile(None, None)
    # Any prior serves here: only the solo surfaces of this model are used.
    blank = Prior(np.zeros(FEATURES), np.eye(FEATURES))
    return estimate_prior(
        observations(everything, SurfaceModel(everything.model_copy(update={"co_runs": ()}), blank))
    )


def main() -> None:
    """Write the profile, the schema of profiles and the prior of interference."""
    found = prior()
    written = {
        "v100/v100.profile.json": profile().dump(),
        "profile.schema.json": json.dumps(json_schema(), indent=1) + "\n",
        "interference_prior.json": json.dumps(
            {"mean": found.mean.tolist(), "covariance": found.covariance.tolist()}, indent=1
        )
        + "\n",
    }
    for name, text in written.items():
        (FOLDER.parent / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
