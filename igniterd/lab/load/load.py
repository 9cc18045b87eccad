"""What the load generator is asked for and what it leaves behind: phases of load, the log of every
request, the generator's process.

The generator itself is ``loadgen.py``, in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError

from igniterd.arrays import F64
from igniterd.documents import Document, faults
from igniterd.errors import CannotRun

INPUT_FLOATS = 16  # each item carries a few floats: the time of the real transfer is in the tables
LOG_FIELDS = ("model", "phase", "scheduled_s", "sent_s", "latency_ms", "ok", "error")


class Arrivals(StrEnum):
    """How requests come: independent of each other, evenly spaced, or in bursts (a quarter of the
    time at 2.5 times the rate)."""

    POISSON = "poisson"
    CONSTANT = "constant"
    BURSTY = "bursty"


@dataclass(frozen=True, slots=True)
class Phase:
    """Some time of one kind of load. ``duration_s`` None lasts until the generator is told
    otherwise; ``rates`` are requests a second."""

    name: str
    duration_s: float | None
    rates: Mapping[str, float]
    arrivals: Arrivals = Arrivals.POISSON


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to send where. A request without an answer ``deadline_s`` after it was sent has failed.

    ``requests`` has a serialised ``ModelInferRequest`` in base64 for each model that takes other
    inputs than emulated ones do. They go to the generator in one variable of its environment: large
    inputs belong into shared memory.
    """

    url: str
    phases: tuple[Phase, ...]
    deadline_s: float = 10.0
    seed: int = 0
    requests: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LoadSpec:
        """Raises ``ValueError`` naming every field that is wrong."""
        try:
            return _read(_LoadDocument, json.loads(text)).record()
        except json.JSONDecodeError as problem:
            raise ValueError(f"{_WRONG}: it is not JSON: {problem}") from problem


def phase_from(raw: object) -> Phase:
    """A phase from JSON's types. Raises ``ValueError`` naming every field that is wrong."""
    return _read(_PhaseDocument, raw).record()


_WRONG = "the load's description is not right"
Rate = Annotated[float, Field(ge=0, lt=1e5, description="requests a second, 0 or more")]
Above = Annotated[float, Field(gt=0, description="seconds above 0")]
D = TypeVar("D", bound=Document)


class _PhaseDocument(Document):
    model_config = ConfigDict(extra="forbid")

    name: str = ""
    duration_s: Above | None = None
    rates: dict[str, Rate]
    arrivals: Annotated[
        Arrivals, Field(strict=False, description=" or ".join(kind.value for kind in Arrivals))
    ] = Arrivals.POISSON

    def record(self) -> Phase:
        return Phase(self.name, self.duration_s, self.rates, self.arrivals)


class _LoadDocument(Document):
    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(description="host:port of Triton's gRPC endpoint")]
    phases: Annotated[list[_PhaseDocument], Field(description="a list of phases")]
    deadline_s: Above = 10.0
    seed: int = 0
    requests: dict[str, Annotated[str, Field(description="a request in base64")]] = Field(
        default_factory=dict
    )

    def record(self) -> LoadSpec:
        return LoadSpec(
            url=self.url,
            phases=tuple(phase.record() for phase in self.phases),
            deadline_s=self.deadline_s,
            seed=self.seed,
            requests=self.requests,
        )


def _read(schema: type[D], raw: object) -> D:
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{_WRONG}: {'; '.join(faults(error, schema))}") from error


@dataclass(frozen=True, slots=True)
class RequestLog:
    """Every request of a run, as columns of equal length; ``scheduled_s`` and ``sent_s`` are Unix
    time."""

    model: NDArray[np.str_]
    phase: NDArray[np.str_]
    scheduled_s: F64
    sent_s: F64
    latency_ms: F64  # from the scheduled time; of a failed request: until it failed
    ok: NDArray[np.bool_]
    error: NDArray[np.str_]

    @classmethod
    def read(cls, path: Path) -> RequestLog:
        """Read a log, in order of the scheduled times; a last line still being written is left
        out."""
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(LOG_FIELDS)][1:]
        rows.sort(key=lambda row: float(row[2]))
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(LOG_FIELDS)
        model, phase, scheduled, sent, latency, ok, error = columns
        return cls(
            np.asarray(model, dtype=np.str_),
            np.asarray(phase, dtype=np.str_),
            np.asarray(scheduled, dtype=np.float64),
            np.asarray(sent, dtype=np.float64),
            np.asarray(latency, dtype=np.float64),
            np.asarray(ok) == "1",
            np.asarray(error, dtype=np.str_),
        )

    def __len__(self) -> int:
        return len(self.model)

    def where(self, mask: NDArray[np.bool_]) -> RequestLog:
        """The requests of a mask."""
        return RequestLog(
            self.model[mask],
            self.phase[mask],
            self.scheduled_s[mask],
            self.sent_s[mask],
            self.latency_ms[mask],
            self.ok[mask],
            self.error[mask],
        )

    def of(self, model: str, since_s: float = -np.inf, until_s: float = np.inf) -> RequestLog:
        """One model's requests scheduled in [since_s, until_s)."""
        return self.where(
            (self.model == model) & (self.scheduled_s >= since_s) & (self.scheduled_s < until_s)
        )

    def quantile_ms(self, q: float) -> float:
        """Latency that a fraction ``q`` of the requests stayed within; a failed request took for
        ever. NaN without requests."""
        if not len(self):
            return float("nan")
        ordered = np.sort(np.where(self.ok, self.latency_ms, np.inf))
        return float(ordered[min(len(ordered) - 1, max(0, int(np.ceil(q * len(ordered))) - 1))])

    def attainment(self, slo_ms: float) -> float:
        """Fraction of the requests answered within ``slo_ms``. NaN without requests."""
        return float(np.mean(self.ok & (self.latency_ms <= slo_ms))) if len(self) else float("nan")

    @property
    def failed(self) -> int:
        return int(np.sum(~self.ok))


class LoadProcess:
    """The generator's process. ``progress`` holds its lines of every second so far."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.log = log
        self.progress: list[dict[str, Any]] = []
        self._process = process
        self._reader = asyncio.create_task(self._read(), name="load progress")

    async def change(self, phase: Phase) -> None:
        """Begin ``phase`` now, in place of whatever was to come."""
        await self._tell(asdict(phase))

    async def stop(self, *, timeout_s: float = 30.0) -> RequestLog:
        """Send no more, wait for every answer, and return the log. Raises ``TimeoutError``, or
        :class:`CannotRun` if it broke."""
        with contextlib.suppress(ConnectionError):
            await self._tell({"stop": True})
        return await self.wait_finished(timeout_s=timeout_s)

    async def wait_finished(self, *, timeout_s: float) -> RequestLog:
        """Wait until all phases are over and every request has ended; the log. Raises as
        :meth:`stop`."""
        async with asyncio.timeout(timeout_s):
            status = await self._process.wait()
        await self._reader
        if status != 0:
            raise CannotRun(
                f"the load generator exited with status {status}: {await self._read_errors()}"
            )
        return await asyncio.to_thread(RequestLog.read, self.log)

    async def until_sent(self, count: int, *, timeout_s: float) -> None:
        """Wait until ``count`` requests were scheduled. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            while not self.progress or self.progress[-1]["scheduled"] < count:
                if self._process.returncode is not None:
                    raise CannotRun(f"the load generator ended early: {await self._read_errors()}")
                await asyncio.sleep(0.05)

    async def _tell(self, message: Mapping[str, Any]) -> None:
        if self._process.stdin is None:
            raise CannotRun("the load generator has no standard input")
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self) -> None:
        if self._process.stdout is None:
            return
        async for line in self._process.stdout:
            self.progress.append(json.loads(line))

    async def _read_errors(self) -> str:
        said = await self._process.stderr.read() if self._process.stderr else b""
        return said.decode(errors="replace").strip()[-500:]

    async def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader


@asynccontextmanager
async def load(spec: LoadSpec, log: Path) -> AsyncIterator[LoadProcess]:
    """The generator running ``spec`` in a process of its own, writing every request to ``log``;
    gone on the way out."""
    environment = os.environ | {
        "PYTHONPATH": f"{Path(__file__).parents[3]}:{os.environ.get('PYTHONPATH', '')}",
        "LOADGEN_SPEC": spec.to_json(),
    }
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "igniterd.lab.load.generator",
            "--spec-from-environment",
            "-o",
            str(log),
        ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    made = LoadProcess(process, log)
    try:
        yield made
    finally:
        await asyncio.shield(made.kill())
