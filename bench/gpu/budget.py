"""Time, divided over phases: what one phase leaves goes to the next ones, and what fails or runs
out of time is written down."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping

from igniterd.errors import IgniterdError


class Budget:
    """``total_s`` seconds from now for ``phases``, a weight for each, in the order they will be run
    in."""

    def __init__(
        self,
        total_s: float,
        phases: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not total_s > 0.0:
            raise ValueError(f"budget is {total_s}: give seconds above 0")
        self.incomplete: list[str] = []
        """What was left out and why, in sentences."""
        self.spent_s: dict[str, float] = {}
        self._clock, self._end_s = clock, clock() + total_s
        self._weights = dict(phases)

    @property
    def left_s(self) -> float:
        return max(0.0, self._end_s - self._clock())

    def allowed_s(self, phase: str) -> float:
        """Seconds for ``phase`` if it began now: its part of what is left, among the phases that
        have not been run."""
        waiting = {p: w for p, w in self._weights.items() if p not in self.spent_s}
        if phase not in waiting:
            raise KeyError(f"{phase!r} is not one of the phases to come: {', '.join(waiting)}")
        return self.left_s * waiting[phase] / sum(waiting.values())

    def lacks(self, what: str) -> None:
        """Something was left out."""
        self.incomplete.append(what)

    async def phase(
        self, name: str, work: Callable[[float], Awaitable[None]], *, most_s: float | None = None
    ) -> bool:
        """Run ``work(seconds it has)``, stopped when they are over (``most_s`` in place of the
        phase's part); whether it ended by itself.

        Errors are written down, faults of the harness itself with their traceback; the other phases
        may still be of use.
        """
        allowed_s, began_s = self.allowed_s(name), self._clock()
        if most_s is not None:
            allowed_s = min(self.left_s, most_s)
        problem = ""
        try:
            async with asyncio.timeout(allowed_s):
                await work(allowed_s)
        except TimeoutError:
            problem = f"stopped after the {allowed_s:.0f} s it had"
        except (IgniterdError, OSError) as error:
            problem = str(error) or type(error).__name__
        except Exception as error:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
        finally:
            self.spent_s[name] = self._clock() - began_s
        if problem:
            self.lacks(f"{name}: {problem}")
        return not problem
