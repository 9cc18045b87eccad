"""What one host said last: its parts joined, its runs told apart. Pure; ``at_s`` is the clock of
whoever received the message, and no clock of a host counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from igniterd.announce import STATE_EXPIRY_S
from igniterd.fleet.checks import contradictions
from igniterd.fleet.cluster import HostView
from igniterd.fleet.lean import lean
from igniterd.messages.state import HostState
from igniterd.messages.topics import VERSION

TWO_S = 2.0 * STATE_EXPIRY_S
"""Once two daemons of one name were heard, one alone must be for this long."""
FORGET_S = 300.0
"""A host that is silent for this long is not named any more."""
MOST_RUNS = 4
MOST_VERSIONS = 4


@dataclass(slots=True)
class _Run:
    """The newest tick that was heard of one process, and its parts until all are there."""

    heard_s: float
    tick: int
    until_s: float  # when the first of its parts is stale
    parts: int
    have: dict[int, HostState] = field(default_factory=dict)
    held: int = 0  # bytes of messages
    done: bool = False
    was_current: bool = False

    def forget_parts(self) -> None:
        self.have, self.held = {}, 0


@dataclass(slots=True)
class HostRecord:
    """One host. ``fault``: what is wrong with the last state, which then hides an earlier one;
    ``wrong``: what a complete state contradicts itself in."""

    name: str
    heard_s: float
    view: HostView | None = None
    needs: frozenset[str] = frozenset()  # profiles
    until_s: float = -math.inf  # when ``view`` is stale
    ageless: bool = False  # it was retained, and nobody can tell since when
    fault: str = ""
    wrong: str = ""
    status: str = ""
    status_reason: str = ""
    two: str = ""
    two_until_s: float = -math.inf
    other_versions: tuple[str, ...] = ()
    current_held: int = 0
    runs: dict[str, _Run] = field(default_factory=dict)
    own: str = ""  # why it is left out for what it says itself, as last settled
    due_s: float = math.inf  # when it is looked at again

    @property
    def held(self) -> int:
        """Bytes of the messages that are kept."""
        return self.current_held + sum(run.held for run in self.runs.values())

    def take_part(
        self, part: HostState, size: int, *, at_s: float, left_s: float | None, retained: bool
    ) -> str:
        """Take one part of a state. Returns what became of it: taken, old, again, stale, or
        contradictory."""
        run = self._run_of(part, at_s, retained)
        if part.tick < run.tick:
            return "old"
        if run.done and part.tick == run.tick:
            return "again"
        until_s, ageless = fresh_until(at_s, left_s, retained)
        if part.tick > run.tick:
            self._see_two(part.run, run, at_s)
            run.tick, run.parts, run.until_s, run.done = part.tick, part.parts, until_s, False
            run.forget_parts()
        if part.parts != run.parts or part.part > part.parts:
            self.refuse(
                f"part {part.part} of {part.parts} does not belong to the {run.parts} parts of "
                f"tick {part.tick}"
            )
            run.forget_parts()
            return "contradictory"
        run.heard_s, run.until_s = at_s, min(run.until_s, until_s)
        if part.part not in run.have:
            run.held += size
        run.have[part.part] = part
        if len(run.have) == run.parts:
            self._join(part.run, run, ageless)
        return "taken" if until_s > at_s else "stale"

    def refuse(self, fault: str) -> None:
        """The last state cannot be used, and so no earlier one."""
        self.fault, self.view, self.current_held = fault, None, 0

    def clear(self) -> None:
        """Its retained state was taken away."""
        self.refuse("its state was taken away")
        self.runs.clear()

    def set_status(self, status: str, reason: str) -> None:
        self.status, self.status_reason = status, reason
        degraded = (reason or "its daemon says no more") if status == "degraded" else ""
        if self.view is not None and self.view.degraded != degraded:
            self.view = replace(self.view, degraded=degraded)

    def add_version(self, version: str) -> None:
        """It speaks another version too."""
        if version not in self.other_versions:
            self.other_versions = (*self.other_versions, version)[-MOST_VERSIONS:]

    def reason(self, at_s: float) -> str:
        """Why it is left out for what it says itself; empty where it can be used."""
        if self.status == "offline":
            return f"offline: {self.status_reason or 'the connection was lost'}"
        if self.fault:
            return self.fault
        if self.view is None:
            return self._why_no_state()
        if at_s < self.two_until_s:
            return self.two
        return self._why_stale() if at_s >= self.until_s else self.wrong

    def settle(self, at_s: float) -> float:
        """Forget parts whose rest did not come. Returns when to look again."""
        for run in self.runs.values():
            if not run.done and at_s >= run.until_s:
                run.forget_parts()
        later = [self.until_s, self.two_until_s, *(r.until_s for r in self.runs.values())]
        return min([s for s in later if s > at_s] + [self.heard_s + FORGET_S])

    def _why_stale(self) -> str:
        if self.other_versions:
            return self._why_version()
        if self.ageless:
            return "stale: its retained state does not say how old it is"
        return f"stale: no state within {STATE_EXPIRY_S} s"

    def _why_no_state(self) -> str:
        if self.other_versions and not self.runs:
            return self._why_version()
        for run in self.runs.values():
            if run.have:
                return f"waits for parts of its state: {len(run.have)} of {run.parts} are here"
        return "no state of it was heard"

    def _why_version(self) -> str:
        spoken = ", ".join(self.other_versions)
        return f"it speaks {spoken} of the messages, and {VERSION} is read here"

    def _run_of(self, part: HostState, at_s: float, retained: bool) -> _Run:
        run = self.runs.get(part.run)
        # a run that only says older ticks for long is believed again: the newest was a false one
        if (
            run is not None
            and part.tick < run.tick
            and not retained
            and at_s >= run.heard_s + TWO_S
        ):
            run = None
        if run is None:
            self.runs.pop(part.run, None)
            while len(self.runs) >= MOST_RUNS:
                del self.runs[min(self.runs, key=lambda name: self.runs[name].heard_s)]
            run = self.runs[part.run] = _Run(at_s, part.tick, math.inf, part.parts)
        return run

    def _see_two(self, name: str, run: _Run, at_s: float) -> None:
        """A run that was followed by another one, and goes on: both live."""
        if run.was_current and self.view is not None and self.view.run != name:
            first, second = sorted((name, self.view.run))
            self.two = f"two daemons call themselves {self.name}: runs {first} and {second}"
            self.two_until_s = at_s + TWO_S

    def _join(self, name: str, run: _Run, ageless: bool) -> None:
        """All parts are there: they replace what was before."""
        parts = [run.have[number] for number in range(1, run.parts + 1)]
        state = parts[0]
        if len(parts) > 1:
            models = tuple(model for part in parts for model in part.models)
            state = state.model_copy(update={"models": models, "part": 1, "parts": 1})
        self.current_held = run.held
        run.forget_parts()
        run.done = run.was_current = True
        self.until_s, self.ageless, self.fault = run.until_s, ageless, ""
        self.view = HostView.of(lean(state))
        self.set_status(self.status, self.status_reason)
        self.wrong = contradictions(state)
        self.needs = frozenset(digest for model in state.models for digest in model.profiles)


def fresh_until(at_s: float, left_s: float | None, retained: bool) -> tuple[float, bool]:
    """Until when a state counts, and whether nobody can tell.

    The broker says how much is left of the time that a message expires after, so that no clock of a
    host is asked. What was retained for longer than a state may be, or for ever, has no age.
    """
    if left_s is None or math.isnan(left_s) or left_s > STATE_EXPIRY_S:
        return (at_s, True) if retained else (at_s + STATE_EXPIRY_S, False)
    return at_s + max(left_s, 0.0), False
