"""One igniterd a host, and nobody else's word for it. Other users are processes of their own."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from igniterd.clients.server_identity import identities
from igniterd.errors import CannotRun
from igniterd.state.lock import LOCK_FILE, HostLock
from tests.users import NOBODY, another_user, as_root


@contextmanager
def taken(lock: HostLock) -> Iterator[list[str]]:
    with capture_logs() as said:
        lock.take()
    try:
        yield [f"{line['event']}: {line.get('reason', '')}" for line in said]
    finally:
        lock.release()


@contextmanager
def listening(address: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((address, 0))
        server.listen()
        yield server.getsockname()[1]


def free_port() -> int:
    with listening("127.0.0.1") as port:
        return port


def test_the_lock_file_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with taken(HostLock(tmp_path / "state", ())):
            assert stat.S_IMODE((tmp_path / "state" / LOCK_FILE).stat().st_mode) == 0o600
            assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o755
    finally:
        os.umask(before)


def test_a_second_one_of_the_same_state_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with taken(HostLock(tmp_path, ())), pytest.raises(CannotRun, match=f"process {os.getpid()}"):
        HostLock(tmp_path, ()).take()
    with taken(HostLock(tmp_path, ())) as said:
        assert said == []


def test_a_link_in_place_of_the_lock_file_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / LOCK_FILE).symlink_to(precious)
    with taken(HostLock(tmp_path / "state", ())) as said:
        assert len(said) == 1 and said[0].startswith("state.directory cannot be written")
    assert precious.read_text() == "precious"


@as_root
def test_another_user_cannot_open_the_lock_file(shared: Path) -> None:
    with taken(HostLock(shared / "state", ())):
        pass
    path = shared / "state" / LOCK_FILE
    with (
        pytest.raises(AssertionError, match="PermissionError"),
        another_user(lambda: path.open("rb")),
    ):
        pass


@as_root
def test_another_user_who_holds_a_former_versions_file_stops_nothing(shared: Path) -> None:
    (shared / LOCK_FILE).write_text("")
    (shared / LOCK_FILE).chmod(0o644)
    file = os.open(shared / LOCK_FILE, os.O_RDONLY)

    def hold() -> int:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    inherited = another_user(hold)
    with inherited:
        os.close(file)
        with taken(HostLock(shared, ())) as said:
            assert len(said) == 1 and "it is made anew" in said[0]
            with pytest.raises(CannotRun, match="another igniterd"):
                HostLock(shared, ()).take()


@as_root
@pytest.mark.parametrize("listens", [True, False])
def test_a_name_that_another_user_took_is_said_and_stops_nothing(
    tmp_path: Path, listens: bool
) -> None:
    url = f"127.0.0.1:{free_port()}"

    def squat() -> list[socket.socket]:
        held = []
        for name in identities(url):
            held.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            held[-1].bind(f"\0igniterd/acts-on/{name}")
            if listens:
                held[-1].listen()
        return held

    with another_user(squat), taken(HostLock(tmp_path, [url])) as said:
        assert said and all(line.startswith("another user holds the name") for line in said)
        assert ("of user nobody" if listens else "does not say whose it is") in said[0]


@as_root
def test_the_igniterd_of_the_states_owner_is_believed(shared: Path) -> None:
    """Root starts a second one by hand beside the service: that is another igniterd, no
    squatter."""
    for name in ("theirs", "roots"):
        (shared / name).mkdir()
        os.chown(shared / name, NOBODY, NOBODY)
    url = f"127.0.0.1:{free_port()}"

    def start() -> HostLock:
        lock = HostLock(shared / "theirs", [url])
        lock.take()
        return lock

    with another_user(start):
        with pytest.raises(CannotRun, match=r"acts on Triton .* of user nobody"):
            HostLock(shared / "roots", [url]).take()
        with pytest.raises(CannotRun, match=r"has state\.directory"):
            HostLock(shared / "theirs", ()).take()


@as_root
def test_after_root_ran_once_the_owner_of_the_state_can_take_it(shared: Path) -> None:
    state = shared / "state"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    with taken(HostLock(state, ())):
        pass

    def start() -> str:
        with taken(HostLock(state, ())) as said:
            assert said == [], said
        return "taken"

    with another_user(start):
        pass


SPELLINGS = ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", socket.gethostname())


@pytest.mark.parametrize("first", SPELLINGS)
@pytest.mark.parametrize("up", ["down", "everywhere"])
def test_a_triton_is_one_however_its_address_is_spelled(
    tmp_path: Path, first: str, up: str
) -> None:
    if up == "down":
        _all_refused(tmp_path, first, free_port())
    else:
        with listening("0.0.0.0") as port:  # where tritonserver listens unless told otherwise
            _all_refused(tmp_path, first, port)


def _all_refused(folder: Path, first: str, port: int) -> None:
    with taken(HostLock(folder / "a", [f"{first}:{port}"])):
        for other in (*SPELLINGS, "LOCALHOST", "0.0.0.0", "ipv4:127.0.0.1", "dns:///localhost"):
            with pytest.raises(CannotRun, match="another igniterd on this host acts on Triton"):
                HostLock(folder / "b", [f"{other}:{port}"]).take()


def test_one_that_came_up_between_is_still_one(tmp_path: Path) -> None:
    port = free_port()
    with taken(HostLock(tmp_path / "a", [f"localhost:{port}"])), socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        with pytest.raises(CannotRun):
            HostLock(tmp_path / "b", [f"127.0.0.1:{port}"]).take()


def test_two_tritons_at_addresses_of_their_own_are_two(tmp_path: Path) -> None:
    with listening("127.0.0.1") as port, socket.socket() as other:
        other.bind(("127.0.0.2", port))
        other.listen()
        with taken(HostLock(tmp_path / "a", [f"127.0.0.1:{port}"])):
            with taken(HostLock(tmp_path / "b", [f"127.0.0.2:{port}"])) as said:
                assert said == []
            with pytest.raises(CannotRun):
                HostLock(tmp_path / "b", [f"localhost:{port}"]).take()


def test_one_daemon_may_name_a_triton_twice_and_others_have_ports_of_their_own(
    tmp_path: Path,
) -> None:
    a, b = free_port(), free_port()
    twice = HostLock(tmp_path / "a", [f"localhost:{a}", f"127.0.0.1:{a}"])
    with taken(twice), taken(HostLock(tmp_path / "b", [f"localhost:{b}"])) as said:
        assert said == []


def test_hosts_that_are_elsewhere_or_unknown() -> None:
    assert identities("192.0.2.77:8001") == {"192.0.2.77:8001"}
    assert identities("GPU-A.invalid.:8001") == {"gpu-a.invalid:8001"}
