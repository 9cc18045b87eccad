"""Ports of programs that a test or the demo starts."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from igniterd.errors import CannotRun
from igniterd.lab.programs import process
from igniterd.lab.programs.process import free_ports

OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_ports_are_given_once_and_none_that_an_outgoing_connection_may_take() -> None:
    given = [*free_ports(60), *free_ports(60)]
    assert len(set(given)) == 120
    assert max(given) < max(int(OUTGOING.read_text().split()[0]), 20480)


def test_no_other_process_is_given_a_port_while_this_one_lives() -> None:
    given = free_ports(20)
    asked = f"from igniterd.lab.programs.process import _take; print(*map(_take, {given}))"
    other = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=30.0
    )
    assert set(other.stdout.split()) == {"False"}


def test_a_port_that_somebody_listens_on_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr(process, "_candidates", lambda: [port])
    monkeypatch.setattr(process, "_take", lambda port: True)
    assert free_ports(1) == [port]
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(CannotRun, match=f"1 ports are wanted; of {port} to {port} too few"),
    ):
        free_ports(1)
