"""Ask every source at once, each with its deadline. What does not answer is a gap, never an old
value."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import structlog

from igniterd.devices import Devices, ServerFacts, devices_of
from igniterd.errors import IgniterdError, NotNow, NotServed
from igniterd.placement import gpu_named, placed
from igniterd.records import (
    Allocation,
    BoardReading,
    Gap,
    ModelReading,
    MpsReading,
    Observation,
    Stub,
)

T = TypeVar("T")

CONTROL_EVERY_S = 30.0
MPS_AGAIN_S = 5.0  # after no answer
CONNECTED_S = 3.0  # after a process has come, it is one of MPS' clients or never will be


class TritonSource(Protocol):
    """What is asked of a Triton client."""

    name: str

    @property
    def metrics_gap(self) -> Gap | None: ...

    @property
    def unmanaged_models(self) -> frozenset[str]:
        """Models that it serves though the configuration does not name them."""
        ...

    @property
    def foreign_shares(self) -> Mapping[int, float]:
        """What those hold of each GPU, by its device number, by their shares, whoever gave
        them."""
        ...

    @property
    def foreign_busy(self) -> Mapping[int, float]:
        """The part of the time, at most 1, that those without a share execute on each GPU, by its
        device number."""
        ...

    @property
    def gpu_labels(self) -> tuple[str, ...]:
        """The UUIDs that label the GPUs on its metrics page, in the page's order."""
        ...

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]: ...

    def read_configs_again(self) -> None:
        """The configurations may not be what they were."""
        ...

    async def applied_now(self, names: Iterable[str]) -> dict[str, Allocation]:
        """What is applied at this moment, of the models that can be read."""
        ...

    async def old_copy(self, model: str) -> str:
        """Why a copy of the model that should be gone is there yet, as far as Triton tells; or an
        empty string."""
        ...

    async def refuses_loads(self) -> str:
        """Why configurations cannot be changed on it (its model control mode), or an empty
        string."""
        ...


class BoardSource(Protocol):
    async def read(self) -> tuple[BoardReading, ...]: ...


class MpsSource(Protocol):
    async def read(self) -> MpsReading: ...


class ProcessSource(Protocol):
    async def read(self) -> tuple[Stub, ...]:
        """The stub processes of this host."""
        ...

    async def servers(self) -> Mapping[int, ServerFacts]:
        """What the environment of each tritonserver says, by its gRPC port, at the last read."""
        ...


@dataclass(slots=True)
class Sources:
    """Everything one host is read from. ``models`` names the models of each Triton.

    MPS control is read every ``mps_interval_s``: each read starts a process. Its last answer stands
    in between. While there is none it is asked every few seconds.
    """

    tritons: Mapping[str, TritonSource]
    models: Mapping[str, tuple[str, ...]]
    boards: BoardSource | None = None
    mps: MpsSource | None = None
    processes: ProcessSource | None = None
    # tenants -> as their Triton has them, where that is not the same
    names: Mapping[str, str] = field(default_factory=dict)
    # the GPU of models whose own configuration does not tell it: a device number, or a UUID
    gpus: Mapping[str, int | str] = field(default_factory=dict)
    # Triton -> the UUIDs that the configuration gives it, in its own order
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)  # of each Triton, for gRPC
    emulated: bool = False  # an instance on the CPU stands for one on the first GPU
    mps_interval_s: float = 30.0
    timeout_s: float = 0.4
    _refusals: dict[str, str] = field(default_factory=dict, init=False)
    _asked_s: dict[str, float] = field(default_factory=dict, init=False)
    _mps_read_s: float = field(default=float("-inf"), init=False)
    _mps_last: MpsReading | Gap | None = field(default=None, init=False)
    _mps_due_s: float = field(default=float("inf"), init=False)
    _ran: frozenset[str] = field(default=frozenset(), init=False)
    _pids: frozenset[int] = field(default=frozenset(), init=False)
    _fixed: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    _unmanaged: dict[str, frozenset[str]] = field(default_factory=dict, init=False)
    _facts: Mapping[int, ServerFacts] = field(default_factory=dict, init=False)
    _known_boards: tuple[BoardReading, ...] = field(default=(), init=False)

    async def _ask(
        self, source: str, answer: Awaitable[T], now_s: float, timeout_s: float | None = None
    ) -> T | Gap:
        """The answer, or the gap it leaves. Two rounds of calls may be needed inside one answer, so
        the deadline is doubled."""
        limit_s = timeout_s or 2 * self.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await answer
        except TimeoutError:
            return Gap(source, f"no answer in {limit_s:g} s", now_s)
        except IgniterdError as error:
            return Gap(source, str(error), now_s)

    async def _read_mps(self, now_s: float) -> MpsReading | Gap | None:
        if self.mps is None:
            return None
        every_s = (
            min(self.mps_interval_s, MPS_AGAIN_S)
            if isinstance(self._mps_last, Gap)
            else self.mps_interval_s
        )
        if now_s - self._mps_read_s >= every_s or now_s >= self._mps_due_s:
            self._mps_read_s, self._mps_due_s = now_s, float("inf")
            answer = await self._ask("mps", self.mps.read(), now_s)
            self._mps_last = (
                replace(answer, at_s=now_s) if isinstance(answer, MpsReading) else answer
            )
        return self._mps_last

    async def _read_processes(self, now_s: float) -> tuple[Stub, ...] | Gap | None:
        """The stubs of this host; MPS control is asked anew once those that have come had time to
        connect."""
        if self.processes is None:
            return None
        answer = await self._ask("processes", self.processes.read(), now_s)
        if isinstance(answer, tuple):
            facts = await self._ask("processes", self.processes.servers(), now_s)
            self._facts = {} if isinstance(facts, Gap) else facts
            pids = frozenset(stub.pid for stub in answer)
            if pids - self._pids:
                self._mps_due_s = now_s + CONNECTED_S
            if pids != self._pids:
                for triton in self.tritons.values():
                    # a new copy or a new server comes, or has taken the place of one that goes
                    triton.read_configs_again()
            self._pids = pids
        return answer

    async def mps_now(self, now_s: float) -> MpsReading | Gap | None:
        """MPS control's answer of this moment, for whoever is about to start a process under it."""
        self._mps_due_s = now_s
        return await self._read_mps(now_s)

    async def _control(self, name: str, now_s: float) -> Gap | None:
        """A Triton that would refuse every change is said before one is tried; asked again now and
        then, as it may be restarted."""
        refusal = self._refusals.get(name)
        if refusal is None or (refusal and now_s - self._asked_s[name] >= CONTROL_EVERY_S):
            answer = await self._ask(f"control:{name}", self.tritons[name].refuses_loads(), now_s)
            if isinstance(answer, Gap):
                return None  # it does not answer at all: that is the gap of its models
            self._refusals[name], self._asked_s[name] = answer, now_s
        return Gap(f"control:{name}", self._refusals[name], now_s) if self._refusals[name] else None

    async def observe(self, now_s: float) -> Observation:
        """One look at the whole host."""
        names = list(self.tritons)
        servers = [self._ask(f"triton:{n}", self._read_models(n, now_s), now_s) for n in names]
        boards = (
            self._ask("nvml", self.boards.read(), now_s) if self.boards is not None else _nothing()
        )
        host = asyncio.gather(boards, self._read_mps(now_s), self._read_processes(now_s))
        (seen_boards, seen_mps, seen_stubs), seen = await asyncio.gather(
            host, asyncio.gather(*servers)
        )
        gaps = [answer for answer in (seen_boards, seen_mps, seen_stubs) if isinstance(answer, Gap)]
        if isinstance(seen_boards, tuple) and seen_boards:
            self._known_boards = seen_boards
            gaps += [Gap(f"nvml:{b.uuid}", b.fault, now_s) for b in seen_boards if b.fault]
        devices = {name: self._devices(name) for name in names}
        models: dict[str, ModelReading] = {}
        absent, unread = set[str](), dict[str, str]()
        for name, answer in zip(names, seen, strict=True):
            if isinstance(answer, Gap):
                gaps.append(answer)
                unread |= dict.fromkeys(
                    self.models[name], f"Triton {name} does not answer: {answer.reason}"
                )
                # whoever answers next may have been started differently
                self._refusals.pop(name, None)
                continue
            control = await self._control(name, now_s)
            if control is not None:
                gaps.append(control)
            if devices[name].wrong:
                gaps.append(Gap(f"gpus:{name}", devices[name].wrong, now_s))
            metrics_gap = self.tritons[name].metrics_gap
            if metrics_gap is not None:
                gaps.append(metrics_gap)
            for model, reading in answer.items():
                if isinstance(reading, ModelReading):
                    models[model] = placed(
                        reading,
                        devices[name],
                        self.gpus.get(model),
                        cpu_counts=self.emulated,
                    )
                    self._log_fixed(model, models[model])
                else:
                    gaps.append(Gap(f"model:{model}", str(reading), now_s))
                    if isinstance(reading, NotServed):
                        absent.add(model)
                    else:
                        unread[model] = str(reading)
            self._log_unmanaged(name)
        self._executing(models, now_s)
        return Observation(
            at_s=now_s,
            boards=seen_boards if isinstance(seen_boards, tuple) else (),
            models=models,
            absent=frozenset(absent),
            mps=seen_mps if isinstance(seen_mps, MpsReading) else None,
            unread=unread,
            foreign=self._foreign(devices),
            foreign_busy=self._foreign_busy(devices),
            stubs=seen_stubs if isinstance(seen_stubs, tuple) else None,
            gaps=tuple(gaps),
            devices={name: each.gpus for name, each in devices.items() if each.gpus},
        )

    def _devices(self, triton: str) -> Devices:
        """The GPUs of one Triton. Without boards to look at, one Triton is taken to be alone on
        those it names."""
        facts = self._facts.get(self.ports.get(triton, 0), ServerFacts())
        facts = replace(facts, labels=self.tritons[triton].gpu_labels)
        found = devices_of(triton, self.devices.get(triton, ()), self._known_boards, facts)
        if found.gpus or found.ambiguous or found.wrong or len(self.tritons) == 1:
            return found
        return replace(
            found,
            ambiguous=f"no GPU of this host is read, and there are {len(self.tritons)} Tritons: "
            f"which GPUs they share is not known. Give [[triton]] gpus for {triton}",
        )

    async def _read_models(self, triton: str, now_s: float) -> dict[str, ModelReading | NotNow]:
        """Each reading with the time at which it was answered: rates are of counts between two
        answers."""
        clock = asyncio.get_running_loop().time
        began_s = clock()
        tenants = {self.names.get(tenant, tenant): tenant for tenant in self.models[triton]}
        found = await self.tritons[triton].read_models(tenants)
        at_s = now_s + clock() - began_s
        return {
            tenants[m]: replace(r, at_s=at_s)
            if isinstance(r, ModelReading) and r.at_s is None
            else r
            for m, r in found.items()
        }

    def _foreign(self, devices: Mapping[str, Devices]) -> dict[str, float]:
        """What models that nobody configured hold of each GPU."""
        out = dict[str, float]()
        for name, triton in self.tritons.items():
            for number, share in triton.foreign_shares.items():
                gpu = gpu_named(name, devices[name], number)
                out[gpu] = out.get(gpu, 0.0) + share
        return out

    def _foreign_busy(self, devices: Mapping[str, Devices]) -> dict[str, float]:
        """The part of the time that those of them execute on each GPU that have no share."""
        out = dict[str, float]()
        for name, triton in self.tritons.items():
            for number, busy in triton.foreign_busy.items():
                gpu = gpu_named(name, devices[name], number)
                out[gpu] = min(1.0, out.get(gpu, 0.0) + busy)
        return out

    def _executing(self, models: Mapping[str, ModelReading], now_s: float) -> None:
        """A process may have no CUDA context before it first executes: MPS control is asked anew
        after that."""
        executing = frozenset(name for name, reading in models.items() if reading.success_count > 0)
        if executing - self._ran:
            self._mps_due_s = now_s + CONNECTED_S
        self._ran = executing

    def _log_fixed(self, tenant: str, reading: ModelReading) -> None:
        """What igniterd leaves as it is, and why, is said once and again when it changes."""
        why = (reading.left_alone, reading.share_fixed, reading.batching_fixed)
        if not any(why) and tenant not in self._fixed:
            return
        said = tuple(dict.fromkeys(filter(None, why)))
        if said != self._fixed.get(tenant, ()):
            self._fixed[tenant] = said
            what = (
                "watched, not steered"
                if reading.left_alone
                else "steered in part"
                if said
                else "steered now"
            )
            structlog.get_logger("igniterd").info(
                what, model=tenant, **({"why": "; ".join(said)} if said else {})
            )

    def _log_unmanaged(self, triton: str) -> None:
        unmanaged = self.tritons[triton].unmanaged_models
        if unmanaged - self._unmanaged.get(triton, frozenset()):
            models = ", ".join(sorted(unmanaged))
            structlog.get_logger("igniterd").info(
                "serves models that the configuration does not name", triton=triton, models=models
            )
        self._unmanaged[triton] = unmanaged


async def _nothing() -> tuple[BoardReading, ...]:
    return ()
