"""More that may happen to the worlds of ``tests/hunt.py``, and more that must be true of them.

Processes that die or cannot be seen, boards that cannot be read, models inside tritonserver,
clients that bring batches, predictions that fail. And what users would notice: a request refused
though its owner admits it, an SLO missed while it is said to hold, or while nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from igniterd.clients.triton.config import allocation_of
from igniterd.decide.judge import PredictorPair
from igniterd.decide.search import find
from igniterd.decisions import DecisionKind, Tick
from igniterd.devices import ServerFacts
from igniterd.errors import DeviceLost, Unreachable
from igniterd.predict import Demand, LatencyPredictor
from igniterd.records import BoardReading, Stub
from igniterd.states import State
from tests.hunt import COMFORT, FROZEN_S, PREDICTORS, Hunt, Hunted, Seen

INSIDE = "onnxruntime"
LATELY_S = 12.0


class Boards:
    """NVML, as far as it matters here."""

    def __init__(self, gpus: int, clock: Callable[[], float]) -> None:
        self.gpus, self.clock, self.gone_until = gpus, clock, 0.0

    async def read(self) -> tuple[BoardReading, ...]:
        if self.clock() < self.gone_until:
            raise DeviceLost("NVML: GPU is lost")
        return tuple(BoardReading(n, f"GPU-{n}", "Tesla V100") for n in range(self.gpus))


class Processes:
    """The process tables of all Tritons as one: they are on one host."""

    def __init__(self, hosts: Mapping[str, Hunted], ports: Mapping[str, int]) -> None:
        self.hosts, self.ports, self.gone = hosts, ports, False
        for number, host in enumerate(hosts.values(), 1):
            host.processes.server_pid = 10_000 * number

    async def read(self) -> tuple[Stub, ...]:
        if self.gone:
            raise Unreachable("the host's process table: hidden")
        stubs = list[Stub]()
        for name, host in self.hosts.items():
            there = await host.processes.read()
            stubs += [replace(stub, grpc_port=self.ports[name]) for stub in there]
        return tuple(stubs)

    async def servers(self) -> dict[int, ServerFacts]:
        return {}


class Failing(LatencyPredictor):
    """Fails at every prediction that has to do with the models in ``fails``."""

    fails: frozenset[str] = frozenset()

    def together(self, demands: Any, *more: Any, **named: Any) -> Any:
        demands = tuple(demands)
        for demand in demands:
            if demand.model in self.fails:
                raise ZeroDivisionError(f"a prediction of {demand.model} that nobody thought of")
        return super().together(demands, *more, **named)


class Around(Hunt):
    """A hunt in which the host around Triton, too, is not to be relied on."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.brings: dict[str, int] = {}
        self.missing_since: dict[str, float] = {}
        self.checked: dict[str, int] = {}  # loads of each Triton
        self.changed_s = 0.0
        super().__init__(folder, seed)
        sources = self.loop.sources
        self.boards = sources.boards = Boards(self.gpus, self.clock)
        ports = {server.name: server.port for server in self.config.triton}
        self.processes = Processes(self.hosts, ports)
        if self.rng.random() < 0.5:  # else nobody may look at them
            sources.processes = self.processes
        model, level = PREDICTORS.upper.model, PREDICTORS.upper.level
        self.predictor = Failing(model, level=level)
        predictors = PredictorPair(upper=self.predictor, mean=PREDICTORS.mean)
        self.loop.knowledge = replace(self.loop.knowledge, predictors=predictors)

    # ------------------------------------------------------------ the world

    def _hosts(self, seed: int) -> dict[str, Hunted]:
        hosts = super()._hosts(seed)
        models = [model for host in hosts.values() for model in host.models.values()]
        for model in models:
            if self.rng.random() < 0.1:
                model.backend = INSIDE
            elif self.rng.random() < 0.3:
                most = model.config["max_batch_size"]
                self._brings(model.name, hosts, int(self.rng.integers(1, most + 1)))
        for gpu in range(self.gpus):
            self._made_to_fit(gpu, hosts)
        return hosts

    def _brings(self, name: str, hosts: Mapping[str, Hunted], items: int) -> None:
        self.brings[name] = items
        for host in hosts.values():
            if name in host.models:
                host.models[name].bring(items)

    def _rate(self, name: str) -> Callable[[float], float]:
        return lambda _: self.rates[name] / self.brings.get(name, 1)

    def _room(self, names: list[str], hosts: Mapping[str, Hunted]) -> float:
        models = {m.name: m for host in hosts.values() for m in host.models.values()}
        demands = [
            Demand(
                name,
                name.split("-")[0],
                self.rates[name],
                self.slos[name] * 0.9,
                max_batch=32,
                min_batch=self.brings.get(name, 1),
                brings=self.brings.get(name, 1),
                steerable=models[name].backend != INSIDE,
            )
            for name in names
        ]
        found = find(PREDICTORS.upper, demands)
        return found.headroom if found.feasible else 0.0

    # ------------------------------------------------------------ what happens

    def happens_process_died(self, host: Hunted, model: str, _: float) -> None:
        host.processes.died.add(model)

    def happens_process_hidden(self, host: Hunted, model: str, until_s: float) -> None:
        host.processes.hides.add(model)
        self.undo.append((until_s, lambda: host.processes.hides.discard(model)))

    def happens_share_ignored(self, host: Hunted, model: str, until_s: float) -> None:
        host.processes.ignores.add(model)
        self.undo.append((until_s, lambda: host.processes.ignores.discard(model)))

    def happens_processes_unreadable(self, _: Hunted, __: str, until_s: float) -> None:
        self.processes.gone = True
        self.undo.append((until_s, lambda: setattr(self.processes, "gone", False)))

    def happens_boards_unreadable(self, _: Hunted, __: str, until_s: float) -> None:
        self.boards.gone_until = until_s
        self.undo.append((until_s, lambda: setattr(self.boards, "gone_until", 0.0)))

    def happens_failing_prediction(self, _: Hunted, model: str, until_s: float) -> None:
        self.predictor.fails |= {model}
        mended = {model}
        self.undo.append(
            (until_s, lambda: setattr(self.predictor, "fails", self.predictor.fails - mended))
        )

    def happens_other_batches(self, host: Hunted, model: str, _: float) -> None:
        most = host.owned[model]["max_batch_size"]
        self._brings(model, self.hosts, int(self.rng.integers(1, most + 1)))
        self._made_to_fit(host.models[model].gpu, self.hosts)
        self._drained()

    # ------------------------------------------------------------ what must be true

    def _fault(self) -> None:
        super()._fault()
        self.changed_s = self.clock()

    def _check(self, now_s: float) -> None:
        super()._check(now_s)
        for host in self.hosts.values():
            for name, model in host.models.items():
                if model.refused:
                    self._broken(f"{model.refused} batches of {model.brings} to {name} refused")
                    model.refused = 0
                self._check_missing(host, name, now_s)
            for _, name, config in host.loads[self.checked.get(host.name, 0) :]:
                inside = name in host.models and host.models[name].backend == INSIDE
                if inside and allocation_of(config).share is not None:
                    self._broken(f"{name} runs inside tritonserver, and was given a share")
            self.checked[host.name] = len(host.loads)

    def _check_missing(self, host: Hunted, name: str, now_s: float) -> None:
        """An SLO that is missed is not said to hold; one that could be held is not left missed."""
        if not self._misses(host, name, now_s) or now_s < host.silent_until:
            self.missing_since.pop(name, None)
            return
        since_s = self.missing_since.setdefault(name, now_s)
        if now_s - since_s < FROZEN_S or not self.ticks:
            return
        tick = self.ticks[-1]
        why, gpu = tick.plan.why, host.models[name].gpu
        if why.startswith("every SLO holds") and name not in self.watched:
            self._broken(f"{name} misses its SLO for {now_s - since_s:.0f} s: {why}")
            self.missing_since.pop(name)
        elif self._idle_about(gpu, tick, max(since_s, now_s - FROZEN_S)):
            self._broken(f"{name} misses its SLO, and nothing is done about it: {why}")
            self.missing_since.pop(name)

    def _misses(self, host: Hunted, name: str, now_s: float) -> bool:
        taken = list[float]()
        for at_s, ms in reversed(host.models[name].latencies):
            if at_s < now_s - LATELY_S:
                break
            taken.append(ms)
        return len(taken) >= 10 and sum(ms > self.slos[name] for ms in taken) > 0.1 * len(taken)

    def _idle_about(self, gpu: int, tick: Tick, since_s: float) -> bool:
        """Whether nothing stands in the way on this GPU, something could be done, and is not."""
        there = [m for host in self.hosts.values() for m in host.models.values() if m.gpu == gpu]
        names = [model.name for model in there]
        if self.changed_s > since_s or any(n not in tick.standings for n in names):
            return False
        if any(tick.standings[n].state is not State.STEERED for n in names):
            return False
        loads = [at_s for h in self.hosts.values() for at_s, n in h.loaded if n in names]
        if any(at_s > since_s for at_s in loads) or tick.plan.outcome is DecisionKind.WAIT:
            return False
        return self._room(names, self.hosts) >= COMFORT


async def hunted_around(folder: Path, seed: int, seconds: float) -> Seen:
    """One hunt of this kind."""
    return await Around(folder, seed).run(seconds)
