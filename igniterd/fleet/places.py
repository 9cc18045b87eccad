"""Where the Tritons of a cluster are, and how their routes are changed: ``[[triton]]`` and
``[route]`` of the fleet's file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from string import Formatter
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from igniterd.clients.environments import DEFAULT_SHARES
from igniterd.clients.tls import client_context
from igniterd.clients.triton.channel import TlsFiles
from igniterd.clients.triton.client import TritonClient
from igniterd.config import anchored, checked, parsed, text_of
from igniterd.config_sections import Name, Seconds, Section, Triton
from igniterd.fleet.sections import ClusterName, Fleet, FleetBroker, FleetMetrics

ROUTE_WORDS = (
    "action",
    "model",
    "served_as",
    "weight",
    "from_host",
    "from_triton",
    "from_url",
    "to_host",
    "to_triton",
    "to_url",
)
"""What may stand in braces in ``[route] command``."""
_TLS = ("ca_file", "cert_file", "key_file")


class FleetTriton(Triton):
    """One Triton of a host of the cluster, as this machine reaches it."""

    host: Name
    """The host's name, as its daemon says it."""
    url: str
    """gRPC address, host:port."""
    metrics_url: str | None = None
    """Prometheus endpoint: with it pending requests are known before a model is unloaded."""
    reload_timeout_s: Seconds = 180.0
    """Longest wait for one load."""
    shares: Path | None = None
    """The folder of share environments there, as Triton sees it. Without it a model is loaded
    without a share, and the host's own daemon gives it one."""

    @field_validator("shares")
    @classmethod
    def _plain(cls, value: Path | None) -> Path | None:
        # Triton gives it to a shell unquoted
        if value is not None and not re.fullmatch(r"/[A-Za-z0-9._/+-]*", str(value)):
            raise ValueError(
                "should be a path from the root with only letters, digits and . _ / + - in it"
            )
        return value

    @property
    def key(self) -> tuple[str, str]:
        return self.host, self.name


class Route(Section):
    """How the traffic of a model is sent elsewhere."""

    command: Annotated[list[str], Field(min_length=1)]
    """A program and its arguments, run without a shell. In braces: action (``move``, ``replicate``,
    or ``back``, which takes back either), model, served_as, weight, from_host, from_triton,
    from_url, to_host, to_triton, to_url. Exit status 0: it is done."""
    timeout_s: Seconds = 60.0
    """Longest wait for it."""

    @field_validator("command")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for part in value:
            try:
                found = [name for _, name, _, _ in Formatter().parse(part) if name is not None]
            except ValueError as error:
                raise ValueError(f"{part!r}: {error}") from None
            if wrong := [name for name in found if name not in ROUTE_WORDS]:
                raise ValueError(
                    f"{{{wrong[0]}}} means nothing here; known are {', '.join(ROUTE_WORDS)}"
                )
        return value


class Clusters(Fleet):
    """Which clusters the file is about; it may leave that to ``--cluster``."""

    clusters: list[ClusterName] = Field(default_factory=list)


class Places(Section):
    """The fleet's file, for who carries a rebalance out: without a cluster, or a broker, too."""

    triton: list[FleetTriton] = Field(default_factory=list)
    route: Route | None = None
    broker: FleetBroker | None = None
    fleet: Clusters = Field(default_factory=Clusters)
    metrics: FleetMetrics = Field(default_factory=FleetMetrics)

    @model_validator(mode="after")
    def _once(self) -> Places:
        keys = [each.key for each in self.triton]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            host, name = twice[0]
            raise ValueError(f"triton host {host!r} name {name!r} is given twice")
        return self

    def of(self, host: str, name: str) -> FleetTriton | None:
        """The Triton of that name on that host, where its address is given."""
        return next((each for each in self.triton if each.key == (host, name)), None)

    def missing(self, wanted: Iterable[tuple[str, str]]) -> list[str]:
        """A sentence for each of ``wanted`` (host, Triton) whose address is not given."""
        return [
            f"the address of Triton {name!r} on {host} is not given: [[triton]] host = "
            f'"{host}" name = "{name}" url = "…:8001"'
            for host, name in sorted(set(wanted))
            if self.of(host, name) is None
        ]


def read_places(path: Path) -> Places:
    """The tables of the fleet's file. Raises :class:`ConfigError` naming every problem."""
    found = checked(Places, parsed(text_of(path), str(path)), str(path))
    folder = path.resolve().parent
    tritons = [anchored(each, folder, *_TLS) for each in found.triton]
    broker = found.broker and anchored(found.broker, folder, *_TLS, "password_file")
    return found.model_copy(update={"triton": tritons, "broker": broker})


def client_of(server: FleetTriton, timeout_s: float) -> TritonClient:
    """A client of the server. Raises :class:`CannotRun` for TLS files that cannot be read."""
    whose = f"Triton {server.name!r} on {server.host}"
    tls = None
    if server.ca_file is not None:
        client_context(whose, server.ca_file, server.cert_file, server.key_file)
        tls = TlsFiles(server.ca_file, server.key_file, server.cert_file)
    return TritonClient(
        f"{server.host}/{server.name}",
        server.url,
        server.metrics_url,
        http_url=server.http_url,
        timeout_s=timeout_s,
        reload_timeout_s=server.reload_timeout_s,
        headers=server.header,
        tls=tls,
        shares_dir=str(server.shares or DEFAULT_SHARES),
    )
