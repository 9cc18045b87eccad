"""How a broker is reached and who asks: one connection after another, each with what its files say
then."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiomqtt

from igniterd.clients.mqtt_client import BrokerClient, Message, will_properties
from igniterd.clients.tls import client_context
from igniterd.config_sections import Mqtt
from igniterd.errors import CannotRun

_MOST_PASSWORD = 65_535  # bytes: MQTT's own limit
_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker at `url`, ``mqtt://host[:port]`` or ``mqtts://host[:port]``.

    The PEM files count for ``mqtts``; without `ca_file` the system's authorities are trusted.
    `timeout_s` is the deadline of every answer. Raises :class:`CannotRun` for files that cannot be
    read: that is said at the start, not at the first reconnect.
    """

    url: str
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    timeout_s: float = 5.0
    keepalive_s: int = 15

    def __post_init__(self) -> None:
        self._tls_context()
        self._password()

    def __str__(self) -> str:
        """Its address, as ``host:port``."""
        host, port = self._address
        return f"{host}:{port}"

    def client(self, identifier: str, will: Message | None = None) -> BrokerClient:
        """A connection, not opened yet. `will` is what the broker says when it is lost.

        Certificates and password are read anew, so that changed ones need no restart. Raises
        :class:`CannotRun` for those that cannot be read.
        """
        host, port = self._address
        return BrokerClient(
            host,
            port,
            username=self.username,
            password=self._password(),
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            keepalive=self.keepalive_s,
            timeout=self.timeout_s,
            tls_context=self._tls_context(),
            will=None
            if will is None
            else aiomqtt.Will(will.topic, will.payload, will.qos, will.retain, will_properties()),
        )

    @property
    def _address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or _PORTS[parts.scheme]

    def _tls_context(self) -> ssl.SSLContext | None:
        if urlsplit(self.url).scheme != "mqtts":
            return None
        return client_context("the MQTT broker", self.ca_file, self.cert_file, self.key_file)

    def _password(self) -> str | None:
        file = self.password_file
        if file is None:
            return None
        try:
            if file.exists() and not file.is_file():  # a pipe would be waited for
                raise CannotRun(f"the broker's password_file: {file} should be a file")
            password = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CannotRun(f"the broker's password_file: {error}") from error
        except UnicodeDecodeError:  # whose text has the password in it
            raise CannotRun(f"the broker's password_file: {file} is not text in UTF-8") from None
        if (size := len(password.encode())) > _MOST_PASSWORD:
            raise CannotRun(
                f"the broker's password_file: {file} has {size} bytes; a password has at most "
                f"{_MOST_PASSWORD}"
            )
        return password


def broker_of(section: Mqtt) -> Broker:
    """The broker of a section of a configuration. Raises :class:`CannotRun` for files that cannot
    be read."""
    return Broker(
        section.url,
        username=section.username,
        password_file=section.password_file,
        ca_file=section.ca_file,
        cert_file=section.cert_file,
        key_file=section.key_file,
    )
