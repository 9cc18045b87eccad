"""When a tick is told to the cluster, and what of it. Nothing here waits for anybody."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from igniterd.cluster_state import cluster_state
from igniterd.config import Config
from igniterd.decisions import Tick
from igniterd.edgelog import EdgeLogger
from igniterd.errors import Refused
from igniterd.hints import hints_of
from igniterd.messages.state import short, split_state
from igniterd.profiled import Predictors
from igniterd.records import BoardReading

STATE_EVERY_S = 5.0  # how often the state goes out when nothing changes
STATE_EXPIRY_S = 30
HINT_EVERY_S = 10.0
HINT_EXPIRY_S = 60


class Publisher(Protocol):
    """What is asked of the MQTT client; never blocks."""

    def publish_state(self, parts: Sequence[Mapping[str, Any]], *, expiry_s: int) -> None: ...

    def publish_hint(self, hint: Mapping[str, Any], *, expiry_s: int) -> None: ...


class Announcer:
    """Tells the cluster of ticks: the state now and then and when something was moved, hints when
    they change and now and then."""

    def __init__(
        self,
        config: Config,
        knowledge: Predictors,
        publisher: Publisher,
        *,
        run: str,
        loadable: Callable[[], Mapping[str, Collection[str]]] = dict,
    ) -> None:
        """``run`` names this process; ``loadable`` is asked what each Triton could load."""
        self._config, self._knowledge, self._publisher = config, knowledge, publisher
        self._run, self._loadable = run, loadable
        self._once = EdgeLogger("mqtt")
        self._state_sent_s = self._hint_sent_s = float("-inf")
        self._hinted = ""
        self._shed: frozenset[str] = frozenset()
        self._boards: tuple[float, tuple[BoardReading, ...]] = (float("-inf"), ())

    def __call__(self, tick: Tick, moved: bool) -> None:
        """Tell of ``tick``; ``moved``: whether anything was changed in it."""
        hints = list(hints_of(tick, self._config))
        # who plans for the cluster goes by the state, and is not to wait for the next
        shed = frozenset(hint["model"] for hint in hints if hint["kind"] == "shed")
        due = tick.at_s - self._state_sent_s >= STATE_EVERY_S
        if moved or due or shed != self._shed:
            self._state_sent_s, self._shed = tick.at_s, shed
            self._tell_state(self._with_boards(tick))
        kinds = json.dumps([(h["kind"], h.get("model", h.get("gpu_uuid"))) for h in hints])
        if hints and (kinds != self._hinted or tick.at_s - self._hint_sent_s >= HINT_EVERY_S):
            self._hint_sent_s, self._hinted = tick.at_s, kinds
            for hint in hints:
                cut = {"reason": short(hint["reason"])} if "reason" in hint else {}
                self._publisher.publish_hint(hint | cut, expiry_s=HINT_EXPIRY_S)

    def _with_boards(self, tick: Tick) -> Tick:
        """``tick``, with the boards as they were read last where they were not read in it: a host
        without boards cannot be planned for."""
        if tick.observation.boards:
            self._boards = tick.at_s, tick.observation.boards
            return tick
        read_s, boards = self._boards
        if tick.at_s - read_s > STATE_EXPIRY_S:
            return tick
        return replace(tick, observation=replace(tick.observation, boards=boards))

    def _tell_state(self, tick: Tick) -> None:
        state = cluster_state(
            tick, self._config, self._knowledge, run=self._run, loadable=self._loadable()
        )
        try:
            parts = list(split_state(state))
        except Refused as error:  # what was said before expires
            self._once.failed("state", str(error), says="the state is not told")
            return
        self._once.worked("state", says="the state is told again")
        self._publisher.publish_state(parts, expiry_s=STATE_EXPIRY_S)
