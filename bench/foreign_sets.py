"""Other people's measurements as profiles and cases to judge predictions on.

A folder a set, each with one or several CSV files in the columns of the originals. Rows marked
``profile`` = 1 are what ``igniterd profile`` would have measured: at most eleven solo points a
model, and a co-run for each ordered pair. All others are judged on.

- ``a100-mps-gpulet``: github.com/0909wlgur/Gpulet, commit 8015c3d. Ten CNNs in eager PyTorch on an
  A100 (inferred); a neighbour has what is left of the GPU (inferred). Its own latency was not
  recorded: in the profile it has its time alone. vgg19 at batches to 8 looks like another session
  and is judged apart.
- ``v100-mps-kace``: github.com/nba556677go/KACE-artifact, commit 25299ec (SoCC 2024). Transformers
  and CNNs, inference and training, on a V100 32 GB. whisper and wav2vec change their unit between
  files: they are not judged, and cases beside them are judged apart. ``0624_*`` is left out (time
  slicing). Rows with a share of 100 beside others are uncapped.
- ``a100-mig-parvagpu``: github.com/MunQ-Lee/ParvaGPU_SC24, commit 5f3de1e (SC 2024), MIT. MIG sizes
  of an A100 80 GB as shares of seven; copies inside one instance are not judged (a profile has no
  co-runs inside an instance).
- ``v100-mps-rapp``: github.com/KontonGu/RaPP, commit 600348c. 69 torchvision networks, V100 16 GB.
- ``a100-mps-muxserve-llama``: github.com/hao-ai-lab/MuxServe, commit 2231480 (ICML 2024),
  Apache-2.0. LLaMA prefill and decode on one to eight A100s, each length a model of its own.
- ``triton-nvidia-examples``: github.com/NVIDIA/DeepLearningExamples, commit 729963d, Apache-2.0 and
  BSD-3: only how P99 and mean of static batches compare (clients bring the batch, one at a time).
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from igniterd.perf.api import UNCAPPED, Tenant
from igniterd.perf.profile import Board, CoRun, CoTenant, ModelProfile, Profile, SoloPoint
from igniterd.perf.surface_model import SurfaceModel

Row = Mapping[str, str]
Together = tuple[tuple[Tenant, float | None], ...]
"""Tenants of one co-run and their times (ms); ``None``: not recorded."""
FREE_LINK = 1e7  # bytes/ms: the sets do not tell transfers from execution
_UNIT_CHANGES = ("whisper", "wav2vec")


@dataclass(frozen=True)
class Case:
    """``tenants[0]`` took ``ms`` beside the others."""

    group: str
    tenants: tuple[Tenant, ...]
    ms: float


@dataclass
class Set:
    """``solo``: model -> (batch, share) -> ms, of the profile; ``together``: its co-runs."""

    name: str
    board: Board
    solo: dict[str, dict[tuple[int, float], float]] = field(default_factory=dict)
    together: list[Together] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    def profile(self, *, co_runs: bool = True) -> Profile:
        """As ``igniterd profile`` would have written it."""
        alone = Profile(
            board=self.board, models={name: _model(points) for name, points in self.solo.items()}
        )
        if not co_runs or not self.together:
            return alone
        model = SurfaceModel(alone)
        runs = tuple(
            CoRun(tenants=tuple(_tenant(model, t, ms) for t, ms in run)) for run in self.together
        )
        return alone.model_copy(update={"co_runs": runs})


def _model(points: Mapping[tuple[int, float], float]) -> ModelProfile:
    solo = (SoloPoint(batch=b, share=s, latency_ms=ms) for (b, s), ms in sorted(points.items()))
    return ModelProfile(solo=tuple(solo))


def _tenant(model: SurfaceModel, t: Tenant, ms: float | None) -> CoTenant:
    took = model.predict([t])[0].latency_ms if ms is None else ms
    return CoTenant(model=t.model, batch=int(t.batch), share=t.share, latency_ms=took)


def rows(folder: Path) -> Iterator[Row]:
    """All rows of all CSV files of ``folder``."""
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            yield from csv.DictReader(file)


def gpulet(folder: Path) -> Set:
    """The A100's CNNs in pairs."""
    found = Set("A100 MPS, CNNs in eager PyTorch (gpu-lets)", _board("a100", 108, 0.02))
    halves: dict[tuple[Tenant, Tenant], float] = {}
    for row in rows(folder):
        if row["table"] not in ("inference", "interference"):
            continue
        me = Tenant(row["model"], int(row["batch"]), int(row["share"]) / 100)
        ms, marked = 1000 * float(row["latency"]), row["profile"] == "1"
        if row["table"] == "inference":
            _alone(found, me, ms, marked)
            continue
        share = round(1 - me.share, 3)
        other = Tenant(row["neighbour"], int(row["neighbour_batch"]), share)
        if marked:
            halves[me, other] = ms
        else:
            apart = me.model == "vgg19" and me.batch <= 8
            found.cases.append(Case("vgg19 to batch 8" if apart else "pairs", (me, other), ms))
    for (me, other), ms in halves.items():
        back = halves.get((other, me))
        if back is None or (me, other) <= (other, me):  # both halves of a co-run are one
            found.together.append(((me, ms), (other, back)))
    return found


def kace(folder: Path) -> Set:
    """The V100's transformers, capped in pairs, uncapped in pairs and more."""
    found = Set("V100 MPS, transformers and CNNs (KACE)", _board("v100", 80, 0.025))
    several: dict[Tenant, list[tuple[float, bool]]] = defaultdict(list)
    others = []
    for row in rows(folder):
        if row["table"] != "solo":
            others.append(row)
        elif row["items_per_s_1"]:
            tenant, ms = _kace_tenant(row, 1)
            several[tenant].append((ms or 0.0, row["profile"] == "1"))
    for tenant, seen in several.items():
        mean = sum(ms for ms, _ in seen) / len(seen)
        marked = any(m for _, m in seen)
        if marked or not tenant.model.startswith(_UNIT_CHANGES):
            _alone(found, tenant, mean, marked, f"alone, {tenant.model.rpartition('-')[2]}")
    found.cases = [case for case in found.cases if case.tenants[0].model in found.solo]
    for row in others:
        if not row["source"].startswith("0624_"):
            _kace_together(found, row)
    return found


def _kace_together(found: Set, row: Row) -> None:
    count = {"pairs": 2, "triples": 3, "quads": 4}.get(row["table"], 0)
    run = tuple(_kace_tenant(row, i) for i in range(1, count + 1))
    if not run or any(t.model not in found.solo for t, _ in run):
        return
    if row["profile"] == "1":
        found.together.append(run)
        return
    kind = "uncapped" if all(t.share == UNCAPPED for t, _ in run) else "capped"
    if any(t.model.startswith(_UNIT_CHANGES) for t, _ in run):
        what = "beside whisper, wav2vec"
    else:
        what = "inf" if all(t.model.endswith("inf") for t, _ in run) else "with train"
    for i, (me, ms) in enumerate(run):
        if ms is not None and not me.model.startswith(_UNIT_CHANGES):
            beside = (t for k, (t, _) in enumerate(run) if k != i)
            found.cases.append(Case(f"{kind} {row['table']}, {what}", (me, *beside), ms))


def _kace_tenant(row: Row, place: int) -> tuple[Tenant, float | None]:
    """Tenant and time (ms) of a batch; ``None`` where it ended early or failed."""
    name = re.fullmatch(r"(.*)_batch(\d+)-(\w+)", row[f"w{place}"])
    assert name is not None, row
    per_s = float(row[f"items_per_s_{place}"] or 0)
    tenant = Tenant(f"{name[1]}-{name[3]}", int(name[2]), int(row[f"share{place}"]) / 100)
    return tenant, 1000 * tenant.batch / per_s if per_s > 0 else None


def parvagpu(folder: Path) -> Set:
    """MIG sizes of an A100, alone."""
    found = Set("A100 MIG sizes, CNNs and BERT (ParvaGPU)", _board("a100", 98, 1 / 7))
    for row in rows(folder):
        if row["table"] == "solo" and float(row["Throughput"] or 0) > 0:
            batch = int(row["Batch size"])
            me = Tenant(row["model"], batch, int(row["Mig instance"]) / 7)
            _alone(found, me, 1000 * batch / float(row["Throughput"]), row["profile"] == "1")
    return found


def rapp(folder: Path) -> Set:
    """Many networks by share on a V100, alone."""
    found = Set("V100 MPS, 69 torchvision networks (RaPP)", _board("v100", 80, 0.025))
    for row in rows(folder):
        me = Tenant(row["model"], int(row["batch"]), int(row["sm_percent"]) / 100)
        _alone(found, me, float(row["latency_ms"]), row["profile"] == "1")
    return found


def muxserve(folder: Path) -> Set:
    """LLaMA by share, alone."""
    found = Set("A100 MPS, LLaMA (MuxServe)", _board("a100", 108, 0.02))
    for row in rows(folder):
        if row["table"] not in ("prefill", "decoding"):
            continue
        name = f"{row['table']} {row['model']} on {row['gpus']}, length {row['length']}"
        me = Tenant(name, int(row["batch"]), int(row["sm_percent"]) / 100)
        gpus = "1 GPU" if row["gpus"] == "1" else "2 to 8 GPUs"
        _alone(found, me, float(row["ms"]), row["profile"] == "1", f"{row['table']}, {gpus}")
    found.cases = [case for case in found.cases if case.tenants[0].model in found.solo]
    return found


def static_tails(folder: Path) -> list[float]:
    """P99 over mean of batches that clients brought one at a time, one a row."""
    return [
        float(row["p99"]) / float(row["avg"])
        for row in rows(folder)
        if row["section"].startswith("Offline") and row["p99"] and row["avg"]
    ]


SETS: dict[str, Callable[[Path], Set]] = {
    "a100-mps-gpulet": gpulet,
    "v100-mps-kace": kace,
    "a100-mig-parvagpu": parvagpu,
    "v100-mps-rapp": rapp,
    "a100-mps-muxserve-llama": muxserve,
}


def _board(name: str, sms: int, unit: float) -> Board:
    return Board(name=name, sm_count=sms, share_unit=unit, pcie_bytes_per_ms=FREE_LINK)


def _alone(found: Set, me: Tenant, ms: float, marked: bool, group: str = "alone") -> None:
    if marked:
        found.solo.setdefault(me.model, {})[int(me.batch), me.share] = ms
    else:
        found.cases.append(Case(group, (me,), ms))
