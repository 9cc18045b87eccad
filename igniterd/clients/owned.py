"""A model's configuration as its owner had it, rebuilt from the one that serves. Pure.

Everything igniterd changes leaves a mark on the model itself, so that it can be undone without any
file of ours, after a crash, or by another igniterd than the one that did it.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from igniterd.clients.environments import (
    BASE_ENV,
    DEFAULT_SHARES,
    OWN_BACKEND,
    SHIM_VARIABLE,
    ModelConfig,
    parameter,
    set_share,
    share_of,
)
from igniterd.clients.triton.config import (
    LOAD_MARK,
    OWN_DELAY,
    OWN_LIMIT,
    OWN_SIZES,
    own_delay_of,
    own_limit_of,
    preferred_sizes_of,
)
from igniterd.engines.hosting import PARAMETER as HOSTED
from igniterd.engines.hosting import hosting_of, owner_of

MEASURED = "IGNITERD_PROFILE"
"""On a model that is being profiled: by which run, with what, and what stood there before."""
CHANGED_TO_MEASURE = ("max_batch_size", "dynamic_batching", "instance_group")
_BATCHING = (OWN_SIZES, OWN_DELAY, OWN_LIMIT)
_MARKS = (*_BATCHING, LOAD_MARK, BASE_ENV, OWN_BACKEND, HOSTED, MEASURED)


def touched(config: ModelConfig, shares_dir: str = DEFAULT_SHARES) -> bool:
    """Whether igniterd changed it, by any version and from any directory: by its marks, or a
    share."""
    names = config.get("parameters") or {}
    marked = any(name in _MARKS or name.startswith(SHIM_VARIABLE) for name in names)
    return marked or share_of(config, shares_dir) is not None


def as_owned(config: ModelConfig, shares_dir: str = DEFAULT_SHARES) -> ModelConfig:
    """``config`` less everything that igniterd put there. One that it never touched is returned as
    it is.

    The number of instances stays: no mark tells what it was. The owner's own file does.
    """
    owned = copy.deepcopy(config)
    if not touched(config, shares_dir):
        return owned
    _unmeasure(owned)
    if share_of(owned, shares_dir) is not None or parameter(owned, OWN_BACKEND) is not None:
        set_share(owned, None, shares_dir)
    if hosting_of(owned) is not None:
        owned = owner_of(owned)
    if any(parameter(owned, key) is not None for key in _BATCHING):
        _unbatch(owned)
    left = owned.get("parameters", {})
    kept = {k: v for k, v in left.items() if k not in _MARKS and not k.startswith(SHIM_VARIABLE)}
    if kept:
        owned["parameters"] = kept
    else:
        owned.pop("parameters", None)
    return owned


def measured_mark(config: ModelConfig, run: str, state: str) -> ModelConfig:
    """The parameter for a model that is about to be measured by ``run`` with ``state``; ``config``
    is as it was found."""
    before = {key: config[key] for key in CHANGED_TO_MEASURE if key in config}
    told = {"run": run, "with": state, "before": before}
    return {MEASURED: {"string_value": json.dumps(told, sort_keys=True)}}


def measured_of(config: ModelConfig) -> dict[str, Any]:
    """What :func:`measured_mark` wrote; empty without it, or where somebody else wrote something
    there."""
    try:
        told = json.loads(parameter(config, MEASURED) or "{}")
    except (ValueError, RecursionError):
        return {}
    there = isinstance(told, dict) and isinstance(told.get("before"), dict)
    return told if there else {}


def _unmeasure(config: ModelConfig) -> None:
    told = measured_of(config)
    if not told:
        return
    for key in CHANGED_TO_MEASURE:
        config.pop(key, None)
        if key in told["before"]:
            config[key] = told["before"][key]


def _unbatch(config: ModelConfig) -> None:
    """The owner's limit, sizes and delay, as the parameters remember them."""
    limit, delay_us, sizes = own_limit_of(config), own_delay_of(config), preferred_sizes_of(config)
    config["max_batch_size"] = limit
    batching = config.get("dynamic_batching")
    if batching is None:
        return
    for key, value in (
        ("preferred_batch_size", list(sizes)),
        ("max_queue_delay_microseconds", delay_us),
    ):
        batching.pop(key, None)  # a field that is not there has its default
        if value:
            batching[key] = value
