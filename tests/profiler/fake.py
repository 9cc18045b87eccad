"""A Triton in virtual time: models that execute one request after another, with the client's
methods."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2

from igniterd.clients.environments import ModelConfig, backend_of, share_of
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.info import IndexEntry
from igniterd.errors import NotNow, Refused, Unreachable
from igniterd.records import BatchStat, BoardReading, ModelReading

RELOAD_S = 1.0
Time = Callable[[str, int, float, int], float]
"""(model, batch, share, neighbours executing) -> ms."""


def config_of(
    name: str,
    *,
    backend: str = "python",
    max_batch: int = 32,
    dims: Sequence[int] = (4,),
    **more: Any,
) -> ModelConfig:
    return {
        "name": name,
        "backend": backend,
        "max_batch_size": max_batch,
        "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": list(dims)}],
        "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [1]}],
        "instance_group": [{"name": "a", "count": 2}],
        "dynamic_batching": {"max_queue_delay_microseconds": 500},
        "parameters": {"keep": {"string_value": "me"}},
        **more,
    }


def plain_ms(model: str, batch: int, share: float, neighbours: int) -> float:
    """Work over share, a fixed cost, a tenth more for a neighbour."""
    work = {"big": 3.0, "small": 1.0}.get(model, 2.0)
    # ends at no round time
    return (work * (batch + 0.5) / share + 1.0) * (1.0 + 0.1 * neighbours) * 1.01374


@dataclass
class Served:
    """One model: its configuration now, its statistics since the last load."""

    config: ModelConfig
    stats: dict[int, BatchStat] = field(default_factory=dict)
    inferences: int = 0
    executing: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class FakeTriton:
    """``time_ms`` says how long a batch takes; ``refuses(model, batch)`` is a reason or empty;
    ``down`` answers nothing; an execution is counted ``counted_after_s`` after its answer."""

    def __init__(self, configs: Iterable[ModelConfig], time_ms: Time = plain_ms) -> None:
        self.models = {str(c["name"]): Served(copy.deepcopy(c)) for c in configs}
        self.time_ms = time_ms
        self.refuses: Callable[[str, int], str] = lambda model, batch: ""
        self.down = False
        self.counted_after_s = 0.0
        self.after_infer: Callable[[int], None] = lambda count: None
        self.loads: list[tuple[str, float | None]] = []
        self.sent = 0

    def _up(self) -> None:
        if self.down:
            raise Unreachable("fake: no answer in 1 s")

    async def index(self) -> tuple[IndexEntry, ...]:
        self._up()
        return tuple(IndexEntry(name, "1", "READY", "") for name in self.models)

    async def config(self, model: str) -> ModelConfig:
        self._up()
        return copy.deepcopy(self.models[model].config)

    async def load(self, model: str, config: ModelConfig, *, exact: bool = False) -> None:
        self._up()
        await asyncio.sleep(RELOAD_S)
        self._up()
        self.loads.append((model, share_of(config)))
        self.models[model] = Served(copy.deepcopy(config))

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]:
        self._up()
        return {name: self._reading(name) for name in names}

    def _reading(self, name: str) -> ModelReading:
        served = self.models[name]
        return ModelReading(
            model=name,
            version="1",
            triton="fake",
            ready=True,
            backend=backend_of(served.config),
            allocation=allocation_of(served.config),
            inference_count=served.inferences,
            batches=tuple(served.stats.values()),
        )

    async def infer(self, request: bytes, *, timeout_s: float) -> None:
        self._up()
        message = service_pb2.ModelInferRequest.FromString(request)
        await self.execute(message.model_name, int(message.inputs[0].shape[0]))
        self.sent += 1
        self.after_infer(self.sent)

    async def execute(self, model: str, batch: int) -> None:
        """One execution, as soon as the instance is free."""
        served = self.models[model]
        if reason := self.refuses(model, batch):
            raise Refused(reason)
        if batch > max(1, int(served.config["max_batch_size"])):
            raise Refused(
                f"batch {batch} is above max_batch_size {served.config['max_batch_size']}"
            )
        async with served.turn:
            self._up()
            served.executing = True
            others = sum(
                1 for other in self.models.values() if other is not served and other.executing
            )
            share = share_of(served.config) or 1.0
            spent_s = self.time_ms(model, batch, share, others) / 1e3
            await asyncio.sleep(spent_s)
            served.executing = False
        if self.counted_after_s:
            asyncio.get_running_loop().call_later(
                self.counted_after_s, self._count, served, batch, spent_s
            )
        else:
            self._count(served, batch, spent_s)

    @staticmethod
    def _count(served: Served, batch: int, spent_s: float) -> None:
        old, ns = served.stats.get(batch, BatchStat(batch, 0, 0, 0, 0)), round(spent_s * 1e9)
        served.stats[batch] = BatchStat(
            batch,
            old.count + 1,
            old.compute_input_ns,
            old.compute_infer_ns + ns,
            old.compute_output_ns,
        )
        served.inferences += batch

    async def register_memory(self, name: str, key: str, size: int) -> None:
        raise Refused("fake: no shared memory")

    async def forget_memory(self, name: str) -> None:
        raise AssertionError("nothing was registered")


class FakeBoard:
    """One board that draws 50 W, and 100 W more for each executing model; a copy holds 1 GiB, an
    old one for a second longer."""

    def __init__(self, triton: FakeTriton) -> None:
        self.triton = triton

    async def read(self) -> tuple[BoardReading, ...]:
        busy = sum(1 for m in self.triton.models.values() if m.executing)
        return (
            BoardReading(
                index=0,
                uuid="GPU-0",
                name="Fake",
                power_w=50.0 + 100.0 * busy,
                power_limit_w=300.0,
                sm_clock_mhz=1500.0 - 10.0 * busy,
                max_sm_clock_mhz=1530.0,
                memory_total_bytes=16 << 30,
                sm_count=80,
            ),
        )


class Heard:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[int, int, float, str]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, done: int, total: int, left_s: float, now: str) -> None:
        self.steps.append((done, total, left_s, now))
