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
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from zlib import crc32

from tritonclient.grpc import service_pb2

from igniterd.clients.environments import DEFAULT_SHARES, PLAIN, Own, Reach
from igniterd.clients.looks import Looks
from igniterd.clients.triton_channel import NOT_EXPLICIT, RESTRICTED, TlsFiles, TritonChannel
from igniterd.clients.triton_config import ModelConfig, allocation_of, marked
from igniterd.clients.triton_ensembles import Strangers
from igniterd.clients.triton_http import TritonHttp
from igniterd.clients.triton_info import Control, IndexEntry, ServerInfo
from igniterd.clients.triton_json import config_to_dict, unknown_fields
from igniterd.clients.triton_metrics import MetricsPage, ModelMetrics, ModelVersion
from igniterd.clients.triton_reading import Known, Served, by_model, known_of, reading
from igniterd.clients.triton_release import too_old
from igniterd.clients.triton_unsettled import Unsettled
from igniterd.engines.hosting import files_of
from igniterd.errors import NotNow, NotServed, Refused, Unanswered, Unreachable
from igniterd.records import Allocation, Gap, ModelReading

_CONTROL_PROBE = "igniterd-asks-for-the-model-control-mode"
_HOMELESS = "it is in no model repository: it was loaded with files that only whoever loaded it has, and any other load of it fails"
_COMING = ("LOADING", "READY")  # index and statistics are two calls: what is ready now may have been loading a moment ago


class TritonClient:
    """One tritonserver. Every method raises :class:`Unreachable` without an answer in time and :class:`Refused` on Triton's no."""

    def __init__(
        self,
        name: str,
        url: str,
        metrics_url: str | None = None,
        *,
        http_url: str | None = None,
        timeout_s: float = 0.3,
        reload_timeout_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
        tls: TlsFiles | None = None,
        config_max_age_s: float = 60.0,
        gpus: Mapping[str, int] | None = None,
        shares_dir: str = DEFAULT_SHARES,
        reach: Reach = PLAIN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` is ``host:port`` of the gRPC endpoint; `http_url` is asked only for what gRPC cannot tell; `headers` go with every call
        (``--grpc-restricted-protocol``); `gpus`: of models that choose theirs themselves; `shares_dir`: the folder of shares, under the
        path at which Triton sees it."""
        self.name = name
        self.url = url
        self.metrics_gap: Gap | None = None
        """Why the last :meth:`read_models` had no pending counts or quantiles, though a metrics page is configured."""
        self._timeout_s = timeout_s
        self._reload_timeout_s = reload_timeout_s
        self._config_max_age_s = config_max_age_s
        self._gpus = gpus or {}
        self._shares_dir = shares_dir
        self.reach = reach
        """How shares reach its models, beside the folder of shares."""
        self._looks = Looks(shares_dir, timeout_s)
        self._clock = clock
        self._metrics = MetricsPage(metrics_url, timeout_s) if metrics_url else None
        self._known: dict[str, Known] = {}
        self._others = Strangers(config_max_age_s, self._age_s)
        self._unsettled = Unsettled()
        self._reloads: dict[str, int] = {}
        self._homes: dict[str, bool] = {}  # whether each model was found in a repository
        self._asked: dict[str, tuple[str, Allocation | None]] = {}  # what the last load of each model was to bring, and its mark
        # A server that is gone finishes nothing.
        self._channel = TritonChannel(name, url, headers or {}, tls, self._unsettled.forget_all)
        self._http = TritonHttp(http_url, timeout_s, headers or {}, tls) if http_url else None

    async def server(self) -> ServerInfo:
        """Whether it is up, and whether it takes configurations. Changes nothing: the mode shows in the answer to unloading a model that
        does not exist."""
        live, ready, metadata = await asyncio.gather(
            self._call("ServerLive", service_pb2.ServerLiveRequest()),
            self._call("ServerReady", service_pb2.ServerReadyRequest()),
            self._call("ServerMetadata", service_pb2.ServerMetadataRequest()),
        )
        control, reason = await self._control()
        version = metadata.version
        return ServerInfo(live.live, ready.ready, version, tuple(metadata.extensions), control, reason, too_old(version))

    async def _control(self) -> tuple[Control, str]:
        try:
            await self._call("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=_CONTROL_PROBE))
        except Unreachable as error:
            return Control.UNKNOWN, str(error)
        except Refused as error:
            if NOT_EXPLICIT in str(error):
                return Control.NOT_EXPLICIT, str(error)
            if RESTRICTED in str(error):
                return Control.RESTRICTED, str(error)
        return Control.EXPLICIT, ""

    async def refuses_loads(self) -> str:
        """Why configurations cannot be changed on this server, or an empty string. Changes nothing."""
        with contextlib.suppress(NotNow):  # a server may restrict this call too; what cannot be known is not in the way
            metadata = await self._call("ServerMetadata", service_pb2.ServerMetadataRequest())
            if old := too_old(metadata.version):
                return old
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
        """What is set of the configuration that serves now.

        One with fields that this tritonclient does not know is read from `http_url`, where they have names. :class:`Refused` without
        one: a reload with what is known would drop them.
        """
        message = await self._config_message(model)
        unknown = unknown_fields(message)
        if not unknown:
            return config_to_dict(message)
        if self._http is None:
            raise Refused(f"{model}: {_cannot_be_kept(unknown)}")
        return await self._http.config(model)

    async def load(self, model: str, config: ModelConfig | None, files: Mapping[str, bytes] | None = None, *, exact: bool = False) -> None:
        """Reload `model` with `config` in place of its file's. Returns when the new copy serves.

        `files`, named as in the model's folder (``1/model.py``), stand in for the whole folder, by default those that a hosted model
        must have; a later load without them has the repository's folder again. The parameter IGNITERD_LOAD is added, so that Triton
        sees a change in any case; `exact` sends `config` as it is, and then one that Triton has already is answered and not loaded.
        Without `config` Triton is asked for the repository's own, which it may also take for no change (24.10 after a load with
        another configuration).

        :class:`Refused` carries Triton's words and the old copy goes on serving. After :class:`Unanswered` Triton may still finish the
        load: until it has, or for as long again, readings of the model say that it is ``loading``.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        wanted: Allocation | None = None
        if config is not None:
            mark = secrets.token_hex(4)
            sent = config if exact else marked(config, mark)
            request.parameters["config"].string_param = json.dumps(sent)
            wanted = self._wanted(config)
            self._asked[model] = (mark, wanted)
            files = files_of(config) if files is None else files
        elif files:
            raise ValueError("Triton takes files only with a configuration")
        for name, content in (files or {}).items():
            request.parameters[f"file:{name}"].bytes_param = content
        self._unsettled.forget(model)
        try:
            await self._call("RepositoryModelLoad", request, timeout_s=self._reload_timeout_s)
        except Unanswered as error:
            self._unsettled.unanswered(model, wanted, self._clock(), self._reload_timeout_s)
            raise Unanswered(f"{error} ([[triton]] reload_timeout_s): it may finish loading {model} yet") from error
        finally:
            self._changed(model)

    def _wanted(self, config: ModelConfig) -> Allocation | None:
        """What a load is to bring; ``None`` of a configuration that only Triton can refuse."""
        try:
            return allocation_of(config, self._shares_dir)
        except (TypeError, ValueError, AttributeError):
            return None

    async def unload(self, model: str) -> None:
        """Take `model` out of service. Returns at once; the repository's index says UNLOADING until its requests are answered."""
        self._unsettled.forget(model)
        try:
            await self._call("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=model))
        finally:
            self._changed(model)

    def _changed(self, model: str) -> None:
        """A tick may have read the old configuration while the new copy was loading, or be reading it now."""
        self._known.pop(model, None)
        self._homes.pop(model, None)
        self._reloads[model] = self._reloads.get(model, 0) + 1

    @property
    def strangers(self) -> frozenset[str]:
        """Models that were served at the last :meth:`read_models` though nobody asked about them."""
        return self._others.names

    @property
    def foreign_shares(self) -> Mapping[int, float]:
        """What they hold of each GPU."""
        return {}

    @property
    def copies(self) -> frozenset[str]:
        """Copies of models that were being compared with them then (:mod:`igniterd.adopt`), or were left behind."""
        return self._others.copies

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
            failed, missing, _, _ = await asyncio.gather(
                self._refresh_configs(due),
                self._why_missing(absent),
                self._look_at_others(others, served),
                self._look_for_homes([name for name in due if name not in self._homes]),
            )
        lost = [name for name in wanted if name in served and name not in failed and name not in self._known]
        if lost:  # a load of theirs ended meanwhile
            failed |= await self._refresh_configs(lost)
        least = self._others.least_batches(self._known[name] for name in wanted if name in self._known)
        return {
            name: failed.get(name) or missing.get(name) or self._reading(name, served[name], metrics, least.get(name, 1)) for name in wanted
        }

    def read_configs_again(self) -> None:
        """The next :meth:`read_models` reads every configuration anew."""
        for known in self._known.values():
            known.read_at_s = float("-inf")

    async def statistics(self, model: str) -> Any:
        """Triton's ``ModelStatistics`` of one model, every version."""
        return await self._call("ModelStatistics", service_pb2.ModelStatisticsRequest(name=model))

    async def infer(self, request: bytes, *, timeout_s: float) -> bytes:
        """One ``ModelInferRequest``, serialised, answered; the answer is not looked at."""
        return bytes(await self._call("ModelInfer", request, timeout_s=timeout_s))

    async def register_memory(self, name: str, key: str, size: int) -> None:
        """Let Triton read inputs from the POSIX shared memory `key`; :class:`Refused` where it cannot see it (on another host)."""
        await self._call("SystemSharedMemoryRegister", service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=size))

    async def forget_memory(self, name: str) -> None:
        await self._call("SystemSharedMemoryUnregister", service_pb2.SystemSharedMemoryUnregisterRequest(name=name))

    async def close(self) -> None:
        await self._channel.close()
        if self._http is not None:
            await self._http.close()
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
        answers = await asyncio.gather(*(self._config_and_own(name) for name in due), return_exceptions=True)
        failed: dict[str, NotNow] = {}
        for name, answer in zip(due, answers, strict=True):
            if isinstance(answer, NotNow):
                self._known.pop(name, None)  # what is applied is not known, so nothing is said of the model
                failed[name] = answer
            elif isinstance(answer, BaseException):
                raise answer
            elif self._reloads.get(name) == reloads.get(name):
                self._know(name, *answer, now_s)
            else:  # reloaded while its configuration was read: the answer may be the old copy's
                raced.append(name)
        return failed | await self._refresh_configs(raced) if raced else failed

    async def _config_and_own(self, model: str) -> tuple[Any, Own]:
        """A model's configuration, and what is seen of the environment it came with."""
        message = await self._config_message(model)
        return message, await self._looks.at(message)

    async def _look_for_homes(self, names: list[str]) -> None:
        """Which of `names` are in a repository. Listing one may be slow: it is asked once, and what is not answered is no obstacle."""
        if not names:
            return
        self._homes |= dict.fromkeys(names, True)  # at once: the caller may give up waiting
        with contextlib.suppress(NotNow):
            listed = {entry.name for entry in await self.index()}
            self._homes |= {name: name in listed for name in names}

    def _unloadable(self, name: str, known: Known) -> str:
        """Why no load of it may be tried, or an empty string."""
        if known.unknown and self._http is None:
            return _cannot_be_kept(known.unknown)
        return "" if self._homes.get(name, True) else _HOMELESS

    def _know(self, name: str, message: Any, own: Own, now_s: float) -> None:
        before = self._known.get(name)
        if before is not None and before.message == message:
            before.read_at_s = now_s
            return
        if before is not None:
            self._homes.pop(name, None)  # whoever changed it may have put it elsewhere
        # Models first read together must not all be read together ever after: the first reading is given an age of its own.
        age_s = 0.0 if before is not None else self._age_s(name)
        known = self._known[name] = known_of(
            message, now_s - age_s, self._gpus.get(name), shares_dir=self._shares_dir, reach=self.reach, own=own
        )
        mark, wanted = self._asked.get(name, ("", None))
        known.insists(mark, wanted)

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
        unloadable = self._unloadable(name, known)
        return reading(self.name, served, known, metrics, least_batch=least_batch, loading=loading, unloadable=unloadable)

    async def _call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Any:
        return await self._channel.call(method, request, self._timeout_s if timeout_s is None else timeout_s)


def _cannot_be_kept(unknown: tuple[str, ...]) -> str:
    fields = f"its configuration has fields that the installed tritonclient does not know ({', '.join(unknown)})"
    return f"{fields}, and a reload would drop them: install the tritonclient of Triton's version, or give [[triton]] http_url"


def _not_served(name: str, entry: IndexEntry | None, triton: str) -> NotNow:
    if entry is None:
        return Refused(
            f"model {name!r} is not in the repository of Triton {triton!r}: check [[model]] name and triton in the configuration"
        )
    state = entry.state or "not loaded"
    said = f"model {name!r} is {state} on Triton {triton!r}" + (f": {entry.reason.splitlines()[0]}" if entry.reason else "")
    return Refused(said) if state in _COMING else NotServed(said)
