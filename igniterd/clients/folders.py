"""A folder that other users' programs execute from: made whole or not at all, and only where nobody
else can have a hand in it.

Everything goes by descriptors of folders that were opened without following links and belong to
this user or to root, so a link or a folder that somebody else put in the way is refused and never
written through. Modes are given, whatever the umask.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from igniterd.errors import Refused
from igniterd.files import (
    FILE_MODE,
    FOLDER_MODE,
    given_to_owner_of,
    make_folder,
    opened_folder,
    others_hand,
    user_name,
    writable_by_others,
)

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER, _FILE, _PROGRAM = FOLDER_MODE, FILE_MODE, 0o755
_LEFT_BEHIND_S = 3600.0


@dataclass(frozen=True, slots=True)
class File:
    """A file of this text; mode 0755 when it is ``executable``, else 0644."""

    text: str
    executable: bool = False

    @property
    def mode(self) -> int:
        return _PROGRAM if self.executable else _FILE


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


Tree: TypeAlias = "Mapping[str, File | Link | Tree]"
"""What is in a folder, by name."""


def is_whole(root: Path, below: Sequence[str], tree: Tree) -> bool:
    """Whether ``root/below…`` is exactly ``tree``, with the modes that :func:`make_whole` gives.

    Raises :class:`Refused` where a folder is somebody else's, ``OSError`` where one cannot be read.
    """
    if not root.exists():
        return False
    owners = owners_of(root)
    check_above(root, trusted=owners)
    with contextlib.ExitStack() as stack:
        at = stack.enter_context(opened_folder(root.parent))
        for part in (root.name, *below):
            try:
                at = stack.enter_context(_open_folder(part, at, owners))
            except FileNotFoundError:
                return False
            if os.fstat(at).st_mode & 0o777 != _FOLDER:
                return False
        return _holds(at, tree, owners)


def make_whole(
    root: Path, below: Sequence[str], tree: Tree, *, ours: bool = True, give: bool = True
) -> None:
    """Make ``root/below…`` exactly ``tree``: nothing is touched where it is, nothing is left behind
    where that fails.

    ``root`` is made, and its mode set, only where it is ``ours``. ``give``: what root makes in a
    folder of the daemon's user is that user's, who goes on there; else it stays root's. Raises
    :class:`Refused` where a folder on the way is somebody else's, ``OSError`` where it cannot be
    written.
    """
    if ours:
        make_folder(root.parent)
    check_above(root, trusted=owners_of(root))
    owners = owners_of(root) if give else frozenset({0, os.geteuid()})
    with contextlib.ExitStack() as stack:
        above = stack.enter_context(opened_folder(root.parent))
        at = stack.enter_context((_make_folder if ours else _open_folder)(root.name, above, owners))
        for part in below[:-1]:
            at = stack.enter_context(_make_folder(part, at, owners))
        _write_tree(at, below[-1], tree, owners)


def owners_of(root: Path) -> frozenset[int]:
    """Users whose folders are used: root, this one, and for root whom it gave the folder above to.

    Root then works for the daemon's user. A folder is given by root only where nobody else can make
    one: not in ``/tmp``, where it may be anybody's.
    """
    me = os.geteuid()
    with contextlib.suppress(OSError):
        if me == 0 and not others_hand(root.parent.parent):
            return frozenset({0, root.parent.stat().st_uid})
    return frozenset({0, me})


def check_above(root: Path, *, trusted: frozenset[int] = frozenset()) -> None:
    """Who owns a folder above puts another one in the place of ``root``: raises
    :class:`Refused`."""
    if hand := others_hand(root, itself=False, trusted=trusted):
        raise Refused(f"{root}: {hand}")


@contextlib.contextmanager
def _open_folder(name: str, parent: int, owners: frozenset[int]) -> Iterator[int]:
    """A descriptor of the folder ``name``, which nobody but this user and root can write to."""
    try:
        at = os.open(name, _OPEN, dir_fd=parent)
    except NotADirectoryError as error:
        if stat.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode):
            raise Refused(
                f"{_path(parent, '..')}/{name} is a link: name the folder it leads to, or remove it"
            ) from error
        raise
    try:
        _check_owner(at, name, owners)
        yield at
    finally:
        os.close(at)


def _check_owner(at: int, name: str, owners: frozenset[int]) -> None:
    found, me = os.fstat(at), os.geteuid()
    if found.st_uid not in owners:
        whose, mine = user_name(found.st_uid), user_name(me)
        raise Refused(
            f"{_path(at, name)} belongs to user {whose}, and this runs as {mine}: run it as "
            f"{whose}, "
            f"or name another folder, or remove this one"
        )
    if found.st_uid != me and writable_by_others(found):
        raise Refused(
            f"{_path(at, name)} can be written by others than {user_name(found.st_uid)}: chmod "
            "go-w it"
        )


def _path(at: int, name: str) -> str:
    """The whole path of an open folder, where the kernel tells it."""
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/self/fd/{at}").readlink())
    return name


@contextlib.contextmanager
def _make_folder(name: str, parent: int, owners: frozenset[int]) -> Iterator[int]:
    """:func:`_opened`, and made where it is missing; its mode is set right where it is this
    user's."""
    new = False
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
        new = True
    with _open_folder(name, parent, owners) as at:
        found = os.fstat(at)
        if os.geteuid() in (0, found.st_uid) and found.st_mode & 0o777 != _FOLDER:
            os.fchmod(at, _FOLDER)
        if new:
            _give(parent, at, owners)
        yield at


def _give(parent: int, made: int, owners: frozenset[int]) -> None:
    if os.fstat(parent).st_uid in owners:
        given_to_owner_of(parent, made)


def _write_tree(parent: int, name: str, tree: Tree, owners: frozenset[int]) -> None:
    """``tree`` as ``name`` in the open folder ``parent``: built beside it, then renamed."""
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused),
        _open_folder(name, parent, owners) as at,
    ):
        if os.fstat(at).st_mode & 0o777 == _FOLDER and _holds(at, tree, owners):
            return
    _sweep(parent, name)
    new, old = (f".{name}.{kind}-{secrets.token_hex(6)}" for kind in ("new", "old"))
    try:
        os.mkdir(new, 0o700, dir_fd=parent)
        with _open_folder(new, parent, owners) as at:
            _fill(at, tree, parent, owners)
            os.fchmod(at, _FOLDER)
            _give(parent, at, owners)
        with contextlib.suppress(FileNotFoundError):
            os.rename(name, old, src_dir_fd=parent, dst_dir_fd=parent)
        # A load that falls here is refused, and the old copy of its model goes on serving.
        try:
            os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            with contextlib.suppress(OSError):
                os.rename(old, name, src_dir_fd=parent, dst_dir_fd=parent)
            raise
    finally:
        for each in (new, old):
            _remove(parent, each)


def _sweep(parent: int, name: str) -> None:
    """Remove what one that was killed has left: nobody takes an hour over a folder."""
    for each in os.listdir(parent):
        if each.startswith((f".{name}.new-", f".{name}.old-")):
            with contextlib.suppress(OSError):
                if time.time() - os.lstat(each, dir_fd=parent).st_mtime > _LEFT_BEHIND_S:
                    _remove(parent, each)


def _fill(at: int, tree: Tree, home: int, owners: frozenset[int]) -> None:
    """Nobody else can enter ``at`` yet; what is in it is given to the owner of ``home``."""
    for name, entry in tree.items():
        if isinstance(entry, Link):
            os.symlink(entry.target, name, dir_fd=at)
        elif isinstance(entry, File):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(name, flags, 0o600, dir_fd=at), "w", encoding="utf-8") as file:
                file.write(entry.text)
                file.flush()
                _give(home, file.fileno(), owners)
                os.fchmod(file.fileno(), entry.mode)
        else:
            os.mkdir(name, 0o700, dir_fd=at)
            with _open_folder(name, at, owners) as inner:
                _fill(inner, entry, home, owners)
                os.fchmod(inner, _FOLDER)
                _give(home, inner, owners)


def _holds(at: int, tree: Tree, owners: frozenset[int]) -> bool:
    """Whether the open folder has just these entries, with their modes, of these ``owners``."""
    if set(os.listdir(at)) != set(tree):
        return False
    return all(_is(at, name, entry, owners) for name, entry in tree.items())


def _is(at: int, name: str, entry: File | Link | Tree, owners: frozenset[int]) -> bool:
    found = os.lstat(name, dir_fd=at)
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in owners:
        return False
    if isinstance(entry, Link):
        return stat.S_ISLNK(found.st_mode) and os.readlink(name, dir_fd=at) == entry.target
    if isinstance(entry, File):
        if not stat.S_ISREG(found.st_mode) or mode != entry.mode:
            return False
        with os.fdopen(
            os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at), "rb"
        ) as file:
            return file.read() == entry.text.encode()
    if not stat.S_ISDIR(found.st_mode) or mode & 0o777 != _FOLDER:
        return False
    with _open_folder(name, at, owners) as inner:
        return _holds(inner, entry, owners)


def _remove(parent: int, name: str) -> None:
    """Whatever is there by this name; links are removed, not followed."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
