"""A host's ``state`` on MQTT: what is needed to predict and plan for it elsewhere, and no more.

The keys that ``/state`` has too have the same names there. What is null or at its default is left
out. A host of many models says it in parts: the first has the host and its boards, each has some of
the models, and parts belong together where ``run`` and ``tick`` are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from igniterd.documents import Document, Whole
from igniterd.errors import Refused
from igniterd.jsontext import dumps
from igniterd.messages.event import MOST_DATA

MOST_PARTS = 64
_SHORT = 200  # letters of a reason
_FRAME = ',"models":[],"part":99,"parts":99'

Share = Annotated[float, Field(gt=0, le=1, description="a fraction of the GPU, above 0, at most 1")]
Part = Annotated[float, Field(ge=0, le=1, description="a fraction, from 0 to 1")]
AnyOf = Annotated[float, Field(ge=0, le=1e12, description="0 or more, and finite")]
Rate = Annotated[float, Field(ge=0, le=1e9, description="so many a second, 0 or more")]
Ms = Annotated[float, Field(gt=0, le=1e9, description="milliseconds, above 0")]
Batch = Annotated[Whole, Field(ge=1, le=4096, description="a whole number from 1 to 4096")]
Count = Annotated[Whole, Field(ge=0, le=2**62, description="a whole number, 0 or more")]
HostName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128, description="a host's name"),
]
ModelName = Annotated[str, Field(min_length=1, max_length=400, description="a model's name")]
Gpu = Annotated[str, Field(min_length=1, max_length=200, description="a GPU's UUID")]
Words = Annotated[str, Field(max_length=2000, description="text")]
Digest = Annotated[
    str, Field(pattern=r"^[0-9a-f]{32}$", description="32 hexadecimal digits: a profile's hash")
]


class AppliedState(Document):
    """An allocation: what is applied to a model."""

    share: Share | None = None
    max_batch_size: Batch = 1
    max_queue_delay_us: Count = 0
    instances: Annotated[Whole, Field(ge=0, le=1024, description="0 to 1024 instances")] = 1
    devices: Annotated[tuple[Count, ...], Field(max_length=1024)] = ()


class ShareEffect(Document):
    """Whether the share of a model's configuration is one that its processes have."""

    applied: Share | None = None
    effective: Share | None = None
    state: Words = ""


class Learnt(Document):
    """What live traffic says of a model's service times where it runs: see ``BiasEstimate``."""

    share: Share
    pressure: Annotated[float, Field(ge=0, le=1000, description="0 to 1000")]
    level: Annotated[float, Field(ge=-10, le=10, description="a logarithm, -10 to 10")]
    tilt: Annotated[float, Field(ge=-10, le=10, description="-10 to 10")]
    sd: Annotated[float, Field(ge=0, le=10, description="0 to 10")]
    cv: Annotated[float, Field(ge=0, le=10, description="0 to 10")] | None = None


class Latency(Document):
    """Of the requests of the last window, ms."""

    mean: AnyOf | None = None
    p50: AnyOf | None = None
    p99: AnyOf | None = None


class ModelState(Document):
    """One configured model. ``stays``: why it is not to be moved, empty where it may be.

    ``rate_per_s`` and ``rate_upper_per_s`` are requests a second, of ``items_per_request`` items in
    the mean; ``items``: how many to plan for in one request. ``batches``: the least and the largest
    that may be planned. ``reserved``: the part of its GPU to leave free for it where it is not
    planned with (its share included), or where its share is in doubt.
    """

    name: ModelName
    triton: Words = "main"
    model: ModelName | None = None  # as Triton has it, where ``name`` is not that
    slo_p99_ms: Ms
    priority: Annotated[Whole, Field(ge=1, le=1000, description="a whole number, 1 to 1000")] = 1
    min_share: Share = 0.05
    max_share: Share = 1.0
    seen: bool
    absent: bool = False  # its Triton answers, and does not serve it
    state: Words | None = None
    why: Words = ""
    stays: Words = ""
    ready: bool = True
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=1024)] = ()
    applied: AppliedState | None = None
    share: ShareEffect | None = None
    reserved: Part = 0.0
    rate_per_s: Rate | None = None
    rate_upper_per_s: Rate | None = None
    busy: Part | None = None
    mean_batch: AnyOf | None = None
    burstiness: AnyOf | None = None
    items_per_request: AnyOf = 1.0
    items: Batch = 1
    batches: tuple[Batch, Batch] | None = None
    keeps_batch: Batch | None = None
    steerable: bool = True
    bias: AnyOf | None = None
    learnt: Learnt | None = None
    measured: Latency | None = None
    predicted: Latency | None = None
    feasible: bool | None = None
    reason: Words = ""
    needs_share: AnyOf | None = None
    planned_p99_ms: AnyOf | None = None
    profiles: Annotated[tuple[Digest, ...], Field(max_length=64)] = ()
    profile_model: ModelName | None = None  # as its profiles name it, where that is not ``name``


class BoardState(Document):
    """One GPU. ``reserved``: the part of it that models hold which nobody configured."""

    uuid: Gpu
    name: Words = ""
    sm_count: Annotated[Whole, Field(ge=1, le=100_000, description="1 to 100000")] | None = None
    memory_used_bytes: Count | None = None
    memory_total_bytes: Count | None = None
    reserved: Part | None = None
    fault: Words = ""


class TritonState(Document):
    """One Triton: its GPUs in its own order, and where it sees the share environments."""

    name: Words
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=1024)] = ()
    shares: Words = ""
    loadable: Annotated[tuple[ModelName, ...], Field(max_length=10_000)] = ()
    """Models of its repository that it does not serve."""


class DecisionState(Document):
    """What the host's own daemon decided."""

    outcome: Words
    why: Words = ""
    feasible: bool
    headroom: AnyOf | None = None
    allocated_share: AnyOf | None = None
    least_share: AnyOf | None = None
    least_by_gpu: dict[Gpu, AnyOf] = Field(default_factory=dict)


class PlanTerms(Document):
    """What the host plans with: ``level`` of the bounds, ``slo_margin`` below the SLO."""

    level: Annotated[float, Field(ge=0.5, lt=1, description="0.5 or more, below 1")] = 0.95
    slo_margin: Annotated[float, Field(ge=0, lt=0.5, description="0 or more, below 0.5")] = 0.1


class HostState(Document):
    """One part of a host's state; the only one of most hosts. ``run`` names the process that says
    it."""

    schema_: Annotated[Whole, Field(alias="schema", ge=1, le=1, description="1")]
    igniterd: Words = ""
    host: HostName
    cluster: HostName
    run: Annotated[str, Field(min_length=1, max_length=64, description="a name of this run")]
    mode: Words = ""
    tick: Count
    time_s: AnyOf
    part: Annotated[Whole, Field(ge=1, le=MOST_PARTS, description="1 to 64")] = 1
    parts: Annotated[Whole, Field(ge=1, le=MOST_PARTS, description="1 to 64")] = 1
    terms: PlanTerms = PlanTerms()
    decision: DecisionState | None = None  # in the first part
    tritons: Annotated[tuple[TritonState, ...], Field(max_length=1024)] = ()
    boards: Annotated[tuple[BoardState, ...], Field(max_length=1024)] = ()
    models: Annotated[tuple[ModelState, ...], Field(max_length=4096)] = ()


def short(text: str) -> str:
    """A reason, cut where it is long: the host itself says it in full. Letters that take many bytes
    are worth several."""
    if len(text) <= _SHORT // 4:
        return text
    cut = text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"
    return cut if len(dumps(cut)) <= 3 * _SHORT else text[: _SHORT // 4 - 1] + "…"


def split_state(state: Mapping[str, Any], most: int = MOST_DATA) -> Iterator[dict[str, Any]]:
    """``state`` (all of a host) as documents of at most ``most`` bytes, each with ``part`` and
    ``parts`` where there are several.

    The host itself is in the first. Raises :class:`Refused` for one that no such documents hold.
    """
    models = list(state["models"])
    head = {k: v for k, v in state.items() if k != "models"}
    only = ("schema", "igniterd", "host", "cluster", "run", "tick", "time_s")
    again = {k: state[k] for k in only if k in state}
    room = most - len(dumps(head)) - len(_FRAME)
    if room < 0:
        raise Refused(f"what is said of the host itself has {most - room} bytes, above {most}")
    chunks: list[list[Any]] = [[]]
    for model in models:
        size = len(dumps(model)) + 1
        if size > room:
            chunks.append([])
            room = most - len(dumps(again)) - len(_FRAME)
            if size > room:
                raise Refused(f"what is said of model {model['name']!r} has {size} bytes")
        chunks[-1].append(model)
        room -= size
    if len(chunks) == 1:
        yield {**head, "models": models}
        return
    if len(chunks) > MOST_PARTS:
        raise Refused(f"{len(models)} models want {len(chunks)} parts; at most {MOST_PARTS} go")
    for number, chunk in enumerate(chunks, start=1):
        parts = {"part": number, "parts": len(chunks)}
        yield {**(head if number == 1 else again), **parts, "models": chunk}
