"""One at a time on a machine: of two that carry out rebalances each undoes what the other does."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from igniterd.errors import CannotRun


@contextlib.contextmanager
def alone(cluster: str) -> Iterator[None]:
    """Held by a name of Linux's abstract sockets, which the kernel lets go however the process
    ends. Raises :class:`CannotRun` where another one holds it."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        held.bind(f"\0igniterd/applies/{cluster}"[:107])
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise CannotRun(
            f"another igniterd fleet apply for cluster {cluster} is at work on this machine: wait "
            "until it has ended"
        ) from error
    with held:
        yield
