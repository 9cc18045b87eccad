"""Triton's gRPC API and metrics page: what runs, how it is configured, and changing the configuration of one model.

One :class:`TritonClient` speaks to one tritonserver. A tick costs one ``ModelStatistics`` call for all models, one read of the metrics
page where there is one, and a ``ModelConfig`` call for each model whose counters restarted or whose configuration has not been read for
``config_max_age_s``. While a model is being reloaded Triton answers all of these for the old copy until the new one has taken over; one
whose load was not answered in time is therefore asked for its configuration at every tick, until it is what was asked for.

Models that nobody asked about are looked at in the same way: an ensemble refuses to go on with a member whose batches became smaller than
its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from zlib import crc32

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from igniterd.clients.triton_config import ModelConfig, allocation_of, config_to_dict
from igniterd.clients.triton_ensembles import Strangers
from igniterd.clients.triton_metrics import MetricsPage, ModelMetrics, ModelVersion
from igniterd.clients.triton_reading import Known, Served, by_model, known_of, reading
from igniterd.clients.triton_unsettled import Unsettled
from igniterd.engines.hosting import files_of
from igniterd.errors import CannotRun, NotNow, NotServed, Refused, Unanswered, Unreachable
from igniterd.records import Gap, ModelReading

_CONTROL_PROBE = "igniterd-asks-for-the-model-control-mode"
_NOT_EXPLICIT = "explicit model load / unload is not allowed"
_NOT_POLLED = "failed to poll from model repository"
_RESTRICTED = "protocol is restricted"
_COMING = ("LOADING", "READY")  # index and statistics are two calls: what is ready now may have been loading a moment ago
_NO_ANSWER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # Triton is beside us: http_proxy in somebody's shell is not meant for it
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),  # a restarted Triton is seen at the next tick or two
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]


class Control(StrEnum):
    """Triton's model control mode as far as it can be told from outside."""

    EXPLICIT = "explicit"
    NOT_EXPLICIT = "not explicit"  # none or poll: Triton refuses to load with another configuration
    RESTRICTED = "restricted"  # --grpc-restricted-protocol wants a header for the model repository API
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """``ready`` is false while startup models load; ``control_reason`` is Triton's own sentence where control is not explicit."""

    live: bool
    ready: bool
    version: str
    extensions: tuple[str, ...]
    control: Control
    control_reason: str = ""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One model of the repository; ``state`` is Triton's word (READY, UNAVAILABLE, LOADING, …), empty for one never loaded."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS; only ``root_certificates`` for a server certificate alone, all three for mutual TLS."""

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        try:
            parts = [
                None if path is None else path.read_bytes() for path in (self.root_certificates, self.private_key, self.certificate_chain)
            ]
        except OSError as error:
            raise CannotRun(f"TLS for Triton: {error}") from error
        return grpc.ssl_channel_credentials(*parts)


class TritonClient:
    """One tritonserver. Every method raises :class:`Unreachable` without an answer in time and :class:`Refused` on Triton's no."""

    def __init__(
        self,
        name: str,
        url: str,
        metrics_url: str | None = None,
        *,
        timeout_s: float = 0.3,
        reload_timeout_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
        tls: TlsFiles | None = None,
        config_max_age_s: float = 60.0,
        gpus: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` is ``host:port`` of the gRPC endpoint; `headers` go with every call (``--grpc-restricted-protocol``); `gpus`: of models
        that choose theirs themselves."""
        self.name = name
        self.url = url
        self.metrics_gap: Gap | None = None
        """Why the last :meth:`read_models` had no pending counts or quantiles, though a metrics page is configured."""
        self._timeout_s = timeout_s
        self._reload_timeout_s = reload_timeout_s
        self._metadata = tuple((key.lower(), value) for key, value in (headers or {}).items())
        self._tls = tls
        self._config_max_age_s = config_max_age_s
        self._gpus = gpus or {}
        self._clock = clock
        self._metrics = MetricsPage(metrics_url, timeout_s) if metrics_url else None
        self._known: dict[str, Known] = {}
        self._others = Strangers(config_max_age_s, self._age_s)
        self._unsettled = Unsettled()
        self._reloads: dict[str, int] = {}
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    async def server(self) -> ServerInfo:
        """Whether it is up, and whether it takes configurations. Changes nothing: the mode shows in the answer to unloading a model that
        does not exist."""
        live, ready, metadata = await asyncio.gather(
            self._call("ServerLive", service_pb2.ServerLiveRequest()),
            self._call("ServerReady", service_pb2.ServerReadyRequest()),
            self._call("ServerMetadata", service_pb2.ServerMetadataRequest()),
        )
        control, reason = await self._control()
        return ServerInfo(live.live, ready.ready, metadata.version, tuple(metadata.extensions), control, reason)

    async def _control(self) -> tuple[Control, str]:
        try:
            await self._call("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=_CONTROL_PROBE))
        except Unreachable as error:
            return Control.UNKNOWN, str(error)
        except Refused as error:
            if _NOT_EXPLICIT in str(error):
                return Control.NOT_EXPLICIT, str(error)
            if _RESTRICTED in str(error):
                return Control.RESTRICTED, str(error)
        return Control.EXPLICIT, ""

    async def refuses_loads(self) -> str:
        """Why configurations cannot be changed on this server, or an empty string. Changes nothing."""
        control, reason = await self._control()
        if control is Control.NOT_EXPLICIT:
            return f"model control is {control.value}; start tritonserver with --model-control-mode=explicit ({reason})"
        if control is Control.RESTRICTED:
            header = "it wants a header: [[triton]] header of the configuration, or --header of igniterd profile"
            return f"its model repository API is {control.value}; {header} ({reason})"
        return ""

    async def index(self) -> tuple[IndexEntry, ...]:
        """Every model of the repository, loaded or not."""
        answer = await self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest())
        return tuple(IndexEntry(entry.name, entry.version, entry.state, entry.reason) for entry in answer.models)

    async def config(self, model: str) -> ModelConfig:
        """The configuration that serves now, as Triton's ``/v2/models/M/config`` gives it.

        :class:`Refused` where it has fields that this tritonclient does not know: a reload with what is known would drop them.
        """
        message = await self._config_message(model)
        known = type(message)()
        known.CopyFrom(message)
        known.DiscardUnknownFields()
        if known.ByteSize() != message.ByteSize():
            unknown = "its configuration has fields that the installed tritonclient does not know, and a reload would drop them"
            raise Refused(f"{model}: {unknown}: install the tritonclient of Triton's version")
        return config_to_dict(message)

    async def load(self, model: str, config: ModelConfig, files: Mapping[str, bytes] | None = None) -> None:
        """Reload `model` with `config` in place of its file's. Returns when the new copy serves.

        `files` (path in the model's folder -> content) take the place of the whole folder; by default those that a hosted model must have.
        :class:`Refused` carries Triton's words and the old copy goes on serving. After :class:`Unanswered` Triton may still finish the
        load: until it has, or for as long again, readings of the model say that it is ``loading``.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        request.parameters["config"].string_param = json.dumps(config)
        for path, content in (files_of(config) if files is None else files).items():
            request.parameters[f"file:{path}"].bytes_param = content
        await self._load(model, request, config)

    async def load_own(self, model: str) -> None:
        """Load `model` as its own folder says, whatever was loaded in its place. Raises as :meth:`load`."""
        await self._load(model, service_pb2.RepositoryModelLoadRequest(model_name=model), {})

    async def unload(self, model: str) -> None:
        """Unload `model`. Returns when Triton has begun to."""
        await self._call("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=model))
        self._known.pop(model, None)

    async def statistics(self, model: str) -> Any:
        """Triton's ``ModelStatistics`` of one model, every version."""
        return await self._call("ModelStatistics", service_pb2.ModelStatisticsRequest(name=model))

    async def _load(self, model: str, request: Any, config: ModelConfig) -> None:
        self._unsettled.forget(model)
        try:
            await self._call("RepositoryModelLoad", request, timeout_s=self._reload_timeout_s)
        except Unanswered as error:
            self._unsettled.unanswered(model, allocation_of(config), self._clock(), self._reload_timeout_s)
            raise Unanswered(f"{error} ([[triton]] reload_timeout_s): it may finish loading {model} yet") from error
        finally:
            # A tick may have read the old configuration while the new copy was loading, or be reading it now.
            self._known.pop(model, None)
            self._reloads[model] = self._reloads.get(model, 0) + 1

    @property
    def strangers(self) -> frozenset[str]:
        """Models that were served at the last :meth:`read_models` though nobody asked about them."""
        return self._others.names

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]:
        """A reading for each of `names`, or why there is none. Raises :class:`Unreachable` when Triton does not answer at all.

        A metrics page that does not answer costs only its own readings: see :attr:`metrics_gap`.
        """
        wanted = tuple(names)
        statistics, metrics = await asyncio.gather(
            self._call("ModelStatistics", service_pb2.ModelStatisticsRequest()), self._read_metrics()
        )
        served = by_model(statistics.model_stats)
        failed, missing = dict[str, NotNow](), dict[str, NotNow]()
        now_s, absent = self._clock(), [name for name in wanted if name not in served]
        due = [name for name in wanted if name in served and self._stale(name, served[name], now_s)]
        others = self._others.due(served, wanted, now_s)
        if due or absent or others:
            failed, missing, _ = await asyncio.gather(
                self._refresh_configs(due), self._why_missing(absent), self._look_at_others(others, served)
            )
        lost = [name for name in wanted if name in served and name not in failed and name not in self._known]
        if lost:  # a load of theirs ended meanwhile
            failed |= await self._refresh_configs(lost)
        least = self._others.least_batches(self._known[name] for name in wanted if name in self._known)
        return {
            name: failed.get(name) or missing.get(name) or self._reading(name, served[name], metrics, least.get(name, 1)) for name in wanted
        }

    async def infer(self, request: bytes, *, timeout_s: float) -> bytes:
        """One ``ModelInferRequest``, serialised, answered; the answer is not looked at."""
        return bytes(await self._call("ModelInfer", request, timeout_s=timeout_s))

    async def register_memory(self, name: str, key: str, size: int) -> None:
        """Let Triton read inputs from the POSIX shared memory `key`; :class:`Refused` where it cannot see it (on another host)."""
        await self._call("SystemSharedMemoryRegister", service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=size))

    async def forget_memory(self, name: str) -> None:
        await self._call("SystemSharedMemoryUnregister", service_pb2.SystemSharedMemoryUnregisterRequest(name=name))

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        if self._metrics is not None:
            await self._metrics.close()

    # ------------------------------------------------------------ inside

    async def _config_message(self, model: str) -> Any:
        return (await self._call("ModelConfig", service_pb2.ModelConfigRequest(name=model))).config

    async def _read_metrics(self) -> dict[ModelVersion, ModelMetrics]:
        self.metrics_gap = None
        if self._metrics is None:
            return {}
        try:
            return await self._metrics.read()
        except NotNow as error:
            self.metrics_gap = Gap(f"metrics:{self.name}", str(error), self._clock())
            return {}

    async def _refresh_configs(self, due: list[str]) -> dict[str, NotNow]:
        """Read the configurations of ``due``. Returns what could not be read, and why."""
        now_s = self._clock()
        reloads, raced = dict(self._reloads), list[str]()
        answers = await asyncio.gather(*(self._config_message(name) for name in due), return_exceptions=True)
        failed: dict[str, NotNow] = {}
        for name, answer in zip(due, answers, strict=True):
            if isinstance(answer, NotNow):
                self._known.pop(name, None)  # what is applied is not known, so nothing is said of the model
                failed[name] = answer
            elif isinstance(answer, BaseException):
                raise answer
            elif self._reloads.get(name) == reloads.get(name):
                self._know(name, answer, now_s)
            else:  # reloaded while its configuration was read: the answer may be the old copy's
                raced.append(name)
        return failed | await self._refresh_configs(raced) if raced else failed

    def _know(self, name: str, message: Any, now_s: float) -> None:
        before = self._known.get(name)
        if before is not None and before.message == message:
            before.read_at_s = now_s
            return
        # Models first read together must not all be read together ever after: the first reading is given an age of its own.
        age_s = 0.0 if before is not None else self._age_s(name)
        self._known[name] = known_of(message, now_s - age_s, self._gpus.get(name))

    def _age_s(self, name: str) -> float:
        return self._config_max_age_s * (crc32(name.encode()) % 97) / 97.0

    def _stale(self, name: str, served: Served, now_s: float) -> bool:
        before = self._known.get(name)
        return (
            before is None
            or name in self._unsettled
            or served.executed < before.success
            or served.versions != before.versions
            or now_s - before.read_at_s >= self._config_max_age_s
        )

    async def _look_at_others(self, due: list[str], served: Mapping[str, Served]) -> None:
        """Read the configurations of models that nobody asked about. One that cannot be read is no fault."""
        now_s = self._clock()
        answers = await asyncio.gather(*(self._config_message(name) for name in due), return_exceptions=True)
        for name, answer in zip(due, answers, strict=True):
            if isinstance(answer, NotNow):
                continue
            if isinstance(answer, BaseException):
                raise answer
            self._others.learn(name, answer, served[name], now_s)

    async def _why_missing(self, names: list[str]) -> dict[str, NotNow]:
        """Why there are no statistics of `names`, asked of the repository only when there is one to ask for."""
        if not names:
            return {}
        entries = {entry.name: entry for entry in await self.index()}
        return {name: _not_served(name, entries.get(name), self.name) for name in names}

    def _reading(self, name: str, served: Served, metrics: Mapping[ModelVersion, ModelMetrics], least_batch: int) -> ModelReading:
        known = self._known[name]
        loading = self._unsettled.loading(name, known.allocation, len(served.all), self._clock())
        return reading(self.name, served, known, metrics, least_batch=least_batch, loading=loading)

    async def _call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Any:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return await getattr(self._connected(), method)(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            meaning = _meaning(error, f"Triton {self.name!r} at {self.url}", timeout_s)
            if isinstance(meaning, Unreachable) and not isinstance(meaning, Unanswered):
                self._unsettled.forget_all()
            raise meaning from error

    def _connected(self) -> Any:
        if self._channel is None:
            if self._tls is None:
                self._channel = grpc.aio.insecure_channel(self.url, options=_CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(self.url, self._tls.credentials(), options=_CHANNEL_OPTIONS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            # Bytes go out and come back as they are: building and parsing messages of tensors would cost more than all the rest.
            self._stub.ModelInfer = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return self._stub


def _not_served(name: str, entry: IndexEntry | None, triton: str) -> NotNow:
    if entry is None:
        return Refused(
            f"model {name!r} is not in the repository of Triton {triton!r}: check [[model]] name and triton in the configuration"
        )
    state = entry.state or "not loaded"
    said = f"model {name!r} is {state} on Triton {triton!r}" + (f": {entry.reason.splitlines()[0]}" if entry.reason else "")
    return Refused(said) if state in _COMING else NotServed(said)


def _meaning(error: grpc.aio.AioRpcError, server: str, timeout_s: float) -> NotNow:
    """gRPC status -> own error. Triton's own UNAVAILABLE is told from a connection's by its words: gRPC has one code for both."""
    details = error.details() or error.code().name
    if error.code() in _NO_ANSWER and _NOT_EXPLICIT not in details and _RESTRICTED not in details:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unanswered(f"{server}: no answer in {timeout_s:g} s")
        return Unreachable(f"{server}: {details}")
    if _NOT_POLLED in details:
        details = f"{details}: the configuration or the model's folder is not as Triton wants it; only Triton's log says why"
    return Refused(details.strip())
