"""What each Triton could load: the models of its repository that it does not serve.

Asked for now and then, beside the ticks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

from igniterd.clients.triton.info import IndexEntry
from igniterd.edgelog import EdgeLogger
from igniterd.engines.hosting import SHADOW

EVERY_S = 60.0
CLOSE_S = 5.0
DEADLINE_S = 30.0  # listing a bucket, or many models, may take seconds
FORGOTTEN = 5  # answers in a row that did not come: what was known before is too old
_SERVED = ("READY", "LOADING", "UNLOADING")
_UNLOADED = ("", "unloaded")  # other reasons are why its last load failed


class Indexed(Protocol):
    """What is asked of a Triton client."""

    async def index(self, timeout_s: float | None = None) -> tuple[IndexEntry, ...]: ...


class Loadable:
    """Asks every one of ``tritons`` (by name) from :meth:`start` to :meth:`close`."""

    def __init__(self, tritons: Mapping[str, Indexed], every_s: float = EVERY_S) -> None:
        self.names: dict[str, frozenset[str]] = {}
        """By Triton, what it could load when it was last asked."""
        self._tritons, self._every_s = tritons, every_s
        self._missed = dict.fromkeys(tritons, 0)
        self._once = EdgeLogger("index")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="loadable")

    async def close(self) -> None:
        """A question under way is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_S)
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.gather(*(self._ask(name) for name in self._tritons))
            await asyncio.sleep(self._every_s)

    async def _ask(self, name: str) -> None:
        try:
            entries = await self._tritons[name].index(DEADLINE_S)
        except Exception as error:  # whatever it is, the next question may be answered
            self._missed[name] += 1
            if self._missed[name] >= FORGOTTEN:
                self.names.pop(name, None)
            self._once.failed(
                name, str(error) or repr(error), says="which models could be loaded is not known"
            )
            return
        self._missed[name] = 0
        self._once.worked(name, says="which models could be loaded is known")
        self.names[name] = loadable(entries)


def loadable(entries: Iterable[IndexEntry]) -> frozenset[str]:
    """Of a repository's list, the models of which no version is served, nor failed to load.

    igniterd's own copies of models are not among them.
    """
    asked = tuple(entries)
    served = {entry.name for entry in asked if entry.state in _SERVED}
    failed = {entry.name for entry in asked if entry.reason not in _UNLOADED}
    copies = {entry.name for entry in asked if entry.name.startswith(SHADOW)}
    return frozenset(entry.name for entry in asked) - served - failed - copies
