"""What one board answers NVML, or each instance of one with MIG on. Blocking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from igniterd.clients.nvml_calls import (
    MIG_HANDLE,
    Asking,
    Calls,
    key,
    number,
    present,
    text,
    unread,
    whole,
)
from igniterd.records import BoardReading

UNKNOWN = "unknown"
"""Name of a board that has not told it."""

# FP32 cores of one SM by compute capability, major alone or with minor (CUDA's programming guide)
_SM_CORES: dict[tuple[int, ...], int] = {
    **{(major,): 128 for major in (5, 6, 8, 9, 10, 11, 12)},
    (7,): 64,
    (6, 0): 64,
    (8, 0): 64,
}
_MOST_INSTANCES, _MOST_SMS, _MOST_BYTES = 64, 2048, 1 << 50
_CLOCK_SM, _TEMPERATURE_GPU = 1, 0
_watts: Callable[[Any], float] = number(1e8, scale=1e-3)
_mhz: Callable[[Any], float] = number(1e5)
_celsius = number(250.0, least=-50.0)
_reasons = whole((1 << 63) - 1)


@dataclass(slots=True)
class Slot:
    """One of NVML's indices: a handle, or why there is none, and what is known of its board."""

    index: int
    handle: Any = None
    trouble: Asking | None = None  # without a handle
    facts: dict[str, Any] = field(default_factory=dict)
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)  # facts by UUID
    uuid: str = ""
    name: str = UNKNOWN
    pci: str = ""

    def reading(self, fault: str = "", **readings: Any) -> BoardReading:
        """The record of it; ``fault`` in words, without the board."""
        told = ", ".join(part for part in (self.uuid, self.name) if part not in ("", UNKNOWN))
        who = f"GPU {self.index} ({told})" if told else f"GPU {self.index}"
        return BoardReading(
            index=self.index,
            uuid=self.key,
            name=self.name,
            pci=self.pci,
            fault=f"{who}: {fault}" if fault else "",
            **readings,
        )

    @property
    def key(self) -> str:
        return self.uuid or f"index-{self.index}"


def slot_at(calls: Calls, index: int) -> Slot:
    asking = Asking(calls)
    handle = asking.ask("handle", "nvmlDeviceGetHandleByIndex", index, check=present)
    if handle is not None:
        return Slot(index, handle)
    if asking.answered("handle"):
        asking.failed["handle"] = "igniterd may not use it: give it the board's device file"
    return Slot(index, trouble=asking)


def identify(slot: Slot, asking: Asking) -> None:
    """Its UUID, name and bus address, as far as it tells them."""
    if slot.handle is None:
        return
    handle, facts = slot.handle, slot.facts
    uuid = asking.once(facts, "UUID", "nvmlDeviceGetUUID", handle, check=key)
    if uuid is None and asking.answered("UUID"):
        asking.failed["UUID"] = "not supported"
    name = asking.once(facts, "name", "nvmlDeviceGetName", handle, check=text)
    pci = asking.once(facts, "bus address", "nvmlDeviceGetPciInfo", handle, check=_bus)
    slot.uuid, slot.name, slot.pci = uuid or slot.uuid, name or slot.name, pci or slot.pci


def read(calls: Calls, slot: Slot, asking: Asking) -> list[BoardReading]:
    """The board after :func:`identify`, or its instances."""
    if slot.handle is None:
        return [slot.reading(asking.why())]
    handle, before = slot.handle, set(asking.failed)
    mig = asking.ask("MIG mode", "nvmlDeviceGetMigMode", handle, check=_mig_is_on)
    drawn = _drawn(calls, slot, asking)
    if mig:
        shared = {what: why for what, why in asking.failed.items() if what not in before}
        return _instances(calls, slot, asking, drawn, shared)
    memory = asking.ask("memory", "nvmlDeviceGetMemoryInfo", handle, check=_memory)
    used, total = memory or (None, None)
    sms = _sm_count(slot.facts, asking, handle)
    readings = {"memory_used_bytes": used, "memory_total_bytes": total, "sm_count": sms}
    return [slot.reading(asking.why(), **readings, **drawn)]


def _drawn(calls: Calls, slot: Slot, asking: Asking) -> dict[str, Any]:
    """What the whole board draws and how fast it runs. A limit of 0 is none that is known."""
    ask, handle, events = asking.ask, slot.handle, "clock event reasons"
    clock = calls.constant("NVML_CLOCK_SM", _CLOCK_SM)
    sensor = calls.constant("NVML_TEMPERATURE_GPU", _TEMPERATURE_GPU)
    reasons = ask(events, "nvmlDeviceGetCurrentClocksEventReasons", handle, check=_reasons)
    if reasons is None and asking.answered(events):  # its older name
        reasons = ask(events, "nvmlDeviceGetCurrentClocksThrottleReasons", handle, check=_reasons)
    limit = ask("power limit", "nvmlDeviceGetEnforcedPowerLimit", handle, check=_watts)
    most = asking.once(
        slot.facts, "largest SM clock", "nvmlDeviceGetMaxClockInfo", handle, clock, check=_mhz
    )
    return {
        "power_w": ask("power", "nvmlDeviceGetPowerUsage", handle, check=_watts),
        "power_limit_w": limit or None,
        "sm_clock_mhz": ask("SM clock", "nvmlDeviceGetClockInfo", handle, clock, check=_mhz),
        "max_sm_clock_mhz": most or None,
        "clock_event_reasons": reasons,
        "temperature_c": ask(
            "temperature", "nvmlDeviceGetTemperature", handle, sensor, check=_celsius
        ),
    }


def _instances(
    calls: Calls, slot: Slot, asking: Asking, drawn: dict[str, Any], shared: dict[str, str]
) -> list[BoardReading]:
    """The instances of a board with MIG on; the board itself only with a fault. ``shared``: what of
    the board's own readings failed, which its instances lack."""
    there = list[BoardReading]()
    most = asking.ask(
        "number of MIG instances",
        "nvmlDeviceGetMaxMigDeviceCount",
        slot.handle,
        check=whole(_MOST_INSTANCES),
    )
    for place in range(most or 0):
        # asked anew at each read: instances come and go, and a handle may be given to another
        handle = asking.ask(f"MIG instance {place}", MIG_HANDLE, slot.handle, place, check=present)
        if handle is not None:
            there.append(_instance(calls, slot, place, handle, drawn, shared))
    slot.instances = {board.uuid: slot.instances.get(board.uuid, {}) for board in there}
    fault = asking.gone or unread({w: y for w, y in asking.failed.items() if w not in shared})
    if not there and not fault:
        fault = (
            "MIG is on and it has no instances: make some (nvidia-smi mig -cgi PROFILE -C), or "
            f"turn MIG off (nvidia-smi -i {slot.index} -mig 0)"
        )
    return [*there, slot.reading(fault, **drawn)] if fault else there


def _instance(
    calls: Calls,
    slot: Slot,
    place: int,
    handle: Any,
    drawn: dict[str, Any],
    shared: dict[str, str],
) -> BoardReading:
    asking = Asking(calls)
    ask = asking.ask
    uuid = ask("UUID", "nvmlDeviceGetUUID", handle, check=key)
    facts = slot.instances.setdefault(uuid, {}) if uuid else {}
    name = asking.once(facts, "name", "nvmlDeviceGetName", handle, check=text)
    sms, size = asking.once(
        facts, "number of SMs", "nvmlDeviceGetAttributes", handle, check=_attributes
    ) or (None, None)
    memory = ask("memory", "nvmlDeviceGetMemoryInfo", handle, check=_memory)
    used, total = memory or (None, size if asking.answered("memory") else None)
    board = replace(
        slot.reading(**drawn),
        uuid=uuid or f"{slot.key}/mig-{place}",
        name=name or f"{slot.name} MIG",
        parent=slot.key,
        memory_used_bytes=used,
        memory_total_bytes=total,
        sm_count=sms,
    )
    why = asking.gone or unread(asking.failed | shared)
    who = f"GPU {slot.index} MIG instance {place} ({board.uuid}, {board.name})"
    return replace(board, fault=f"{who}: {why}") if why else board


def _mig_is_on(answer: Any) -> bool:
    now, _pending = answer
    return whole(1)(now) == 1


def _memory(answer: Any) -> tuple[int | None, int | None]:
    """Used and total bytes."""
    used, total = whole(_MOST_BYTES)(answer.used), whole(_MOST_BYTES)(answer.total)
    if total == 0:
        return None, None
    if used > total:
        raise ValueError(answer)
    return used, total


def _attributes(answer: Any) -> tuple[int, int | None]:
    """SMs and bytes of memory."""
    sms = whole(_MOST_SMS, least=1)(answer.multiprocessorCount)
    mib = whole(_MOST_BYTES >> 20)(answer.memorySizeMB)
    return sms, (mib << 20) or None


def _sm_count(facts: dict[str, Any], asking: Asking, handle: Any) -> int | None:
    """NVML tells it of MIG instances alone, so far; else it follows from the cores, on boards whose
    cores an SM are known."""
    what = "number of SMs"
    if what not in facts:
        found = _sms_told(asking, what, handle)
        if not asking.answered(what):
            return None
        facts[what] = found
    kept: int | None = facts[what]
    return kept


def _sms_told(asking: Asking, what: str, handle: Any) -> int | None:
    told = asking.ask(what, "nvmlDeviceGetAttributes", handle, check=_attributes, quiet=True)
    if told is not None:
        return told[0]
    cores = asking.ask(what, "nvmlDeviceGetNumGpuCores", handle, check=whole(128 * _MOST_SMS))
    if not cores:
        return None
    capability = asking.ask(what, "nvmlDeviceGetCudaComputeCapability", handle, check=_capability)
    if capability is None:
        return None
    each = _SM_CORES.get(capability) or _SM_CORES.get(capability[:1])
    return cores // each if each and cores % each == 0 else None


def _capability(answer: Any) -> tuple[int, int]:
    major, minor = answer
    return whole(99)(major), whole(99)(minor)


def _bus(answer: Any) -> str:
    return key(answer.busId)
