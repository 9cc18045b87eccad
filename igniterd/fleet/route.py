"""Send a model's traffic elsewhere: a command of the operator's, or the operator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from igniterd.errors import IgniterdError, Refused
from igniterd.fleet.places import Places, Route
from igniterd.messages.rebalance import Move, Place

RouteAction = Literal["move", "replicate", "back"]
Confirm = Callable[[str], Awaitable[bool]]
"""Shows the operator what to do and asks whether it is done."""
_MOST_SAID = 300  # letters of a command's output that are repeated


class Waiting(IgniterdError):
    """Somebody has to change a route, and nobody can be asked here."""


@dataclass(frozen=True, slots=True)
class Router:
    """``confirm``: None where nobody sits at a terminal."""

    places: Places
    confirm: Confirm | None = None

    async def send(self, move: Move, action: RouteAction) -> str:
        """Change the route of ``move``; returns who did it.

        Raises :class:`Refused` where that fails, :class:`Waiting` where nobody can be asked.
        """
        words = self._words(move, action)
        if self.places.route is not None:
            await _run(self.places.route, words)
            return "by the command"
        task = _task(words)
        if self.confirm is None:
            raise Waiting(task)
        if not await self.confirm(task):
            raise Refused(f"the operator did not change the route of {move.served_as}")
        return "by the operator"

    def task(self, move: Move, action: RouteAction) -> str:
        """What is to be done, as a sentence."""
        return _task(self._words(move, action))

    def _words(self, move: Move, action: RouteAction) -> dict[str, str]:
        return {
            "action": action,
            "model": move.model,
            "served_as": move.served_as,
            "weight": f"{move.weight:g}",
            **self._place("from", move.source),
            **self._place("to", move.to),
        }

    def _place(self, which: str, place: Place) -> dict[str, str]:
        server = self.places.of(place.host, place.triton)
        return {
            f"{which}_host": place.host,
            f"{which}_triton": place.triton,
            f"{which}_url": "" if server is None else server.url,
        }


def _task(words: Mapping[str, str]) -> str:
    here = "{from_host} ({from_url})".format(**words)
    there = "{to_host} ({to_url})".format(**words)
    model = words["served_as"]
    if words["action"] == "back":
        return f"send all requests for {model} to {here} again, and none to {there}"
    if words["action"] == "replicate":
        part = f"{float(words['weight']):.0%}"
        return f"send {part} of the requests for {model} to {there}, the others to {here} as before"
    return f"send all requests for {model} to {there}, and none to {here}"


async def _run(route: Route, words: Mapping[str, str]) -> None:
    """Raises :class:`Refused` with the end of what it said."""
    command = [part.format(**words) for part in route.command]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise Refused(f"[route] command {command[0]!r} cannot be run: {error}") from error
    try:
        async with asyncio.timeout(route.timeout_s):
            said, _ = await process.communicate()
    except TimeoutError:
        raise Refused(
            f"[route] command {command[0]!r} did not end within {route.timeout_s:g} s ([route] "
            "timeout_s): whether the route is changed is not known"
        ) from None
    finally:
        if process.returncode is None:  # with whatever it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        end = said.decode(errors="replace").strip()[-_MOST_SAID:]
        raise Refused(
            f"[route] command {command[0]!r} ended with status {process.returncode}: {end}"
        )
