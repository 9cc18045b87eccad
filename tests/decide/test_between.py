"""From which GPU moves are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from igniterd.decide.between import SEEK_S, Between
from igniterd.decide.gpu import GpuContext
from igniterd.decide.state import HALF, DecisionState, GpuHold, ModelHold
from igniterd.placement import GpuGroup
from igniterd.records import Observation
from tests.factories import settings_of

GROUPS = [GpuGroup(("GPU-a",), ("x",)), GpuGroup(("GPU-b",), ("y",)), GpuGroup(("GPU-c",), ("z",))]
SHED = ModelHold(shed_why="does not fit")


def sought(
    folder: Path, held: DecisionState, now_s: float, busy: dict[str, str] | None = None
) -> tuple[str | None, DecisionState]:
    """The GPU from which moves were looked for, where nothing can be predicted of any."""

    def nothing(group: GpuGroup, held: DecisionState) -> GpuContext | None:
        return None

    between = Between(
        Observation(now_s),
        settings_of(folder, {"x": 10.0}),
        nothing,
        lambda *_: None,
        lambda *_: "",
        busy or {},
        now_s,
    )
    _, held = between.sought(GROUPS, [], held)
    return between.source, held


def test_a_gpu_that_nothing_helps_stands_in_no_others_way(tmp_path: Path) -> None:
    held = DecisionState({"x": SHED, "y": SHED}, {"GPU-c": GpuHold(margins=HALF)})
    from_ = []
    for tick in range(4):
        source, held = sought(tmp_path, held, 100.0 + tick)
        from_.append(source)
    assert from_ == ["GPU-a", "GPU-b", "GPU-c", None]
    assert sought(tmp_path, held, 100.0 + SEEK_S)[0] == "GPU-a"


@pytest.mark.parametrize("busy", ["GPU-a", "GPU-b"])
def test_moves_are_looked_for_from_a_gpu_that_may_be_decided_for(tmp_path: Path, busy: str) -> None:
    held = DecisionState({"x": SHED, "y": SHED})
    source, _ = sought(tmp_path, held, 100.0, {busy: "a model is being reloaded"})
    assert source == {"GPU-a": "GPU-b", "GPU-b": "GPU-a"}[busy]
