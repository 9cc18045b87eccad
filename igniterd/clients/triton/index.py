"""Triton's list of its repository, asked for without making anything else wait.

Listing a bucket, or many models, may take seconds. The question has a deadline of its own and goes
on while others do without its answer; a late answer serves the next one who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping

from igniterd.clients.triton.info import IndexEntry
from igniterd.errors import NotNow, NotServed, Refused, Unanswered

DEADLINE_S = 30.0
GOOD_FOR_S = 60.0  # an answer this old stands in while the next one is on its way
# index and statistics are two calls: what is ready now may have been loading a moment ago
_COMING = ("LOADING", "READY")

Ask = Callable[[float], Awaitable[tuple[IndexEntry, ...]]]


class RepositoryList:
    """The list of one Triton, ``triton`` by name. ``ask`` is given a deadline in seconds."""

    def __init__(self, triton: str, ask: Ask, clock: Callable[[], float]) -> None:
        self._triton, self._ask, self._clock = triton, ask, clock
        self._asking: asyncio.Task[tuple[IndexEntry, ...]] | None = None
        self._last: dict[str, IndexEntry] = {}
        self._last_s = float("-inf")
        # whether each model was found in a repository; None: not known yet
        self._homes: dict[str, bool | None] = {}

    def forget(self, model: str) -> None:
        """It may be elsewhere now."""
        self._homes.pop(model, None)

    def homeless(self, model: str) -> bool:
        """Whether the model is known to be in no repository."""
        return self._homes.get(model) is False

    async def why_missing(self, names: Iterable[str], wait_s: float) -> dict[str, NotNow]:
        """Why there are no statistics of ``names``; asked only when there is one to ask for."""
        missing = tuple(names)
        if not missing:
            return {}
        try:
            entries = await self._entries(wait_s)
        except NotNow as error:
            said = f"it is not served, and why is not known: {error}"
            return {name: type(error)(f"model {name!r}: {said}") for name in missing}
        return {name: _not_served(name, entries.get(name), self._triton) for name in missing}

    async def look_for(self, names: Iterable[str], wait_s: float) -> None:
        """Find out which of ``names`` are in a repository: each once. Without an answer none is
        homeless."""
        new = [name for name in names if name not in self._homes]
        if not new:
            return
        self._homes |= dict.fromkeys(new)  # at once: the caller may give up waiting
        with contextlib.suppress(NotNow):
            self._settle_homes(await self._entries(wait_s, at_once=True))

    async def close(self) -> None:
        """A question that is still under way is given up."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _entries(self, wait_s: float, *, at_once: bool = False) -> Mapping[str, IndexEntry]:
        """The list as told now; within ``wait_s``, or the last one. ``at_once``: no old one will
        do."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask(max(wait_s, DEADLINE_S)))
            self._asking.add_done_callback(self._take_answer)
        done, _ = await asyncio.wait([self._asking], timeout=wait_s)
        if done:
            return {entry.name: entry for entry in self._asking.result()}
        if not at_once and self._clock() - self._last_s < GOOD_FOR_S:
            return self._last
        raise Unanswered(
            f"the repository of Triton {self._triton!r} was not listed in {wait_s:.2g} s"
        )

    def _take_answer(self, asked: asyncio.Task[tuple[IndexEntry, ...]]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            return  # whoever waits is told; with nobody waiting the next one asks again
        self._last, self._last_s = {entry.name: entry for entry in asked.result()}, self._clock()
        self._settle_homes(self._last)

    def _settle_homes(self, entries: Mapping[str, IndexEntry]) -> None:
        self._homes |= {name: name in entries for name, home in self._homes.items() if home is None}


def _not_served(name: str, entry: IndexEntry | None, triton: str) -> NotNow:
    if entry is None:
        return Refused(
            f"model {name!r} is not in the repository of Triton {triton!r}: check [[model]] name "
            "and triton in the configuration"
        )
    state = entry.state or "not loaded"
    reason = entry.reason.splitlines()
    said = f"model {name!r} is {state} on Triton {triton!r}" + (f": {reason[0]}" if reason else "")
    return Refused(said) if state in _COMING else NotServed(said)
