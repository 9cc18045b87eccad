"""One igniterd for a state directory, and one that acts for a Triton: two would undo each other's changes for ever.

The state directory is held by ``flock(2)`` on a file in it, a Triton by a name in Linux's abstract socket namespace: both are let go by
the kernel when the process ends, however it ends, so that nothing has to be cleaned up after a crash.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import structlog

from igniterd.errors import CannotRun

LOCK_FILE = "igniterd.lock"


class HostLock:
    """Held from :meth:`take` to :meth:`release`."""

    def __init__(self, directory: Path, acts_on: Iterable[str]) -> None:
        """``directory``: of the state; ``acts_on``: addresses (host:port) of the Tritons whose models will be changed."""
        self._directory = directory
        self._acts_on = sorted({url.replace("localhost", "127.0.0.1") for url in acts_on})
        self._file: int | None = None
        self._names: list[socket.socket] = []

    def take(self) -> None:
        """Raises :class:`CannotRun` naming the other where there is one. A directory that cannot be written is only said."""
        try:
            self._take_directory()
            for url in self._acts_on:
                self._take_name(url)
        except CannotRun:
            self.release()
            raise

    def release(self) -> None:
        for name in self._names:
            name.close()
        self._names = []
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take_directory(self) -> None:
        path = self._directory / LOCK_FILE
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            reason = f"{error.strerror or error}: no share can be given, and nothing is kept, until that is mended"
            structlog.get_logger("igniterd").warning("state.directory cannot be written", path=str(path), reason=reason)
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            raise CannotRun(f"another igniterd (process {pid}) has state.directory {self._directory}: give this one its own") from None
        except OSError:  # a file system without locks: the names below still tell
            return
        try:
            os.ftruncate(self._file, 0)
            os.write(self._file, f"{os.getpid()}\n".encode())
        except OSError:  # a full disk: held all the same, only without saying by whom
            return

    def _take_name(self, url: str) -> None:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            held.bind(f"\0igniterd/acts-on/{url}"[:107])
        except OSError as error:
            held.close()
            if error.errno == errno.EADDRINUSE:
                raise CannotRun(
                    f"another igniterd on this host acts on Triton {url}: stop it, or run this one with --mode advise"
                ) from None
            return  # a sandbox without unix sockets: nothing can be told
        self._names.append(held)
