"""A model's configuration on Triton, and the few fields of it that igniterd turns. Pure:
dictionaries in, dictionaries out.

A configuration is what is set of Triton's ``ModelConfig`` as JSON (see
:mod:`igniterd.clients.triton.json_config`): a field that is not there has its default.

Its MPS share is an environment of its processes: see :mod:`igniterd.clients.environments`.

The largest batch that Triton forms is its largest preferred batch size. ``max_batch_size`` is the
largest one that a client may bring: it is its owner's, and is never lowered, so that nobody is
refused who was served before. With a delay, sizes are no limit, and Triton forms what
``max_batch_size`` admits. (Measured on 23.12 and 24.10: ``tests/integration/test_batches.py``.)

Parameters remember on the model itself what was its owner's: ``IGNITERD_PREFERRED_BATCH_SIZE``,
``IGNITERD_QUEUE_DELAY_US`` and, where the limit was raised, ``IGNITERD_OWNER_BATCH``.
``IGNITERD_LOAD`` differs from load to load (see :func:`marked`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from igniterd.clients.environments import (
    DEFAULT_SHARES,
    ENV_PATH,
    PLAIN,
    ModelConfig,
    Own,
    Reach,
    backend_of,
    base_env_of,
    parameter,
    percent_name,
    runs_in_stubs,
    set_share,
    share_of,
    share_path,
    way_obstacle,
)
from igniterd.errors import Refused
from igniterd.records import Allocation

__all__ = [
    "DEFAULT_SHARES",
    "ENV_PATH",
    "ModelConfig",
    "allocation_of",
    "backend_of",
    "base_env_of",
    "batching_obstacle",
    "gpu_index_of",
    "gpus_of",
    "left_alone",
    "percent_name",
    "preferred_sizes_of",
    "runs_in_stubs",
    "same_allocation",
    "several_gpus",
    "share_obstacle",
    "share_of",
    "share_path",
    "with_allocation",
]

OWN_SIZES = "IGNITERD_PREFERRED_BATCH_SIZE"
OWN_DELAY = "IGNITERD_QUEUE_DELAY_US"
OWN_LIMIT = "IGNITERD_OWNER_BATCH"
HANDS_OFF = "IGNITERD_HANDS_OFF"
"""A parameter that the owner of a model sets: igniterd then leaves the model as it is."""
LOAD_MARK = "IGNITERD_LOAD"
_PLAIN_NAME = re.compile(r"[\w.+@%=:,-]+")


def gpus_of(config: ModelConfig) -> tuple[int, ...]:
    """The GPUs that its instance groups name, in order; none for a model that chooses its GPU
    itself."""
    return tuple(
        sorted(
            {
                int(gpu)
                for group in config.get("instance_group", ())
                for gpu in group.get("gpus", ())
            }
        )
    )


def gpu_index_of(config: ModelConfig) -> int:
    """The GPU of the first instance group that names one; 0 otherwise."""
    for group in config.get("instance_group", ()):
        if group.get("gpus"):
            return int(group["gpus"][0])
    return 0


def held_by_gpu(config: ModelConfig, shares_dir: str = DEFAULT_SHARES) -> dict[int, float]:
    """What all its instances may use of each GPU by the share that its configuration names; empty
    without one."""
    share = share_of(config, shares_dir)
    held: dict[int, float] = {}
    for group in config.get("instance_group", ({},)) if share is not None else ():
        if group.get("kind") == "KIND_CPU" or group.get("passive"):
            continue
        for gpu in group.get("gpus") or (0,):
            held[int(gpu)] = held.get(int(gpu), 0.0) + (share or 0.0) * int(group.get("count", 1))
    return held


def _instances(groups: Iterable[Mapping[str, Any]]) -> int:
    """Instances that execute: a group has its count of them on each of its GPUs."""
    return sum(
        int(group.get("count", 1)) * max(1, len(group.get("gpus", ())))
        for group in groups
        if not group.get("passive")
    )


def allocation_of(config: ModelConfig, shares_dir: str = DEFAULT_SHARES) -> Allocation:
    """What is applied, read from the configuration.

    ``max_batch_size`` is the largest batch the server forms of requests: 1 when the model has no
    dynamic batching (requests are executed as they come), whatever batch a single request may have.
    A model without a batch dimension forms none, whatever its batching says.
    """
    largest = int(config.get("max_batch_size", 0))
    batching = config.get("dynamic_batching")
    batched = batching is not None or "sequence_batching" in config
    delay_us = int((batching or {}).get("max_queue_delay_microseconds", 0)) if largest else 0
    sizes = _sizes(config)
    formed = max(sizes) if sizes and delay_us == 0 and max(sizes) < largest else largest
    return Allocation(
        share=share_of(config, shares_dir),
        max_batch_size=max(1, formed) if batched else 1,
        max_queue_delay_us=delay_us,
        instances=max(1, _instances(config.get("instance_group", ()))),
    )


def instance_names_of(config: ModelConfig) -> frozenset[str]:
    """The names that the model's instances may have: ``<group>_<number>``, the same on every GPU of
    the group; older servers leave out the number of a single one. Empty for what runs inside the
    server."""
    if not runs_in_stubs(config):
        return frozenset()
    names = set[str]()
    for number, group in enumerate(config.get("instance_group", ())):
        name = group.get("name") or f"{config.get('name', '')}_{number}"
        names |= {name, *(f"{name}_{index}" for index in range(int(group.get("count", 1))))}
    return frozenset(names)


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
    same = _percent(target.share) == _percent(present.share)
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
    if target.instances != present.instances:
        _set_instances(result, target.instances)
    return result


def same_allocation(one: Allocation, other: Allocation) -> bool:
    """Whether two allocations are the same once written down (a share has three decimals of a
    percent)."""
    return replace(one, share=None) == replace(other, share=None) and _percent(
        one.share
    ) == _percent(other.share)


def _sizes(config: ModelConfig) -> tuple[int, ...]:
    return tuple(
        int(size) for size in (config.get("dynamic_batching") or {}).get("preferred_batch_size", ())
    )


def preferred_sizes_of(config: ModelConfig) -> tuple[int, ...]:
    """Batch sizes that its owner prefers, of which Triton did not fill in and igniterd did not set
    any."""
    remembered = parameter(config, OWN_SIZES)
    if remembered is not None:
        return _numbers(remembered)
    sizes = _sizes(config)
    return () if sizes == (int(config.get("max_batch_size", 0)),) else sizes


def _numbers(text: str) -> tuple[int, ...]:
    """The sizes that a parameter names; none where somebody wrote something else into it."""
    return tuple(int(each) for each in text.split(",") if each.strip().isdecimal())


def own_limit_of(config: ModelConfig) -> int:
    """The largest batch that its owner's configuration admits in one request.

    An igniterd of before lowered the limit, and left the sizes that its owner preferred: it was no
    less.
    """
    here = int(config.get("max_batch_size", 0))
    own = _numbers(parameter(config, OWN_LIMIT) or "")
    sizes = _numbers(parameter(config, OWN_SIZES) or "")
    raised = own[0] if own and 0 < own[0] <= here else here
    return max((raised, *sizes)) if here else 0


def own_delay_of(config: ModelConfig) -> int:
    """The queue delay (us) of its owner's configuration."""
    own = _numbers(parameter(config, OWN_DELAY) or "")
    return (
        own[0]
        if own
        else int((config.get("dynamic_batching") or {}).get("max_queue_delay_microseconds", 0))
    )


def marked(config: ModelConfig, mark: str) -> ModelConfig:
    """A copy of `config` that Triton takes for another one: a load of what it has already is
    answered "OK" and not done.

    It looks at no files then, and a process that has died stays dead.
    """
    return config | {
        "parameters": config.get("parameters", {}) | {LOAD_MARK: {"string_value": mark}}
    }


def mark_of(config: ModelConfig) -> str:
    """The mark of the load that brought it; empty when it came otherwise."""
    return parameter(config, LOAD_MARK) or ""


def same_but_instances(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether only the instances differ: Triton starts and ends those that are too few or too many,
    and the others serve on."""
    return {**one, "instance_group": None} == {**other, "instance_group": None}


def _percent(share: float | None) -> str | None:
    return None if share is None else percent_name(share)


def share_obstacle(
    config: ModelConfig,
    shares_dir: str = DEFAULT_SHARES,
    *,
    reach: Reach = PLAIN,
    own: Own = Own.UNSEEN,
) -> str:
    """Why the model cannot be given an MPS share of its own, or an empty string."""
    return (
        left_alone(config) or way_obstacle(config, shares_dir, reach, own) or name_obstacle(config)
    )


def name_obstacle(config: ModelConfig) -> str:
    """Why a model of this name cannot be started in an environment, or an empty string."""
    name = str(config.get("name", ""))
    if name and not _PLAIN_NAME.fullmatch(name):
        # Triton starts a process with an environment through a shell that gets the model's folder
        # unquoted, and waits for it for ever
        return (
            f"its name {name!r} has characters that mean something to a shell, through which "
            "Triton would start it with a share"
        )
    return ""


def batching_obstacle(config: ModelConfig) -> str:
    """Why the model's batches are formed as they are whatever igniterd sets, or an empty string."""
    alone = left_alone(config)
    if alone:
        return alone
    if int(config.get("max_batch_size", 0)) == 0:
        return (
            "max_batch_size is 0, so its tensors have no batch dimension and requests cannot "
            "be put together"
        )
    if "dynamic_batching" not in config:
        # code that was only ever given one request at a time may answer only one
        return (
            "it has no dynamic_batching, so it gets one request at a time; add "
            "dynamic_batching { } to it if it takes more"
        )
    return ""


def hands_off(config: ModelConfig) -> str:
    """Why igniterd must not change the model: its owner says so on the model itself. Empty where
    nobody does."""
    said = (parameter(config, HANDS_OFF) or "").strip()
    if said.lower() in {"", "0", "false", "no"}:
        return ""
    return f"its owner says {HANDS_OFF} = {said!r} in its configuration"


def left_alone(config: ModelConfig) -> str:
    """Why igniterd neither steers nor predicts the model but only watches it, or an empty
    string."""
    if "ensemble_scheduling" in config:
        return "it is an ensemble, which executes nothing itself: name the models it is made of"
    if "sequence_batching" in config:
        return (
            "it has sequence_batching: a reload would end the sequences under way, and a "
            "sequence's requests wait for one another"
        )
    if config.get("model_transaction_policy", {}).get("decoupled"):
        return (
            "it is decoupled: when the last answer to a request is sent is not told by "
            "Triton's statistics"
        )
    kinds = {group.get("kind", "KIND_AUTO") for group in config.get("instance_group", ())}
    if "KIND_CPU" in kinds and len(kinds) > 1:
        return (
            "it has instances on a GPU and on the CPU, and which of them serves a request is "
            "not told"
        )
    return ""


def several_gpus(config: ModelConfig) -> str:
    """Why a model that is on more than one GPU is only watched, or an empty string."""
    gpus = gpus_of(config)
    if len(gpus) < 2:
        return ""
    names = ", ".join(map(str, gpus))
    return (
        f"it runs on GPUs {names}, and igniterd steers models on one: name one in "
        f"instance_group {{ gpus }}, or give [[model]] gpu"
    )


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
        OWN_SIZES: own[OWN_SIZES] != () or _sizes(config) != (),
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
    if groups and len(groups[0].get("gpus", ())) > 1:
        raise Refused(f"{config.get('name', '?')}: {several_gpus(config)}")
    if groups:
        groups[0]["count"] = instances
    else:
        config["instance_group"] = [{"count": instances}]
