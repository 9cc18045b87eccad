"""GPUs by set and strategy are what the golden table says; ``tests/planner/golden.py`` makes it."""

from __future__ import annotations

import json

import pytest

from igniterd.planner.gpu_types import GpuType
from tests.planner.golden import FILE, Case, cases, count_gpus

TABLE: dict[str, dict[str, int]] = json.loads(FILE.read_text())


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_a_plan_takes_as_many_gpus_as_the_table_says(case: Case, v100: GpuType) -> None:
    assert count_gpus(case, v100) == TABLE[case.name]


def test_the_table_has_no_row_without_a_case() -> None:
    assert set(TABLE) == {case.name for case in cases()}
