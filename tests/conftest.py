"""What all tests share.

A change must pass or fail by what it is, not by luck: Hypothesis draws the same examples in every
run. ``make fuzz`` looks for new ones.
"""

import os
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import settings

from igniterd.planner.gpu_types import GpuType, parse_gpu
from igniterd.planner.workloads import Workload, read_workloads
from tests.messages.checked import AllMessages

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("new", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def all_messages() -> Iterator[AllMessages]:
    messages = AllMessages()
    with pytest.MonkeyPatch.context() as patch:
        messages.watch(patch)
        yield messages
    assert messages.settled() == []


@pytest.fixture(autouse=True)
def every_message_is_as_its_schema_says(all_messages: AllMessages) -> Iterator[None]:
    yield
    assert all_messages.settled() == []


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users can enter; pytest's own they cannot."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def workloads_csv() -> Path:
    return Path(str(resources.files("igniterd").joinpath("data", "v100", "workloads.csv")))


@pytest.fixture(scope="session")
def v100_workloads(workloads_csv: Path) -> tuple[Workload, ...]:
    """The paper's workloads, read once."""
    return read_workloads(workloads_csv)[0]


@pytest.fixture(scope="session")
def v100() -> GpuType:
    return parse_gpu("v100")
