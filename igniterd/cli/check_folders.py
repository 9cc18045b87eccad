"""The part of ``igniterd check --live`` about folders: whether the daemon can write what it must.

Checked by root, for the user whose state it is: root itself can write everywhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.config import Config

_FILES = ("history.db", "history.db-journal", "learnt.json", "igniterd.lock")


def folders(settings: Config) -> Iterator[Finding]:
    """Whether the daemon's user can write the state, and make or use the environments of shares."""
    from igniterd.clients.shares import making_obstacle
    from igniterd.files import user_name

    folder = settings.state.directory
    uid, gid = _daemons_user(folder)
    whom = "this user" if uid == os.geteuid() else f"user {user_name(uid)}, whose folder it is"
    with _acting_as(uid, gid):
        obstacle = _state_obstacle(folder, whom)
        shares = making_obstacle(settings.shares)
    if obstacle:
        yield Finding("bad", "state.directory", obstacle)
    else:
        yield Finding("ok", "state.directory", str(folder))
    if shares:
        yield Finding("bad", "shares", shares)
    else:
        yield Finding("ok", "shares", f"{settings.shares}; Triton must see it under the same path")


def _daemons_user(folder: Path) -> tuple[int, int]:
    """Who the daemon runs as: the owner of its state where root looks, else whoever looks."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            found = folder.stat()
            return found.st_uid, found.st_gid
    return os.geteuid(), os.getegid()


@contextlib.contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    if uid == os.geteuid():
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _state_obstacle(folder: Path, whom: str) -> str:
    """What of the state cannot be written, and what would mend it; or an empty string."""
    from igniterd.files import others_hand

    try:
        above = next((p for p in (folder, *folder.parents) if p.exists()), folder)
        if not above.is_dir():
            return f"{above} is no folder"
    except OSError as error:
        return f"{folder} cannot be reached by {whom}: {error.strerror or error}"
    if not _may(above, os.W_OK | os.X_OK):
        return f"{folder} cannot be written by {whom}: the history lives there"
    for path in (folder / name for name in _FILES):
        if os.path.lexists(path) and not _may(path, os.R_OK | os.W_OK):
            return f"{path} cannot be written by {whom}: chown it"
    hand = others_hand(folder)
    return f"{folder} is in other hands too: {hand}" if hand else ""


def _may(path: Path, what: int) -> bool:
    return os.access(path, what, effective_ids=True)
