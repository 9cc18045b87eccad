"""What root makes once, so that the daemon writes nothing that others execute: folders of shares,
the shim backend."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from igniterd.clients.folders import File, make_whole
from igniterd.clients.shares import prepare_share
from igniterd.errors import Refused
from igniterd.files import others_hand, user_name

BACKEND = "igniterd_python"
"""Name of the shim backend: ``[[triton]] shim_backend``."""


def install_shares(
    shares_dir: Path,
    units: Iterable[float],
    environments: Sequence[str] = (),
    pythons: Sequence[str | None] = (None,),
) -> list[Path]:
    """Make the folder of every multiple of ``units`` (fractions) up to 1, alone and in front of
    each of ``environments``.

    ``pythons``: the servers' ``python3``, where they are not at the place they were built for.
    Raises :class:`Refused`.
    """
    shares = sorted(
        {round(unit * n, 9) for unit in units for n in range(1, math.floor(1 / unit + 1e-9) + 1)}
        | {1.0}
    )
    made = {
        prepare_share(shares_dir, share, base, python=python, install=True): None
        for python in pythons
        for base in (None, *environments)
        for share in shares
    }
    return list(made)


def install_backend(backends: Path) -> Path:
    """Write the shim backend into Triton's backend directory and return its file. Raises
    :class:`Refused`."""
    if not backends.is_dir():
        raise Refused(
            f"{backends}: not there: name Triton's backend directory, such as "
            "/opt/tritonserver/backends"
        )
    text = resources.files("igniterd.data").joinpath("shim_backend.py").read_text(encoding="utf-8")
    try:
        make_whole(backends.resolve(), (BACKEND,), {"model.py": File(text)}, ours=False)
    except OSError as error:
        raise Refused(
            f"{backends / BACKEND}: cannot be written: {error.strerror or error}"
        ) from error
    return backends / BACKEND / "model.py"


def in_others_hands(folder: Path) -> str:
    """Who else could put another folder in the place of this one, or an empty string."""
    for each in folder.resolve().parents:
        found = each.stat()
        if found.st_uid not in (0, os.geteuid()):
            return (
                f"{each} belongs to user {user_name(found.st_uid)}, who can put another "
                f"folder in the place of {folder}"
            )
    return others_hand(folder)
