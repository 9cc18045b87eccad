"""What needs no broker; the rest is in tests/integration."""

from pathlib import Path

import pytest

from igniterd.clients.mqtt import MqttPublisher
from igniterd.errors import CannotRun


def test_files_that_cannot_be_read_are_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"mqtt\.password_file: .*nothing"):
        MqttPublisher("mqtt://broker", cluster="lab", host="a", password_file=tmp_path / "nothing")
    with pytest.raises(CannotRun, match="TLS for the MQTT broker"):
        MqttPublisher("mqtts://broker", cluster="lab", host="a", ca_file=tmp_path / "nothing")


def test_publishing_before_the_start_waits_for_it() -> None:
    publisher = MqttPublisher("mqtt://broker", cluster="lab", host="a")
    publisher.publish("state", "igniterd.state", {"tick": 1}, retain=True)
    publisher.publish("state", "igniterd.state", {"tick": 2}, retain=True)
    assert (publisher.statistics.replaced, publisher.statistics.published) == (1, 0)


async def test_closing_what_was_never_started_is_nothing() -> None:
    await MqttPublisher("mqtt://broker", cluster="lab", host="a").close()
