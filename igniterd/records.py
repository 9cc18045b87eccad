"""The frozen records that travel from stage to stage of one tick.

Units are in the names: ``_s`` seconds, ``_ms`` milliseconds, ``_us`` microseconds, ``_per_s``
requests a second, ``_w`` watts, ``_mhz`` megahertz, ``_bytes`` bytes; ``share`` is a fraction of
the SMs in (0, 1]. A reading a source cannot give is ``None``; a source that did not answer in time
is a :class:`Gap`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Mode(StrEnum):
    """What the daemon may do: read, also decide and say, also change the host."""

    OBSERVE = "observe"
    ADVISE = "advise"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Gap:
    """A source that gave no answer this tick."""

    source: str  # "nvml", "triton:main", "metrics:main", "mps"
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True)
class BoardReading:
    """One GPU as NVML sees it; device level only (under MPS, NVML cannot tell tenants apart).

    A MIG instance is a GPU of its own, with its own UUID, memory and SMs.
    """

    index: int
    uuid: str
    name: str
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: float | None = None
    max_sm_clock_mhz: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    clock_event_reasons: int | None = None
    temperature_c: float | None = None
    sm_count: int | None = None
    pci: str = ""  # its bus address, "00000000:3B:00.0": CUDA may number boards by it
    parent: str = ""  # UUID of the board that a MIG instance is a part of
    fault: str = ""  # why it was not read in full, with the words that mend it; empty where it was


@dataclass(frozen=True, slots=True)
class BatchStat:
    """Cumulative executions of one batch size, from Triton's ``batch_stats``."""

    batch_size: int
    count: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """What is applied to one model: the knobs igniterd turns.

    ``share`` is ``None`` when the model runs without an MPS share of its own (no override, or an
    in-process backend). ``devices``: its server's number of the GPU of each instance, in order;
    empty where the configuration names none.
    """

    share: float | None
    max_batch_size: int
    max_queue_delay_us: int = 0
    instances: int = 1
    devices: tuple[int, ...] = ()

    @property
    def effective_share(self) -> float:
        """The part of the GPU that an instance may use: all of it without a share of its own."""
        return 1.0 if self.share is None else self.share

    @property
    def most_instances(self) -> int:
        """Instances on the GPU that has most of them."""
        return most_on_one(self.devices, self.instances)

    @property
    def granted(self) -> float | None:
        """The part of a GPU that its instances there may use together: each is a process of its own
        with ``share``. Of the GPU that has most of them. ``None`` without a share."""
        return None if self.share is None else self.share * self.most_instances

    def figures(self) -> dict[str, Any]:
        """As documents have it."""
        return asdict(self) | {"devices": list(self.devices)}


UNNAMED_GPU = "main:0"
"""A GPU of which no UUID is known: a Triton's name, and its number there."""


def most_on_one(places: Sequence[int] | Sequence[str], default: int) -> int:
    """Of the GPUs of so many instances, how many are on the one that has most; ``default`` where
    none is named."""
    return max(Counter(places).values(), default=default)


ROUNDING = 1e-9
"""Shares add up to one GPU within this."""


def granted_total(allocations: Iterable[Allocation]) -> float:
    """The part of a GPU that is granted, instances included. One without a share takes none."""
    return sum(a.granted or 0.0 for a in allocations)


@dataclass(frozen=True, slots=True)
class ModelReading:
    """One model on one Triton: configuration as applied now, cumulative statistics (restart at zero
    after a reload)."""

    model: str
    version: str
    triton: str
    ready: bool
    backend: str
    allocation: Allocation
    # requests executed; those answered from the response cache are not among them
    success_count: int = 0
    failure_count: int = 0
    # samples inferred; above success_count when clients send batches in one request
    inference_count: int = 0
    pending_count: int | None = None  # of all copies, those that were replaced too
    # answered by copies before this one; ``None`` where none of them can have requests
    former_count: int | None = None
    queue_ns: int = 0
    batches: tuple[BatchStat, ...] = ()
    # spent executing by all instances, where ``batches`` are not told; else 0
    busy_ns: int = 0
    # measured by Triton (summary_latencies), e.g. {0.5: …, 0.99: …}
    latency_quantiles_s: Mapping[float, float] | None = None
    # the GPU of each instance, or the one of all; none where all run on the CPU
    gpus: tuple[str, ...] = (UNNAMED_GPU,)
    share_fixed: str = ""  # why it cannot be given a share of its own; empty where it can
    # why its batches are formed as they are, whatever is set; empty where they can be steered
    batching_fixed: str = ""
    # why it is only watched: neither steered nor predicted, whatever its profile says
    left_alone: str = ""
    # the same, unless the configuration of igniterd says which GPU it is on
    chooses_gpu: str = ""
    on_cpu: bool = False  # every instance that its configuration has
    # whether it runs in processes of its own, so that an MPS share can be given to it alone
    owns_process: bool = True
    # that Triton may give the processes of its instances
    instance_names: frozenset[str] = frozenset()
    # what its configuration names where that is not planned with: it is not proven
    claimed_share: float | None = None
    reserved_share: float = 0.0  # what its instances may hold of a GPU all the same
    loading: bool = False  # a load that was not answered in time may still be going on
    # why igniterd must not change it: its owner says so on the model (IGNITERD_HANDS_OFF)
    hands_off: str = ""
    # requests whose time in the queue ran out, among the failed; None where nothing tells
    rejected_count: int | None = None
    # when its counts were answered, on the observation's clock; None: with the observation
    at_s: float | None = None
    rebalanced_s: float | None = None  # Unix time of the rebalance that set what is applied

    @property
    def gpu_of_each(self) -> tuple[str, ...]:
        """The GPU of each of its instances."""
        return self.gpus * self.allocation.instances if len(self.gpus) == 1 else self.gpus

    def instances_on(self, gpu: str) -> int:
        """Its instances on ``gpu``."""
        return self.gpu_of_each.count(gpu)

    def granted_on(self, gpu: str) -> float:
        """The part of ``gpu`` that its instances may use by their share; 0 without one."""
        return (self.allocation.share or 0.0) * self.instances_on(gpu)

    @property
    def lacks_share(self) -> bool:
        """Whether it still runs without the share it could be given."""
        return self.allocation.share is None and self.owns_process and not self.share_fixed


@dataclass(frozen=True, slots=True)
class Stub:
    """A process in which Triton runs an instance of a Python model, as the host's process table
    shows it.

    ``share`` (a fraction) is what it has, ``by`` what tells so: its ``receipt`` (the name that its
    start-up gave it) or its ``environment``. ``None`` means something only where the environment
    could be read.
    """

    pid: int
    pids: tuple[int, ...]  # the same process in every pid namespace it is in, the host's first
    server_pid: int
    grpc_port: int | None  # that its server was told to listen at; None where that cannot be read
    path: str  # of the model's code
    instance: str
    share: float | None = None
    by: str = ""
    started: int = 0  # in ticks of the kernel's clock since it was booted
    environment_read: bool = False
    virtual_env: str = ""  # VIRTUAL_ENV it was started with: the newer launcher sets it


@dataclass(frozen=True, slots=True)
class MpsReading:
    """MPS control's answers. ``default_share`` caps every client of the server: below 1 is worth a
    warning."""

    server_pids: tuple[int, ...] = ()
    default_share: float | None = None
    # ACTIVE, FAULT, ... by server; older versions do not tell
    states: Mapping[int, str] = field(default_factory=dict)
    # of all servers; None where the version does not tell
    client_pids: frozenset[int] | None = None
    at_s: float | None = None  # when it was read; None: now


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything read in one tick; ``at_s`` is the daemon's monotonic clock."""

    at_s: float
    boards: tuple[BoardReading, ...] = ()
    models: Mapping[str, ModelReading] = field(default_factory=dict)  # by configured name
    # configured models that Triton neither serves nor is loading
    absent: frozenset[str] = frozenset()
    # configured models that were not read this time, and why
    unread: Mapping[str, str] = field(default_factory=dict)
    # GPU -> share held by models that nobody configured
    foreign: Mapping[str, float] = field(default_factory=dict)
    # GPU -> fraction of the time that those of them execute that have no share
    foreign_busy: Mapping[str, float] = field(default_factory=dict)
    mps: MpsReading | None = None
    # None where the host's processes are not looked at, or not to be had
    stubs: tuple[Stub, ...] | None = None
    gaps: tuple[Gap, ...] = ()
    # Triton -> its GPUs by device number, where they are known
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Effect(StrEnum):
    """Whether a share that a configuration names is one that the model's processes have."""

    PROVEN = "proven"
    UNPROVEN = "unproven"  # nothing shows it yet, or any more
    REFUTED = "refuted"


@dataclass(frozen=True, slots=True)
class ShareState:
    """One model's share: what its configuration names, and whether that has an effect."""

    applied: float
    effect: Effect
    by: str  # the evidence, in words
    reason: str  # why it is not proven, with the most likely cause; empty where it is
    since_s: float  # when it came to be so
    # what plans may rest on; None where it must be taken for uncapped
    effective: float | None = None
    mendable: bool = False  # a reload of ours may give the process its share
    absent: bool = False  # the process surely is confined to nothing


@dataclass(frozen=True, slots=True)
class ModelWindow:
    """What happened to one model between two observations."""

    model: str
    span_s: float
    arrivals: int  # success + failure + drained + change of pending
    completed: int
    failed: int
    executions: Mapping[int, int] = field(default_factory=dict)  # batch size -> executions
    # batch size -> mean service time (input + infer + output)
    service_ms: Mapping[int, float] = field(default_factory=dict)
    # counters restarted inside the window: rates are of what is known, never negative
    restarted: bool = False
    queue_ms: float | None = None  # mean wait in the queue of the requests completed
    # samples that the completed requests brought; above ``completed`` when clients bring batches
    items: int = 0
    pending: int | None = None  # requests waiting or executing at its end
    drained: int = 0  # requests answered by copies that were replaced
    rejected: int = 0  # requests whose time in the queue ran out
    # spent executing by all instances, where ``executions`` are not told; else 0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """Rates between two observations."""

    at_s: float
    span_s: float
    models: Mapping[str, ModelWindow] = field(default_factory=dict)
