"""What needs no broker; the rest is in tests/integration."""

from pathlib import Path
from traceback import format_exception

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


def test_a_password_in_another_encoding_is_said_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes("s3crét".encode("latin-1"))
    with pytest.raises(CannotRun, match="is not text in UTF-8") as caught:
        MqttPublisher("mqtt://broker", cluster="lab", host="a", username="a", password_file=tmp_path / "password")
    assert "s3cr" not in "".join(format_exception(caught.value))
