"""The few fields of a model's configuration that igniterd changes. Pure: each change is made on a
copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from igniterd.clients.environments import PLAIN, ModelConfig, Own, Reach, set_share
from igniterd.clients.triton.config import (
    LOAD_MARK,
    OWN_DELAY,
    OWN_LIMIT,
    OWN_SIZES,
    allocation_of,
    own_delay_of,
    own_limit_of,
    preferred_sizes_of,
    same_share,
    sizes_of,
)
from igniterd.clients.triton.obstacles import batching_obstacle, share_obstacle
from igniterd.errors import Refused
from igniterd.records import Allocation


def with_allocation(
    config: ModelConfig,
    target: Allocation,
    shares_dir: str,
    *,
    reach: Reach = PLAIN,
    own: Own = Own.UNSEEN,
) -> ModelConfig:
    """A copy of `config` with `target` applied and everything else kept.

    `shares_dir` is the folder of shares as Triton sees it, `own` what was seen of the model's own
    environment. Raises
    :class:`~igniterd.errors.Refused` where the model cannot be given what is asked.
    """
    result = copy.deepcopy(config)
    present = allocation_of(config, shares_dir)
    same = same_share(target, present)
    obstacle = (
        "" if target.share is None else share_obstacle(config, shares_dir, reach=reach, own=own)
    )
    if obstacle and not same:
        raise Refused(f"{config.get('name', '?')}: {obstacle}")
    if not obstacle and not (same and target.share is None):
        # also the same share: an earlier igniterd may have written its folder, which only older
        # servers take a share from
        set_share(result, target.share, shares_dir, reach, own)
    if (target.max_batch_size, target.max_queue_delay_us) != (
        present.max_batch_size,
        present.max_queue_delay_us,
    ):
        _set_batching(result, target)
    if target.devices and target.devices != present.devices:
        _set_devices(result, target.devices)
    elif target.instances != present.instances:
        _set_instances(result, target.instances)
    return result


def marked(config: ModelConfig, mark: str) -> ModelConfig:
    """A copy of `config` that Triton takes for another one: a load of what it has already is
    answered "OK" and not done.

    It looks at no files then, and a process that has died stays dead.
    """
    return config | {
        "parameters": config.get("parameters", {}) | {LOAD_MARK: {"string_value": mark}}
    }


def same_but_instances(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether only the instances differ: Triton starts and ends those that are too few or too many,
    and the others serve on."""
    return {**one, "instance_group": None} == {**other, "instance_group": None}


def _set_batching(config: ModelConfig, target: Allocation) -> None:
    name = config.get("name", "?")
    if target.max_batch_size < 1 or target.max_queue_delay_us < 0:
        raise Refused(
            f"{name}: batch {target.max_batch_size}, delay {target.max_queue_delay_us} us: a "
            "batch is at least 1, a delay at least 0"
        )
    obstacle = batching_obstacle(config)
    if obstacle:
        raise Refused(f"{name}: {obstacle}")
    limit = max(own_limit_of(config), target.max_batch_size)
    if target.max_queue_delay_us and target.max_batch_size < limit:
        raise Refused(
            f"{name}: batch {target.max_batch_size} with a delay of {target.max_queue_delay_us} "
            "us: with a delay Triton forms batches "
            f"up to max_batch_size, which is {limit}, and a lower one would refuse what clients "
            f"may bring: no delay, or batch {limit}"
        )
    own = {
        OWN_SIZES: preferred_sizes_of(config),
        OWN_DELAY: (own_delay_of(config),),
        OWN_LIMIT: (own_limit_of(config),),
    }
    batching = config.get("dynamic_batching") or {}
    batching.pop("preferred_batch_size", None)
    batching["max_queue_delay_microseconds"] = target.max_queue_delay_us
    if target.max_batch_size < limit:
        # without any Triton fills in [max_batch_size]
        batching["preferred_batch_size"] = [target.max_batch_size]
    config["dynamic_batching"], config["max_batch_size"] = batching, limit
    _remember(config, own)


def _remember(config: ModelConfig, own: Mapping[str, tuple[int, ...]]) -> None:
    """Write down what is its owner's and not as it was; where all is, nothing is left of it."""
    parameters = {
        key: value for key, value in config.get("parameters", {}).items() if key not in own
    }
    owned = copy.deepcopy(config) | {"max_batch_size": own[OWN_LIMIT][0]}
    if "parameters" in config:
        owned["parameters"] = parameters
    if own[OWN_SIZES]:
        owned["dynamic_batching"]["preferred_batch_size"] = list(own[OWN_SIZES])
    else:
        owned["dynamic_batching"].pop("preferred_batch_size", None)
    owned["dynamic_batching"]["max_queue_delay_microseconds"] = own[OWN_DELAY][0]
    if replace(allocation_of(owned), share=None) == replace(allocation_of(config), share=None):
        config.update(owned)
        return
    different = {
        OWN_SIZES: own[OWN_SIZES] != () or sizes_of(config) != (),
        OWN_DELAY: own[OWN_DELAY] != _delay(config),
        OWN_LIMIT: own[OWN_LIMIT] != (config["max_batch_size"],),
    }
    for key, numbers in own.items():
        if different[key]:
            parameters[key] = {"string_value": ", ".join(map(str, numbers)) or "none"}
    if parameters or "parameters" in config:
        config["parameters"] = parameters


def _delay(config: ModelConfig) -> tuple[int, ...]:
    return (int(config["dynamic_batching"].get("max_queue_delay_microseconds", 0)),)


def _set_instances(config: ModelConfig, instances: int) -> None:
    groups = config.get("instance_group", [])
    if instances < 1:
        raise Refused(
            f"{config.get('name', '?')}: {instances} instances: at least 1 is needed to serve"
        )
    if len(groups) > 1:
        raise Refused(
            f"{config.get('name', '?')}: has {len(groups)} instance groups; igniterd changes the "
            "count of one"
        )
    gpus = len(groups[0].get("gpus", ())) if groups else 0
    if gpus > 1 and instances % gpus:
        raise Refused(
            f"{config.get('name', '?')}: {instances} instances on {gpus} GPUs: a group has as many "
            "on each of its GPUs"
        )
    if groups:
        groups[0]["count"] = instances // max(1, gpus)
    else:
        config["instance_group"] = [{"count": instances}]


def _set_devices(config: ModelConfig, devices: tuple[int, ...]) -> None:
    """Put the instances on ``devices``, the device number of each."""
    name, groups = config.get("name", "?"), config.get("instance_group", [])
    wanted = sorted(set(devices))
    counts = {devices.count(device) for device in wanted}
    on_gpu = [group for group in groups if group.get("gpus") and not group.get("passive")]
    if len(on_gpu) != 1 or len(groups) != 1 or len(counts) != 1:
        raise Refused(
            f"{name}: its instances cannot be put on GPUs {', '.join(map(str, devices))}: igniterd "
            "moves a model of one instance group, with as many instances on each of its GPUs"
        )
    groups[0] |= {"kind": "KIND_GPU", "gpus": wanted, "count": counts.pop()}
