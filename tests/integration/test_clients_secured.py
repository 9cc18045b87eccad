"""TLS, passwords and restricted protocols, against the real servers."""

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from igniterd.clients.mqtt import MqttPublisher
from igniterd.clients.mqtt_broker import Broker
from igniterd.clients.triton.channel import TlsFiles
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.info import Control
from igniterd.errors import Unreachable
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import free_ports, listens, running
from tests.waiting import until

pytestmark = pytest.mark.integration


class Papers:
    """An authority, a server's certificate and a client's, as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        server, client = (
            authority.issue_cert("localhost", "127.0.0.1"),
            authority.issue_cert("igniterd@example.org"),
        )
        self.ca, self.stranger = folder / "ca.pem", folder / "stranger.pem"
        authority.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.stranger)
        self.server_cert, self.server_key = folder / "server.pem", folder / "server.key"
        self.client_cert, self.client_key = folder / "client.pem", folder / "client.key"
        for issued, cert, key in (
            (server, self.server_cert, self.server_key),
            (client, self.client_cert, self.client_key),
        ):
            issued.cert_chain_pems[0].write_to_path(cert)
            issued.private_key_pem.write_to_path(key)


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


# ---------------------------------------------------------------- MQTT


def hashed(user: str, password: str) -> str:
    """A line of mosquitto's password file: PBKDF2 with SHA-512."""
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"{user}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


@asynccontextmanager
async def strict_broker(folder: Path, papers: Papers) -> AsyncIterator[str]:
    """mosquitto that wants TLS with a client certificate, and a password."""
    broker = programs.required(programs.mosquitto(), "mosquitto")
    (port,) = free_ports(1)
    (folder / "passwords").write_text(hashed("gpu-a", "right"))
    (folder / "passwords").chmod(0o600)
    lines = [
        f"listener {port} 127.0.0.1",
        f"cafile {papers.ca}",
        f"certfile {papers.server_cert}",
        f"keyfile {papers.server_key}",
        "require_certificate true",
        "allow_anonymous false",
        f"password_file {folder / 'passwords'}",
        *(["user root"] if os.geteuid() == 0 else []),
    ]
    config = folder / "mosquitto.conf"
    config.write_text("\n".join(lines) + "\n")
    environment = os.environ | broker.environment()
    async with running(
        "mosquitto",
        [str(broker.path), "-c", str(config)],
        log=folder / "broker.log",
        env=environment,
    ) as program:
        await program.until(lambda: listens(port), timeout_s=20)
        yield f"mqtts://127.0.0.1:{port}"


async def connects(publisher: MqttPublisher) -> bool:
    """Whether it came to a connection (True) or to a failure (False)."""
    await publisher.start()
    try:
        await until(lambda: publisher.statistics.published or publisher.statistics.failures)
        return publisher.statistics.published > 0
    finally:
        await publisher.close()


async def test_mqtt_with_certificates_and_a_password(tmp_path: Path, papers: Papers) -> None:
    secret = tmp_path / "password"

    def publisher(url: str, *, ca: Path = papers.ca, known: bool = True) -> MqttPublisher:
        broker = Broker(
            url,
            username="gpu-a",
            password_file=secret,
            ca_file=ca,
            cert_file=papers.client_cert if known else None,
            key_file=papers.client_key if known else None,
        )
        return MqttPublisher(broker, cluster="lab", host="gpu-a")

    async with strict_broker(tmp_path, papers) as url:
        secret.write_text("right\n")
        assert await connects(publisher(url))
        assert not await connects(publisher(url, known=False))
        assert not await connects(publisher(url, ca=papers.stranger))
        with capture_logs() as logs:
            secret.write_text("wrong\n")
            assert not await connects(publisher(url))
        (told,) = [entry for entry in logs if entry.get("source") == "mqtt"]
        assert "Not authorized" in told["reason"]
        assert "wrong" not in str(told), "a password is never logged"


# ---------------------------------------------------------------- Triton


class StrictHost(TritonHost):
    """tritonserver with more on its command line; asked for readiness over plain HTTP all the
    same."""

    more: tuple[str, ...] = ()

    def _command(self) -> list[str]:
        return [*super()._command(), *self.more]


@asynccontextmanager
async def strict_triton(folder: Path, *more: str) -> AsyncIterator[TritonHost]:
    host = StrictHost(HostSpec((EmulatedModel("alexnet"),)), folder, free_ports(3))
    host.more = more
    host.prepare()
    try:
        await host.start()
        yield host
    finally:
        await host.stop()


async def test_triton_with_certificates_on_both_sides(tmp_path: Path, papers: Papers) -> None:
    ssl = ("--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1", f"--grpc-root-cert={papers.ca}")
    ssl += (f"--grpc-server-cert={papers.server_cert}", f"--grpc-server-key={papers.server_key}")
    async with strict_triton(tmp_path / "triton", *ssl) as host:
        url = f"localhost:{host.grpc_port}"
        for tls, welcome in (
            (TlsFiles(papers.ca, papers.client_key, papers.client_cert), True),
            (TlsFiles(papers.stranger, papers.client_key, papers.client_cert), False),
            (None, False),
        ):
            client = TritonClient("main", url, timeout_s=5, tls=tls)
            if welcome:
                assert (await client.server()).ready
            else:
                with pytest.raises(Unreachable):
                    await client.server()
            await client.close()


async def test_a_restricted_protocol_wants_its_header(tmp_path: Path) -> None:
    async with strict_triton(
        tmp_path / "triton", "--grpc-restricted-protocol=model-repository:admin-key=s3cret"
    ) as host:
        stranger = TritonClient("main", host.url, timeout_s=5)
        info = await stranger.server()
        assert info.control is Control.RESTRICTED
        assert "admin-key" in info.control_reason
        await stranger.close()
        friend = TritonClient(
            "main", host.url, timeout_s=5, headers={"triton-grpc-protocol-admin-key": "s3cret"}
        )
        assert (await friend.server()).control is Control.EXPLICIT
        await friend.close()
