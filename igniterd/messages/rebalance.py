"""What ``igniterd fleet`` says: the few moves after which every SLO of the cluster holds, or GPUs
are free. Advice: no daemon takes commands from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from igniterd.documents import Document, Whole
from igniterd.messages.state import (
    AnyOf,
    Count,
    Gpu,
    HostName,
    Ms,
    Rate,
    Share,
    Words,
)
from igniterd.messages.state import (
    AppliedState as Applied,
)

MOST_MOVES = 1000
_FEASIBLE = (
    "whether every SLO that was judged holds after the moves of this message; false where moves "
    "that did not fit in it (more_moves) may be needed for that"
)
_MORE_MOVES = (
    "moves that did not fit in the message and come once these are done: a whole number, 0 or more"
)


class Place(Document):
    """A GPU of a host, and the Triton there that serves (or is to serve) the model. ``device``: the
    GPU's number in that Triton."""

    host: HostName
    gpu_uuid: Gpu
    triton: Words = "main"
    device: Count | None = None


class Fare(Document):
    """One model on one side of a move: its predicted P99 (ms) before and after; null where it is
    not there, or does not keep up."""

    model: Words
    slo_p99_ms: Ms
    before_p99_ms: AnyOf | None = None
    after_p99_ms: AnyOf | None = None


class Frees(Document):
    """What a move leaves at its source."""

    share: AnyOf  # of the GPU that the model was on
    gpu: bool = False  # whether nobody is left there


class Move(Document):
    """One model, or a part of its traffic, goes to another GPU.

    ``kind``: ``move``, or ``replicate``, which leaves it where it is too and sends ``weight`` of
    its traffic to the new replica. ``replicas``: instances at the new place.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)

    number: Annotated[Whole, Field(ge=1, description="1 or more")]
    kind: Literal["move", "replicate"]
    model: Words  # as the source's daemon calls it
    served_as: Words  # as Triton has it
    source: Annotated[Place, Field(alias="from")]
    to: Place
    share: Share | None = None
    max_batch_size: Annotated[Whole, Field(ge=1, le=4096)]
    max_queue_delay_us: Count = 0
    replicas: Annotated[Whole, Field(ge=1, le=1024)]
    weight: Share = 1.0
    rate_per_s: Rate  # requests a second that go there
    slo_p99_ms: Ms
    at_source: tuple[Fare, ...]
    at_target: tuple[Fare, ...]
    frees: Frees
    why: Words


class Step(Document):
    """One thing to do; in their order, stopping after any of them is safe.

    ``shrink``: a model is brought to ``allocation``, which leaves room. ``load``: the
    model is loaded at the target, and ready. ``route``: its traffic goes there. ``unload``: at the
    source. ``grow``: a model is brought to ``allocation``, which the room now allows.
    """

    number: Annotated[Whole, Field(ge=1, description="1 or more")]
    move: Annotated[Whole, Field(ge=1, description="the number of a move")]
    action: Literal["shrink", "load", "route", "unload", "grow"]
    host: HostName
    triton: Words = "main"
    gpu_uuid: Gpu
    model: Words  # as Triton has it
    allocation: Applied | None = None
    before: Applied | None = None  # what the host says is applied now, where the model is there


class LeftOut(Document):
    """A host that no move touches, and why."""

    host: Words
    reason: Words


class Unsolved(Document):
    """A model whose SLO does not hold after all the moves, and why nothing helps."""

    host: HostName
    model: Words
    reason: Words


class FreedGpu(Document):
    host: HostName
    gpu_uuid: Gpu


class Basis(Document):
    """The state of a host that the moves rest on."""

    host: HostName
    run: Words
    tick: Count


class Hosts(Document):
    """How many hosts of the cluster are known, usable, and in trouble now."""

    known: Count
    used: Count
    troubled: Count


class Rebalance(Document):
    """All that is advised now. It replaces the one before, and may have no moves."""

    cluster: HostName
    speaker: Words
    term: Count
    number: Count  # counts the rebalances of a speaker
    time_s: AnyOf
    aim: Literal["feasible", "consolidate"]
    feasible: Annotated[bool, Field(description=_FEASIBLE)]
    why: Words
    hosts: Hosts
    part: Annotated[Whole, Field(ge=1)] = 1
    moves: Annotated[tuple[Move, ...], Field(max_length=MOST_MOVES)] = ()
    steps: tuple[Step, ...] = ()
    freed: tuple[FreedGpu, ...] = ()
    unsolved: tuple[Unsolved, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    more_unsolved: Count = 0  # models unsolved beyond those named
    more_left_out: Count = 0  # hosts left out beyond those named
    more_moves: Annotated[Count, Field(description=_MORE_MOVES)] = 0
    rests_on: tuple[Basis, ...] = ()


class Speaker(Document):
    """A claim to be the one ``igniterd fleet`` that speaks for a cluster. The highest term counts;
    of one term, the claim that the broker passed on first."""

    cluster: HostName
    speaker: Words
    term: Count
    until: Literal["renewed", "released"] = "renewed"
