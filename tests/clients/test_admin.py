import dataclasses
import json
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from igniterd.clients.admin import AdminServer
from igniterd.errors import CannotRun
from igniterd.records import BoardReading
from igniterd.report import moves_of, state_of
from tests.clients.ticks import a_config, a_tick


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
        return AdminServer("127.0.0.1", port, metrics=self.metrics, state=lambda: self.state, health=lambda: self.health)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[tuple[World, aiohttp.ClientSession]]:
    said = World()
    server = said.server()
    await server.start()
    host, port = server.address
    async with aiohttp.ClientSession(f"http://{host}:{port}", timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield said, session
    await server.close()


async def test_metrics_as_the_scraper_wants_them(world: tuple[World, aiohttp.ClientSession]) -> None:
    said, session = world
    async with session.get("/metrics", headers={"Accept": "text/plain;version=0.0.4"}) as answer:
        assert (answer.status, await answer.read()) == (200, b"igniterd_feasible 1\n")
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert said.accepted == ["text/plain;version=0.0.4"]


async def test_state_is_json_that_every_reader_takes(world: tuple[World, aiohttp.ClientSession]) -> None:
    said, session = world
    async with session.get("/state") as answer:
        assert (answer.status, await answer.json()) == (503, {}), "before the first tick there is no state"
    said.state = {"tick": 3, "headroom": float("inf"), "models": [{"p99": float("nan")}]}
    async with session.get("/state") as answer:
        assert answer.status == 200
        text = await answer.text()
    assert json.loads(text, parse_constant=pytest.fail) == {"tick": 3, "headroom": None, "models": [{"p99": None}]}


async def test_health_has_reasons(world: tuple[World, aiohttp.ClientSession]) -> None:
    said, session = world
    async with session.get("/healthz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "healthy", "reasons": []})
    said.health = (False, ["no tick finished yet"])
    async with session.get("/healthz") as answer:
        assert (answer.status, await answer.json()) == (503, {"status": "unhealthy", "reasons": ["no tick finished yet"]})


async def test_the_page_needs_nothing_from_elsewhere(world: tuple[World, aiohttp.ClientSession]) -> None:
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
async def test_nothing_can_be_changed_here(world: tuple[World, aiohttp.ClientSession], method: str) -> None:
    _, session = world
    async with session.request(method, "/state") as answer:
        assert answer.status == 405


async def test_an_address_that_is_taken_is_said_so(world: tuple[World, aiohttp.ClientSession]) -> None:
    said, _ = world
    first = said.server()
    await first.start()
    second = said.server(first.address[1])
    with pytest.raises(CannotRun, match=rf"metrics\.listen 127\.0\.0\.1:{first.address[1]}"):
        await second.start()
    await first.close()


async def test_an_unhandled_error_in_what_is_shown_harms_nothing_else(world: tuple[World, aiohttp.ClientSession]) -> None:
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
        "b": {field.name for field in dataclasses.fields(BoardReading)},
        "g": {"source", "reason"},
    }
    for letter, names in known.items():
        asked = set(re.findall(rf"(?<![.\w]){letter}\.([a-z]\w*)", script)) - {"style", "title", "textContent"}
        assert asked
        assert asked <= names, f"{letter}: {asked - names}"
