"""Files and folders that nobody else on this host can have a hand in.

Names are looked up in folders that are held open, so that a link put in the way between two steps
is never followed. Modes are given on descriptors, whatever the umask. What root makes in a folder
of another user is given to that user, who must go on writing there.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from igniterd.errors import Refused

FOLDER_MODE, FILE_MODE, PRIVATE_MODE = 0o755, 0o644, 0o600
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTERED = os.O_PATH | _FOLDER
"""A folder that may be entered need not be one that may be listed."""
_MOST_LINKS = 40
_EVERY_USER = ["0", "0", "4294967295"]
_OVERFLOW = Path("/proc/sys/kernel/overflowuid")


def user_name(uid: int) -> str:
    """A user's name, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def replace_file(
    path: str | Path, content: str | bytes, *, mode: int = FILE_MODE, sync: bool = False
) -> None:
    """Make ``path`` a file of ``content``, whole or not at all; ``sync``: a power cut keeps it too.

    Raises :class:`Refused` for a folder reached by a link of another user's, ``OSError`` where it
    cannot be written.
    """
    path = Path(path)
    with opened_folder(path.parent) as folder:
        part = f".{path.name[:200]}.{secrets.token_hex(6)}.part"
        try:
            with os.fdopen(os.open(part, _NEW, 0o600, dir_fd=folder), "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                given_to_owner_of(folder, file.fileno())
                os.fchmod(file.fileno(), mode)
                if sync:
                    os.fsync(file.fileno())
            os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=folder)
            raise


def make_folder(path: str | Path, *, mode: int = FOLDER_MODE) -> None:
    """Make ``path`` and the folders above where they are missing. Raises as
    :func:`replace_file`."""
    missing = []
    path = Path(os.path.abspath(path))  # noqa: PTH100 - without following links
    while not path.is_dir() and path != path.parent:
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        with opened_folder(each.parent) as above:
            with contextlib.suppress(FileExistsError):
                os.mkdir(each.name, 0o700, dir_fd=above)
            made = os.open(each.name, os.O_RDONLY | _FOLDER, dir_fd=above)
            try:
                if os.fstat(made).st_uid == os.geteuid():
                    os.fchmod(made, mode)
                    given_to_owner_of(above, made)
            finally:
                os.close(made)


def given_to_owner_of(folder: int, made: int) -> None:
    """Give what root has just made (a descriptor) to the user whose open ``folder`` it is in."""
    of = os.fstat(folder)
    if os.geteuid() == 0 and of.st_uid != 0:
        os.fchown(made, of.st_uid, of.st_gid)


@contextlib.contextmanager
def opened_folder(path: str | Path) -> Iterator[int]:
    """A descriptor of the folder at ``path``, looked up one name after the other.

    A link is followed only where it is this user's or root's: whoever owns a folder on the way
    cannot lead this process to another place. Raises :class:`Refused` for any other link.
    """
    at = os.open("/", _ENTERED)
    try:
        parts = _parts(os.path.abspath(path))  # noqa: PTH100 - without following links
        links = 0
        while parts:
            name = parts.pop(0)
            target = _link(name, at)
            if target is None:
                at = _stepped(at, name)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(f"{path}: too many links")
            if target.startswith("/"):
                at = _stepped(at, "/")
            parts = [*_parts(target), *parts]
        yield at
    finally:
        os.close(at)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _stepped(at: int, name: str) -> int:
    below = os.open(name, _ENTERED, dir_fd=at)
    os.close(at)
    return below


def _link(name: str, at: int) -> str | None:
    """Where ``name`` in the open folder leads, if it is a link that may be followed."""
    found = os.lstat(name, dir_fd=at)
    if not stat.S_ISLNK(found.st_mode):
        return None
    if found.st_uid not in (0, os.geteuid()):
        where = f"{str(Path(f'/proc/self/fd/{at}').readlink()).rstrip('/')}/{name}"
        raise Refused(
            f"{where} is a link of user {user_name(found.st_uid)}, which "
            f"{user_name(os.geteuid())} does not follow: name the folder it leads to"
        )
    return os.readlink(name, dir_fd=at)


def writable_by_others(found: os.stat_result) -> bool:
    """Whether more users than its owner and root may write; a user's own group is that user."""
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _own_group(found.st_uid, found.st_gid)


def _own_group(uid: int, gid: int) -> bool:
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def others_hand(
    folder: str | Path, *, itself: bool = True, trusted: frozenset[int] = frozenset()
) -> str:
    """How another user could put something of theirs into ``folder`` or in its place; or nothing.

    Root, this user and ``trusted`` are no others; not ``itself``: only what is above. A folder that
    is missing is judged by the first one above it. The words say what would mend it.
    """
    mine = {0, os.geteuid(), *trusted, *_unmapped(), *_behind_sudo()}
    place = Path(os.path.realpath(folder))
    for depth, each in enumerate((place, *place.parents) if itself else place.parents, not itself):
        try:
            found = each.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{each} cannot be looked at: {error.strerror or error}"
        if found.st_uid not in mine:
            return (
                f"{each} belongs to user {user_name(found.st_uid)}: chown it, or name another "
                "folder"
            )
        sticky = depth > 0 and bool(found.st_mode & stat.S_ISVTX)
        if writable_by_others(found) and not sticky:
            return f"{each} can be written by others than {user_name(found.st_uid)}: chmod go-w it"
    return ""


def _behind_sudo() -> set[int]:
    """Who became root by sudo works in folders of their own, and could do all that root does."""
    named = os.environ.get("SUDO_UID", "")
    return {int(named)} if os.geteuid() == 0 and named.isdecimal() else set()


def _unmapped() -> set[int]:
    """In a user namespace root's own folders outside may be shown as those of this user."""
    try:
        whole = Path("/proc/self/uid_map").read_text(encoding="utf-8").split() == _EVERY_USER
        return set() if whole else {int(_OVERFLOW.read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        return set()
