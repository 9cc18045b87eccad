"""``igniterd fleet`` reads its configuration again on SIGHUP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from igniterd.fleet.config import FleetConfig
from igniterd.fleet.service import FleetService
from igniterd.lab.programs.process import free_ports, running
from igniterd.lab.services import broker_host
from tests.fleet.fakes import Fakes
from tests.integration.fleet_service import HINT, PREFIX, cluster_at, settings
from tests.waiting import until, until_answer

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def hears_hangups(process: int) -> bool:
    """Whether a process does not just end at SIGHUP."""
    status = Path(f"/proc/{process}/status").read_text()
    (caught,) = (line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGHUP - 1))


async def test_a_hangup_takes_up_what_is_right_and_refuses_what_is_not(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config, log = tmp_path / "fleet.toml", tmp_path / "fleet.log"
    command = [sys.executable, "-m", "igniterd", "fleet", "--config", str(config)]

    def said(what: str) -> int:
        return log.read_text().count(what)

    async def clusters() -> dict[str, Any]:
        async with aiohttp.ClientSession() as web, web.get(f"http://{address}/state") as answer:
            found: dict[str, Any] = (await answer.json())["clusters"]
            return found

    async with broker_host(tmp_path) as broker:

        def write(fleet: str, listen: str = address) -> None:
            config.write_text(
                f'[broker]\nurl = "{broker.url}"\n[fleet]\n{fleet}\n'
                f'[metrics]\nlisten = "{listen}"\n'
            )

        write('clusters = ["one"]')
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        async with running("igniterd fleet", command, log=log, env=environment) as program:
            # one before it listens, which ends nobody
            await until(lambda: hears_hangups(program.pid), 60.0)
            os.kill(program.pid, signal.SIGHUP)
            await until(lambda: said("going on with it") == 1, 60.0)
            assert list(await clusters()) == ["one"]
            write('clusters = ["one"]\nsetle_s = 1.0')
            os.kill(program.pid, signal.SIGHUP)
            await until(lambda: said("not taken up") == 1)
            assert "fleet.setle_s: unknown key; is fleet.settle_s meant?" in log.read_text()
            write('clusters = ["one", "two"]', listen="127.0.0.1:1")
            os.kill(program.pid, signal.SIGHUP)
            await until(lambda: said("not taken up") == 2)
            assert "metrics.listen: only a restart changes it" in log.read_text()
            assert list(await clusters()) == ["one"]
            write('clusters = ["one", "two"]')
            os.kill(program.pid, signal.SIGHUP)
            await until(lambda: said("going on with it") == 2)
            assert list(await clusters()) == ["one", "two"]
            assert program.alive


@asynccontextmanager
async def changing(first: FleetConfig, fakes: Fakes) -> AsyncIterator[Any]:
    """A service in this process, and what changes its configuration."""
    now = [first]
    service = FleetService(first, fakes.parts(), reread=lambda: now[0])

    async def change(config: FleetConfig) -> None:
        now[0] = config
        service.rereading.set()
        await until(lambda: task.done() or service.config is config)

    task = asyncio.create_task(service.run())
    try:
        yield service, change
    finally:
        service.stopping.set()
        await asyncio.wait_for(task, 20.0)


async def test_what_nothing_new_is_said_of_goes_on_and_the_others_begin_anew(
    tmp_path: Path,
) -> None:
    async with broker_host(tmp_path) as broker:
        both = settings(broker.url, clusters=["one", "two"])
        async with changing(both, Fakes()) as (service, change):
            await until(lambda: len(service.desks) == 2 and service.ready()[0])
            one = service.desks["one"]
            await change(settings(broker.url, clusters=["three", "one"]))
            assert service.desks.keys() == {"one", "three"}
            assert service.desks["one"] is one
            assert one.speaks
            await change(settings(broker.url, clusters=["one"], consolidate=True))
            assert list(service.desks) == ["one"]
            assert service.desks["one"] is not one
            await until(lambda: service.desks["one"].speaks)
            assert not one.speaks


async def test_all_clusters_and_back(tmp_path: Path) -> None:
    async with broker_host(tmp_path) as broker, cluster_at(broker) as cluster:
        named = settings(broker.url)
        async with changing(named, Fakes()) as (service, change):
            await until(lambda: list(service.desks) == ["lab"] and service.ready()[0])
            everything = settings(broker.url, clusters=["+"])
            await change(everything)
            assert not service.desks
            await until(lambda: service.ready()[0])

            async def hinted() -> bool:
                await cluster.client.publish(f"{PREFIX}a/hint", HINT)
                return "lab" in service.desks

            await until_answer(hinted, bool, every_s=0.5)
            desk = service.desks["lab"]
            await change(settings(broker.url, clusters=["+"]))
            assert service.desks["lab"] is desk
            await change(named)
            assert list(service.desks) == ["lab"]
            await until(lambda: service.desks["lab"].speaks)


async def test_a_file_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    async with broker_host(tmp_path) as broker:
        first = settings(broker.url)
        wrong = [
            settings(broker.url).model_copy(
                update={"broker": first.broker.model_copy(update={"password_file": tmp_path})}
            )
        ]
        service = FleetService(first, Fakes().parts(), reread=lambda: wrong[0])
        task = asyncio.create_task(service.run())
        try:
            await until(lambda: task.done() or (service.ready()[0] and service.desks))
            desk = service.desks["lab"]
            with capture_logs() as logs:
                service.rereading.set()
                await until(lambda: [e for e in logs if "not taken up" in e["event"]])
            assert "should be a file" in str(logs)
            assert service.config is first
            assert service.desks["lab"] is desk
        finally:
            service.stopping.set()
            await asyncio.wait_for(task, 20.0)
