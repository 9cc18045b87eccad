"""What needs no broker; the rest is in tests/integration."""

import os
from collections.abc import Callable
from pathlib import Path
from traceback import format_exception

import pytest
from structlog.testing import capture_logs

from igniterd.clients.mqtt import MqttPublisher
from igniterd.clients.mqtt_broker import Broker
from igniterd.errors import CannotRun
from tests.messages.examples import a_state
from tests.waiting import until


def test_files_that_cannot_be_read_are_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"the broker's password_file: .*nothing"):
        Broker("mqtt://broker", password_file=tmp_path / "nothing")
    with pytest.raises(CannotRun, match="TLS for the MQTT broker"):
        Broker("mqtts://broker", ca_file=tmp_path / "nothing")


def test_publishing_before_the_start_waits_for_it() -> None:
    publisher = MqttPublisher(Broker("mqtt://broker"), cluster="lab", host="a")
    publisher.publish_state([a_state(1)], expiry_s=30)
    publisher.publish_state([a_state(2)], expiry_s=30)
    assert (publisher.statistics.replaced, publisher.statistics.published) == (1, 0)


async def test_closing_what_was_never_started_is_nothing() -> None:
    await MqttPublisher(Broker("mqtt://broker"), cluster="lab", host="a").close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("p\u00e4ss".encode("latin-1"), "is not text in UTF-8"),
        (b"a" * 70_000, "has 70000 bytes; a password has at most 65535"),
    ],
)
def test_a_password_that_cannot_be_sent_is_said_at_the_start(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "password").write_bytes(content)
    with pytest.raises(CannotRun, match=rf"the broker's password_file: {tmp_path}/password {why}"):
        Broker("mqtt://broker", password_file=tmp_path / "password")


def test_a_pipe_as_password_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotRun, match=r"pipe should be a file"):
        Broker("mqtt://broker", password_file=tmp_path / "pipe")


def spoilt_password(file: Path) -> None:
    file.write_bytes("p\u00e4ss".encode("latin-1"))


def gone_password(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    "spoilt", [spoilt_password, gone_password, lambda file: file.write_text("a" * 70_000)]
)
async def test_a_password_file_that_becomes_unreadable_is_said_once_and_tried_again(
    tmp_path: Path, spoilt: Callable[[Path], object]
) -> None:
    secret = tmp_path / "password"
    secret.write_text("right")
    broker = Broker("mqtt://127.0.0.1:1", username="u", password_file=secret, timeout_s=0.5)
    publisher = MqttPublisher(broker, cluster="c", host="h", first_pause_s=0.01)
    spoilt(secret)
    with capture_logs() as said:
        await publisher.start()
        await until(lambda: publisher.statistics.failures > 3)
        await publisher.close()
    assert [(line["event"], "password_file" in line["reason"]) for line in said] == [
        ("failing", True)
    ]


@pytest.mark.parametrize("name", ["a" * 70 + ".example", "a..b", "xn--\u00e9", "\u00e9" * 100])
async def test_a_name_that_no_resolver_takes_is_said_once_and_tried_again(name: str) -> None:
    broker = Broker(f"mqtt://{name}:1883", timeout_s=0.5)
    publisher = MqttPublisher(broker, cluster="c", host="h", first_pause_s=0.01)
    with capture_logs() as said:
        await publisher.start()
        await until(lambda: publisher.statistics.failures > 3)
        await publisher.close()
    assert [line["event"] for line in said] == ["failing"]


def test_a_password_in_another_encoding_is_said_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes("s3crét".encode("latin-1"))
    with pytest.raises(CannotRun, match="is not text in UTF-8") as caught:
        Broker("mqtt://broker", username="a", password_file=tmp_path / "password")
    assert "s3cr" not in "".join(format_exception(caught.value))
