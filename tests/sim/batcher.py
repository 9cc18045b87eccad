"""Triton's dynamic batcher with one instance, fed one request at a time: the rule of
:mod:`igniterd.queueing.kernels.batcher`, which replays requests that are all known beforehand.
Times are in seconds."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

_READY = 2  # batches made up ahead of the instance


class Batcher:
    """Requests are the times at which they came. ``alarm_s`` is when :meth:`wake` is to be called
    if nothing happens before."""

    def __init__(self, largest: int, delay_s: float, waiting: Iterable[float] = ()) -> None:
        self.largest, self.delay_s = largest, delay_s
        self.queue = deque(waiting)
        self.ready: deque[list[float]] = deque()
        self.alarm_s = math.inf
        self._open = False  # the last batch that is ready may be topped up
        self._need = 0  # an arrival wakes the thread when so many are queued

    @property
    def waiting(self) -> list[float]:
        """All requests that no instance has taken, the oldest first."""
        return [at_s for batch in (*self.ready, self.queue) for at_s in batch]

    def arrive(self, now_s: float) -> None:
        """A request comes."""
        self.queue.append(now_s)
        if len(self.ready) < _READY and len(self.queue) >= self._need:
            self.wake(now_s)

    def wake(self, now_s: float) -> None:
        """The thread makes up the batches that are due."""
        self.alarm_s = math.inf
        while self.queue and len(self.ready) < _READY:
            held = len(self.ready[-1]) if self._open else 0
            room = self.largest - held
            if room == 0:
                self._renew()
                continue
            due_s = self.queue[0] + self.delay_s
            size = min(room, len(self.queue))
            if size < room and now_s < due_s:
                self._need = room
                if held == 0:
                    self.alarm_s = due_s
                    return
            if not self._open:
                self.ready.append([])
                self._open = True
            self.ready[-1] += [self.queue.popleft() for _ in range(size)]
            if size == room and now_s >= due_s:
                self._renew()

    def take(self, now_s: float) -> tuple[float, ...]:
        """The instance takes the first batch that is ready, and what may be joined to it; there
        must be one."""
        batch = self.ready.popleft()
        if self._open and not self.ready:
            self._renew()
        while self.delay_s > 0 and self.ready and now_s - self.ready[0][0] > self.delay_s:
            if self._open and len(self.ready) == 1:
                self._renew()
            if len(batch) + len(self.ready[0]) > self.largest:
                break
            batch += self.ready.popleft()
        self.wake(now_s)
        return tuple(batch)

    def _renew(self) -> None:
        """Whatever is moved next goes into a new batch."""
        self._open, self._need = False, 0
