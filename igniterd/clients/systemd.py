"""Telling systemd how the daemon is: the notification protocol of ``sd_notify(3)``, one datagram a message.

Without systemd (no ``NOTIFY_SOCKET``) every call does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends states to the socket systemd named. A message that cannot be sent is lost: a full socket must not hold up a tick."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self.watchdog_s = _watchdog_s(environment)
        """Longest time systemd waits between two :meth:`alive`; ``None`` without a watchdog."""

    @property
    def supervised(self) -> bool:
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Start-up (or a reload) is over."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_line(status)}")

    def alive(self, status: str | None = None) -> None:
        """Feeds the watchdog; to be sent by a finished tick, never by a timer of its own."""
        self._send("WATCHDOG=1" if status is None else f"WATCHDOG=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """A reload began; :meth:`ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "stopping") -> None:
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            # Said nowhere on purpose: with the service manager gone or its queue full there is nobody to tell; the next tick tries again.
            return


def _line(text: str) -> str:
    return " ".join(text.split())


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """``WATCHDOG_USEC``, unless it is meant for another process."""
    microseconds, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6
