"""What a model's configuration on Triton says. Pure.

A configuration is what is set of Triton's ``ModelConfig`` as JSON (see
:mod:`igniterd.clients.triton.json_config`): a field that is not there has its default.

Its MPS share is an environment of its processes: see :mod:`igniterd.clients.environments`.

The largest batch that Triton forms is its largest preferred batch size. ``max_batch_size`` is the
largest one that a client may bring: it is its owner's, and is never lowered, so that nobody is
refused who was served before. With a delay, sizes are no limit, and Triton forms what
``max_batch_size`` admits. (Measured on 23.12 and 24.10: ``tests/integration/test_batches.py``.)

Parameters remember on the model itself what was its owner's: ``IGNITERD_PREFERRED_BATCH_SIZE``,
``IGNITERD_QUEUE_DELAY_US`` and, where the limit was raised, ``IGNITERD_OWNER_BATCH``.
``IGNITERD_LOAD`` differs from load to load (see
:func:`igniterd.clients.triton.config_change.marked`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from igniterd.clients.environments import (
    DEFAULT_SHARES,
    ModelConfig,
    parameter,
    percent_name,
    runs_in_stubs,
    share_of,
)
from igniterd.records import Allocation

OWN_SIZES = "IGNITERD_PREFERRED_BATCH_SIZE"
OWN_DELAY = "IGNITERD_QUEUE_DELAY_US"
OWN_LIMIT = "IGNITERD_OWNER_BATCH"
LOAD_MARK = "IGNITERD_LOAD"


def devices_of_instances(config: ModelConfig) -> tuple[int, ...]:
    """The device number of each instance that executes on a GPU that the configuration names, in
    order; none for what runs on the CPU, or chooses its GPU itself.

    A group has its count of instances on each of its GPUs.
    """
    return tuple(
        sorted(
            int(gpu)
            for group in config.get("instance_group", ())
            if not group.get("passive")
            for gpu in group.get("gpus", ())
            for _ in range(int(group.get("count", 1)))
        )
    )


def kinds_of(config: ModelConfig) -> frozenset[str]:
    """The kinds of its instance groups: ``KIND_GPU``, ``KIND_CPU``, ``KIND_MODEL``,
    ``KIND_AUTO``."""
    return frozenset(group.get("kind", "KIND_AUTO") for group in config.get("instance_group", ()))


def held_by_device(config: ModelConfig, shares_dir: str = DEFAULT_SHARES) -> dict[int, float]:
    """What its instances may use of each GPU by the share that its configuration names; empty
    without one, and on the CPU. What names no GPU is on its server's first."""
    share = share_of(config, shares_dir)
    if share is None or kinds_of(config) == {"KIND_CPU"}:
        return {}
    devices = devices_of_instances(config)
    if not devices:
        return {0: share * max(1, _instances(config.get("instance_group", ())))}
    return {device: share * devices.count(device) for device in set(devices)}


def uncapped_by_device(config: ModelConfig, shares_dir: str = DEFAULT_SHARES) -> dict[int, float]:
    """Which part of its instances is on each GPU; empty with a share, on the CPU, and of an
    ensemble, which executes nothing itself. What names no GPU is on its server's first."""
    if (
        share_of(config, shares_dir) is not None
        or "ensemble_scheduling" in config
        or kinds_of(config) == {"KIND_CPU"}
    ):
        return {}
    devices = devices_of_instances(config) or (0,)
    return {device: devices.count(device) / len(devices) for device in set(devices)}


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
    sizes = sizes_of(config)
    formed = max(sizes) if sizes and delay_us == 0 and max(sizes) < largest else largest
    return Allocation(
        share=share_of(config, shares_dir),
        max_batch_size=max(1, formed) if batched else 1,
        max_queue_delay_us=delay_us,
        instances=max(1, _instances(config.get("instance_group", ()))),
        devices=devices_of_instances(config),
    )


def readable_allocation(config: ModelConfig, shares_dir: str) -> Allocation | None:
    """:func:`allocation_of`; ``None`` of a configuration that only Triton can refuse."""
    try:
        return allocation_of(config, shares_dir)
    except (TypeError, ValueError, AttributeError):
        return None


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


def same_allocation(one: Allocation, other: Allocation) -> bool:
    """Whether two allocations are the same once written down (a share has three decimals of a
    percent). One that names no devices is wherever the other is."""
    somewhere = not one.devices or not other.devices or one.devices == other.devices
    here, there = (replace(each, share=None, devices=()) for each in (one, other))
    return somewhere and here == there and same_share(one, other)


def sizes_of(config: ModelConfig) -> tuple[int, ...]:
    """The preferred batch sizes that are set now."""
    return tuple(
        int(size) for size in (config.get("dynamic_batching") or {}).get("preferred_batch_size", ())
    )


def preferred_sizes_of(config: ModelConfig) -> tuple[int, ...]:
    """Batch sizes that its owner prefers, of which Triton did not fill in and igniterd did not set
    any."""
    remembered = parameter(config, OWN_SIZES)
    if remembered is not None:
        return _numbers(remembered)
    sizes = sizes_of(config)
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


def mark_of(config: ModelConfig) -> str:
    """The mark of the load that brought it; empty when it came otherwise."""
    return parameter(config, LOAD_MARK) or ""


def same_share(one: Allocation, other: Allocation) -> bool:
    """Whether two shares are the same once written down: three decimals of a percent."""
    return _percent(one.share) == _percent(other.share)


def _percent(share: float | None) -> str | None:
    return None if share is None else percent_name(share)
