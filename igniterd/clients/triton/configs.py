"""The configurations of one Triton's models as they are known, and when each is read again.

One that cannot be read, or understood, costs only its model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from heapq import nsmallest
from typing import Any
from zlib import crc32

from igniterd.clients.environments import Own, Reach
from igniterd.clients.looks import Looks
from igniterd.clients.triton.reading import Known, Served, known_of
from igniterd.errors import NotNow, Refused, Unanswered
from igniterd.records import Allocation

EVERY_TICK = 4
"""So many of those that are known longest are read again beside those that are due: nothing in the
statistics tells that somebody changed a model that is idle."""
AT_LEAST_S = 1.0  # and none more often than this
KEPT = 3.0  # ages after which a configuration that cannot be read again is no longer believed

Ask = Callable[[str, float], Awaitable[Any]]


class Configurations:
    """``ask`` reads the ``ModelConfig`` message of a model, within a deadline in seconds; ``moved``
    is told of one that somebody changed: it may have been put elsewhere; ``replaced`` of one of
    which another copy serves."""

    def __init__(
        self,
        ask: Ask,
        looks: Looks,
        moved: Callable[[str], None],
        replaced: Callable[[str], None],
        *,
        max_age_s: float,
        shares_dir: str,
        reach: Reach,
        clock: Callable[[], float],
    ) -> None:
        self._ask, self._looks, self._moved, self._clock = ask, looks, moved, clock
        self._replaced = replaced
        self._max_age_s, self._shares_dir, self._reach = max_age_s, shares_dir, reach
        self._known: dict[str, Known] = {}
        self._reloads: dict[str, int] = {}
        # what the last load of each model was to bring, and its mark
        self._asked: dict[str, tuple[str, Allocation | None]] = {}

    def of(self, name: str) -> Known | None:
        """What is known of a model."""
        return self._known.get(name)

    def among(self, names: Iterable[str]) -> Iterable[Known]:
        """What is known of those of ``names`` that are known."""
        return (known for name in names if (known := self._known.get(name)) is not None)

    def marks(self) -> dict[str, str]:
        """The loads of ours that brought what is served."""
        return {name: known.mark for name, known in self._known.items() if known.mark}

    def asked_for(self, name: str, mark: str, wanted: Allocation | None) -> None:
        """A load of ours is about to begin."""
        self._asked[name] = (mark, wanted)

    async def now(self, names: Iterable[str], limit_s: float) -> dict[str, Allocation]:
        """What is applied at this moment, read anew; without those that cannot be read."""
        began_s, wanted = self._clock(), list(names)
        await self.refresh(wanted, {}, limit_s)
        return {
            n: known.allocation
            for n in wanted
            if (known := self.of(n)) and known.seen_at_s >= began_s
        }

    def changed(self, name: str) -> None:
        """A tick may have read the old configuration while the new copy was loading, or be reading
        it now."""
        self._known.pop(name, None)
        self._reloads[name] = self._reloads.get(name, 0) + 1

    def again(self) -> None:
        """Every one may have changed."""
        for known in self._known.values():
            known.read_at_s = float("-inf")

    def disbelieve(self) -> None:
        """Another server may be answering: what is not read anew is not known."""
        for known in self._known.values():
            known.read_at_s = known.seen_at_s = float("-inf")

    def age_s(self, name: str) -> float:
        """Models first read together must not all be read together ever after: the first reading is
        given an age of its own."""
        return self._max_age_s * (crc32(name.encode()) % 97) / 97.0

    def due(
        self, served: Mapping[str, Served], wanted: Iterable[str], unsettled: Callable[[str], bool]
    ) -> list[str]:
        """Which of ``wanted`` may have changed since they were read, and a few of those that were
        read longest ago."""
        now_s, due, idle = self._clock(), list[str](), list[tuple[float, str]]()
        for name in wanted:
            if name not in served:
                continue
            known = self._known.get(name)
            if known is None or self._stale(known, served[name], now_s) or unsettled(name):
                due.append(name)
            elif now_s - known.seen_at_s >= AT_LEAST_S:
                idle.append((known.seen_at_s, name))
        return due + [name for _, name in nsmallest(EVERY_TICK, idle)]

    def _stale(self, known: Known, served: Served, now_s: float) -> bool:
        return known.restarted_in(served) or now_s - known.read_at_s >= self._max_age_s

    async def refresh(
        self, due: list[str], served: Mapping[str, Served], limit_s: float
    ) -> dict[str, NotNow]:
        """Read the configurations of ``due``. Returns what is not known, and why."""
        now_s, began_s = self._clock(), asyncio.get_running_loop().time()
        reloads, raced = dict(self._reloads), list[str]()
        for name in due:
            known, now = self._known.get(name), served.get(name)
            if known is not None and now is not None and known.restarted_in(now):
                self._replaced(name)
        answers = await asyncio.gather(*(self._read(name, limit_s) for name in due))
        failed: dict[str, NotNow] = {}
        for name, answer in zip(due, answers, strict=True):
            if self._reloads.get(name) != reloads.get(name):
                raced.append(name)  # reloaded while it was read: the answer may be the old copy's
            elif isinstance(answer, NotNow):
                if not self._keeps(name, answer, served.get(name), now_s):
                    # what is applied is not known, so nothing is said of the model
                    self._known.pop(name, None)
                    failed[name] = answer
            elif (wrong := self._know(name, *answer, now_s)) is not None:
                failed[name] = wrong
        left_s = limit_s - (asyncio.get_running_loop().time() - began_s)
        return failed | await self.refresh(raced, served, max(0.0, left_s)) if raced else failed

    async def _read(self, name: str, limit_s: float) -> tuple[Any, Own] | NotNow:
        """A model's configuration, and what is seen of the environment it came with."""
        try:
            async with asyncio.timeout(limit_s):
                message = await self._ask(name, limit_s)
                return message, await self._looks.at(message)
        except TimeoutError:
            return Unanswered(f"model {name!r}: its configuration was not read in {limit_s:.2g} s")
        except NotNow as error:
            return error

    def _keeps(self, name: str, why: NotNow, served: Served | None, now_s: float) -> bool:
        """Whether what was known is still believed: the model was read, and only its configuration
        came too late."""
        known = self._known.get(name)
        if (
            known is None
            or served is None
            or not isinstance(why, Unanswered)
            or known.restarted_in(served)
        ):
            return False
        return now_s - known.seen_at_s < KEPT * self._max_age_s

    def _know(self, name: str, message: Any, own: Own, now_s: float) -> NotNow | None:
        """Learn what is said of a model. Returns why it cannot be understood, if it cannot."""
        before = self._known.get(name)
        if before is not None and before.message == message:
            before.read_at_s = before.seen_at_s = now_s
            before.restarted = False
            return None
        if before is not None:
            self._moved(name)
        age_s = 0.0 if before is not None else self.age_s(name)
        try:
            known = known_of(
                message,
                now_s - age_s,
                shares_dir=self._shares_dir,
                reach=self._reach,
                own=own,
            )
        # a configuration nobody thought of: this model is not read, and the others are
        except Exception as error:
            self._known.pop(name, None)
            return Refused(f"model {name!r}: its configuration is not understood: {error!r}")
        known.seen_at_s = now_s
        known.insists(*self._asked.get(name, ("", None)))
        self._known[name] = known
        return None
