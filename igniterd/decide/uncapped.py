"""What is not planned with takes its part of a GPU all the same: what it holds by a share, or, with
none, the time that it executes. Pure.

A model that no share confines uses the whole GPU while it executes. What it takes is reckoned as
the part of the time that it does so. That grows where the GPU is crowded, and wobbles: it is
rounded up, and held for a while, so that no plan follows it up and down.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from igniterd.config_model import Model
from igniterd.decide.state import DecisionState, Part
from igniterd.loads import Load
from igniterd.records import ROUNDING, ModelReading, Observation, most_on_one

STEP = 0.05  # of a GPU: what is reckoned with is a multiple
IDLE = 0.005  # less than this is nothing
FALLS = 2 * STEP  # a part is given back when so much less of it is taken, or nothing ...
HOLD_S = 60.0  # ... for so long
# of what is measured, for the rate that plans are made for: a rate that falls is believed to have
# fallen sooner than the busy time
MOST_GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Beside:
    """What is not planned with on some GPUs.

    ``by_gpu``: the part that it takes of each; ``bound``: what of that is held by shares or
    reserved by the configuration, so that no plan may give it away; ``takes``: by model, the most
    that it takes of one.
    """

    by_gpu: Mapping[str, float]
    bound: Mapping[str, float]
    takes: Mapping[str, float]
    held: DecisionState


def beside(
    gpus: Collection[str],
    planned: Collection[str],
    observation: Observation,
    loads: Mapping[str, Load],
    models: Mapping[str, Model],
    held: DecisionState,
    warmup_s: float,
) -> Beside:
    """What takes its part of ``gpus`` beside the models ``planned`` there.

    ``loads`` and ``models`` (of the configuration) are by name. A load counts once it has been
    watched for ``warmup_s``.
    """
    now_s, changed = observation.at_s, {}
    bound, free = dict.fromkeys(gpus, 0.0), dict.fromkeys(gpus, 0.0)
    takes: dict[str, float] = {}
    for name, reading in observation.models.items():
        here = [gpu for gpu in gpus if reading.instances_on(gpu)]
        part = None
        if here and name not in planned:
            told = models[name].reserve_share if name in models else None
            if told is None and reading.allocation.share is None:
                busy, before = _busy(reading, loads.get(name), warmup_s), held.of(name).uncapped
                part = before if busy is None else after(before, busy, now_s)
            parts = {gpu: taken(reading, gpu, told, part) for gpu in here}
            takes[name] = max(parts.values())
            for gpu, each in parts.items():
                sure = max(_bound(reading, gpu), told or 0.0)
                bound[gpu] += sure
                free[gpu] += each - sure
        if (here or name in planned) and held.of(name).uncapped != part:
            changed[name] = part
    for name, part in changed.items():
        held = held.with_model(name, uncapped=part)
    for gpu in gpus:
        part = after(held.gpu(gpu).foreign, observation.foreign_busy.get(gpu, 0.0), now_s)
        if part != held.gpu(gpu).foreign:
            held = held.with_gpu(gpu, foreign=part)
        bound[gpu] += observation.foreign.get(gpu, 0.0)
        free[gpu] += part.level if part is not None else 0.0
    # those without a share take turns: together they take no more than all of it
    by_gpu = {gpu: bound[gpu] + min(1.0, free[gpu]) for gpu in gpus}
    return Beside(by_gpu, bound, takes, held)


def taken(reading: ModelReading, gpu: str, told: float | None, part: Part | None) -> float:
    """What a model takes of ``gpu``: at least what it holds by its share; ``told`` by the
    configuration, or ``part``, which is of the GPU that has most of its instances."""
    if told is None and part is not None:
        told = part.level * reading.instances_on(gpu) / most_on_one(reading.gpu_of_each, 1)
    return max(_bound(reading, gpu), told or 0.0)


def busy_part(load: Load, instances: int) -> float:
    """The part of the time, at most 1, in which so many instances on one GPU execute, at the rate
    that plans are made for."""
    growth = load.rate_upper_per_s / load.rate_per_s if load.rate_per_s > 0 else 1.0
    growth = min(MOST_GROWTH, max(1.0, growth))
    return min(1.0, max(0.0, load.utilisation) * instances * growth)


def after(before: Part | None, busy: float, now_s: float) -> Part | None:
    """What is reckoned with, once ``busy`` (a fraction of the time) is seen: more at once, less
    only after a while of much less. None: nothing."""
    steps = 0 if busy < IDLE else math.ceil(min(1.0, busy) / STEP - ROUNDING)
    level = round(min(1.0, steps * STEP), 6)
    if before is None or level > before.level:
        return Part(level, now_s + HOLD_S) if level > 0 else None
    if level > max(0.0, before.level - FALLS):
        return Part(before.level, now_s + HOLD_S)
    if now_s < before.until_s:
        return before
    return Part(level, now_s + HOLD_S) if level > 0 else None


def _busy(reading: ModelReading, load: Load | None, warmup_s: float) -> float | None:
    """Its busy time on the GPU that has most of its instances; None where that is not known yet."""
    if load is None or load.watched_s < warmup_s:
        return None
    return busy_part(load, most_on_one(reading.gpu_of_each, 1))


def _bound(reading: ModelReading, gpu: str) -> float:
    """What it holds of ``gpu`` by shares, shown to have an effect or not."""
    return reading.granted_on(gpu) + reading.reserved_share
