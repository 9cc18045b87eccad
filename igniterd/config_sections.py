"""The sections of the configuration: keys, defaults, and what each may be."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from igniterd.addresses import check_url, is_header
from igniterd.messages.topics import PROFILE

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
BackendName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-z][a-z0-9_]*$")]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]

UUID = re.compile(r"(GPU|MIG)-[A-Za-z0-9][A-Za-z0-9/-]*")
"""Of a GPU or a MIG instance, as ``nvidia-smi -L`` shows it."""


class Section(BaseModel):
    """A table of the file: frozen, no unknown keys, no figure that is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Host(Section):
    """Who this host is."""

    name: Name = Field(default_factory=lambda: socket.gethostname().split(".")[0] or "host")
    """This host, as it appears in topics and metrics. By default the host's own name, up to the
    first dot."""
    cluster: Name = "default"
    """The cluster, as it appears in topics."""

    @model_validator(mode="after")
    def _has_its_topics(self) -> Host:
        if self.name == PROFILE:
            raise ValueError(
                f"name {self.name!r} stands for profiles in topics: give this host another name"
            )
        return self


class Triton(Section):
    """One Triton of this host. Repeat the section for each; without it there is one, ``main``."""

    name: Name = "main"
    """What the models' ``triton`` refers to."""
    url: str = "127.0.0.1:8001"
    """gRPC address, host:port."""
    metrics_url: str | None = "http://127.0.0.1:8002/metrics"
    """Prometheus endpoint: measured percentiles (``--metrics-config summary_latencies=true``) and
    pending requests. Empty: do without."""
    http_url: str | None = None
    """HTTP endpoint, such as http://127.0.0.1:8000. Only asked for a configuration with fields
    newer than the installed tritonclient."""
    header: dict[str, str] = Field(default_factory=dict)
    """Sent with every call, for servers started with ``--grpc-restricted-protocol``."""
    ca_file: Path | None = None
    """Certificates (PEM) that the server's must be signed by; with it the connection is TLS."""
    cert_file: Path | None = None
    """Certificate (PEM) of igniterd itself, where the server asks for one; with ``key_file``."""
    key_file: Path | None = None
    """Key (PEM) of ``cert_file``."""
    reload_timeout_s: Seconds = 60.0
    """Longest wait for one model to reload."""
    python: Path | None = None
    """The server's ``python3`` as Triton sees it, where it is not at the place it was built for (a
    copied tree, uv)."""
    shim_backend: BackendName | None = None
    """Name of igniterd's shim backend (``igniterd shares --install-backend``), for models with an
    archive or ``$$`` path as environment."""
    repository: list[str] = Field(default_factory=list)
    """Folders of models as this server sees them, for models in a process of their own; empty: read
    from its command line."""
    gpus: list[str] = Field(default_factory=list)
    """UUIDs of the GPUs this server sees (``nvidia-smi -L``), the one it calls 0 first; empty:
    found out, which ``igniterd check --live`` shows."""

    @field_validator("gpus")
    @classmethod
    def _uuids(cls, value: list[str]) -> list[str]:
        if wrong := [uuid for uuid in value if not UUID.fullmatch(uuid)]:
            raise ValueError(
                f"{', '.join(map(repr, wrong))}: should be UUIDs as nvidia-smi -L shows them, "
                "GPU-… or MIG-…"
            )
        if twice := sorted({uuid for uuid in value if value.count(uuid) > 1}):
            raise ValueError(
                f"{', '.join(twice)}: given twice; a server has one number for each of its GPUs"
            )
        return value

    @field_validator("repository")
    @classmethod
    def _folders(cls, value: list[str]) -> list[str]:
        if wrong := [
            folder for folder in value if not folder.startswith("/") or not folder.isprintable()
        ]:
            raise ValueError(
                f"{', '.join(map(repr, wrong))}: should be paths from the root, as the server "
                "sees them, such as /models"
            )
        return value

    @field_validator("python")
    @classmethod
    def _whole_path(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(
                "should be the whole path of a python3 as Triton sees it, such as "
                "/opt/python/bin/python3"
            )
        return value

    @field_validator("metrics_url", "http_url")
    @classmethod
    def _page(cls, value: str | None) -> str | None:
        if not value:
            return None
        check_url(value, "http", "https")
        return value

    @field_validator("header")
    @classmethod
    def _sendable(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name, text in value.items() if not is_header(name, text)]:
            raise ValueError(
                # a whole line as name may have the secret in it
                f"{', '.join(repr(re.split('[^A-Za-z0-9._-]', name)[0]) for name in wrong)}: "
                "a name has letters, digits and - _ . only, its text no line break and plain "
                "letters"
            )
        return value

    @field_validator("url")
    @classmethod
    def _host_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or "@" in host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(
                "should be host:port of Triton's gRPC endpoint, such as 127.0.0.1:8001"
            )
        return value

    @property
    def port(self) -> int:
        """Of the gRPC endpoint."""
        return int(self.url.rpartition(":")[2])

    @model_validator(mode="after")
    def _whole(self) -> Triton:
        if (self.cert_file or self.key_file) and not (
            self.ca_file and self.cert_file and self.key_file
        ):
            raise ValueError(
                "cert_file and key_file go together, and want a ca_file: without it the "
                "connection would not be encrypted"
            )
        return self


class Gpu(Section):
    """Where the boards' counters come from."""

    source: str = "nvml"
    """``nvml``; ``none`` for a host whose counters cannot be read; ``emulated:FILE`` for an
    emulated board."""

    @field_validator("source")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("nvml", "none") and not value.startswith("emulated:"):
            raise ValueError("should be nvml, none or emulated:FILE")
        return value


class Mps(Section):
    """MPS control, and when a share counts."""

    enabled: bool = True
    """Whether this host shares its GPUs through MPS. Without it shares have no effect, and igniterd
    steers batching only."""
    control: str = "nvidia-cuda-mps-control"
    """The control program: a name on ``PATH``, or a path."""
    pipe_directory: Path = Path("/tmp/nvidia-mps")  # noqa: S108 - NVIDIA's default
    """``CUDA_MPS_PIPE_DIRECTORY`` of the control daemon."""
    interval_s: Seconds = 30.0
    """How often its answers are read: each read starts a process."""
    prove_within_s: Seconds = 30.0
    """A share that nothing shows to have an effect for so long is planned as if there was none."""


class Loop(Section):
    """The pace of ticks, and what the daemon may do."""

    interval_s: Seconds = 1.0
    """Seconds from the start of one tick to the start of the next."""
    mode: Literal["observe", "advise", "act"] = "act"
    """``observe``: read. ``advise``: also decide and say. ``act``: also change models."""
    io_timeout_s: Seconds = 0.4
    """Longest wait for one answer; a tick makes two rounds of calls at most."""

    @model_validator(mode="after")
    def _fits(self) -> Loop:
        if 2 * self.io_timeout_s >= self.interval_s:
            raise ValueError(
                f"2 * io_timeout_s ({2 * self.io_timeout_s:g}) must be below interval_s "
                f"({self.interval_s:g})"
            )
        return self


class Decide(Section):
    """When a change is worth its cost."""

    level: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Confidence level of the service times that plans are made with."""
    rate_level: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    """Quantile of the near-future arrival rate that plans are made for."""
    slo_margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Plans aim at (1 - slo_margin) times the SLO: the tail estimate's own error (10 %) and the
    host's noise."""
    dead_band: Annotated[float, Field(ge=0, le=1)] = 0.15
    """A move that mends no violation must raise the rate headroom by this fraction."""
    warmup_s: Seconds = 8.0
    """Traffic seen before the first decision."""
    urgent_hold_s: Seconds = 4.0
    """Least time between the end of one move and a next one that mends a violation."""
    hold_s: Seconds = 60.0
    """Least time between moves that only improve headroom."""
    watch_s: Seconds = 12.0
    """A move is judged by what is measured this long after it."""
    respect_s: Seconds = 600.0
    """What somebody else has changed is left as it is for so long."""
    max_reloads_per_hour: Annotated[int, Field(ge=1, le=3600)] = 120
    """A plan that would need more is not begun. What gives a host its first shares, two
    reloads a model, is not counted once an hour."""
    moves: bool = True
    """Whether models may be moved between the GPUs of a Triton where one GPU cannot hold its
    SLOs."""
    consolidate: bool = False
    """Whether to empty a GPU when its models fit on the others."""

    @model_validator(mode="after")
    def _ordered(self) -> Decide:
        if self.urgent_hold_s > self.hold_s:
            raise ValueError(
                f"urgent_hold_s ({self.urgent_hold_s:g}) must not be above hold_s ({self.hold_s:g})"
            )
        return self


class Metrics(Section):
    """The admin address."""

    listen: str = "127.0.0.1:9409"
    """Address of /metrics, /state, /livez, /readyz and the status page."""
    hosts: list[Name] = Field(default_factory=list)
    """Names this host is reached by, beside addresses, localhost and its own name. Requests under
    other names are refused."""

    @field_validator("listen")
    @classmethod
    def _host_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("should be host:port, such as 127.0.0.1:9409")
        return value

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Mqtt(Section):
    """The broker that hints go to. Without the section there are none."""

    url: str
    """Address of the broker, such as mqtts://broker:8883; ``mqtt`` or ``mqtts``."""
    username: str | None = None
    """User, where the broker asks for one; with ``password_file``."""
    password_file: Path | None = None
    """File with the password."""
    ca_file: Path | None = None
    """Certificates (PEM) that the broker's must be signed by."""
    cert_file: Path | None = None
    """Certificate (PEM) of igniterd itself, where the broker asks for one; with ``key_file``."""
    key_file: Path | None = None
    """Key (PEM) of ``cert_file``."""

    @field_validator("url")
    @classmethod
    def _scheme(cls, value: str) -> str:
        check_url(value, "mqtt", "mqtts")
        parts = urlsplit(value)
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "should have no user and password in it: username and password_file have keys of "
                "their own"
            )
        return value

    @model_validator(mode="after")
    def _whole(self) -> Mqtt:
        if (self.username is None) != (self.password_file is None):
            raise ValueError(
                "username and password_file go together: give both, or neither for a broker that "
                "asks for none"
            )
        return self


class State(Section):
    """Files on disk."""

    directory: Path = Path("/var/lib/igniterd")
    """History, what is learnt, and the environments of shares where ``shares`` is unset."""
    shares: Path | None = None
    """The environments of shares; unset: ``<directory>/shares``. Triton must see them under the
    same path. A folder that igniterd may not write is filled by ``igniterd shares --install``."""
    history_mb: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Largest size of ``history.db``, MB. Beyond it the oldest rows go first."""

    @field_validator("directory", "shares")
    @classmethod
    def _plain(cls, value: Path | None) -> Path | None:
        # Triton sources <shares>/.../bin/activate in a shell, unquoted: a space there would hang
        # the load for ever
        if value is not None and not re.fullmatch(r"[A-Za-z0-9._/+-]+", str(value)):
            raise ValueError(
                "should have only letters, digits and . _ / + - in its path: Triton gives it to "
                "a shell unquoted"
            )
        return value


class Engines(Section):
    """Models in a process of their own that their backend does not give them."""

    environment: str = ""
    """Python environment that has onnxruntime, torch or tensorrt, as Triton sees it; empty: the
    server's own Python."""

    @field_validator("environment")
    @classmethod
    def _plain(cls, value: str) -> str:
        # up to 25.07 Triton sources <environment>/bin/activate in a shell, unquoted
        if value and not re.fullmatch(r"/[A-Za-z0-9._/+-]*", value):
            raise ValueError(
                "should be a path from the root with only letters, digits and . _ / + - in it"
            )
        return value
