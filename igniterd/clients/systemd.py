"""Telling systemd how the daemon is: the notification protocol of ``sd_notify(3)``, one datagram a
message.

Without systemd (no ``NOTIFY_SOCKET``) every call does nothing.

systemd's queue is a few datagrams long and may be full. A WATCHDOG or STATUS that is lost then is
made good by the next tick's; READY is said once, and without it systemd kills the daemon in the
end. So READY, and the RELOADING that a READY ends, are said again with every message until they are
taken.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

_MOST_LETTERS = 1000


class Notifier:
    """Sends states to the socket systemd named. Never waits: a full socket must not hold up a
    tick."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self._untaken: dict[str, str] = {}  # what systemd must be told, in order
        self.watchdog_s = _watchdog_s(environment)
        """Longest time systemd waits between two :meth:`alive`; ``None`` without a watchdog."""

    def ready(self, status: str) -> None:
        """Start-up (or a reload) is over."""
        self._must("READY", f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_line(status)}")

    def alive(self, status: str | None = None) -> None:
        """Feeds the watchdog; to be sent by a finished tick, never by a timer of its own."""
        self._send("WATCHDOG=1" if status is None else f"WATCHDOG=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """A reload began; :meth:`ready` ends it."""
        self._must("RELOADING", f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "stopping") -> None:
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _must(self, kind: str, message: str) -> None:
        """A newer message of a kind takes the place of the older one, at the end."""
        self._untaken.pop(kind, None)
        self._untaken[kind] = message
        self._send_untaken()

    def _send_untaken(self) -> None:
        for kind, message in list(self._untaken.items()):
            if not self._sent(message):
                return
            del self._untaken[kind]

    def _send(self, message: str) -> None:
        """What may be lost, after what may not."""
        self._send_untaken()
        self._sent(message)

    def _sent(self, message: str) -> bool:
        if self._socket is None:
            return True
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            # Said nowhere on purpose: with the service manager gone or its queue full there is
            # nobody to tell; the next tick tries again.
            return False
        return True


def _line(text: str) -> str:
    """In one line, and short enough to fit into a datagram whatever the socket's buffer."""
    return " ".join(text.split())[:_MOST_LETTERS]


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """``WATCHDOG_USEC``, unless it is meant for another process."""
    microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6
