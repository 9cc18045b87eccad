import asyncio

import pytest
from structlog.testing import capture_logs

from igniterd.clients.triton.info import IndexEntry
from igniterd.clients.triton.loadable import DEADLINE_S, Loadable, loadable
from igniterd.engines.hosting import SHADOW
from igniterd.errors import Unreachable


def entry(name: str, state: str = "", reason: str = "", version: str = "1") -> IndexEntry:
    return IndexEntry(name, version, state, reason)


def test_what_is_served_on_its_way_or_broken_is_not_loadable() -> None:
    entries = (
        entry("never"),
        entry("gone", "UNAVAILABLE", "unloaded"),
        entry("broken", "UNAVAILABLE", "failed to load: no such file"),
        entry("served", "READY"),
        entry("coming", "LOADING"),
        entry("going", "UNLOADING"),
        entry("new", "UNAVAILABLE", "unloaded", version="1"),
        entry("new", "READY", version="2"),
        entry(f"{SHADOW}copy"),
    )
    assert loadable(entries) == {"never", "gone"}


class Index:
    """A Triton whose list may be asked for."""

    def __init__(self) -> None:
        self.entries: tuple[IndexEntry, ...] | Exception = ()
        self.asked_s: list[float] = []
        self.takes_s = 0.0

    async def index(self, timeout_s: float | None = None) -> tuple[IndexEntry, ...]:
        assert timeout_s == DEADLINE_S
        self.asked_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.takes_s)
        if isinstance(self.entries, Exception):
            raise self.entries
        return self.entries


@pytest.mark.looptime
async def test_each_triton_is_asked_once_a_minute() -> None:
    quick, slow = Index(), Index()
    quick.entries, slow.takes_s = (entry("vgg19"),), 20.0
    watched = Loadable({"a": quick, "b": slow})
    watched.start()
    await asyncio.sleep(10)
    assert watched.names == {"a": {"vgg19"}}, "one does not wait for the other"
    quick.entries = (entry("vgg19", "READY"), entry("bert"))
    await asyncio.sleep(120)
    assert watched.names == {"a": {"bert"}, "b": frozenset()}
    assert [b - a for a, b in zip(quick.asked_s, quick.asked_s[1:], strict=False)] == [80.0]
    await watched.close()
    await asyncio.sleep(200)
    assert len(quick.asked_s) == 2


@pytest.mark.looptime
@pytest.mark.parametrize("error", [Unreachable("no answer"), ZeroDivisionError("odd")])
async def test_what_is_not_answered_is_said_once_and_forgotten_in_the_end(error: Exception) -> None:
    index = Index()
    index.entries = (entry("vgg19"),)
    watched = Loadable({"a": index})
    with capture_logs() as said:
        watched.start()
        await asyncio.sleep(10)
        index.entries = error
        await asyncio.sleep(4 * 60)
        assert watched.names == {"a": {"vgg19"}}
        await asyncio.sleep(60)
        assert watched.names == {}
        index.entries = (entry("bert"),)
        await asyncio.sleep(60)
        assert watched.names == {"a": {"bert"}}
        await watched.close()
    assert [line["event"] for line in said] == [
        "which models could be loaded is not known",
        "which models could be loaded is known",
    ]


@pytest.mark.looptime
async def test_a_question_under_way_is_given_up_at_the_end() -> None:
    index = Index()
    index.takes_s = 1e6
    watched = Loadable({"a": index})
    watched.start()
    await asyncio.sleep(1)
    await watched.close()
    await watched.close()
    assert watched.names == {}
