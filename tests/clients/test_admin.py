import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from igniterd.cli.show import _allocation
from igniterd.clients import admin
from igniterd.clients.admin import MOST_CONNECTIONS, AdminServer
from igniterd.errors import CannotRun
from igniterd.report import moves_of, state_of
from tests.clients.ticks import a_config, a_tick
from tests.waiting import until, until_answer


class World:
    """What the daemon would say."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.health: tuple[bool, list[str]] = (True, [])
        self.accepted: list[str] = []

    def metrics(self, accept: str) -> tuple[bytes, str]:
        self.accepted.append(accept)
        return b"igniterd_feasible 1\n", "text/plain; version=0.0.4; charset=utf-8"

    def server(self, port: int = 0) -> AdminServer:
        return AdminServer(
            "127.0.0.1",
            port,
            metrics=self.metrics,
            state=lambda: self.state,
            health=lambda: self.health,
        )


@pytest_asyncio.fixture
async def world() -> AsyncIterator[tuple[World, aiohttp.ClientSession]]:
    said = World()
    server = said.server()
    await server.start()
    host, port = server.address
    async with aiohttp.ClientSession(
        f"http://{host}:{port}", timeout=aiohttp.ClientTimeout(total=10)
    ) as session:
        yield said, session
    await server.close()


async def test_metrics_as_the_scraper_wants_them(
    world: tuple[World, aiohttp.ClientSession],
) -> None:
    said, session = world
    async with session.get("/metrics", headers={"Accept": "text/plain;version=0.0.4"}) as answer:
        assert (answer.status, await answer.read()) == (200, b"igniterd_feasible 1\n")
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert said.accepted == ["text/plain;version=0.0.4"]


async def test_state_is_json_that_every_reader_takes(
    world: tuple[World, aiohttp.ClientSession],
) -> None:
    said, session = world
    async with session.get("/state") as answer:
        assert (answer.status, await answer.json()) == (503, {}), (
            "before the first tick there is no state"
        )
    said.state = {"tick": 3, "headroom": float("inf"), "models": [{"p99": float("nan")}]}
    async with session.get("/state") as answer:
        assert answer.status == 200
        text = await answer.text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "tick": 3,
        "headroom": None,
        "models": [{"p99": None}],
    }


async def test_health_has_reasons(world: tuple[World, aiohttp.ClientSession]) -> None:
    said, session = world
    async with session.get("/healthz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "healthy", "reasons": []})
    said.health = (False, ["no tick finished yet"])
    async with session.get("/healthz") as answer:
        assert (answer.status, await answer.json()) == (
            503,
            {"status": "unhealthy", "reasons": ["no tick finished yet"]},
        )


async def test_the_page_needs_nothing_from_elsewhere(
    world: tuple[World, aiohttp.ClientSession],
) -> None:
    _, session = world
    async with session.get("/") as answer:
        page = await answer.text()
        assert answer.status == 200
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "<title>igniterd</title>" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "innerHTML" not in page, "names come from outside: they are text, never markup"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_can_be_changed_here(
    world: tuple[World, aiohttp.ClientSession], method: str
) -> None:
    _, session = world
    async with session.request(method, "/state") as answer:
        assert answer.status == 405


async def test_an_address_that_is_taken_is_said_so(
    world: tuple[World, aiohttp.ClientSession],
) -> None:
    said, _ = world
    first = said.server()
    await first.start()
    second = said.server(first.address[1])
    with pytest.raises(CannotRun, match=rf"metrics\.listen 127\.0\.0\.1:{first.address[1]}"):
        await second.start()
    await first.close()


async def test_an_unhandled_error_in_what_is_shown_harms_nothing_else(
    world: tuple[World, aiohttp.ClientSession],
) -> None:
    said, session = world
    said.state = {1j: "not a key that JSON has"}  # type: ignore[dict-item]
    async with session.get("/state") as answer:
        assert answer.status == 500
    async with session.get("/healthz") as answer:
        assert answer.status == 200


def test_the_page_asks_for_what_the_state_has() -> None:
    """Names of the state that the page reads, by the letter its functions call the object."""
    page = (files("igniterd.data") / "status.html").read_text(encoding="utf-8")
    script = page[page.index("<script>") :]
    tick = a_tick()
    state = state_of(tick, a_config(), tuple(moves_of(tick)))
    known = {
        "s": set(state),
        "d": set(state["decision"]),
        "m": set(state["models"][0]) | set(state["models"][1]) | set(state["last_moves"][0]),
        "a": set(state["models"][0]["applied"]),
        "b": set(state["boards"][0]),
        "g": {"source", "reason"},
    }
    for letter, names in known.items():
        asked = set(re.findall(rf"(?<![.\w]){letter}\.([a-z]\w*)", script)) - {
            "style",
            "title",
            "textContent",
        }
        assert asked
        assert asked <= names, f"{letter}: {asked - names}"


def test_the_page_calls_who_has_no_share_what_show_calls_it() -> None:
    """Its words for an allocation, in both places, come of one function."""
    page = (files("igniterd.data") / "status.html").read_text(encoding="utf-8")
    word = _allocation({"share": None, "max_batch_size": 8, "max_queue_delay_us": 0}).split(",")[0]
    assert page.count(f'a => a.share === null ? "{word}" : pct(a.share)') == 1
    assert page.count("a.share") == 2 and page.count("cap(a)") == 2


async def raw(address: tuple[str, int], said: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(said)
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_alive_and_ready_are_two_answers() -> None:
    server = AdminServer(
        "127.0.0.1",
        0,
        metrics=lambda _: (b"", "text/plain"),
        state=dict,
        health=lambda: (True, []),
        ready=lambda: (False, ["triton:main: not read yet"]),
    )
    await server.start()
    try:
        async with aiohttp.ClientSession("http://{}:{}".format(*server.address)) as session:
            for path, status, reasons in (
                ("/livez", 200, []),
                ("/healthz", 200, []),
                ("/readyz", 503, ["triton:main: not read yet"]),
            ):
                async with session.get(path) as answer:
                    assert (answer.status, (await answer.json())["reasons"]) == (status, reasons), (
                        path
                    )
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("127.0.0.1:9409", True),
        ("[::1]:9409", True),
        ("10.1.2.3", True),
        ("localhost:9409", True),
        ("LOCALHOST.", True),
        (socket.gethostname(), True),
        ("gpu-a.example.com:9409", True),
        ("GPU-A.example.com.", True),
        ("evil.example.com:9409", False),
        ("127.0.0.1.evil.example.com", False),
        ("localhost.evil.example.com", False),
        ("gpu-a.example.com.evil.org", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_only_names_of_this_host_are_answered(host: str, taken: bool) -> None:
    server = AdminServer(
        "127.0.0.1",
        0,
        metrics=lambda _: (b"", "text/plain"),
        state=lambda: {"tick": 1},
        health=lambda: (True, []),
        hosts=["gpu-a.example.com"],
    )
    await server.start()
    try:
        answer = await raw(server.address, f"GET /state HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    finally:
        await server.close()
    assert status_of(answer) == (200 if taken else 421)
    if not taken:
        assert b"[metrics] hosts" in answer
        assert b'"tick"' not in answer


async def test_two_host_headers_are_both_looked_at(
    world: tuple[World, aiohttp.ClientSession],
) -> None:
    said, _ = world
    server = said.server()
    await server.start()
    both = b"GET /state HTTP/1.1\r\nHost: localhost\r\nHost: evil.example.com\r\n\r\n"
    assert status_of(await raw(server.address, both)) in (400, 421)
    assert status_of(await raw(server.address, b"GET /metrics HTTP/1.0\r\n\r\n")) == 200
    await server.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_thousand_idle_connections_leave_the_files_to_others(
    world: tuple[World, aiohttp.ClientSession],
) -> None:
    server = world[0].server()
    await server.start()
    before, held = open_files(), []
    for _ in range(1000):
        idle = socket.socket()
        idle.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            idle.connect(server.address)
        held.append(idle)
        await asyncio.sleep(0)
    try:
        assert (
            status_of(
                await raw(server.address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            )
            == 503
        )
        assert open_files() - before - len(held) <= MOST_CONNECTIONS + 5
    finally:
        for idle in held:
            idle.close()
    asked = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    # The connections end when the kernel says so.
    await until_answer(lambda: raw(server.address, asked), lambda said: status_of(said) == 200)
    await server.close()


@pytest.mark.parametrize(
    "kind",
    ["says nothing", "drips its head", "does not read", "drips a body", "keeps it after an answer"],
)
async def test_a_slow_peer_is_left(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "CONNECTION_S", 0.5)
    large = b"#" * 50_000_000
    server = AdminServer(
        "127.0.0.1",
        0,
        metrics=lambda _: (large, "text/plain"),
        state=dict,
        health=lambda: (True, []),
    )
    await server.start()
    head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
    first = {
        "says nothing": b"",
        "drips its head": head,
        "does not read": head + b"\r\n",
        "drips a body": head.replace(b"/metrics", b"/livez") + b"Content-Length: 1000000\r\n\r\n",
        "keeps it after an answer": head.replace(b"/metrics", b"/livez") + b"\r\n",
    }[kind]
    peer = socket.create_connection(server.address)
    peer.setblocking(False)
    peer.send(first)
    runner = server._runner
    assert runner is not None
    assert runner.server is not None
    held = runner.server

    def over() -> bool:
        with contextlib.suppress(OSError):
            if kind.startswith("drips"):
                peer.send(b"X: y\r\n")
        return not held.connections

    try:
        if b"livez" not in first:  # those may be over by now
            await until(lambda: held.connections)
        await until(over)
    finally:
        peer.close()
        await server.close()


BAD = """
import asyncio
from igniterd.clients.admin import AdminServer
ODD = [
    b"GET /" + b"a" * 10000 + b" HTTP/1.1\\r\\n\\r\\n",
    b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00" * 30 + b"\\r\\n\\r\\n",
    b"GET / HTTP/9.9\\r\\n\\r\\n",
    b"GET / HTTP/1.1\\r\\nHost: a b\\r\\n\\r\\n",
    b"GET / HTTP/1.1\\r\\nHost\\r\\n\\r\\n",
    b"GET /%zz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n",
    b"GET http://[ HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n",
    b"POST /state HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: -1\\r\\n\\r\\n",
    b"GET /state HTTP/1.1\\r\\nHost: localhost\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\nzz\\r\\n",
    b"GET /nothing HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n",
]
async def go():
    s = AdminServer("127.0.0.1", 0, metrics=lambda _: (b"", "text/plain"), state=dict, health=lambda: (True, []))
    await s.start()
    for odd in ODD * 3:
        r, w = await asyncio.open_connection(*s.address)
        w.write(odd)
        w.write_eof()
        try:
            async with asyncio.timeout(20):
                await r.read()
        except ConnectionError:
            pass
        w.close()
    await s.close()
asyncio.run(go())
"""  # noqa: E501


def test_bad_requests_write_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BAD], capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


async def test_an_error_of_our_own_is_said_once(world: tuple[World, aiohttp.ClientSession]) -> None:
    said, session = world
    said.state = {1j: "not a key that JSON has"}  # type: ignore[dict-item]
    with capture_logs() as logs:
        for _ in range(5):
            async with session.get("/state") as answer:
                assert answer.status == 500
        said.state = {"tick": 1}
        async with session.get("/state") as answer:
            assert answer.status == 200
    assert [(line["event"], line["what"]) for line in logs] == [
        ("failing", "/state"),
        ("recovered", "/state"),
    ]
