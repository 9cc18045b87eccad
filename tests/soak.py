"""Hours on a simulated host in virtual time: traffic that shifts, faults that come at random, and
what must be true all the while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from igniterd.config import Config, parse_config
from igniterd.decide.search import find
from igniterd.decide.steps import granted
from igniterd.decisions import DecisionKind, Tick
from igniterd.errors import Refused, Unreachable
from igniterd.loop import Loop
from igniterd.observe import Sources
from igniterd.predict import Demand
from igniterd.profiled import Predictors
from igniterd.records import ModelReading, MpsReading
from igniterd.states import State
from tests.factories import latency_model, predictor_pair
from tests.sim.batcher import Batcher
from tests.sim.host import SimHost, config_of

SLOW = 10.0  # everything slower, with fewer requests: an hour in seconds
SLOS = {"alexnet": 15.0 * SLOW, "resnet50": 40.0 * SLOW, "vgg19": 60.0 * SLOW}
RATES = {"alexnet": 400.0 / SLOW, "resnet50": 300.0 / SLOW, "vgg19": 150.0 / SLOW}
RELOAD_TIMEOUT_S = 60.0
CAP = 120
COMFORT = 1.25  # a feasible plan that leaves room for rates this much higher must hold
CALM_S = 120.0  # after the last change of the world, when it must
MOST_WAITING = 50
JUDGED_S = 60.0  # of calm are judged together
PREDICTORS = predictor_pair(latency_model(time_scale=SLOW))


class FaultyHost(SimHost):
    """A host to which things happen. ``hangs_s``: how long the next load of a model takes;
    ``broken``: its statistics are nonsense."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.hangs_s: dict[str, float] = {}
        self.broken = False
        self.versions: dict[str, str] = {}
        # model, granted in all before and after each of igniterd's loads
        self.grants: list[tuple[str, float, float]] = []
        self.unexpected: list[str] = []
        self._late: set[asyncio.Task[None]] = set()

    async def read_models(self, names: Any) -> dict[str, Any]:
        if self.broken:
            raise ZeroDivisionError("statistics that nobody thought of")
        read = await super().read_models(names)
        return {
            n: replace(r, version=self.versions.get(n, "1")) if isinstance(r, ModelReading) else r
            for n, r in read.items()
        }

    async def config(self, model: str) -> dict[str, Any]:
        self._there(model)
        return await super().config(model)

    async def load(self, model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        self._there(model)
        self._answer()
        hang_s = self.hangs_s.pop(model, 0.0)
        if hang_s > 0:  # igniterd's deadline passes; Triton finishes it all the same
            late = asyncio.create_task(self._finish_late(model, config, hang_s))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            await asyncio.sleep(min(hang_s, RELOAD_TIMEOUT_S))
            if hang_s > RELOAD_TIMEOUT_S:
                raise Unreachable(f"no answer in {RELOAD_TIMEOUT_S:g} s")
            await late
            return
        await asyncio.sleep(self.reload_s)
        self._answer()
        self._there(model)
        if model in self.refuse:
            raise Refused(self.refuse.pop(model))
        self._swap(model, config)

    async def _finish_late(self, model: str, config: dict[str, Any], seconds: float) -> None:
        await asyncio.sleep(seconds)
        if model in self.models:
            self.advance(self.clock())
            self.processes.died.discard(model)
            self.models[model].reset(config)

    def _swap(self, model: str, config: dict[str, Any]) -> None:
        before, old = self._granted(), self.models[model].config
        shared = max(1.0, sum(m.applied.granted or 0.0 for m in self.models.values()))
        self.models[model].reset(config)
        self.processes.died.discard(model)
        self.loads.append((self.clock(), model, config))
        if sum(m.applied.granted or 0.0 for m in self.models.values()) > shared + 1e-6:
            self.grants.append((model, before, self._granted()))
        kept = {
            k: v
            for k, v in config.items()
            if k not in ("max_batch_size", "dynamic_batching", "parameters")
        }
        if (
            kept != {k: v for k, v in old.items() if k in kept}
            or not 1 <= config["max_batch_size"] <= 32
        ):
            self.unexpected.append(f"{old} -> {config}")

    def _granted(self) -> float:
        return sum(granted(m.applied) for m in self.models.values())

    def _there(self, model: str) -> None:
        if model not in self.models:
            raise Refused(f"model {model!r} is unloaded")

    async def settled(self) -> None:
        for late in self._late:
            late.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)


class Mps:
    gone = False

    async def read(self) -> MpsReading:
        if self.gone:
            raise Unreachable("MPS control: no control daemon")
        return MpsReading((1,), 1.0)


@dataclass
class Seen:
    """What a soak has come to."""

    hours: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    judged: int = 0  # windows of calm with a comfortable plan
    late: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # what must never be
    reloads: int = 0
    calm_reloads: int = 0
    calm_s: float = 0.0
    infeasible_s: float = 0.0
    failed_ticks: int = 0


class Soak:
    """``run`` lives through ``seconds`` of a random world, the same for the same seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.clock = asyncio.get_running_loop().time
        self.began_s = self.clock()
        self.rates = dict(RATES)
        models = {m: (m, self._rate(m)) for m in RATES}
        self.host = FaultyHost(models, self.clock, seed=seed, max_batch=8, slow=SLOW, reload_s=1.8)
        self.mps, self.wall_offset_s, self.seen = Mps(), 1.7e9, Seen()
        self.ticks: list[Tick] = []
        self.restless_s = self.began_s  # when the world last changed
        self.faulty_s = self.began_s  # until when something is broken
        sources = Sources(
            tritons={"main": self.host},
            models={"main": tuple(RATES)},
            mps=self.mps,
            processes=self.host.processes,
        )
        self.config = configured(folder)
        knowledge = Predictors({m: m for m in RATES}, PREDICTORS)
        self.loop = Loop(
            self.config, sources, {"main": self.host}, knowledge, self._tick, wall_clock=self._wall
        )
        self.undo: list[tuple[float, Callable[[], None]]] = []
        self.room = self._room()
        self.judged_from_s = self.began_s
        self._said_since_s: float | None = None

    def _rate(self, model: str) -> Callable[[float], float]:
        return lambda _: self.rates[model]

    def _wall(self) -> float:
        return self.clock() + self.wall_offset_s

    def _tick(self, tick: Tick) -> None:
        self.ticks = [*self.ticks[-3:], tick]

    async def run(self, seconds: float) -> Seen:
        next_shift_s, next_fault_s = self.clock() + 300.0, self.clock() + 200.0
        end_s = self.clock() + seconds
        while self.clock() < end_s:
            now_s = self.clock()
            for at_s, undo in [u for u in self.undo if u[0] <= now_s]:
                undo()
                self.undo.remove((at_s, undo))
                self._restless()
            if now_s >= next_shift_s:
                self._shift()
                next_shift_s = now_s + self.rng.uniform(60, 900)
            if now_s >= next_fault_s:
                self._fault()
                next_fault_s = now_s + self.rng.uniform(120, 900)
            await self._turn(now_s)
            self._check(now_s)
            await asyncio.sleep(max(0.0, now_s + 1.0 - self.clock()))
        await self.loop.close()
        await self.host.settled()
        self.seen.hours, self.seen.reloads = seconds / 3600, len(self.host.loads)
        return self.seen

    async def _turn(self, now_s: float) -> None:
        """A tick, as the daemon makes it: one that fails costs itself."""
        try:
            await self.loop.tick(now_s)
        except ZeroDivisionError:
            self.seen.failed_ticks += 1

    # ------------------------------------------------------------ what happens

    def _restless(self) -> None:
        self.restless_s = self.clock()
        # clients give up: what was too much an hour ago waits no more
        for model in self.host.models.values():
            while len(model.batcher.queue) > MOST_WAITING:
                model.batcher.queue.popleft()

    def _shift(self) -> None:
        """Other rates: usually some that fit, now and then too much, now and then silence."""
        kind = self.rng.choice(["fits", "fits", "fits", "nothing", "too much", "burst"])
        if kind == "nothing":
            quiet = self.rng.choice(list(RATES))
            self.rates = {
                m: 0.0 if m == quiet else r * self.rng.uniform(0.5, 1.0) for m, r in RATES.items()
            }
        else:
            scale = {"fits": (0.2, 1.0), "too much": (1.5, 2.2), "burst": (0.9, 1.2)}[kind]
            self.rates = {m: r * self.rng.uniform(*scale) for m, r in RATES.items()}
        self.room = self._room()
        self._count(f"shift: {kind}")
        self._restless()

    def _room(self) -> float:
        """Head-room of the best plan, by what the planner expects; below 1 where there is none."""
        demands = [
            Demand(m, m, rate, SLOS[m], max_batch=32)
            for m, rate in self.rates.items()
            if m in self.host.models
        ]
        found = find(PREDICTORS.upper, demands)
        return found.headroom if found.feasible else 0.0

    def _count(self, what: str) -> None:
        self.seen.faults[what] = self.seen.faults.get(what, 0) + 1

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        self.undo.append((self.clock() + seconds, undo))
        self.faulty_s = max(self.faulty_s, self.clock() + seconds)

    def _fault(self) -> None:
        name, happens = FAULTS[int(self.rng.integers(len(FAULTS)))]
        happens(self, str(self.rng.choice(list(self.host.models))), float(self.rng.uniform(5, 150)))
        self._count(name)
        self._restless()

    def _silent(self, _: str, seconds: float) -> None:
        self.host.silent = True
        self._later(seconds, lambda: setattr(self.host, "silent", False))

    def _broken(self, _: str, seconds: float) -> None:
        self.host.broken = True
        self._later(seconds, lambda: setattr(self.host, "broken", False))

    def _mps_gone(self, _: str, seconds: float) -> None:
        self.mps.gone = True
        self._later(seconds, lambda: setattr(self.mps, "gone", False))

    def _hangs(self, model: str, seconds: float) -> None:
        self.host.hangs_s[model] = 2 * seconds
        self._later(2 * seconds + 300, self.host.hangs_s.clear)

    def _refuses(self, model: str, _: float) -> None:
        self.host.refuse[model] = "failed to load: out of memory"
        self._later(300.0, self.host.refuse.clear)

    def _restarts(self, _: str, __: float) -> None:
        self.host.restart()

    def _unloaded(self, model: str, seconds: float) -> None:
        if len(self.host.models) == 1:
            return
        gone = self.host.remove(model)

        def back() -> None:
            gone.batcher = Batcher(1, 0.0)
            gone.batch = ()
            gone.reset(config_of(model))
            self.host.add(gone)
            self.room = self._room()

        self._later(seconds, back)
        self.room = self._room()

    def _changed(self, model: str, _: float) -> None:
        config = config_of(model, int(self.rng.integers(1, 16)))
        config["dynamic_batching"]["max_queue_delay_microseconds"] = int(
            self.rng.integers(0, 20_000)
        )
        if self.rng.random() < 0.5:
            config["parameters"] = self.host.models[model].config["parameters"]
        self.host.models[model].reset(config)

    def _replaced(self, model: str, _: float) -> None:
        self.host.versions[model] = str(int(self.host.versions.get(model, "1")) + 1)
        self.host.models[model].reset(config_of(model))

    def _dies(self, model: str, _: float) -> None:
        self.host.processes.died.add(model)

    def _hidden(self, _: str, seconds: float) -> None:
        self.host.processes.gone = True
        self._later(seconds, lambda: setattr(self.host.processes, "gone", False))

    def _clock_jumps(self, _: str, __: float) -> None:
        self.wall_offset_s += float(self.rng.choice([-86_400.0, -3600.0, 3600.0, 4e7]))

    # ------------------------------------------------------------ what must be true

    def _check(self, now_s: float) -> None:
        self._check_loads(now_s)
        calm_since_s = max(self.restless_s, self.faulty_s) + CALM_S
        steered = not self.ticks or all(
            s.state in (State.STEERED, State.WARMING) for s in self.ticks[-1].standings.values()
        )
        # what is left as somebody else wants it is not ours to judge
        calm = now_s >= calm_since_s and steered
        plan = self.ticks[-1].plan if self.ticks else None
        if calm and plan is not None:
            self.seen.calm_s += 1.0
            self.seen.calm_reloads += bool(
                self.host.loads and self.host.loads[-1][0] >= now_s - 1.0
            )
            self.seen.infeasible_s += plan.outcome is DecisionKind.INFEASIBLE
            self._check_said(now_s, plan.feasible)
        if not calm or self.room < COMFORT:
            self.judged_from_s = now_s
        elif now_s - self.judged_from_s >= JUDGED_S:
            self._check_latencies(now_s)
            self.judged_from_s = now_s
        for model in self.host.models.values():
            model.latencies = [
                entry for entry in model.latencies if entry[0] >= self.judged_from_s - 1.0
            ]

    def _check_loads(self, now_s: float) -> None:
        for model, before, after in self.host.grants:
            if after > max(1.0, before) + 1e-6:
                self.seen.broken.append(
                    f"{now_s:.0f}: {model}: {before:.3f} -> {after:.3f} of the GPU granted"
                )
        self.host.grants.clear()
        if sum(at_s > now_s - 3600 for at_s, _, _ in self.host.loads[-CAP - 20 :]) > CAP:
            self.seen.broken.append(f"{now_s:.0f}: more than {CAP} reloads in an hour")
        self.seen.broken += self.host.unexpected
        self.host.unexpected.clear()

    def _check_said(self, now_s: float, feasible: bool) -> None:
        """What fits with room must not stay let go (for longer than a model let go again and again
        may), nor too much be unsaid."""
        wrong = (not feasible and self.room >= COMFORT) or (
            feasible and self.room == 0.0 and self._hopeless()
        )
        if not wrong:
            self._said_since_s = None
        elif self._said_since_s is None:
            self._said_since_s = now_s
        elif now_s - self._said_since_s > 1100.0:
            self.seen.broken.append(
                f"{now_s:.0f}: said to be {'feasible' if feasible else 'infeasible'} at room "
                f"{self.room}"
            )
            self._said_since_s = now_s

    def _hopeless(self) -> bool:
        """More than any plan could serve, even without margins."""
        demands = [
            Demand(m, m, rate * 0.85, SLOS[m], max_batch=32)
            for m, rate in self.rates.items()
            if m in self.host.models
        ]
        return not find(PREDICTORS.mean, demands).feasible

    def _check_latencies(self, now_s: float) -> None:
        self.seen.judged += 1
        for name, model in self.host.models.items():
            taken = [ms for at_s, ms in model.latencies if at_s >= self.judged_from_s]
            late = sum(ms > SLOS[name] for ms in taken)
            # one in a hundred may be late; what chance adds to that (three standard deviations) is
            # no miss
            if late > 0.01 * len(taken) + 3 * (0.01 * max(1, len(taken))) ** 0.5 + 1:
                plan = self.ticks[-1].plan
                self.seen.late.append(
                    f"{now_s:.0f}: {name} {late} of {len(taken)} late, room {self.room}, "
                    f"{plan.outcome.value}: {plan.why}; "
                    f"{ {m: x.applied for m, x in self.host.models.items()} } "
                    f"{ {m: round(r, 1) for m, r in self.rates.items()} }"
                )


FAULTS: tuple[tuple[str, Callable[[Soak, str, float], None]], ...] = (
    ("Triton silent", Soak._silent),
    ("statistics that fail", Soak._broken),
    ("MPS control gone", Soak._mps_gone),
    ("a load hangs", Soak._hangs),
    ("a load is refused", Soak._refuses),
    ("Triton restarts", Soak._restarts),
    ("a model is unloaded by hand", Soak._unloaded),
    ("a configuration is changed by hand", Soak._changed),
    ("a version is replaced", Soak._replaced),
    ("the clock jumps", Soak._clock_jumps),
    ("a process dies", Soak._dies),
    ("processes cannot be seen", Soak._hidden),
)
"""What happens, with the method that makes it happen to a model for some seconds."""


def configured(folder: Path) -> Config:
    models = "".join(
        f'[[model]]\nname = "{m}"\nslo_p99_ms = {slo}\npriority = {1 + (m == "vgg19")}\nprofile '
        '= "v100.json"\n'
        for m, slo in SLOS.items()
    )
    return parse_config(
        f'[host]\nname = "soak"\n[state]\ndirectory = "{folder}"\n{models}',
        source="soak",
        folder=folder,
    )
