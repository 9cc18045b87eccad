"""The receipt of a share: what the stub process of a model calls itself once the share is set in
it.

The launcher of Triton's Python stubs names the process after the program. A share's start-up
(``lib/share.py`` of its folder) sets the variables and then writes this name, which every user can
read in ``/proc/PID/comm``. Pure.
"""

from __future__ import annotations

import re

from igniterd.clients.environments import percent_name

LONGEST = 15
"""Characters the kernel keeps of a process's name."""
_PREFIX = "tritonpy@"
_RECEIPT = re.compile(rf"{_PREFIX}(\d{{1,3}}(?:\.\d{{1,3}})?)%?")


def receipt_of(share: float) -> str:
    """``0.3`` -> ``tritonpy@30%``; without the sign where it would be too long, ``0.12125`` ->
    ``tritonpy@12.125``."""
    name = f"{_PREFIX}{percent_name(share)}"
    return f"{name}%" if len(name) < LONGEST else name


def share_of_receipt(comm: str) -> float | None:
    """The share (a fraction) that a process named ``comm`` was given; ``None`` for a name that is
    no receipt."""
    found = _RECEIPT.fullmatch(comm.rstrip("\n"))
    if found is None:
        return None
    share = float(found.group(1)) / 100.0
    return share if 0.0 < share <= 1.0 and receipt_of(share) == found.group(0) else None
