"""The V100 and the paper's workloads, read once."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from igniterd.planner.gpus import GpuType, parse_gpu
from igniterd.planner.workloads import Workload, read_workloads


@pytest.fixture(scope="session")
def workloads_csv() -> Path:
    return Path(str(resources.files("igniterd").joinpath("data", "v100", "workloads.csv")))


@pytest.fixture(scope="session")
def v100_workloads(workloads_csv: Path) -> tuple[Workload, ...]:
    return read_workloads(workloads_csv)[0]


@pytest.fixture(scope="session")
def v100() -> GpuType:
    return parse_gpu("v100")
