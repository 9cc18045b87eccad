"""What all tests share.

A change must pass or fail by what it is, not by luck: Hypothesis draws the same examples in every
run. ``make fuzz`` looks for new ones.
"""

import os
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from igniterd.clients.mqtt_client import BrokerClient, Message
from igniterd.lab import services
from igniterd.lab.programs.process import Running
from igniterd.planner.gpu_types import GpuType, parse_gpu
from igniterd.planner.workloads import Workload, read_workloads
from tests.messages.checked import Recorder, faults_of

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("new", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


class _Messages:
    """Checks all that the tests say over MQTT: in this process as it is sent, and what daemons of
    their own processes send, on the brokers that tests start."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._brokers: list[tuple[services.BrokerHost, Recorder]] = []

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        send, host = BrokerClient.send, services.BrokerHost

        async def checked(client: BrokerClient, message: Message, *rest: Any, **more: Any) -> None:
            self.faults += faults_of(message.topic, message.payload)
            await send(client, message, *rest, **more)

        def listened_to(port: int, program: Running) -> services.BrokerHost:
            broker = host(port, program)
            self._brokers.append((broker, Recorder(port, self.faults)))
            return broker

        patch.setattr(BrokerClient, "send", checked)
        patch.setattr(services, "BrokerHost", listened_to)

    def settled(self) -> list[str]:
        """What was wrong since the last time. Brokers that have ended are heard to their end."""
        for broker, recorder in list(self._brokers):
            if not broker.program.alive:
                recorder.close(drained=True)
                self._brokers.remove((broker, recorder))
        found, self.faults[:] = list(self.faults), []
        return found


@pytest.fixture(scope="session", autouse=True)
def _messages() -> Iterator[_Messages]:
    messages = _Messages()
    with pytest.MonkeyPatch.context() as patch:
        messages.watch(patch)
        yield messages
    assert messages.settled() == []


@pytest.fixture(autouse=True)
def _every_message_is_as_its_schema_says(_messages: _Messages) -> Iterator[None]:
    yield
    assert _messages.settled() == []


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
