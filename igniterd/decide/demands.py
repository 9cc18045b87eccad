"""What to plan for: each model's rate, SLO and limits, at given margins. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from igniterd.config import Config, Model
from igniterd.decide.judge import PredictorPair
from igniterd.decide.state import ALL, Margins
from igniterd.loads import Estimate, Load
from igniterd.predict import Demand
from igniterd.records import ModelReading, Observation

FEW = 0.05
MUCH_MORE = 1.2  # less than this is no memory but the rate as it is


def demands_of(
    estimate: Estimate,
    observation: Observation,
    config: Config,
    profiled: Mapping[str, str],
    predictors: PredictorPair,
    margins: Margins = ALL,
    pinned: frozenset[str] = frozenset(),
    *,
    several: bool = False,
) -> list[Demand]:
    """What to plan for of the models that ``profiled`` names; those of one GPU, or of ``several``
    that are planned together.

    ``margins`` say which rates and SLOs; remembered rates count where they are much higher.
    ``pinned``: models that stay as they are.
    """
    out: list[Demand] = []
    for name, model in config.by_name().items():
        if name not in profiled or name not in observation.models or name not in estimate.loads:
            continue
        reading, load = observation.models[name], estimate.loads[name]
        largest = predictors.upper.model.max_batch(profiled[name])
        least, largest = batches(model, reading, load, largest)
        here = reading.allocation
        out.append(
            Demand(
                model=name,
                profiled_as=profiled[name],
                rate_per_s=load.items_per_request * _rate(load, margins),
                slo_ms=model.slo_p99_ms * (1 - margins.kept * config.decide.slo_margin),
                priority=model.priority,
                min_share=model.min_share,
                max_share=model.max_share,
                brings=items_brought(model, load),
                max_batch=largest,
                min_batch=least,
                bias=load.bias,
                learnt=load.published_bias,
                arrival_scv=load.arrival_scv,
                steerable=steerable(reading, config)
                and not (name in pinned and here.share is None),
                instances=max(1, here.instances),
                reserved=reading.reserved_share,
                pinned=here if name in pinned else None,
                keeps_batch=here.max_batch_size if reading.batching_fixed else None,
                gpus=reading.gpu_of_each if several else (),
                devices=here.devices,
            )
        )
    return out


def steerable(reading: ModelReading, config: Config) -> bool:
    """Whether a share can be given to it alone."""
    return reading.owns_process and not reading.share_fixed and config.mps.enabled


def batches(model: Model, reading: ModelReading, load: Load, profiled: int) -> tuple[int, int]:
    """The least and the largest batch that may be planned; ``profiled``: the largest one profiled.

    Nobody is refused whatever is planned: the limit of a request is its owner's. A batch that
    clients bring is executed whole, so that a plan below it would be for other batches than come.
    """
    brought = items_brought(model, load)
    if reading.batching_fixed:  # a plan with another batch would be refused, and with it the share
        fixed = min(profiled, max(reading.allocation.max_batch_size, brought))
        return fixed, fixed
    largest = min(profiled, model.max_batch_size or profiled)
    return min(brought, profiled), max(largest, min(brought, profiled))


def items_brought(model: Model, load: Load) -> int:
    """How many items to plan for in a request; a mean hardly above one is of few batches among many
    singles."""
    return max(1, math.ceil(load.items_per_request - FEW), model.client_batch or 1)


def _rate(load: Load, margins: Margins) -> float:
    if not margins.remembered:
        return load.rate_per_s + margins.kept * (load.rate_upper_per_s - load.rate_per_s)
    return (
        load.remembered_per_s
        if load.remembered_per_s > MUCH_MORE * load.rate_upper_per_s
        else load.rate_upper_per_s
    )
