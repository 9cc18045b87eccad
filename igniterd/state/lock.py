"""One igniterd a host: of two that steer the same models each undoes what the other does.

The state directory is held by ``flock(2)`` on a file in it, a Triton by a name in Linux's abstract
socket namespace: both are let go by the kernel when the process ends, however it ends, so that
nothing has to be cleaned up after a crash. Neither is believed from a user who is not trusted:
root, this user and the owner of the state directory are. Anybody else who holds one is named, and
does not keep the daemon from starting.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from igniterd.clients.server_identity import identities
from igniterd.errors import CannotRun, Refused
from igniterd.files import (
    PRIVATE_MODE,
    given_to_owner_of,
    make_folder,
    opened_folder,
    others_hand,
    user_name,
)

LOCK_FILE = "igniterd.lock"
ASK_S = 0.5
"""Longest wait for the word of who holds a name: the kernel gives it."""
_LOCKS = Path("/proc/locks")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Holder:
    """A process that holds what this one wants, as far as it can be told."""

    pid: int | None = None
    uid: int | None = None

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else "a process"
        return process if self.uid is None else f"{process} of {_user(self.uid)}"


def _user(uid: int) -> str:
    return "another user" if uid < 0 else f"user {user_name(uid)}"


class HostLock:
    """Held from :meth:`take` to :meth:`release`."""

    def __init__(self, directory: Path, acts_on: Iterable[str]) -> None:
        """``directory``: of the state; ``acts_on``: host:port of Tritons that will be changed."""
        self._directory = directory
        self._acts_on = tuple(dict.fromkeys(acts_on))
        self._file: int | None = None
        self._names: dict[str, socket.socket] = {}
        self._trusted = {0, os.geteuid()}
        self._log = structlog.get_logger("igniterd")

    def take(self) -> None:
        """Raises :class:`CannotRun` naming the other where there is one.

        A directory that cannot be written is only said.
        """
        try:
            self._take_directory()
            for url in self._acts_on:
                for name in sorted(identities(url)):
                    self._take_name(name, url)
        except CannotRun:
            self.release()
            raise

    def release(self) -> None:
        for name in self._names.values():
            name.close()
        self._names = {}
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # ------------------------------------------------------------ the state directory

    def _take_directory(self) -> None:
        path = self._directory / LOCK_FILE
        try:
            make_folder(self._directory)
            with opened_folder(self._directory) as folder:
                self._trusted.add(os.fstat(folder).st_uid)
                if hand := others_hand(self._directory, trusted=frozenset(self._trusted)):
                    self._log.warning("state.directory is in other hands too", reason=hand)
                self._take_file(folder, path)
        except (OSError, Refused) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            reason = f"{why}: no share can be given, and nothing is kept, until that is mended"
            self._log.warning("state.directory cannot be written", path=str(path), reason=reason)

    def _take_file(self, folder: int, path: Path) -> None:
        for last in (False, True):
            self._file, was_open = _lock_file(folder)
            if (found := os.fstat(self._file)).st_uid not in self._trusted:
                holder = _Holder(uid=found.st_uid)
            else:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = self._holder(was_open)
                except OSError:  # a file system without locks: the names still tell
                    return
                else:
                    if os.fstat(self._file).st_nlink:
                        self._sign()
                        return
                    holder = _Holder(uid=-1)  # made anew by another one, just now
            if holder.uid is None or holder.uid in self._trusted:
                raise CannotRun(
                    f"another igniterd (process {holder.pid or self._signed()}) has "
                    "state.directory "
                    f"{self._directory}: give this one its own"
                )
            os.close(self._file)
            self._file = None
            doing = "it cannot be had" if last else "it is made anew"
            self._log.warning(
                "the lock file is another user's",
                path=str(path),
                reason=f"{holder} has it: {doing}",
            )
            if not last:  # whoever had opened it while it was open to all keeps nothing by that
                os.unlink(LOCK_FILE, dir_fd=folder)

    def _holder(self, was_open: bool) -> _Holder:
        """Who has locked the file. ``was_open``: every user could (files of former versions)."""
        found = _holder_of(self._file or 0)
        if found.uid is None and was_open:
            signed = self._signed()
            with contextlib.suppress(OSError, ValueError):
                return _Holder(int(signed), Path(f"/proc/{int(signed)}").stat().st_uid)
            return _Holder(uid=-1)
        return found

    def _signed(self) -> str:
        """The process that wrote its number: the kernel tells none of another pid namespace."""
        said = os.pread(self._file or 0, 32, 0).decode(errors="replace").strip()
        return said if said.isdigit() else "unknown"

    def _sign(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: held all the same
            os.ftruncate(self._file or 0, 0)
            os.pwrite(self._file or 0, f"{os.getpid()}\n".encode(), 0)

    # ------------------------------------------------------------ the Tritons

    def _take_name(self, name: str, url: str) -> None:
        if name in self._names:
            return
        held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        address = f"\0igniterd/acts-on/{name}"[:107]
        try:
            held.bind(address)
            held.listen(16)  # whoever asks is told by the kernel who listens
        except OSError as error:
            held.close()
            if error.errno == errno.EADDRINUSE:
                self._told_apart(_holder_of_name(address), url)
            return  # else a sandbox without unix sockets: nothing can be told
        self._names[name] = held

    def _told_apart(self, holder: _Holder, url: str) -> None:
        """Raises :class:`CannotRun` where the holder of a name is to be believed."""
        if holder.uid in self._trusted:
            raise CannotRun(
                f"another igniterd on this host acts on Triton {url} ({holder}): stop it, or run "
                "this one with --mode advise"
            )
        who = holder if holder.uid is not None else "a process that does not say whose it is"
        self._log.warning(
            "another user holds the name of a Triton",
            triton=url,
            reason=f"{who} says that it acts on this Triton; going on: if that is an igniterd, "
            "stop one of the two",
        )


def _lock_file(folder: int) -> tuple[int, bool]:
    """The open file, from now on for its owner alone, and whether it was open to others until now.

    One that root makes is given to the folder's owner, who must be able to open it.
    """
    file = os.open(LOCK_FILE, _FLAGS, PRIVATE_MODE, dir_fd=folder)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"{LOCK_FILE} is no file")
        if found.st_uid == os.geteuid():
            os.fchmod(file, PRIVATE_MODE)
            given_to_owner_of(folder, file)
    except BaseException:
        os.close(file)
        raise
    return file, bool(found.st_mode & 0o077)


def _holder_of(file: int) -> _Holder:
    """Who has locked the file, by the kernel's list."""
    inode = os.fstat(file).st_ino
    with contextlib.suppress(OSError):
        for line in _LOCKS.read_text(encoding="utf-8").splitlines():
            found = re.search(r"FLOCK\s+\S+\s+\S+\s+(\d+)\s+\S+:(\d+)\s", line)
            if found and int(found[2]) == inode and int(found[1]):
                pid = int(found[1])
                with contextlib.suppress(OSError):
                    return _Holder(pid, Path(f"/proc/{pid}").stat().st_uid)
    return _Holder()


def _holder_of_name(address: str) -> _Holder:
    """Who listens by this name, by the kernel's word; nobody is known where nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(ASK_S)
        with contextlib.suppress(OSError):
            asking.connect(address)
            told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid, uid, _ = struct.unpack("3i", told)
            return _Holder(pid, uid)
    return _Holder()
