"""``igniterd fleet apply`` on two real tritonservers with boards of their own, under load through a
route that can be switched."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import pytest_asyncio

import igniterd
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import marked, with_allocation
from igniterd.lab.gpu.boards import boards_of
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import LoadSpec, Phase
from igniterd.lab.load.load import load as loading
from igniterd.lab.load.switch import switchable_route
from igniterd.lab.services import broker_host
from igniterd.messages.event import event
from igniterd.records import Allocation
from tests.fleet.world import CLUSTER, rebalance
from tests.waiting import until, until_answer

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

SLOW = 4.0
WANTED = Allocation(0.45, 4, 0, 1, (1,))
ROUTE = """
import pathlib, sys
pathlib.Path(sys.argv[1]).write_text(sys.argv[4] if sys.argv[2] == "back" else sys.argv[3])
"""


@dataclass
class Pair:
    """Two hosts: ``m`` and ``rest`` on the first, ``near`` and a file of ``m`` on the second."""

    folder: Path
    a: TritonHost
    b: TritonHost
    clients: tuple[TritonClient, TritonClient]
    target: Path
    """What the route reads: where requests go."""
    url: str
    first: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "fleet.toml"

    def write_config(self, *, route: str = ROUTE, shares: bool = True) -> None:
        place = f'shares = "{self.folder}/shares"\n' if shares else ""
        code, target = json.dumps(route), json.dumps(str(self.target))
        words = '"{action}", "{to_url}", "{from_url}"'
        self.config.write_text(
            "".join(
                f'[[triton]]\nhost = "gpu-{h}"\nurl = "{t.url}"\n'
                f'metrics_url = "{t.metrics_url}"\n{place}'
                for h, t in (("a", self.a), ("b", self.b))
            )
            + f'[route]\ncommand = ["{sys.executable}", "-c", {code}, {target}, {words}]\n'
        )

    async def standing(self) -> dict[str, Any]:
        """All that serves, without the marks of loads."""
        found = dict[str, Any]()
        for host, client in zip("ab", self.clients, strict=True):
            for entry in await client.index():
                if entry.state == "READY":
                    config = marked(await client.config(entry.name), "")
                    found[f"{host}/{entry.name}"] = config
        return found

    async def write_rebalance(self, **changed: Any) -> Path:
        """Of what is applied now."""
        given = json.loads(rebalance(time_s=time.time()).model_dump_json(by_alias=True))
        a, b = self.clients
        now = {
            ("gpu-a", "m"): await a.config("m"),
            ("gpu-a", "rest"): await a.config("rest"),
            ("gpu-b", "near"): await b.config("near"),
        }
        given["moves"][0]["to"]["device"] = 1
        for step in given["steps"]:
            if step["allocation"] is not None:
                step["allocation"]["devices"] = [1] if step["model"] == "m" else [0]
            if (config := now.get((step["host"], step["model"]))) is not None:
                found = allocation_of(config)
                step["before"] = {
                    "share": found.share,
                    "max_batch_size": found.max_batch_size,
                    "max_queue_delay_us": found.max_queue_delay_us,
                    "instances": found.instances,
                    "devices": list(found.devices),
                }
        file = self.folder / "rebalance.json"
        file.write_text(json.dumps({**given, **changed}))
        return file

    async def run(self, *words: str) -> tuple[int, str]:
        """The command; its exit status and all that it said."""
        process = await self.start(*words)
        async with asyncio.timeout(120.0):
            said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()

    async def start(self, *words: str, terminal: int | None = None) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "igniterd", "fleet", "apply", "--config", str(self.config)),
            *words,
            stdin=asyncio.subprocess.DEVNULL if terminal is None else terminal,
            stdout=asyncio.subprocess.PIPE if terminal is None else terminal,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(Path(igniterd.__file__).parents[1])},
        )

    async def as_at_first(self) -> None:
        """Bring back what stood then. Without a configuration Triton would load nothing anew."""
        there = await self.standing()
        for host, client in zip("ab", self.clients, strict=True):
            for key in {*there, *self.first}:
                of, _, name = key.partition("/")
                if of == host and key not in self.first:
                    await client.unload(name)
                elif of == host and there.get(key) != self.first[key]:
                    await client.load(name, marked(self.first[key], str(time.time_ns())))
        for client in self.clients:
            await until_answer(
                client.index, lambda found: all(e.state != "UNLOADING" for e in found), every_s=0.1
            )
        assert await self.standing() == self.first
        self.target.write_text(self.a.url)

    async def is_moved(self) -> bool:
        there = await self.standing()
        config = there.get("b/m")
        return config is not None and allocation_of(config) == WANTED and "a/m" not in there


@asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[Pair]:
    like = {"like": "alexnet", "max_batch_size": 8, "gpus": (0,)}
    at_a = (EmulatedModel("m", **like), EmulatedModel("rest", **like))  # type: ignore[arg-type]
    at_b = (EmulatedModel("near", **like),)  # type: ignore[arg-type]
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(
                triton_host(
                    HostSpec(models, slow_factor=SLOW, seed=3, boards=boards_of("v100", "v100")),
                    folder / name,
                )
            )
            for name, models in (("a", at_a), ("b", at_b))
        ]
        b.add_to_repository(EmulatedModel("m", like="alexnet", max_batch_size=8))
        clients = tuple(TritonClient(t.url, t.url, timeout_s=5.0) for t in (a, b))
        for client in clients:
            stack.push_async_callback(client.close)
        target = folder / "target"
        target.write_text(a.url)
        url = await stack.enter_async_context(switchable_route(target))
        found = Pair(folder, a, b, (clients[0], clients[1]), target, url)
        found.write_config()
        found.first = await found.standing()
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with pair(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def both(shared: Pair, tmp_path: Path) -> Pair:
    """The two hosts as they were at first, with a folder of this test's own."""
    await shared.as_at_first()
    found = replace(shared, folder=tmp_path)
    found.write_config()
    return found


def journals_in(folder: Path) -> list[Path]:
    return list(folder.glob(f"igniterd-apply-{CLUSTER}-*.jsonl"))


async def test_a_model_moves_under_load_and_back_and_no_request_fails(
    both: Pair, tmp_path: Path
) -> None:
    before, file = await both.standing(), await both.write_rebalance()
    status, said = await both.run("--file", str(file))
    assert (status, "nothing is changed" in said) == (0, True), said
    assert await both.standing() == before
    spec = LoadSpec(both.url, (Phase("on", None, {"m": 30.0}),), deadline_s=60.0, seed=1)
    async with loading(spec, tmp_path / "log.csv") as traffic:
        await traffic.until_sent(30, timeout_s=30.0)
        status, said = await both.run("--file", str(file), "--yes")
        assert (status, "all is done" in said) == (0, True), said
        assert await both.is_moved()
        assert allocation_of((await both.standing())["b/near"]).share == 0.5
        assert allocation_of((await both.standing())["a/rest"]).share == 0.8
        await traffic.until_sent(traffic.progress[-1]["scheduled"] + 60, timeout_s=30.0)
        (journal,) = journals_in(tmp_path)
        status, said = await both.run("--undo", str(journal), "--yes")
        assert (status, "all is taken back" in said) == (0, True), said
        await traffic.until_sent(traffic.progress[-1]["scheduled"] + 60, timeout_s=30.0)
        log = await traffic.stop()
    assert len(log) > 150
    assert log.failed == 0, set(log.error)
    assert await both.standing() == before
    status, said = await both.run("--undo", str(journal), "--yes")
    assert (status, "nothing is to be taken back" in said) == (0, True), said


@pytest.mark.parametrize("way", ["--continue", "--undo"])
async def test_one_that_was_killed_goes_on_or_is_taken_back(
    both: Pair, tmp_path: Path, way: str
) -> None:
    before, file = await both.standing(), await both.write_rebalance()
    both.write_config(route="import time; time.sleep(60)")
    process = await both.start("--file", str(file), "--yes", "--journal", "j.jsonl")
    journal = tmp_path / "j.jsonl"

    def routes() -> bool:
        return journal.exists() and '"entry":"begun","step":3' in journal.read_text()

    await until(routes, 60.0)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    both.write_config()
    status, said = await both.run(way, "j.jsonl", "--yes")
    assert status == 0, said
    if way == "--undo":
        assert await both.standing() == before
    else:
        assert await both.is_moved()


async def test_the_rebalance_is_what_the_broker_retains(both: Pair, tmp_path: Path) -> None:
    async with broker_host(tmp_path / "broker") as broker:
        text = both.config.read_text()
        both.config.write_text(
            f'{text}[broker]\nurl = "{broker.url}"\n[fleet]\nclusters = ["{CLUSTER}"]\n'
        )
        status, said = await both.run()
        assert status == 1
        assert f"has no rebalance at igniterd/v1/{CLUSTER}/rebalance" in said
        data = json.loads((await both.write_rebalance()).read_text())
        message = event("rebalance", data, source="igniterd/lab/one", id="1", at=datetime.now(UTC))
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await client.publish(f"igniterd/v1/{CLUSTER}/rebalance", message, qos=1, retain=True)
        status, said = await both.run("--yes")
        assert status == 0, said
        assert await both.is_moved()


async def test_without_a_command_it_waits_and_goes_on_when_the_route_is_changed(
    both: Pair,
) -> None:
    text = both.config.read_text()
    both.config.write_text(text[: text.index("[route]")])
    file = await both.write_rebalance()
    status, said = await both.run("--file", str(file), "--yes", "--journal", "j.jsonl")
    assert status == 1
    assert f"send all requests for m to gpu-b ({both.b.url})" in said
    assert "--continue j.jsonl --yes --routed 3" in said
    assert {"a/m", "b/m"} <= (await both.standing()).keys()
    status, said = await both.run("--continue", "j.jsonl", "--yes", "--routed", "3")
    assert status == 0, said
    assert await both.is_moved()


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 1)])
async def test_on_a_terminal_the_operator_is_asked(both: Pair, answer: str, status: int) -> None:
    text = both.config.read_text()
    both.config.write_text(text[: text.index("[route]")])
    file = await both.write_rebalance()
    ours, theirs = os.openpty()
    said = bytearray()
    asyncio.get_running_loop().add_reader(ours, lambda: said.extend(os.read(ours, 4096)))
    process = await both.start("--file", str(file), "--yes", terminal=theirs)
    try:
        await until(lambda: b"Is that done?" in said, 60.0)
        os.write(ours, f"{answer}\n".encode())
        async with asyncio.timeout(60.0):
            assert await process.wait() == status, said.decode()
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
        os.close(theirs)
    assert await both.is_moved() == (status == 0)


async def test_a_route_that_is_refused_stops_it_and_undo_takes_it_back(both: Pair) -> None:
    before, file = await both.standing(), await both.write_rebalance()
    both.write_config(route="raise SystemExit('no such route')")
    status, said = await both.run("--file", str(file), "--yes", "--journal", "j.jsonl")
    assert status == 1
    assert "no such route" in said
    assert "2 of 5 steps are done" in said
    there = await both.standing()
    assert {"a/m", "b/m"} <= there.keys()
    both.write_config()
    status, said = await both.run("--undo", "j.jsonl", "--yes")
    assert status == 0, said
    assert await both.standing() == before


async def test_a_first_load_that_triton_refuses_is_said_with_what_it_leaves(
    tmp_path: Path,
) -> None:
    """The other models serve all the time, and Triton as a whole says that it is not ready."""
    async with pair(tmp_path) as both:
        before, file = await both.standing(), await both.write_rebalance()
        config = both.b.repository / "m" / "config.pbtxt"
        config.write_text(config.read_text().replace("alexnet", "nosuch"))
        spec = LoadSpec(both.b.url, (Phase("on", None, {"near": 20.0}),), deadline_s=60.0, seed=1)
        async with loading(spec, tmp_path / "log.csv") as traffic:
            await traffic.until_sent(10, timeout_s=30.0)
            status, said = await both.run("--file", str(file), "--yes", "--journal", "j.jsonl")
            log = await traffic.stop()
        assert status == 1
        assert "says that it is not ready until a load of it succeeds" in said
        assert not (await both.clients[1].server()).ready
        assert log.failed == 0, set(log.error)
        status, said = await both.run("--undo", "j.jsonl", "--yes")
        assert status == 0, said
        assert await both.standing() == before
        assert not (await both.clients[1].server()).ready
        config.write_text(config.read_text().replace("nosuch", "alexnet"))
        await both.clients[1].load("m", None)
        assert (await both.clients[1].server()).ready


async def test_a_host_that_changed_since_is_named_and_nothing_is_done(
    both: Pair, tmp_path: Path
) -> None:
    file = await both.write_rebalance()
    config = await both.clients[1].config("near")
    theirs = replace(allocation_of(config), max_batch_size=4)
    await both.clients[1].load("near", with_allocation(config, theirs, str(tmp_path)))
    before = await both.standing()
    status, said = await both.run("--file", str(file), "--yes")
    assert status == 1
    assert "gpu-b has changed since: ask for a new rebalance" in said
    assert await both.standing() == before
    assert journals_in(tmp_path) == []


async def test_where_no_file_is_seen_it_is_loaded_as_it_is_and_then_changed(
    both: Pair,
) -> None:
    """As on another machine: the repository's own first, which tells the configuration."""

    def loads() -> int:
        return both.b.log.read_text(errors="replace").count("loading: m:")

    before = loads()
    both.write_config()
    text = both.config.read_text()
    nowhere = f'url = "{both.b.url}"\nrepository = ["/nowhere"]\n'
    both.config.write_text(text.replace(f'url = "{both.b.url}"\n', nowhere))
    file = await both.write_rebalance()
    status, said = await both.run("--file", str(file), "--yes")
    assert status == 0, said
    assert await both.is_moved()
    assert loads() - before == 2
