"""What the mark of a load says of who made it. Pure.

A daemon respects what somebody else changed. What ``igniterd fleet apply`` changed it steers on. So
that load says who made it, in the parameter that all loads of igniterd set (``IGNITERD_LOAD``)::

    fleet 1764473801.250000 share 30, batch 8, delay_us 0, instances 1, devices 0

It names what it set: a configuration that is read back, changed and loaded by hand has the mark
yet, and not what it says. It names the time: a configuration that is kept, and loaded by hand
later, has an old one. Any other load writes another mark in its place, or none.
"""

from __future__ import annotations

import re
from dataclasses import replace

from igniterd.clients.environments import ModelConfig, percent_name
from igniterd.clients.triton.config import mark_of
from igniterd.records import Allocation

_REBALANCE = re.compile(r"fleet ([0-9]{1,12}\.[0-9]{6}) (.+)", re.ASCII)


def rebalance_mark(allocation: Allocation, time_s: float) -> str:
    """The mark of a load by which a rebalance sets ``allocation`` at ``time_s`` (Unix time)."""
    return f"fleet {time_s:.6f} {_words(allocation)}"


def rebalanced_s(config: ModelConfig, allocation: Allocation) -> float | None:
    """When a rebalance set ``allocation``, which ``config`` has now (Unix time); None where its
    last load was another one, or it was changed since."""
    found = _REBALANCE.fullmatch(mark_of(config))
    if found is None:
        return None
    # where the load named no GPU, Triton has chosen one
    same = _words(allocation), _words(replace(allocation, devices=()))
    return float(found[1]) if found[2] in same else None


def _words(allocation: Allocation) -> str:
    share = "none" if allocation.share is None else percent_name(allocation.share)
    devices = " ".join(map(str, allocation.devices)) or "any"
    return (
        f"share {share}, batch {allocation.max_batch_size}, "
        f"delay_us {allocation.max_queue_delay_us}, instances {allocation.instances}, "
        f"devices {devices}"
    )
