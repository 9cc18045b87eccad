"""Triton's gRPC API and metrics page: what runs, how it is configured, and changing the
configuration of one model.

A tick costs one ``ModelStatistics`` call for all models, one read of the metrics page where there
is one, and a ``ModelConfig`` call for each model whose counters restarted or whose configuration
has not been read for ``config_max_age_s``. While a model is being reloaded Triton answers all of
these for the old copy until the new one has taken over; one whose load was not answered in time is
therefore asked for its configuration at every tick, until it is what was asked for.

Models that nobody asked about are looked at in the same way: an ensemble refuses to go on with a
member whose batches became smaller than its own.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from tritonclient.grpc import service_pb2

from igniterd.clients.environments import DEFAULT_SHARES, PLAIN, ModelConfig, Reach
from igniterd.clients.looks import Looks
from igniterd.clients.triton.channel import TlsFiles, TritonChannel
from igniterd.clients.triton.config import readable_allocation
from igniterd.clients.triton.config_change import marked
from igniterd.clients.triton.configs import Configurations
from igniterd.clients.triton.control import read_server, why_loads_are_refused
from igniterd.clients.triton.http import TritonHttp
from igniterd.clients.triton.index import RepositoryList
from igniterd.clients.triton.info import IndexEntry, ServerInfo
from igniterd.clients.triton.json_config import config_to_dict, unknown_fields, why_not_kept
from igniterd.clients.triton.metrics import MetricsSource, ModelMetrics, ModelVersion
from igniterd.clients.triton.reading import Known, Served, by_model, reading
from igniterd.clients.triton.unmanaged import UnmanagedModels
from igniterd.clients.triton.unsettled import Trace, Unsettled
from igniterd.engines.hosting import files_of
from igniterd.errors import NotNow, Refused, Unanswered, Unreachable
from igniterd.placement import HOMELESS
from igniterd.records import Allocation, Gap, ModelReading

ROUNDS = 1.8  # deadlines that a look at all models may take: a tick gives up after two


class TritonClient:
    """One tritonserver. Every method raises :class:`Unreachable` without an answer in time and
    :class:`Refused` on Triton's no."""

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
        shares_dir: str = DEFAULT_SHARES,
        reach: Reach = PLAIN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` is ``host:port`` of the gRPC endpoint; `http_url` is asked only for what gRPC
        cannot tell; `headers` go with every call (``--grpc-restricted-protocol``);
        `shares_dir`: the folder of shares, under the path at which Triton sees it."""
        self.name = name
        self.url = url
        self.timeout_s = timeout_s
        self.reload_timeout_s = reload_timeout_s
        self._shares_dir = shares_dir
        self.reach = reach
        """How shares reach its models, beside the folder of shares."""
        self._clock = clock
        self._metrics = MetricsSource(name, metrics_url, timeout_s, clock)
        self._list = RepositoryList(name, self._index, clock)
        self._configs = Configurations(
            self._config_message,
            Looks(shares_dir, timeout_s),
            self._list.forget,
            self._metrics.replaced,
            max_age_s=config_max_age_s,
            shares_dir=shares_dir,
            reach=reach,
            clock=clock,
        )
        self._others = UnmanagedModels(config_max_age_s, self._configs.age_s, shares_dir)
        self._unsettled = Unsettled()
        self._losses = self._losses_seen = 0  # of the connection
        self._executed: dict[str, int] = {}  # by model, at the last look
        self._channel = TritonChannel(name, url, headers or {}, tls, self._count_loss)
        self._http = TritonHttp(http_url, timeout_s, headers or {}, tls) if http_url else None

    async def server(self) -> ServerInfo:
        """Whether it is up, and whether it takes configurations. Changes nothing: the mode shows in
        the answer to unloading a model that does not exist."""
        return await read_server(self._call)

    async def refuses_loads(self) -> str:
        """Why configurations cannot be changed on this server, or an empty string. Changes
        nothing."""
        return await why_loads_are_refused(self._call)

    async def index(self, timeout_s: float | None = None) -> tuple[IndexEntry, ...]:
        """Every model of the repository, loaded or not."""
        return await self._index(timeout_s or self.timeout_s)

    async def _index(self, timeout_s: float) -> tuple[IndexEntry, ...]:
        answer = await self._call(
            "RepositoryIndex", service_pb2.RepositoryIndexRequest(), timeout_s=timeout_s
        )
        return tuple(
            IndexEntry(entry.name, entry.version, entry.state, entry.reason)
            for entry in answer.models
        )

    async def config(self, model: str) -> ModelConfig:
        """What is set of the configuration that serves now.

        One with fields that this tritonclient does not know is read from `http_url`, where they
        have names. :class:`Refused` without one: a reload with what is known would drop them.
        """
        message = await self._config_message(model)
        unknown = unknown_fields(message)
        if not unknown:
            return config_to_dict(message)
        if self._http is None:
            raise Refused(f"{model}: {why_not_kept(unknown)}")
        return await self._http.config(model)

    async def load(
        self,
        model: str,
        config: ModelConfig | None,
        files: Mapping[str, bytes] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        """Reload `model` with `config` in place of its file's. Returns when the new copy serves.

        `files`, named as in the model's folder (``1/model.py``), stand in for the whole folder, by
        default those that a hosted model must have; a later load without them has the folder again.
        IGNITERD_LOAD is added, so that Triton sees a change in any case. `exact` sends `config` as
        it is: one that Triton has already is answered and not loaded. Without `config` Triton is
        asked for the repository's own, which it may also take for no change (24.10 after another).

        :class:`Refused` carries Triton's words and the old copy goes on serving. After
        :class:`Unanswered` Triton may still finish the load: until it has, or for as long again,
        readings of the model say that it is ``loading``.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        wanted: Allocation | None = None
        if config is not None:
            mark = secrets.token_hex(4)
            sent = config if exact else marked(config, mark)
            request.parameters["config"].string_param = json.dumps(sent)
            wanted = readable_allocation(config, self._shares_dir)
            self._configs.asked_for(model, mark, wanted)
            files = files_of(config) if files is None else files
        elif files:
            raise ValueError("Triton takes files only with a configuration")
        for name, content in (files or {}).items():
            request.parameters[f"file:{name}"].bytes_param = content
        self._unsettled.forget(model)
        connected = self._channel.connected
        try:
            await self._call("RepositoryModelLoad", request, timeout_s=self.reload_timeout_s)
        except Unanswered as error:
            self._unsettled.unanswered(model, wanted, self._clock(), self.reload_timeout_s)
            raise Unanswered(
                f"{error} ([[triton]] reload_timeout_s): it may finish loading {model} yet"
            ) from error
        except Unreachable:
            if connected:  # it was asked, and is heard of no more: if it has not ended, it goes on
                self._unsettled.unanswered(model, wanted, self._clock(), self.reload_timeout_s)
            raise
        finally:
            self._forget_model(model)

    async def unload(self, model: str) -> None:
        """Take `model` out of service. Returns at once; the repository's index says UNLOADING until
        its requests are answered."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        self._unsettled.forget(model)
        try:
            await self._call("RepositoryModelUnload", request)
        finally:
            self._forget_model(model)

    def _count_loss(self) -> None:
        self._losses += 1

    def _forget_model(self, model: str) -> None:
        """A tick may have read the old configuration while the new copy was loading, or be reading
        it now."""
        self._configs.changed(model)
        self._list.forget(model)
        self._metrics.replaced(model)
        self._executed.pop(model, None)

    @property
    def metrics_gap(self) -> Gap | None:
        """Why the last :meth:`read_models` had no pending counts or quantiles, though a metrics
        page is configured."""
        return self._metrics.gap

    @property
    def gpu_labels(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that its metrics page named when it was last read, in its order."""
        return self._metrics.gpu_labels

    @property
    def unmanaged_models(self) -> frozenset[str]:
        """Models served at the last :meth:`read_models` though nobody asked about them."""
        return self._others.names

    @property
    def foreign_shares(self) -> Mapping[int, float]:
        """What they hold of each GPU by their shares, whoever gave them; by device number."""
        return self._others.shares

    @property
    def foreign_busy(self) -> Mapping[int, float]:
        """The part of the time that those without a share execute on each GPU."""
        return self._others.busy

    @property
    def copies(self) -> frozenset[str]:
        """Copies of models that were being compared with them then (:mod:`igniterd.adopt`), or were
        left behind."""
        return self._others.copies

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]:
        """A reading for each of `names`, or why there is none. Raises :class:`Unreachable` when
        Triton does not answer at all.

        A metrics page that does not answer costs only its own readings: see :attr:`metrics_gap`.
        What cannot be said of one model in time costs the others nothing: it takes less than twice
        the deadline of a call.
        """
        wanted, losses, time_s = tuple(names), self._losses, asyncio.get_running_loop().time
        until_s = time_s() + ROUNDS * self.timeout_s
        (served, at_s), metrics = await asyncio.gather(
            self._statistics(wanted), self._metrics.read()
        )
        if losses != self._losses_seen:
            self._configs.disbelieve()
        marks = self._configs.marks()

        def left_s() -> float:
            return max(0.0, min(self.timeout_s, until_s - time_s()))

        due = self._configs.due(served, wanted, self._unsettled.__contains__)
        failed, missing, _, _ = await asyncio.gather(
            self._configs.refresh(due, served, left_s()),
            self._list.why_missing([name for name in wanted if name not in served], left_s()),
            self._look_at_others(self._others.due(served, wanted, at_s), served, left_s()),
            self._list.look_for(due, left_s()),
        )
        failed |= missing
        lost = [name for name in wanted if name not in failed and self._configs.of(name) is None]
        if lost:  # a load of theirs ended meanwhile
            failed |= await self._configs.refresh(lost, served, left_s())
        if losses != self._losses_seen:
            self._is_it_another(served, marks)
            self._losses_seen = losses
        self._executed = {name: each.executed for name, each in served.items()}
        return {
            name: failed.get(name) or self._reading(name, served[name], metrics, at_s)
            for name in wanted
        }

    async def _statistics(self, wanted: Iterable[str]) -> tuple[dict[str, Served], float]:
        """Everything that is served, and when that was answered. Where one model spoils the answer
        for all, each of ``wanted``."""
        try:
            answers = [await self._call("ModelStatistics", service_pb2.ModelStatisticsRequest())]
        except Refused as error:
            each = await asyncio.gather(
                *(self.statistics(name) for name in wanted), return_exceptions=True
            )
            answers = [answer for answer in each if not isinstance(answer, BaseException)]
            if not answers:
                raise error from None
        return by_model(
            chain.from_iterable(answer.model_stats for answer in answers)
        ), self._clock()

    def _is_it_another(self, served: Mapping[str, Served], marks: Mapping[str, str]) -> None:
        """After the connection was lost: a new server finishes no load that the old one was asked
        for."""
        now = Trace({name: each.executed for name, each in served.items()}, self._configs.marks())
        if Trace(self._executed, marks).of_another(now):
            self._unsettled.forget_all()

    async def old_copy(self, model: str) -> str:
        """Why a copy of the model that should be gone seems still there, or an empty string.

        Triton tells of one only after an unload, or where another version takes its place. After a
        reload of the same version neither index nor statistics know the old copy, though its
        ``finalize`` may hang for ever (23.12 and 24.10): then its processes are the only sign.
        """
        going = [
            entry.version
            for entry in await self.index()
            if (entry.name, entry.state) == (model, "UNLOADING")
        ]
        return f"Triton is still unloading version {', '.join(going)} of {model}" if going else ""

    async def applied_now(self, names: Iterable[str]) -> dict[str, Allocation]:
        """What is applied at this moment, read anew: for whoever is about to change something.
        Without what cannot be read."""
        return await self._configs.now(names, self.timeout_s)

    def read_configs_again(self) -> None:
        """The next :meth:`read_models` reads every configuration anew."""
        self._configs.again()

    async def statistics(self, model: str) -> Any:
        """Triton's ``ModelStatistics`` of one model, every version."""
        return await self._call("ModelStatistics", service_pb2.ModelStatisticsRequest(name=model))

    async def infer(self, request: bytes, *, timeout_s: float) -> bytes:
        """One ``ModelInferRequest``, serialised, answered; the answer is not looked at."""
        return bytes(await self._call("ModelInfer", request, timeout_s=timeout_s))

    async def register_memory(self, name: str, key: str, size: int) -> None:
        """Let Triton read inputs from the POSIX shared memory `key`; :class:`Refused` where it
        cannot see it (on another host)."""
        await self._call(
            "SystemSharedMemoryRegister",
            service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=size),
        )

    async def forget_memory(self, name: str) -> None:
        await self._call(
            "SystemSharedMemoryUnregister",
            service_pb2.SystemSharedMemoryUnregisterRequest(name=name),
        )

    async def close(self) -> None:
        await self._list.close()
        await self._channel.close()
        if self._http is not None:
            await self._http.close()
        await self._metrics.close()

    # ------------------------------------------------------------ inside

    async def _config_message(self, model: str, timeout_s: float | None = None) -> Any:
        request = service_pb2.ModelConfigRequest(name=model)
        return (await self._call("ModelConfig", request, timeout_s=timeout_s)).config

    async def _look_at_others(
        self, due: list[str], served: Mapping[str, Served], limit_s: float
    ) -> None:
        """Read the configurations of models nobody asked about; one not read is no fault."""
        now_s = self._clock()
        answers = await asyncio.gather(
            *(self._config_message(name, limit_s) for name in due), return_exceptions=True
        )
        for name, answer in zip(due, answers, strict=True):
            if not isinstance(answer, BaseException):
                self._others.learn(name, answer, served[name], now_s)

    def _unloadable(self, name: str, known: Known) -> str:
        """Why no load of it may be tried, or an empty string."""
        if known.unknown and self._http is None:
            return why_not_kept(known.unknown)
        return HOMELESS if self._list.homeless(name) else ""

    def _reading(
        self, name: str, served: Served, metrics: Mapping[ModelVersion, ModelMetrics], at_s: float
    ) -> ModelReading | NotNow:
        known = self._configs.of(name)
        if known is None:
            return Unanswered(
                f"model {name!r}: it is being loaded, and its configuration is not known yet"
            )
        loading = self._unsettled.loading(name, known.allocation, len(served.all), self._clock())
        unloadable = self._unloadable(name, known)
        try:
            return reading(
                self.name, served, known, metrics, loading=loading, unloadable=unloadable, at_s=at_s
            )
        except Refused as error:
            return error

    async def _call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Any:
        return await self._channel.call(
            method, request, self.timeout_s if timeout_s is None else timeout_s
        )
