"""A random test that hunts for the next defect of the loop: random hosts to which random things
happen, in virtual time.

One to three GPUs, one or two Tritons, two to six models, some only watched, marked hands off, or
served by nobody's configuration. What must be true is checked at every tick against the world
itself, not against what the daemon believes of it. ``make fuzz`` runs it on new seeds;
``tests/test_hunt.py`` on a few.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from igniterd.clients.triton.config import allocation_of
from igniterd.config import Config, parse_config
from igniterd.decide.search import find
from igniterd.decide.steps import granted
from igniterd.decisions import StepKind, Tick
from igniterd.errors import NotNow, NotServed, Refused, Unanswered, Unreachable
from igniterd.loop import Loop
from igniterd.observe import Sources
from igniterd.predict import Demand
from igniterd.profiled import Predictors
from igniterd.records import BatchStat, ModelReading, MpsReading
from igniterd.state.carry_over import resumed
from igniterd.states import State
from tests.factories import latency_model, predictor_pair
from tests.sim.batcher import Batcher
from tests.sim.host import SimHost, SimModel, config_of

SLOW = 10.0  # everything slower, with fewer requests: an hour in seconds
LIKE = {
    "alexnet": (15.0 * SLOW, 400.0 / SLOW),
    "resnet50": (40.0 * SLOW, 300.0 / SLOW),
    "vgg19": (60.0 * SLOW, 150.0 / SLOW),
}
"""What a model is like: its SLO in ms, and a rate at which three of them fill a GPU."""
SHARES = "/var/lib/igniterd/shares/igniterd-v2"
RELOAD_TIMEOUT_S = 30.0
RESPECT_S = 120.0  # [decide] respect_s of these hosts
CAP = 60  # and max_reloads_per_hour
FROZEN_S = 120.0  # an SLO missed for so long, that could be held, without a word or a deed
CALM_S = 150.0  # after the last fault and the last pause, when everything that can be held must be
COMFORT = 1.25
MOST_WAITING = 50
OURS = frozenset({StepKind.REVIVE, StepKind.ADOPT})  # upkeep: also of models that are not steered
PREDICTORS = predictor_pair(latency_model(time_scale=SLOW))


class Hunted(SimHost):
    """A Triton to which things happen. Each dictionary maps models to how long something lasts."""

    def __init__(self, clock: Callable[[], float], rng: np.random.Generator, **more: Any) -> None:
        super().__init__({}, clock, **more)
        self.chance = rng
        self.silent_until = 0.0
        self.late_s = 0.0  # answers come up to so late
        self.missing: dict[str, float] = {}  # not read until then
        self.refusing: dict[str, float] = {}
        self.hanging: dict[str, float] = {}  # how long its next load takes
        self.busy_until: dict[str, float] = {}
        self.stuck: dict[str, tuple[float, ModelReading]] = {}
        self.nonsense: dict[str, float] = {}
        self.undone: dict[str, tuple[float, float]] = {}  # until when, and how long after each load
        self.versions: dict[str, int] = {}
        self.hands_off: set[str] = set()
        self.owned: dict[str, dict[str, Any]] = {}  # the configuration of each model's file
        self.by_hand: dict[str, float] = {}  # when somebody else changed it last
        self.unread: set[str] = set()  # in the last answer
        self.others: tuple[Hunted, ...] = (self,)  # the Tritons of this host
        self.moved: list[tuple[float, str, int, int]] = []  # by our loads: when, what, from, to
        self.broken: list[str] = []
        self.loaded: list[tuple[float, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ as Triton

    def _answer(self) -> None:
        if self.clock() < self.silent_until:
            raise Unreachable(f"Triton {self.name!r}: no answer in 0.4 s")
        super()._answer()

    async def read_models(self, names: Any) -> dict[str, ModelReading | NotNow]:
        self._answer()
        if self.late_s:
            await asyncio.sleep(float(self.chance.uniform(0, self.late_s)))
        read, now_s = await super().read_models(names), self.clock()
        self.unread = {name for name in read if now_s < self.missing.get(name, 0.0)}
        out: dict[str, ModelReading | NotNow] = {}
        for name, reading in read.items():
            if name in self.unread:
                out[name] = Unanswered(f"{name}: no answer in 0.4 s")
            else:
                out[name] = (
                    self._odd(reading, now_s) if isinstance(reading, ModelReading) else reading
                )
        return out

    def _odd(self, reading: ModelReading, now_s: float) -> ModelReading:
        name = reading.model
        reading = replace(reading, version=str(self.versions.get(name, 1)))
        if name in self.hands_off:
            reading = replace(reading, hands_off="its owner says so (IGNITERD_HANDS_OFF)")
        until_s, first = self.stuck.get(name, (0.0, None))
        if now_s < until_s:
            first = first or reading
            self.stuck[name] = (until_s, first)
            waiting = int(self.models[name].rate_per_s(now_s) * 10) + 1
            as_now = {
                "allocation": reading.allocation,
                "hands_off": reading.hands_off,
                "at_s": reading.at_s,
            }
            return replace(first, pending_count=waiting, **as_now)
        if now_s < self.nonsense.get(name, 0.0):
            return self._nonsense(reading)
        return reading

    def _nonsense(self, reading: ModelReading) -> ModelReading:
        kind = int(self.chance.integers(5))
        if kind == 0:
            return replace(reading, success_count=reading.success_count + 10**12)
        if kind == 1:
            return replace(reading, pending_count=-(10**6))
        if kind == 2:
            return replace(
                reading, queue_ns=-(10**15), batches=(BatchStat(3, -5, 0, -(10**12), 0),)
            )
        if kind == 3:
            return replace(reading, success_count=0, inference_count=0, batches=())
        return replace(
            reading, batches=(BatchStat(0, 10**9, 0, 1, 0), BatchStat(10**6, 7, 0, 10**18, 0))
        )

    async def config(self, model: str) -> dict[str, Any]:
        self._there(model)
        return await super().config(model)

    async def load(self, model: str, config: dict[str, Any], *, exact: bool = False) -> None:
        """Triton finishes it, also when nobody waits for it any more."""
        task = asyncio.create_task(self._load(model, config))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task})
        if task.cancelled():
            raise Unreachable(f"Triton {self.name!r}: it went away")
        task.result()

    async def _load(self, model: str, config: dict[str, Any]) -> None:
        self._there(model)
        self._answer()
        began_s = self.clock()
        self._check_load(model, config, began_s)
        # Triton loads a model once at a time
        waits_s = max(0.0, self.busy_until.get(model, 0.0) - began_s)
        took_s = waits_s + self.hanging.pop(model, self.reload_s)
        self.busy_until[model] = began_s + took_s
        if took_s > RELOAD_TIMEOUT_S:  # igniterd's deadline passes; Triton finishes it all the same
            self._later(took_s, lambda: self._swap(model, config))
            await asyncio.sleep(RELOAD_TIMEOUT_S)
            raise Unanswered(f"no answer in {RELOAD_TIMEOUT_S:g} s")
        await asyncio.sleep(took_s)
        self._answer()
        self._there(model)
        if began_s < self.refusing.get(model, 0.0):
            raise Refused(f"failed to load {model!r}: out of memory")
        self._swap(model, config)

    def _swap(self, model: str, config: dict[str, Any]) -> None:
        if model not in self.models:
            return
        self.advance(self.clock())
        gpu, was = Hunted.gpu_after(config), self.models[model].gpu
        before, shared = self._granted(gpu), self._shared(gpu)
        self.processes.died.discard(model)
        self.by_hand.pop(model, None)  # a change that came while it was being loaded is gone
        self.models[model].reset(config)
        self._wake(self.models[model])
        self.loads.append((self.clock(), model, config))
        if gpu != was:
            self.moved.append((self.clock(), model, was, gpu))
        if (
            self._granted(gpu) > max(1.0, before) + 1e-6
            and self._shared(gpu) > max(1.0, shared) + 1e-6
        ):
            self.broken.append(
                f"{model}: {before:.3f} -> {self._granted(gpu):.3f} of GPU {gpu} granted"
            )
        until_s, after_s = self.undone.get(model, (0.0, 0.0))
        if self.clock() < until_s:
            self._later(
                after_s, lambda: self.change_by_hand(model, copy.deepcopy(self.owned[model]))
            )

    def change_by_hand(self, model: str, config: dict[str, Any]) -> None:
        """Somebody else loads it."""
        if model in self.models and not (self.clock() < self.silent_until):
            self.advance(self.clock())
            before = self.models[model].applied
            self.models[model].reset(config)
            self._wake(self.models[model])
            if self.models[model].applied != before:
                self.by_hand[model] = self.clock()

    def restart(self) -> None:
        for task in self._tasks:  # a server that is gone finishes nothing
            task.cancel()
        self.busy_until.clear()
        for name, model in self.models.items():
            model.reset(copy.deepcopy(self.owned[name]))
            self._wake(model)
        self.by_hand.clear()

    def _later(self, seconds: float, happens: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            happens()

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _there(self, model: str) -> None:
        if model not in self.models:
            raise NotServed(f"model {model!r} is unloaded")

    # ------------------------------------------------------------ what must be true of every load

    def _check_load(self, model: str, config: dict[str, Any], now_s: float) -> None:
        self.loaded.append((now_s, model))
        owned = self.owned[model]
        if config["max_batch_size"] < owned["max_batch_size"]:
            self.broken.append(
                f"{model}: batches of {owned['max_batch_size']} that its owner admits are "
                f"refused above {config['max_batch_size']}"
            )
        if model in self.hands_off:
            self.broken.append(f"{model} is hands off, and loaded")
        hand_s = self.by_hand.get(model)
        if hand_s is not None and now_s < hand_s + RESPECT_S - 1.0:
            self.broken.append(f"{model}: changed by hand {now_s - hand_s:.0f} s ago, and loaded")
        present = self.models[model].config
        if _rest(config) != _rest(present):
            self.broken.append(f"{model}: more than its batching and share changed: {config}")

    @staticmethod
    def gpu_after(config: dict[str, Any]) -> int:
        """Where the model is once it is loaded."""
        devices = allocation_of(config).devices
        return devices[0] if devices else 0

    def _on(self, gpu: int) -> list[tuple[Hunted, SimModel]]:
        return [(h, m) for h in self.others for m in h.models.values() if m.gpu == gpu]

    def _granted(self, gpu: int) -> float:
        """A model without a share may use the whole GPU; so may one whose share has no effect."""
        return sum(
            1.0 if m.name in h.processes.ignores else granted(m.applied) for h, m in self._on(gpu)
        )

    def _shared(self, gpu: int) -> float:
        return sum(
            m.applied.granted or 0.0 for h, m in self._on(gpu) if m.name not in h.processes.ignores
        )


def _rest(config: Mapping[str, Any]) -> dict[str, Any]:
    """All of a configuration that igniterd leaves as it is: a model may be moved, and keeps the
    count of its instances."""
    ours = ("max_batch_size", "dynamic_batching", "parameters", "instance_group")
    groups = [{k: v for k, v in g.items() if k != "gpus"} for g in config["instance_group"]]
    return {k: v for k, v in config.items() if k not in ours} | {"instance_group": groups}


class Mps:
    gone_until, fault_until = 0.0, 0.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    async def read(self) -> MpsReading:
        if self.clock() < self.gone_until:
            raise Unreachable("MPS control: no control daemon")
        states = {1: "FAULT"} if self.clock() < self.fault_until else {}
        return MpsReading((1,), 1.0, states)


@dataclass
class Seen:
    """What a hunt has come to."""

    ticks: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    reloads: int = 0
    moves: int = 0
    broken: list[str] = field(default_factory=list)
    # what happened, to be read beside what is broken
    story: list[str] = field(default_factory=list)


class Hunt:
    """``run`` lives through ``seconds`` of faults in a random world, and then lets it come to
    rest."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.clock = asyncio.get_running_loop().time
        self.began_s, self.seen, self.wall_s = self.clock(), Seen(), 1.7e9
        self.rates: dict[str, float] = {}
        self.slos: dict[str, float] = {}
        self.gpus = int(self.rng.integers(1, 4))
        self.hosts = self._hosts(seed)
        self.mps = Mps(self.clock)
        self.watched = self._watched()
        self.config = self._configured(folder)
        self.undo: list[tuple[float, Callable[[], None]]] = []
        self.ticks: deque[Tick] = deque(maxlen=3)
        self.unknown_since: dict[str, float] = {}
        self.moved_from: dict[str, tuple[int, int]] = {}  # and after how many faults
        self.happened = 0
        self.loop = self._loop()

    # ------------------------------------------------------------ the world

    def _hosts(self, seed: int) -> dict[str, Hunted]:
        """Each Triton sees all GPUs; where there are two, the models of one begin on the second
        GPU."""
        servers = ("main", "other") if self.gpus > 1 and self.rng.random() < 0.5 else ("main",)
        hosts = {
            name: Hunted(self.clock, self.rng, name=name, slow=SLOW, seed=seed + n, reload_s=1.8)
            for n, name in enumerate(servers)
        }
        for number in range(int(self.rng.integers(2, 7))):
            like = str(self.rng.choice(list(LIKE)))
            name, gpu = f"{like}-{number}", int(self.rng.integers(self.gpus))
            host = hosts["other" if gpu == 1 and len(servers) == 2 else "main"]
            config = config_of(name, int(self.rng.choice([1, 4, 8, 16, 32])))
            # what names no device is on its server's first, and stays there
            named = gpu > 0 or (self.gpus > 1 and self.rng.random() < 0.8)
            model = SimModel(name, like, self._rate(name), config, gpu=gpu, named=named)
            self.slos[name] = LIKE[like][0] * float(self.rng.uniform(0.8, 2.0))
            self.rates[name] = LIKE[like][1] * float(self.rng.uniform(0.1, 1.0))
            host.owned[name] = copy.deepcopy(model.config)
            host.models[name] = model
            host._next_arrival(name, self.clock())
        for host in hosts.values():
            host.others = tuple(hosts.values())
        for gpu in range(self.gpus):
            self._made_to_fit(gpu, hosts)
        return hosts

    def _made_to_fit(self, gpu: int, hosts: Mapping[str, Hunted]) -> None:
        names = [m.name for host in hosts.values() for m in host.models.values() if m.gpu == gpu]
        for _ in range(8):
            if not names or self._room(names, hosts) >= 1.4:
                return
            for name in names:
                self.rates[name] *= 0.7

    def _room(self, names: list[str], hosts: Mapping[str, Hunted]) -> float:
        """Head-room of the best plan that its owners' batches leave, below 1 where there is
        none."""
        demands = [
            Demand(n, n.split("-")[0], self.rates[n], self.slos[n] * 0.9, max_batch=32)
            for n in names
        ]
        found = find(PREDICTORS.upper, demands)
        return found.headroom if found.feasible else 0.0

    def _rate(self, name: str) -> Callable[[float], float]:
        return lambda _: self.rates[name]

    def _watched(self) -> set[str]:
        """Models without a profile, now and then; and one that is marked hands off."""
        names = [name for host in self.hosts.values() for name in host.models]
        watched = {name for name in names if self.rng.random() < 0.1}
        for host in self.hosts.values():
            host.hands_off |= {
                name for name in host.models if name not in watched and self.rng.random() < 0.1
            }
        return watched

    def _configured(self, folder: Path) -> Config:
        servers = "".join(
            f'[[triton]]\nname = "{name}"\nurl = "127.0.0.1:{8001 + 10 * n}"\n'
            for n, name in enumerate(self.hosts)
        )
        models = "".join(
            f'[[model]]\nname = "{name}"\ntriton = "{host.name}"\nslo_p99_ms = {self.slos[name]}\n'
            f"priority = {int(self.rng.integers(1, 4))}\n"
            + ("" if name in self.watched else 'profile = "v100.json"\n')
            for host in self.hosts.values()
            for name in host.models
        )
        rules = f"[decide]\nrespect_s = {RESPECT_S}\nmax_reloads_per_hour = {CAP}\n"
        if self.rng.random() < 0.3:
            rules += "consolidate = true\n"
        return parse_config(
            f'[host]\nname = "hunt"\n[state]\ndirectory = "{folder}"\n{rules}{servers}{models}',
            source="hunt",
            folder=folder,
        )

    def _loop(self) -> Loop:
        names = {host.name: tuple(host.owned) for host in self.hosts.values()}
        devices = dict.fromkeys(names, tuple(f"GPU-{n}" for n in range(self.gpus)))
        sources = Sources(tritons=self.hosts, models=names, mps=self.mps, devices=devices)
        profiled = {
            name: name.split("-")[0]
            for group in names.values()
            for name in group
            if name not in self.watched
        }
        knowledge = Predictors(profiled, PREDICTORS)
        return Loop(
            self.config,
            sources,
            self.hosts,
            knowledge,
            self.ticks.append,
            wall_clock=lambda: self.clock() + self.wall_s,
        )

    # ------------------------------------------------------------ living

    async def run(self, seconds: float) -> Seen:
        end_s, next_s = self.clock() + seconds, self.clock() + 40.0
        while self.clock() < end_s:
            if self.clock() >= next_s:
                self._fault()
                next_s = self.clock() + float(self.rng.uniform(5, 90))
            await self._turn()
        await self._rest()
        await self.loop.close()
        for host in self.hosts.values():
            await host.settled()
            self.seen.reloads += len(host.loads)
        return self.seen

    async def _turn(self) -> None:
        now_s = self.clock()
        for due in [u for u in self.undo if u[0] <= now_s]:
            due[1]()
            self.undo.remove(due)
            self.happened += 1
        try:
            await self.loop.tick(now_s)
        except Exception as error:  # whatever it is: no tick may fail
            self._broken(f"the tick failed: {error!r}")
        self.seen.ticks += 1
        self._check(now_s)
        await asyncio.sleep(max(0.0, now_s + 1.0 - self.clock()))

    async def _rest(self) -> None:
        """Nothing happens any more: what was put off ends, and then what can be held is held."""
        for _, undo in self.undo:
            undo()
        self.undo.clear()
        for host in self.hosts.values():
            host.undone.clear()
            for until in (host.missing, host.refusing, host.nonsense, host.hanging):
                until.clear()
            host.stuck, host.silent_until, host.late_s = {}, 0.0, 0.0
        self.mps.gone_until = self.mps.fault_until = 0.0
        self._tell("nothing happens any more")
        for _ in range(4000):
            await self._turn()
            if self.ticks and all(
                s.state in (State.STEERED, State.WATCHED, State.HANDS_OFF)
                for s in self.ticks[-1].standings.values()
            ):
                break
        else:
            self._broken(f"it does not come to rest: {self.ticks[-1].standings}")
        self._drained()
        for _ in range(int(CALM_S)):
            await self._turn()
        self._drained()
        since_s = self.clock()
        for _ in range(60):
            await self._turn()
        self._check_rest(since_s)

    def _drained(self) -> None:
        """Clients give up: what was too much waits no more."""
        for host in self.hosts.values():
            for model in host.models.values():
                while len(model.batcher.queue) > MOST_WAITING:
                    model.batcher.queue.popleft()

    # ------------------------------------------------------------ what happens

    def _tell(self, what: str) -> None:
        self.seen.story.append(f"{self.clock() - self.began_s:.0f}: {what}")

    def _broken(self, what: str) -> None:
        if len(self.seen.broken) < 20:
            self.seen.broken.append(f"{self.clock() - self.began_s:.0f}: {what}")

    def _fault(self) -> None:
        name = str(self.rng.choice([each for each in dir(self) if each.startswith("happens_")]))
        if self.gpus > 1 and self.rng.random() < 0.25:  # moves are seldom needed otherwise
            name = "happens_crowd"
        host = self.hosts[str(self.rng.choice(list(self.hosts)))]
        if not host.models:
            return
        model = str(self.rng.choice(list(host.models)))
        until_s = self.clock() + float(
            self.rng.choice([2.0, 20.0, 200.0]) * self.rng.uniform(0.5, 1.5)
        )
        self._tell(
            f"{name.removeprefix('happens_')} {host.name} {model} for "
            f"{until_s - self.clock():.0f} s"
        )
        self.happened += 1
        getattr(self, name)(host, model, until_s)
        self.seen.faults[name.removeprefix("happens_")] = (
            self.seen.faults.get(name.removeprefix("happens_"), 0) + 1
        )

    def happens_silence(self, host: Hunted, _: str, until_s: float) -> None:
        host.silent_until = until_s

    def happens_restart(self, host: Hunted, _: str, until_s: float) -> None:
        host.silent_until = min(until_s, self.clock() + 20.0)
        host.restart()

    def happens_late_answers(self, host: Hunted, _: str, until_s: float) -> None:
        host.late_s = 0.3
        self.undo.append((until_s, lambda: setattr(host, "late_s", 0.0)))

    def happens_missing_reading(self, host: Hunted, model: str, until_s: float) -> None:
        host.missing[model] = until_s

    def happens_one_missing_reading(self, host: Hunted, model: str, _: float) -> None:
        host.missing[model] = self.clock() + 0.9

    def happens_refusals(self, host: Hunted, model: str, until_s: float) -> None:
        host.refusing[model] = until_s

    def happens_refusals_for_good(self, host: Hunted, model: str, _: float) -> None:
        host.refusing[model] = float("inf")

    def happens_hanging_load(self, host: Hunted, model: str, until_s: float) -> None:
        host.hanging[model] = until_s - self.clock()

    def happens_stuck(self, host: Hunted, model: str, until_s: float) -> None:
        reading = host._reading(host.models[model])
        host.stuck[model] = (until_s, replace(reading, version=str(host.versions.get(model, 1))))

    def happens_nonsense(self, host: Hunted, model: str, until_s: float) -> None:
        host.nonsense[model] = until_s

    def happens_hand(self, host: Hunted, model: str, _: float) -> None:
        self._by_hand(host, model, f"{SHARES}/{int(self.rng.integers(1, 90))}")

    def _by_hand(self, host: Hunted, model: str, path: str) -> None:
        """Somebody else gives it a share, where it is."""
        config = config_of(model, host.owned[model]["max_batch_size"], path)
        group = copy.deepcopy(host.models[model].config["instance_group"])
        host.change_by_hand(model, config | {"instance_group": group})

    def happens_moved_by_hand(self, host: Hunted, model: str, _: float) -> None:
        """Somebody else puts it on another GPU."""
        config = copy.deepcopy(host.models[model].config)
        group = {"count": 1, "kind": "KIND_GPU", "gpus": [int(self.rng.integers(self.gpus))]}
        host.change_by_hand(model, config | {"instance_group": [group]})

    def happens_odd_hand(self, host: Hunted, model: str, _: float) -> None:
        path = str(
            self.rng.choice(
                [
                    "/nfs/shares/3.11",
                    "/x/shares/0",
                    "/x/shares/500",
                    f"{SHARES}/0",
                    f"{SHARES}/500",
                    f"{SHARES}/nan",
                ]
            )
        )
        self._by_hand(host, model, path)

    def happens_undoing(self, host: Hunted, model: str, until_s: float) -> None:
        host.undone[model] = (until_s + 300.0, float(self.rng.uniform(0.3, 20.0)))

    def happens_new_version(self, host: Hunted, model: str, _: float) -> None:
        host.versions[model] = host.versions.get(model, 1) + 1
        host.advance(self.clock())
        host.models[model].reset(copy.deepcopy(host.owned[model]))
        host._wake(host.models[model])
        host.by_hand.pop(model, None)

    def happens_unloaded(self, host: Hunted, model: str, until_s: float) -> None:
        if len(host.models) < 2:
            return
        gone = host.remove(model)
        host.by_hand.pop(model, None)

        def back() -> None:
            gone.batcher, gone.batch = Batcher(1, 0.0), ()
            gone.reset(copy.deepcopy(host.owned[model]))
            host.add(gone)

        self.undo.append((until_s, back))

    def happens_mps_gone(self, _: Hunted, __: str, until_s: float) -> None:
        self.mps.gone_until = until_s

    def happens_mps_fault(self, _: Hunted, __: str, until_s: float) -> None:
        self.mps.fault_until = until_s

    def happens_clock_jump(self, _: Hunted, __: str, ___: float) -> None:
        self.wall_s += float(self.rng.choice([-86_400.0, -3600.0, 3600.0, 4e7]))

    def happens_traffic(self, host: Hunted, _: str, __: float) -> None:
        for name in host.models:
            self.rates[name] = LIKE[name.split("-")[0]][1] * float(
                self.rng.choice([0.0, 0.2, 0.5, 1.0])
            )
        for gpu in range(self.gpus):
            self._made_to_fit(gpu, self.hosts)
        self._drained()

    def happens_crowd(self, host: Hunted, _: str, __: float) -> None:
        """What all GPUs together can hold, and one of them may not."""
        hot = int(self.rng.integers(self.gpus))
        for each in self.hosts.values():
            for name, model in each.models.items():
                factor = self.rng.uniform(0.5, 1.2) if model.gpu == hot else 0.1
                self.rates[name] = LIKE[name.split("-")[0]][1] * float(factor)
        self._drained()

    def happens_daemon_killed(self, _: Hunted, __: str, ___: float) -> None:
        """The next one knows nothing."""
        self._let_go()
        self.loop = self._loop()
        for host in self.hosts.values():
            host.by_hand.clear()
            host.loaded.clear()

    def happens_config_read_again(self, _: Hunted, __: str, ___: float) -> None:
        old, carry = self.loop, self.loop.handed_on()
        self._let_go()
        self.loop = self._loop()
        self.loop.carry = resumed(carry, self.config, old.knowledge, self.config, old.knowledge)

    def _let_go(self) -> None:
        """Nobody waits for the steps under way any more."""
        for under in self.loop.actor._tasks:
            under.task.cancel()
        self.ticks.clear()
        self.unknown_since.clear()

    def happens_burst(self, host: Hunted, model: str, until_s: float) -> None:
        before = self.rates[model]
        self.rates[model] = 5 * before
        self.undo.append((until_s, lambda: self.rates.update({model: before})))

    # ------------------------------------------------------------ what must be true

    def _check(self, now_s: float) -> None:
        for host in self.hosts.values():
            for broken in host.broken:
                self._broken(broken)
            host.broken.clear()
        recent = sum(at_s > now_s - 3600 for host in self.hosts.values() for at_s, _ in host.loaded)
        models = sum(len(host.owned) for host in self.hosts.values())
        if recent > CAP + 2 * models + len(self.hosts):
            self._broken(f"{recent} reloads in an hour")
        self._check_moved(now_s)
        if self.ticks:
            self._check_said(now_s, self.ticks[-1])

    def _check_moved(self, now_s: float) -> None:
        """Nothing is moved forth and back while nothing else happens."""
        for host in self.hosts.values():
            while host.moved:
                _, model, was, gpu = host.moved.pop(0)
                why = self.ticks[-1].plan.why if self.ticks else ""
                self._tell(f"{model} was moved from GPU {was} to {gpu}: {why}")
                before = self.moved_from.get(model)
                if before is not None and before == (gpu, self.happened):
                    self._broken(f"{model} was moved back to GPU {gpu}")
                self.moved_from[model] = (was, self.happened)
                self.seen.moves += 1

    def _check_said(self, now_s: float, tick: Tick) -> None:
        why = tick.plan.why
        if "carrying on: 0 changes" in why:
            self._broken(why)
        for host in self.hosts.values():
            stuck = {
                name
                for name, (until_s, _) in host.stuck.items()
                if now_s < until_s and name in host.models
            }
            unread = {
                name for name in host.models if name in host.unread or now_s < host.silent_until
            }
            for name in stuck - unread:
                self._check_unknown(name, tick, now_s, f"stuck {name}", 45.0)
            for name in unread:
                self._check_unknown(name, tick, now_s, f"unread {name}", 2.0)
            there = {f"stuck {name}" for name in stuck - unread} | {
                f"unread {name}" for name in unread
            }
            for key in [each for each in self.unknown_since if each.split(" ")[1] in host.models]:
                if key not in there:
                    self.unknown_since.pop(key)
            for step in tick.plan.steps[:1]:
                if step.model in unread:
                    self._broken(f"{step.model} was not read, and is to be changed: {why}")
                if (
                    step.model in tick.standings
                    and not tick.standings[step.model].free
                    and step.kind not in OURS
                ):
                    self._broken(
                        f"{step.model} is {tick.standings[step.model]}, and is to be changed: {why}"
                    )

    def _check_unknown(self, name: str, tick: Tick, now_s: float, key: str, after_s: float) -> None:
        """Nobody may say that every SLO holds while nothing is known of one of them."""
        since_s = self.unknown_since.setdefault(key, now_s)
        if (
            now_s - since_s > after_s
            and tick.plan.why.startswith("every SLO holds")
            and self.rates[name] > 0
        ):
            self._broken(f"nothing is known of {name} for {now_s - since_s:.0f} s: {tick.plan.why}")

    def _check_rest(self, since_s: float) -> None:
        """Everything that can be held is: on a GPU where all models are steered, and fit with
        room; and where moving one model would make it so, it is moved."""
        tick = self.ticks[-1]
        self._check_stranded(tick)
        for gpu in range(self.gpus):
            there = [
                m for host in self.hosts.values() for m in host.models.values() if m.gpu == gpu
            ]
            names = [m.name for m in there]
            if (
                not names
                or any(tick.standings[n].state is not State.STEERED for n in names)
                or self._room(names, self.hosts) < COMFORT
            ):
                continue
            for model in there:
                taken = [ms for at_s, ms in model.latencies if at_s >= since_s]
                # what one request brings is late together
                late = sum(ms > self.slos[model.name] for ms in taken) / model.brings
                came = len(taken) / model.brings
                if late > 0.01 * came + 3 * (0.01 * max(1.0, came)) ** 0.5 + 1:
                    applied = {m.name: m.applied for m in there}
                    self._broken(
                        f"at rest {late:.0f} of {came:.0f} requests to {model.name} are late: "
                        f"{tick.plan.why}; {applied}"
                    )

    def _check_stranded(self, tick: Tick) -> None:
        """Where one move of one model is enough to hold every SLO with room to spare, it was
        made."""
        if any(s.state is not State.STEERED for s in tick.standings.values()):
            return
        on = {
            gpu: [m.name for h in self.hosts.values() for m in h.models.values() if m.gpu == gpu]
            for gpu in range(self.gpus)
        }
        shed = [v.model for v in tick.plan.verdicts.values() if not v.feasible]
        movers = {n for h in self.hosts.values() for n, m in h.models.items() if m.applied.devices}
        for gpu, here in on.items():
            if not set(here) & set(shed):
                continue
            for name in movers & set(here):
                stay = [n for n in here if n != name]
                for other in on.keys() - {gpu}:
                    rooms = [
                        self._room(names, self.hosts) if names else 9.0
                        for names in (stay, [*on[other], name])
                    ]
                    if min(rooms) >= COMFORT:
                        self._broken(
                            f"{name} on GPU {other} would leave room {rooms}, and stays on {gpu}: "
                            f"{tick.plan.why}"
                        )


async def hunted(folder: Path, seed: int, seconds: float) -> Seen:
    """One hunt."""
    return await Hunt(folder, seed).run(seconds)
