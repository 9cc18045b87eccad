import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from igniterd.clients.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd opens it, and the address it tells the service."""
    name = (
        str(tmp_path / "notify")
        if request.param == "path"
        else f"@igniterd-test-{os.getpid()}-{tmp_path.name}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.settimeout(5)
        yield listening, name


def test_every_state_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    listening, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("first tick\ndone")
    notifier.alive()
    notifier.alive("hold: all SLOs hold")
    notifier.status("waiting for Triton")
    notifier.stopping()
    received = [listening.recv(4096).decode() for _ in range(5)]
    assert received == [
        "READY=1\nSTATUS=first tick done",
        "WATCHDOG=1",
        "WATCHDOG=1\nSTATUS=hold: all SLOs hold",
        "STATUS=waiting for Triton",
        "STOPPING=1\nSTATUS=stopping",
    ]
    notifier.reloading()
    first, second = listening.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdecimal()
    notifier.close()


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier({})
    assert notifier.watchdog_s is None
    notifier.ready("x")
    notifier.alive()
    notifier.close()


def test_a_manager_that_is_gone_or_full_holds_up_nothing(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).alive()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "deaf")})
        # far more than the socket's queue takes: a blocking send would never come back
        for _ in range(5000):
            notifier.alive("x" * 100)
        notifier.close()


def filled(path: str) -> None:
    """Others have systemd's queue full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                other.sendto(b"STATUS=somebody else", path)


def drained(manager: socket.socket) -> list[str]:
    """What waits in the queue of igniterd's."""
    manager.setblocking(False)
    out = []
    while True:
        try:
            out.append(manager.recv(65_536).decode())
        except BlockingIOError:
            return [message for message in out if "somebody else" not in message]


@pytest.mark.parametrize("first", ["alive", "status"])
def test_ready_is_said_again_until_the_full_queue_takes_it_and_then_no_more(
    tmp_path: Path, first: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        filled(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        notifier.ready("hold")
        notifier.alive()
        assert drained(manager) == []
        getattr(notifier, first)("hold")
        notifier.alive()
        assert [message.partition("\n")[0] for message in drained(manager)][::2][:1] == ["READY=1"]
        notifier.alive()
        assert drained(manager) == ["WATCHDOG=1"]
        notifier.close()


def test_a_reload_in_a_full_queue_is_told_in_its_order(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        filled(str(tmp_path / "notify"))
        for _ in range(3):  # however often: what waits to be said does not grow
            notifier.reloading()
            notifier.ready("hold")
        drained(manager)
        notifier.alive()
        assert [message.partition("\n")[0] for message in drained(manager)] == [
            "RELOADING=1",
            "READY=1",
            "WATCHDOG=1",
        ]
        notifier.close()


def test_a_manager_that_comes_back_is_told(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.ready("hold")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier.alive()
        assert drained(manager)[0].startswith("READY=1")
    notifier.close()


def test_a_status_of_any_length_is_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        notifier.ready("infeasible: " + "a model and its reason, " * 50_000)
        assert drained(manager)[0].startswith("READY=1\nSTATUS=infeasible: a model")
        notifier.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdogs_patience_is_read(
    environment: dict[str, str], expected: float | None
) -> None:
    assert Notifier(environment).watchdog_s == expected
