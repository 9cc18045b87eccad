"""A cluster of two hosts that are not there: Tritons of dictionaries, and one model's route.

Any call may be made to fail, before it has an effect or after, or to end the process.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.config import LOAD_MARK, allocation_of
from igniterd.clients.triton.config_change import marked
from igniterd.clients.triton.info import IndexEntry
from igniterd.errors import NotNow, Refused, Unanswered
from igniterd.fleet.apply import Crew
from igniterd.fleet.orders import Key, Patience
from igniterd.fleet.places import FleetTriton, Places
from igniterd.fleet.remote import RemoteTriton
from igniterd.fleet.route import RouteAction, Router
from igniterd.messages.rebalance import Move, Rebalance
from igniterd.records import ModelReading

CLUSTER = f"test-{os.getpid()}"
"""One a process: two applies of one cluster at once are refused on the whole machine."""
NOW_S = 1_000_000.0
HOSTS = ("gpu-a", "gpu-b")
SHARES = "/shares"


class Killed(BaseException):
    """The process ends here: nothing after it is done, nothing is written."""


def config_of(name: str, share: float | None, batch: int = 8, gpu: int = 0) -> ModelConfig:
    shares = {} if share is None else {"EXECUTION_ENV_PATH": _path(share)}
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": batch,
        "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [1]}],
        "instance_group": [{"name": f"{name}_0", "count": 1, "kind": "KIND_GPU", "gpus": [gpu]}],
        "dynamic_batching": {},
        "parameters": {key: {"string_value": text} for key, text in shares.items()},
    }


def _path(share: float) -> str:
    return f"{SHARES}/igniterd-v2/{share * 100:g}"


@dataclass
class World:
    """``fails`` maps the number of a call to what happens there: an error, and whether the call has
    its effect first."""

    served: dict[str, dict[str, ModelConfig]]
    repository: dict[str, dict[str, ModelConfig]]
    route: frozenset[str] = frozenset({"gpu-a"})
    fails: Mapping[int, tuple[BaseException, bool]] = field(default_factory=dict)
    calls: int = 0
    counted: dict[str, int] = field(default_factory=dict)
    arriving: frozenset[str] = frozenset()
    """Hosts where requests arrive, whatever the route says."""
    late: bool = False
    """The next load is not answered, and ends when Triton comes to it: before the next one of its
    model, or in the end."""
    under_way: dict[tuple[str, str], ModelConfig] = field(default_factory=dict)
    unroutable: list[str] = field(default_factory=list)
    """Moments at which requests were sent to where the model was not."""

    @classmethod
    def made(cls) -> World:
        return cls(
            {
                "gpu-a": {"m": config_of("m", 0.5), "rest": config_of("rest", 0.4)},
                "gpu-b": {"near": config_of("near", 0.9)},
            },
            {"gpu-a": {}, "gpu-b": {"m": config_of("m", None, gpu=3)}},
        )

    def begin(self) -> tuple[BaseException, bool] | None:
        self.calls += 1
        found = self.fails.get(self.calls)
        if found is not None and not found[1]:
            raise found[0]
        return found

    def end(self, found: tuple[BaseException, bool] | None) -> None:
        self.unroutable += [f"{self.calls}: {h}" for h in self.route if "m" not in self.served[h]]
        if found is not None:
            raise found[0]

    def finish_loads(self) -> None:
        """Triton ends the loads that nobody waited for."""
        for (host, model), config in self.under_way.items():
            self.served[host][model] = config
        self.under_way = {}

    def standing(self) -> dict[str, dict[str, ModelConfig]]:
        """All that serves, without the marks of loads."""
        found = copy.deepcopy(self.served)
        for models in found.values():
            for config in models.values():
                config["parameters"].pop(LOAD_MARK, None)
        return found

    def places(self) -> Places:
        return Places(
            triton=[FleetTriton(host=h, url="192.0.2.1:8001", shares=Path(SHARES)) for h in HOSTS]
        )

    def crew(self, quiet_s: float | None = 0.0) -> Crew:
        places = self.places()
        remotes: dict[Key, RemoteTriton] = {
            t.key: RemoteTriton(t, FakeTriton(self, t.host)) for t in places.triton
        }
        return Crew(remotes, FakeRouter(places, self), Patience(30.0, quiet_s))


class FakeRouter(Router):
    def __init__(self, places: Places, world: World) -> None:
        super().__init__(places, None)
        object.__setattr__(self, "world", world)

    async def send(self, move: Move, action: RouteAction) -> str:
        world: World = object.__getattribute__(self, "world")
        found = world.begin()
        ends = {
            "move": {move.to.host},
            "replicate": {move.source.host, move.to.host},
            "back": {move.source.host},
        }
        world.route = frozenset(ends[action])
        world.end(found)
        return "by the test"


class FakeTriton:
    def __init__(self, world: World, host: str) -> None:
        self.world, self.host, self.url = world, host, "192.0.2.1:8001"

    @property
    def served(self) -> dict[str, ModelConfig]:
        return self.world.served[self.host]

    async def refuses_loads(self) -> str:
        return ""

    async def index(self) -> tuple[IndexEntry, ...]:
        self.world.end(self.world.begin())
        names = [(n, "READY") for n in self.served]
        names += [(n, "") for n in self.world.repository[self.host] if n not in self.served]
        return tuple(IndexEntry(name, "1", state, "") for name, state in names)

    async def config(self, model: str) -> ModelConfig:
        self.world.end(self.world.begin())
        return copy.deepcopy(self._served(model))

    async def load(
        self,
        model: str,
        config: ModelConfig | None,
        files: Mapping[str, bytes] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        found = self.world.begin()
        own = self.world.repository[self.host].get(model)
        if config is None and own is None:
            raise Refused(f"{model} is in no repository")
        sent = own if config is None else config if exact else marked(config, str(self.world.calls))
        if self.world.late:
            self.world.late = False
            self.world.under_way[self.host, model] = copy.deepcopy(sent or {})
            raise Unanswered("late")
        self.world.under_way.pop((self.host, model), None)
        self.served[model] = copy.deepcopy(sent or {})
        self.world.counted[f"{self.host}/{model}"] = 0
        self.world.end(found)

    async def unload(self, model: str) -> None:
        found = self.world.begin()
        self.served.pop(model, None)
        self.world.end(found)

    async def infer(self, request: bytes, *, timeout_s: float) -> bytes:
        self.world.end(self.world.begin())
        return b""

    async def statistics(self, model: str) -> Any:
        self.world.end(self.world.begin())
        self._served(model)
        key = f"{self.host}/{model}"
        if self.host in self.world.route | self.world.arriving:
            self.world.counted[key] = self.world.counted.get(key, 0) + 1
        ended = SimpleNamespace(count=self.world.counted.get(key, 0))
        counts = SimpleNamespace(success=ended, fail=SimpleNamespace(count=0))
        return SimpleNamespace(model_stats=[SimpleNamespace(inference_stats=counts)])

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]:
        raise NotImplementedError

    async def close(self) -> None:
        pass

    def _served(self, model: str) -> ModelConfig:
        if model not in self.served:
            raise Refused(f"model {model} is not found")
        return self.served[model]


def rebalance(kind: str = "move", **changed: Any) -> Rebalance:
    """``m`` goes from gpu-a to GPU 3 of gpu-b, where ``near`` makes room; ``rest`` grows."""

    def applied(share: float, batch: int = 8, gpu: int = 0) -> dict[str, Any]:
        return {"share": share, "max_batch_size": batch, "devices": [gpu]}

    def step(number: int, action: str, host: str, model: str, **more: Any) -> dict[str, Any]:
        said = {"number": number, "move": 1, "action": action, "host": host, "model": model}
        return {**said, "gpu_uuid": f"GPU-{host}", **more}

    steps = [
        step(1, "shrink", "gpu-b", "near", allocation=applied(0.5), before=applied(0.9)),
        step(2, "load", "gpu-b", "m", allocation=applied(0.45, 4, 3)),
        step(3, "route", "gpu-b", "m"),
        step(4, "unload", "gpu-a", "m", before=applied(0.5)),
        step(5, "grow", "gpu-a", "rest", allocation=applied(0.8), before=applied(0.4)),
    ]
    if kind == "replicate":
        steps = steps[:3]
    move = {
        "number": 1,
        "kind": kind,
        "model": "m",
        "served_as": "m",
        "from": {"host": "gpu-a", "gpu_uuid": "GPU-gpu-a", "device": 0},
        "to": {"host": "gpu-b", "gpu_uuid": "GPU-gpu-b", "device": 3},
        "share": 0.45,
        "max_batch_size": 4,
        "replicas": 1,
        "rate_per_s": 20.0,
        "slo_p99_ms": 50.0,
        "at_source": [],
        "at_target": [],
        "frees": {"share": 0.5},
        "why": "gpu-a is full",
    }
    found = {
        "cluster": CLUSTER,
        "speaker": "one",
        "term": 1,
        "number": 1,
        "time_s": NOW_S,
        "aim": "feasible",
        "feasible": True,
        "why": "one model does not hold",
        "hosts": {"known": 2, "used": 2, "troubled": 1},
        "moves": [move],
        "steps": steps,
    }
    return Rebalance.model_validate_json(json.dumps({**found, **changed}))


def share_at(world: World, host: str, model: str) -> float | None:
    return allocation_of(world.served[host][model], SHARES).share
