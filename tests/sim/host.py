"""A simulated host in virtual time: the methods of the Triton client over an event-by-event
simulation of the measured tables.

For tests of the control loop, where a minute must cost milliseconds. Each model is Triton's dynamic
batcher with one instance (:mod:`tests.sim.batcher`). A batch progresses at a speed that changes
whenever a neighbour starts or stops executing. A reload serves with the old copy until the new one
is ready, which takes over what waits and restarts the statistics. Processes without a share take
turns on the whole GPU.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.marks import rebalanced_s
from igniterd.clients.triton.unmanaged import BusyClock
from igniterd.devices import ServerFacts
from igniterd.errors import NotNow, NotServed, Refused, Unreachable
from igniterd.lab.gpu.floor import NO_FLOOR, HostFloor
from igniterd.lab.gpu.truth import DISPERSION_CV, Neighbour, Truth
from igniterd.records import Allocation, BatchStat, Gap, ModelReading, Stub
from tests.sim.batcher import Batcher


@dataclass(slots=True)
class SimModel:
    """One model: ``rate_per_s(t)`` is its Poisson rate at virtual time t, of requests of ``brings``
    items each.

    A request with more items than the configuration's max_batch_size is ``refused``, as Triton does
    it: in no other count.
    """

    name: str
    like: str
    rate_per_s: Callable[[float], float]
    config: dict[str, Any]
    gpu: int = 0
    named: bool = False  # by its configuration
    backend: str = "python"  # any other runs inside tritonserver
    brings: int = 1
    floor: HostFloor = NO_FLOOR
    refused: int = 0
    batch: tuple[float, ...] = ()  # arrival times of the requests being executed
    left: float = 0.0  # of the batch, as a fraction
    took_s: float = 0.0
    success: int = 0  # items
    requests: float = 0.0  # that brought them
    queue_ns: int = 0
    stats: dict[int, tuple[int, int]] = field(default_factory=dict)  # batch size -> executions, ns
    latencies: list[tuple[float, float]] = field(default_factory=list)  # (scheduled_s, latency_ms)
    applied: Allocation = field(init=False)
    batcher: Batcher = field(init=False)
    copies: int = 0  # loaded so far: each is another process

    def __post_init__(self) -> None:
        self.batcher = Batcher(1, 0.0)
        self.put(self.gpu)

    def put(self, gpu: int) -> None:
        """Its configuration names the GPU; the first is the server's own choice."""
        if gpu or self.named:
            self.put_on(gpu)
        else:
            self.reset(self.config)

    def put_on(self, gpu: int) -> None:
        """Its configuration names the GPU, whichever it is."""
        self.named = True
        group = {"count": 1, "kind": "KIND_GPU", "gpus": [gpu]}
        self.reset(self.config | {"instance_group": [group]})

    def reset(self, config: dict[str, Any]) -> None:
        """A new copy serves: its statistics start at zero. What waits is queued; nothing has been
        made of it yet."""
        self.config, self.applied = copy.deepcopy(config), allocation_of(config)
        self.gpu = self.applied.devices[0] if self.applied.devices else 0
        self.batcher = Batcher(
            self.formed, self.applied.max_queue_delay_us / 1e6, self.batcher.waiting
        )
        self.success, self.requests, self.queue_ns, self.stats = 0, 0.0, 0, {}
        self.copies += 1

    @property
    def formed(self) -> int:
        """The largest batch that is formed: no request is cut in two."""
        return max(1, self.applied.max_batch_size // self.brings) * self.brings

    def bring(self, items: int) -> None:
        """From now on, clients bring so many items in a request."""
        self.brings = items
        self.batcher.largest = self.formed


def config_of(name: str, max_batch: int = 8, share_path: str | None = None) -> dict[str, Any]:
    """A ModelConfig as Triton gives it, as far as igniterd reads it."""
    config: dict[str, Any] = {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch,
        "instance_group": [{"count": 1}],
    }
    config["dynamic_batching"] = {"max_queue_delay_microseconds": 0}
    config["parameters"] = (
        {"EXECUTION_ENV_PATH": {"string_value": share_path}} if share_path else {}
    )
    return config


class SimProcesses:
    """The host's process table. ``ignores`` names models whose processes have no share whatever is
    asked, ``hides`` those whose processes do not tell, ``died`` those that have none any more;
    ``gone``: the table cannot be read."""

    def __init__(self, host: SimHost) -> None:
        self._host = host
        self.ignores = set[str]()
        self.hides = set[str]()
        self.died = set[str]()
        self.gone = False
        self.server_pid = 1000

    async def read(self) -> tuple[Stub, ...]:
        if self.gone:
            raise Unreachable("the host's process table: hidden")
        return tuple(stub for name in self._host.models if (stub := self._stub(name)) is not None)

    async def servers(self) -> dict[int, ServerFacts]:
        return {}

    def _stub(self, name: str) -> Stub | None:
        model = self._host.models[name]
        if name in self.died or model.backend != "python":
            return None
        pid = self.server_pid + 100 * (1 + list(self._host.models).index(name)) + model.copies
        path = f"/models/{name}/1/model.py"
        share = None if name in self.ignores | self.hides else model.applied.share
        by = "" if share is None else "receipt"
        return Stub(
            pid,
            (pid,),
            self.server_pid,
            None,
            path,
            f"{name}_0_0",
            share,
            by,
            environment_read=name not in self.hides,
        )


@dataclass(slots=True)
class SimGpu:
    """What is executed on one GPU, from one call of ``SimHost.advance`` to the next."""

    since_s: float
    models: list[SimModel] = field(default_factory=list)
    executing: list[SimModel] = field(default_factory=list)
    speeds: tuple[float, ...] = ()  # theirs, batches a second, since ``since_s``
    changed: bool = True  # another batch has begun or ended
    done_s: float = math.inf  # when the first of them is done
    first: SimModel | None = None

    def progress(self, now_s: float) -> None:
        """Count what the batches have done at their speeds."""
        passed_s, self.since_s = now_s - self.since_s, now_s
        for model, speed in zip(self.executing, self.speeds, strict=True):
            model.left -= passed_s * speed
            model.took_s += passed_s


class SimHost:
    """A host with one Triton, read and changed like a real one; time is what ``clock`` says.
    Models on one GPU slow each other; all are on GPU 0 unless ``SimModel.gpu`` says otherwise.

    ``refuse`` maps models to the sentence with which their next load is refused; ``silent`` makes
    Triton unreachable.
    """

    def __init__(
        self,
        models: Mapping[str, tuple[str, Callable[[float], float]]],
        clock: Callable[[], float],
        *,
        max_batch: int = 8,
        slow: float = 1.0,
        seed: int = 1,
        reload_s: float = 0.6,
        name: str = "main",
    ) -> None:
        self.name = name
        self.metrics_gap: Gap | None = None
        self.unmanaged_models: frozenset[str] = frozenset()
        self.asked_about: frozenset[str] | None = None  # what the last reading was asked for
        self.truth = Truth.v100()
        self.clock, self.slow, self.reload_s = clock, slow, reload_s
        self.rng = np.random.default_rng(seed)
        self.dispersion_cv = DISPERSION_CV
        self.models = {
            n: SimModel(n, like, rate, config_of(n, max_batch))
            for n, (like, rate) in models.items()
        }
        self.loads: list[tuple[float, str, dict[str, Any]]] = []
        self.refuse: dict[str, str] = {}
        self.silent = False
        self.control = ""
        self.processes = SimProcesses(self)
        self._now_s = clock()
        self._clocks: dict[str, BusyClock] = {}
        self._faster: dict[str, float] = {}
        self._gpus: dict[int, SimGpu] = {}
        self._known_speeds: dict[tuple[object, ...], tuple[float, ...]] = {}
        self._ties = itertools.count()
        self._events: list[tuple[float, int, str, str]] = []  # time, number, what, model
        for model in self.models:
            self._next_arrival(model, self._now_s)

    # ------------------------------------------------------------ the Triton client's methods

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]:
        self._answer()
        self.asked_about = frozenset(names)
        return {
            n: self._reading(self.models[n])
            if n in self.models
            else NotServed(f"model {n!r} is not in the repository")
            for n in self.asked_about
        }

    @property
    def foreign_shares(self) -> dict[int, float]:
        """What models that nobody asked about hold of the GPU."""
        held = dict[int, float]()
        for model in self.models.values():
            if (
                self.asked_about is not None
                and model.name not in self.asked_about
                and model.applied.granted
            ):
                held[model.gpu] = held.get(model.gpu, 0.0) + model.applied.granted
        return held

    @property
    def foreign_busy(self) -> dict[int, float]:
        """The part of the time that those without a share execute on each GPU."""
        busy = dict[int, float]()
        for model in self.models.values():
            if self.asked_about is not None and model.name not in self.asked_about:
                clock = self._clocks.setdefault(model.name, BusyClock(0, self._now_s))
                clock.read(sum(ns for _, ns in model.stats.values()), self._now_s)
                if model.applied.share is None:
                    busy[model.gpu] = min(1.0, busy.get(model.gpu, 0.0) + clock.busy)
        return busy

    @property
    def gpu_labels(self) -> tuple[str, ...]:
        return ()

    def read_configs_again(self) -> None:
        """Nothing is remembered of them."""

    async def applied_now(self, names: Iterable[str]) -> dict[str, Allocation]:
        self._answer()
        return {name: self.models[name].applied for name in names if name in self.models}

    async def old_copy(self, model: str) -> str:
        return ""

    async def refuses_loads(self) -> str:
        self._answer()
        return self.control

    async def config(self, model: str) -> dict[str, Any]:
        self._answer()
        return copy.deepcopy(self.models[model].config)

    async def load(self, model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        self._answer()
        await asyncio.sleep(self.reload_s)
        self._answer()
        if model in self.refuse:
            raise Refused(self.refuse.pop(model))
        self.processes.died.discard(model)
        self.models[model].reset(config)
        self._wake(self.models[model])
        self.loads.append((self._now_s, model, config))

    def restart(self) -> None:
        """Triton restarts: what was loaded over its files is gone."""
        for model in self.models.values():
            model.config = config_of(model.name)
            model.put(model.gpu)
            self._wake(model)

    def remove(self, model: str) -> SimModel:
        """Somebody unloads it: nobody asks for it any more."""
        self._events = [event for event in self._events if event[3] != model]
        heapq.heapify(self._events)
        return self.models.pop(model)

    def add(self, model: SimModel) -> None:
        """Somebody loads it (again)."""
        self.models[model.name] = model
        self._next_arrival(model.name, self._now_s)

    def p99_ms(self, model: str, since_s: float, until_s: float = math.inf) -> float:
        """Measured P99 of the requests scheduled in [since_s, until_s)."""
        there = [ms for at_s, ms in self.models[model].latencies if since_s <= at_s < until_s]
        return float(np.quantile(there, 0.99)) if there else math.nan

    def _answer(self) -> None:
        if self.silent:
            raise Unreachable("Triton 'main': no answer in 0.4 s")
        self.advance(self.clock())

    def _reading(self, model: SimModel) -> ModelReading:
        batches = tuple(
            BatchStat(size, n, 0, ns, 0) for size, (n, ns) in sorted(model.stats.items())
        )
        return ModelReading(
            model=model.name,
            version="1",
            triton=self.name,
            ready=True,
            backend=model.backend,
            owns_process=model.backend == "python",
            allocation=model.applied,
            success_count=round(model.requests),
            inference_count=model.success,
            pending_count=-(-(len(model.batcher.waiting) + len(model.batch)) // model.brings),
            queue_ns=model.queue_ns,
            batches=batches,
            instance_names=frozenset({f"{model.name}_0_0"}),
            at_s=self._now_s,
            rebalanced_s=rebalanced_s(model.config, model.applied),
        )

    # ------------------------------------------------------------ the simulation

    def advance(self, until_s: float) -> None:
        """Let everything happen up to ``until_s``."""
        gpus = self._gpus = self._gpus_now()  # a share may have changed since the last call
        boards = list(gpus.values())
        while True:
            done_s, first = math.inf, None
            for gpu in boards:
                if gpu.changed:
                    self._set_speeds(gpu)
                if gpu.done_s < done_s:
                    done_s, first = gpu.done_s, gpu
            event_s = self._events[0][0] if self._events else math.inf
            next_s = min(event_s, done_s)
            if next_s >= until_s:
                self._now_s = until_s
                for gpu in boards:
                    gpu.progress(until_s)
                self._gpus = {}
                return
            self._now_s = next_s
            if first is not None and done_s <= event_s:
                assert first.first is not None
                first.progress(next_s)
                self._finish(first.first)
            else:
                self._arrive()

    def _gpus_now(self) -> dict[int, SimGpu]:
        gpus = dict[int, SimGpu]()
        for model in self.models.values():
            gpus.setdefault(model.gpu, SimGpu(self._now_s)).models.append(model)
        return gpus

    def _set_speeds(self, gpu: SimGpu) -> None:
        """How fast each batch in execution goes on, and which is done first. Both hold until
        another batch begins or ends."""
        gpu.progress(self._now_s)
        executing = [m for m in gpu.models if m.batch]
        key = tuple([(m.name, m.like, len(m.batch), m.applied.share) for m in executing])
        speeds = self._known_speeds.get(key)
        if speeds is None:
            speeds = tuple(
                [self._speed(m, executing) * self._faster.get(m.name, 1.0) for m in executing]
            )
            self._known_speeds[key] = speeds
        gpu.executing, gpu.speeds, gpu.changed = executing, speeds, False
        left_s, gpu.first = math.inf, None
        for model, speed in zip(executing, speeds, strict=True):
            if model.left / speed < left_s:
                left_s, gpu.first = model.left / speed, model
        gpu.done_s = self._now_s + left_s

    def _changed(self, model: SimModel) -> None:
        if model.gpu in self._gpus:
            self._gpus[model.gpu].changed = True

    def _speed(self, model: SimModel, executing: Sequence[SimModel]) -> float:
        """Batches a second at which the batch in execution progresses now, beside the others that
        the GPU is ``executing``."""
        share = model.applied.share
        others = [m for m in executing if m is not model]
        sharing = [m for m in others if m.applied.share is not None]
        beside = [self._neighbour(m) for m in sharing]
        # a process without a share takes turns with every other such, and with all that share as
        # one
        turns = 1 + sum(self._neighbour(m).busy for m in others if m.applied.share is None)
        if share is None:
            turns += min(1.0, sum(n.busy for n in beside))
            on_gpu = self._rate(model, 1.0, ()) / turns
        else:
            granted = share + sum(n.share * n.busy for n in beside)
            on_gpu = self._rate(model, share, beside) / (turns * max(1.0, granted))
        least_ms = model.floor.least_ms(beside=bool(others)) * self.slow
        return min(on_gpu, 1000 / least_ms) if least_ms else on_gpu

    def _rate(self, model: SimModel, share: float, beside: Sequence[Neighbour]) -> float:
        return 1000 / (
            self.truth.latency_ms(model.like, len(model.batch), share, beside) * self.slow
        )

    def speed_up(self, model: str, factor: float) -> None:
        """The model executes so many times as fast from now on, whatever its share."""
        self._faster[model] = factor
        self._known_speeds.clear()

    def slow_down(self, factor: float) -> None:
        """Every model takes ``factor`` times its true time from now on."""
        self.slow = factor
        self._known_speeds.clear()

    def _neighbour(self, model: SimModel) -> Neighbour:
        batch, share = len(model.batch), model.applied.share or 1.0
        busy = model.floor.busy(self.truth.solo_ms(model.like, batch, share))
        return Neighbour(model.like, batch, share, busy)

    def bind_to_host(self, model: str, floor: HostFloor) -> None:
        """From now on, the model's host takes so long to launch a batch."""
        self.models[model].floor = floor
        self._known_speeds.clear()

    def _next_arrival(self, name: str, now_s: float) -> None:
        rate = self.models[name].rate_per_s(now_s)
        if rate > 0:
            self._add(now_s + self.rng.exponential(1 / rate), "arrival", name)
        else:
            self._add(now_s + 1.0, "no traffic", name)

    def _add(self, at_s: float, what: str, name: str) -> None:
        heapq.heappush(self._events, (at_s, next(self._ties), what, name))

    def _arrive(self) -> None:
        at_s, _, what, name = heapq.heappop(self._events)
        model = self.models[name]
        if what == "alarm":
            if model.batcher.alarm_s <= at_s:  # else it was woken before, or is another copy's
                self._wake(model)
            return
        self._next_arrival(name, at_s)
        if what == "arrival":
            if model.brings > max(1, model.config["max_batch_size"]):
                model.refused += 1
                return
            for _ in range(model.brings):
                model.batcher.arrive(at_s)
            self._start(model)

    def _wake(self, model: SimModel) -> None:
        model.batcher.wake(self._now_s)
        self._start(model)

    def _start(self, model: SimModel) -> None:
        """Begin a batch where one is ready and the instance is free; see to it that the batcher is
        woken."""
        if model.batcher.ready and not model.batch:
            self._execute(model)
        if model.batcher.alarm_s < math.inf:
            self._add(model.batcher.alarm_s, "alarm", model.name)

    def _execute(self, model: SimModel) -> None:
        model.batch = model.batcher.take(self._now_s)
        waited_s = sum(self._now_s - at_s for at_s in model.batch) / model.brings
        model.queue_ns += int(waited_s * 1e9)
        shape = 1 / self.dispersion_cv**2
        model.left, model.took_s = float(self.rng.gamma(shape, 1 / shape)), 0.0
        self._changed(model)

    def _finish(self, model: SimModel) -> None:
        size = len(model.batch)
        n, ns = model.stats.get(size, (0, 0))
        model.stats[size] = (n + 1, ns + int(model.took_s * 1e9))
        model.success += size
        model.requests += size / model.brings
        model.latencies.extend((at_s, (self._now_s - at_s) * 1000) for at_s in model.batch)
        model.batch = ()
        self._changed(model)
        self._start(model)
