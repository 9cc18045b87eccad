"""On which GPUs the models are, and which GPUs belong together. Pure.

A configuration on Triton names its server's device numbers; a GPU of the host is its UUID
(:mod:`igniterd.devices`). Where no UUID is known, a GPU is called by its Triton's name and its
number there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from igniterd.devices import Devices
from igniterd.records import ModelReading

ON_CPU = "its instances run on the CPU: it takes no part of a GPU"
HOMELESS = (
    "it is in no model repository: it was loaded with files that only whoever loaded it "
    "has, and any other load of it fails"
)
"""Why a model is neither loaded anew nor moved."""


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """GPUs that are decided for together, because models are on several of them, and the models
    there."""

    gpus: tuple[str, ...]
    models: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """By which what is kept of it is found again: its first GPU."""
        return self.gpus[0]


def groups_of(models: Mapping[str, ModelReading], names: Iterable[str]) -> list[GpuGroup]:
    """The GPUs on which ``names`` are, in groups that share no model, sorted.

    A model on no GPU is in no group.
    """
    found: list[tuple[set[str], list[str]]] = []
    for name in names:
        here = set(models[name].gpus)
        if not here:
            continue
        there = [name]
        apart = []
        for gpus, others in found:
            if gpus & here:
                here |= gpus
                there = others + there
            else:
                apart.append((gpus, others))
        found = [*apart, (here, there)]
    order = {name: i for i, name in enumerate(models)}
    grouped = [
        GpuGroup(tuple(sorted(gpus)), tuple(sorted(there, key=lambda m: order.get(m, 0))))
        for gpus, there in found
    ]
    return sorted(grouped, key=lambda group: group.gpus)


def placed(
    reading: ModelReading,
    devices: Devices,
    told: int | str | None = None,
    *,
    cpu_counts: bool = False,
) -> ModelReading:
    """``reading`` with the GPUs that it is on.

    ``told``: the GPU that igniterd's configuration gives for it, a device number of its server or a
    UUID. ``cpu_counts``: a host without GPUs stands for one with them, and an instance on the CPU
    is one on its first GPU. What is not known for sure is watched.
    """
    if told is not None:
        gpu, why = _told(reading, devices, told)
        return _with(reading, (gpu,), why)
    if reading.on_cpu and not cpu_counts:
        return _with(reading, (), ON_CPU)
    numbers = reading.allocation.devices or (0,)
    named = tuple(gpu_named(reading.triton, devices, number) for number in numbers)
    gpus = named[:1] if len(set(named)) == 1 else named
    if reading.chooses_gpu:
        return _with(reading, gpus, reading.chooses_gpu)
    beyond = [n for n in numbers if devices.gpus and n >= len(devices.gpus)]
    if beyond:
        return _with(
            reading,
            gpus,
            f"its instance_group names GPU {beyond[0]}, and Triton {reading.triton} is known to "
            f"have {len(devices.gpus)} ({devices.rests_on})",
        )
    return _with(reading, gpus, devices.wrong or devices.ambiguous)


def gpu_named(triton: str, devices: Devices, number: int) -> str:
    """The GPU that ``triton`` calls ``number``."""
    return devices.gpus[number] if number < len(devices.gpus) else f"{triton}:{number}"


def _told(reading: ModelReading, devices: Devices, told: int | str) -> tuple[str, str]:
    """The GPU that is told, and why that cannot be."""
    if isinstance(told, int):
        gpu = gpu_named(reading.triton, devices, told)
        here = len(devices.gpus)
        if devices.wrong or devices.ambiguous:
            return gpu, devices.wrong or devices.ambiguous
        beyond = f"[[model]] gpu = {told}, and Triton {reading.triton} has {here}: give a number "
        return gpu, f"{beyond}below {here}, or a UUID" if here and told >= here else ""
    if devices.gpus and told not in devices.gpus:
        return told, (
            f"[[model]] gpu = {told!r} is none of the GPUs of Triton {reading.triton}: "
            f"{', '.join(devices.gpus)}"
        )
    return told, ""


def _with(reading: ModelReading, gpus: tuple[str, ...], why: str) -> ModelReading:
    """On ``gpus``; only watched where there is a reason ``why``."""
    if not why or reading.left_alone:
        return reading if reading.gpus == gpus else replace(reading, gpus=gpus)
    return replace(reading, gpus=gpus, left_alone=why, share_fixed=why, batching_fixed=why)
