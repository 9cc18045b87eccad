"""What one configuration makes: the clients and the stages, wired. The daemon outlives it.

Building one finds everything that can be wrong with a configuration, and touches nothing that a
running one has: a daemon that reads its configuration again builds the new one beside the old one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from typing import Any

import structlog

from igniterd.act import Adopter
from igniterd.announce import Announcer
from igniterd.boards import nvml_library
from igniterd.clients.metrics import Metrics
from igniterd.clients.mps import MpsControl
from igniterd.clients.mqtt import MqttPublisher
from igniterd.clients.mqtt_broker import broker_of
from igniterd.clients.nvml import NvmlClient
from igniterd.clients.processes import ProcessTable
from igniterd.clients.shares import reach_of
from igniterd.clients.tls import client_context
from igniterd.clients.triton.channel import TlsFiles
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.loadable import Loadable
from igniterd.config import Config, Triton
from igniterd.estimate import ModelState
from igniterd.loop import Loop
from igniterd.observe import Sources
from igniterd.profiled import Predictors
from igniterd.report import Reporter
from igniterd.state.checkpoint import Checkpoint
from igniterd.state.history import History

CLOSE_S = 5.0  # longest wait for anything to be closed; systemd's TimeoutStopSec is 20


def triton_client(server: Triton, config: Config, timeout_s: float | None = None) -> TritonClient:
    """The client of one configured Triton. Answers may take ``timeout_s``, by default what a tick
    allows."""
    tls = TlsFiles(server.ca_file, server.key_file, server.cert_file) if server.ca_file else None
    return TritonClient(
        server.name,
        server.url,
        server.metrics_url,
        http_url=server.http_url,
        timeout_s=timeout_s or config.loop.io_timeout_s,
        reload_timeout_s=server.reload_timeout_s,
        headers=server.header,
        tls=tls,
        shares_dir=str(config.shares),
        reach=reach_of(server),
    )


def nvml_client(config: Config) -> NvmlClient | None:
    """The client of this host's boards; None where they cannot be read."""
    library = nvml_library(config.gpu.source, field="gpu.source")
    if library is None:
        return None
    return NvmlClient(library, timeout_s=config.loop.io_timeout_s)


def mps_client(config: Config) -> MpsControl | None:
    """The client of this host's MPS control daemon; None where MPS is not used."""
    if not config.mps.enabled:
        return None
    return MpsControl(
        config.mps.control, config.mps.pipe_directory, timeout_s=2 * config.loop.io_timeout_s
    )


def mqtt_publisher(config: Config) -> MqttPublisher | None:
    """Who speaks to the broker; None without one. Raises :class:`igniterd.errors.CannotRun` for a
    file that cannot be read."""
    if config.mqtt is None:
        return None
    broker = broker_of(config.mqtt)
    return MqttPublisher(broker, cluster=config.host.cluster, host=config.host.name)


class Setup:
    """Clients and stages of one configuration; nothing of it runs before :meth:`start`."""

    def __init__(
        self, config: Config, knowledge: Predictors, adopter: Adopter, before: Setup | None = None
    ) -> None:
        """``before`` is the one it follows: what has not changed is taken over from it, so that a
        broker is not told that the daemon went, and a file has one writer.

        Raises :class:`CannotRun` or ``OSError`` for a file that is missing or wrong.
        """
        self.config, self.knowledge = config, knowledge
        for server in config.triton:
            if server.ca_file is not None:
                client_context(
                    f"Triton {server.name!r}", server.ca_file, server.cert_file, server.key_file
                )
        self.tritons = {server.name: triton_client(server, config) for server in config.triton}
        self.nvml = nvml_client(config)
        self.sources = Sources(
            tritons=self.tritons,
            models={
                name: tuple(m.tenant for m in config.model if m.triton == name)
                for name in self.tritons
            },
            boards=self.nvml,
            mps=mps_client(config),
            processes=ProcessTable(),
            names={m.tenant: m.name for m in config.model},
            devices={server.name: tuple(server.gpus) for server in config.triton},
            ports={server.name: server.port for server in config.triton if server.port},
            emulated=config.gpu.source.startswith("emulated:"),
            gpus={m.tenant: m.gpu for m in config.model if m.gpu is not None},
            mps_interval_s=config.mps.interval_s,
            timeout_s=config.loop.io_timeout_s,
        )
        self.publisher = mqtt_publisher(config)
        if before is not None and (before.config.mqtt, before.config.host) == (
            config.mqtt,
            config.host,
        ):
            self.publisher = before.publisher  # its files are read again at every connection
        self.metrics = Metrics(config, mqtt=self.publisher.statistics if self.publisher else None)
        directory = config.state.directory
        same_place = before is not None and before.config.state.directory == directory
        self.history: History = (
            before.history if before and same_place else History(directory / "history.db")
        )
        self.run: str = before.run if before is not None else secrets.token_hex(8)
        """Names this process: two daemons that were given one name are told apart."""
        self.loadable = Loadable(self.tritons)
        announcer = None
        if self.publisher is not None:
            announcer = Announcer(
                config,
                knowledge,
                self.publisher,
                run=self.run,
                loadable=lambda: self.loadable.names,
            )
        self.reporter = Reporter(
            config,
            metrics=self.metrics.update,
            announce=announcer,
            history=self.history.record,
        )
        self.loop = Loop(
            config, self.sources, self.tritons, knowledge, self.reporter, adopter=adopter
        )
        self.identities = {m.tenant: knowledge.identities.get(m.tenant, "") for m in config.model}
        self.memory: Checkpoint = (
            before.memory
            if before and same_place
            else Checkpoint(directory / "learnt.json", self.identities)
        )

    def recall_states(self, now_s: float) -> dict[str, ModelState]:
        """What was learnt of its models before, by whichever daemon."""
        return Checkpoint(self.memory.path, self.identities).recall(now_s, time.time())

    def begin(self) -> None:
        """From now on it is this one."""
        self.history.limit_bytes = self.config.state.history_mb * 1_000_000
        self.memory.identities = self.identities

    async def start(self, before: Setup | None = None) -> None:
        """Begin to speak to the broker, after ``before`` is closed: of two of one name, the broker
        ends one."""
        if before is not None:
            await before.close(self)
        if self.publisher is not None:
            self.publisher.set_profiles(self.knowledge.packed)
            self.loadable.start()
            await self.publisher.start()

    async def close(self, keep: Setup | None = None) -> None:
        """All but what ``keep`` has too. Everything within its deadline, and whatever one of them
        does, the others too."""
        closing: dict[str, Awaitable[Any]] = {"loadable": self.loadable.close()}
        closing |= {f"triton:{name}": client.close() for name, client in self.tritons.items()}
        if self.publisher is not None and (keep is None or keep.publisher is not self.publisher):
            closing["mqtt"] = self.publisher.close()
        if self.nvml is not None:
            closing["nvml"] = self.nvml.close()
        if keep is None or keep.history is not self.history:
            closing["history"] = asyncio.to_thread(self.history.close)
        await close_all(closing)


async def close_all(closing: dict[str, Awaitable[Any]]) -> None:
    """Wait for all of them, within their deadline; what is left behind is said by its name."""
    if not closing:
        return
    log = structlog.get_logger("igniterd")
    tasks = {asyncio.ensure_future(each): name for name, each in closing.items()}
    await asyncio.wait(tasks, timeout=CLOSE_S)
    for task, name in tasks.items():
        if not task.done():
            task.cancel()
            log.warning(
                "left behind at the end", what=name, reason=f"not closed within {CLOSE_S:g} s"
            )
        elif not task.cancelled() and task.exception() is not None:
            log.warning("left behind at the end", what=name, reason=repr(task.exception()))
