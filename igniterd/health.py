"""Whether the daemon lives, and whether it does its work: two answers, each with reasons.

A probe that restarts the daemon asks whether it lives, which is whether its ticks are finished: no
restart brings back a Triton, a metrics page or a model. Whether it does its work also wants every
Triton to have been read lately; one answer that is late is no reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from igniterd.config import Config
from igniterd.decisions import Tick

LATELY_TICKS = 5
"""What is older than so many intervals is late."""
# igniterd works without them, and says so elsewhere
_HARMLESS = ("nvml", "processes", "share:")


class Health:
    """Told of every tick; asked by probes, MQTT and people."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began_s = clock()
        self._finished_s: float | None = None
        self._failed = False
        self._late_s = 0.0
        self._urls: Mapping[str, str] = {}
        self._models: dict[str, set[str]] = {}
        self._read_s: dict[str, float] = {}
        self._unread: dict[str, str] = {}  # Triton -> why, the last time
        self._silent: dict[str, tuple[float, str]] = {}  # source -> since when, and why

    def follow(self, config: Config) -> None:
        """These are the Tritons and models from now on; what is known of one that stays is kept."""
        self._late_s = LATELY_TICKS * config.loop.interval_s
        urls = {server.name: server.url for server in config.triton}
        stay = {name for name in urls if self._urls.get(name) == urls[name]}
        self._read_s = {name: at_s for name, at_s in self._read_s.items() if name in stay}
        self._models = {name: {m.tenant for m in config.model if m.triton == name} for name in urls}
        self._urls, self._unread, self._silent = urls, {}, {}

    def finished(self, tick: Tick) -> None:
        now_s = self._clock()
        self._finished_s, self._failed = now_s, False
        seen = tick.observation
        # a model that may come, or has left for another host: its state says so
        elsewhere = {f"model:{name}" for name in seen.absent}
        gaps = {gap.source: gap.reason for gap in seen.gaps if gap.source not in elsewhere}
        for name, models in self._models.items():
            why = gaps.get(f"triton:{name}", "")
            if not why and models and models <= seen.unread.keys():
                why = next(iter(seen.unread.values()))
            if why:
                self._unread[name] = why
            else:
                self._read_s[name] = now_s
                self._unread.pop(name, None)
        since = {source: self._silent.get(source, (now_s, ""))[0] for source in gaps}
        self._silent = {source: (since[source], reason) for source, reason in gaps.items()}

    def failed(self) -> None:
        """A tick ended in an error."""
        self._failed = True

    def alive(self) -> tuple[bool, list[str]]:
        """Whether ticks are finished, or the daemon has only just begun."""
        last_s = self._began_s if self._finished_s is None else self._finished_s
        age_s = self._clock() - last_s
        if age_s <= self._late_s:
            return True, []
        what = "no tick finished yet" if self._finished_s is None else "the last tick was finished"
        reasons = [
            f"{what}, {age_s:.0f} s after the start"
            if self._finished_s is None
            else f"{what} {age_s:.0f} s ago"
        ]
        return False, reasons + (["the last tick failed: see the log"] if self._failed else [])

    def ready(self) -> tuple[bool, list[str]]:
        """Whether ticks are finished, the last one too, and every Triton was read lately."""
        if self._finished_s is None:
            return False, ["no tick finished yet"]
        alive, reasons = self.alive()
        if alive and self._failed:
            reasons = ["the last tick failed: see the log"]
        now_s = self._clock()
        for name, why in self._unread.items():
            read_s = self._read_s.get(name)
            if read_s is None:
                reasons.append(f"triton:{name}: not read yet: {why}")
            elif now_s - read_s > self._late_s:
                reasons.append(f"triton:{name}: not read for {now_s - read_s:.0f} s: {why}")
        return not reasons, reasons

    def whole(self) -> tuple[bool, list[str]]:
        """Whether it is ready and nothing else has been silent for long: for people, not for
        probes."""
        _, reasons = self.ready()
        now_s = self._clock()
        for source, (since_s, why) in self._silent.items():
            if source.startswith((*_HARMLESS, "triton:")) or now_s - since_s <= self._late_s:
                continue
            reasons.append(f"{source}: {why}")
        return not reasons, reasons
