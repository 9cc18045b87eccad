import contextlib
import os
import resource
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from igniterd.clients import folders
from igniterd.clients.folders import File, Link, Tree, is_whole, make_whole
from igniterd.errors import Refused
from tests.users import NOBODY, as_root

TREE: Tree = {
    "bin": {"go": File("#!/bin/sh\n", executable=True), "text": File("a\n")},
    "lib": {"on": Link("../bin")},
}
BELOW = ("v", "30")


@contextlib.contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in [folder, *folder.rglob("*")]
        if not path.is_symlink()
    }


@pytest.mark.parametrize("mask", [0o077, 0o002, 0o000])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    root = tmp_path / "above" / "shares"
    with umask(mask):
        make_whole(root, BELOW, TREE)
    assert modes(tmp_path / "above") == {
        ".": 0o755,
        "shares": 0o755,
        "shares/v": 0o755,
        "shares/v/30": 0o755,
        "shares/v/30/bin": 0o755,
        "shares/v/30/bin/go": 0o755,
        "shares/v/30/bin/text": 0o644,
        "shares/v/30/lib": 0o755,
    }
    assert is_whole(root, BELOW, TREE)


def test_what_is_right_is_left_alone_and_what_is_not_is_made_anew(tmp_path: Path) -> None:
    make_whole(tmp_path, BELOW, TREE)
    folder = tmp_path / "v" / "30"
    first = folder.stat().st_ino
    make_whole(tmp_path, BELOW, TREE)
    assert folder.stat().st_ino == first
    text, go, link = folder / "bin" / "text", folder / "bin" / "go", folder / "lib" / "on"
    for spoil, with_what in (
        (text.write_text, ["half a fi"]),
        (text.unlink, []),
        (go.chmod, [0o644]),
        (folder.chmod, [0o700]),
        ((folder / "bin" / "more").touch, []),
        (link.rename, [folder / "lib" / "off"]),
    ):
        spoil(*with_what)  # type: ignore[operator]
        assert not is_whole(tmp_path, BELOW, TREE)
        make_whole(tmp_path, BELOW, TREE)
        assert is_whole(tmp_path, BELOW, TREE)
        assert [path.name for path in (tmp_path / "v").iterdir()] == ["30"]


@pytest.mark.parametrize("place", ["shares", "shares/v", "shares/v/30"])
def test_a_link_on_the_way_is_not_followed(tmp_path: Path, place: str) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / place
    elsewhere.mkdir(mode=0o700)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    with contextlib.suppress(Refused):  # the last one is igniterd's to replace
        make_whole(tmp_path / "shares", BELOW, TREE)
    assert list(elsewhere.iterdir()) == []
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700
    assert place == "shares/v/30" or link.is_symlink()


@as_root
@pytest.mark.parametrize("place", ["shares", "shares/v"])
def test_a_folder_of_somebody_else_is_refused_with_the_way_out(tmp_path: Path, place: str) -> None:
    theirs = tmp_path / place
    theirs.mkdir(parents=True)
    os.chown(theirs, NOBODY, NOBODY)
    with pytest.raises(
        Refused, match=r"belongs to user nobody, and this runs as root: run it as nobody"
    ):
        make_whole(tmp_path / "shares", BELOW, TREE)
    with pytest.raises(Refused):
        is_whole(tmp_path / "shares", BELOW, TREE)
    assert list(theirs.iterdir()) == []


@as_root
def test_what_somebody_else_put_where_the_folder_belongs_is_replaced(tmp_path: Path) -> None:
    make_whole(tmp_path, BELOW, TREE)
    os.chown(tmp_path / "v" / "30" / "bin" / "go", NOBODY, NOBODY)
    assert not is_whole(tmp_path, BELOW, TREE)
    make_whole(tmp_path, BELOW, TREE)
    assert (tmp_path / "v" / "30" / "bin" / "go").stat().st_uid == 0


@as_root
def test_a_link_put_in_place_of_a_file_that_is_being_written_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wins the race for a name loses the file: it is made new or not at all, and its mode
    is set on the descriptor."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    real = os.mkdir

    def plant(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(name, mode, dir_fd=dir_fd)
        if name == "bin":
            inner = os.open(name, os.O_RDONLY, dir_fd=dir_fd)
            os.symlink(secret, "go", dir_fd=inner)
            os.close(inner)

    monkeypatch.setattr(os, "mkdir", plant)
    with pytest.raises(FileExistsError):
        make_whole(tmp_path / "shares", BELOW, TREE)
    assert (secret.read_text(), stat.S_IMODE(secret.stat().st_mode)) == ("secret", 0o600)
    assert list((tmp_path / "shares" / "v").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A file that is larger than the limit is what a full disk is to the writer."""
    large: Tree = {"bin": {"go": File("x" * 100_000), "text": File("a\n")}}
    make_whole(tmp_path, BELOW, TREE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            make_whole(tmp_path, BELOW, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["30"]
    assert is_whole(tmp_path, BELOW, TREE), "the one that was there goes on"


def test_what_one_that_was_killed_left_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for name, age_s in (
        (".30.new-0123", 7200),
        (".30.old-0123", 7200),
        (".30.new-4567", 60),
        (".40.new-0123", 7200),
    ):
        (tmp_path / "v" / name / "bin").mkdir(parents=True)
        at_s = time.time() - age_s
        os.utime(tmp_path / "v" / name, (at_s, at_s))
    make_whole(tmp_path, BELOW, TREE)
    assert {path.name for path in (tmp_path / "v").iterdir()} == {
        "30",
        ".30.new-4567",
        ".40.new-0123",
    }


def test_a_file_in_the_way_of_a_folder_above_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shares").write_text("in the way")
    with pytest.raises(NotADirectoryError):
        make_whole(tmp_path / "shares", BELOW, TREE)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "30").write_text("this one is igniterd's to replace")
    make_whole(tmp_path, BELOW, TREE)
    assert is_whole(tmp_path, BELOW, TREE)


def test_a_folder_others_may_write_to_is_made_right_where_it_is_ones_own(tmp_path: Path) -> None:
    (tmp_path / "shares").mkdir()
    (tmp_path / "shares").chmod(0o777)
    make_whole(tmp_path / "shares", BELOW, TREE)
    assert stat.S_IMODE((tmp_path / "shares").stat().st_mode) == 0o755
    assert folders.is_whole(tmp_path / "shares", BELOW, TREE)


def test_a_folder_above_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    above = tmp_path / "above"
    make_whole(above / "shares", BELOW, TREE)
    above.chmod(0o777)
    for use in (make_whole, is_whole):
        with pytest.raises(Refused, match=f"{above} can be written by others than .*: chmod go-w"):
            use(above / "shares", BELOW, TREE)
    above.chmod(0o1777)
    assert is_whole(above / "shares", BELOW, TREE)


@as_root
def test_a_link_of_another_user_above_is_not_followed(shared: Path) -> None:
    theirs, precious = shared / "theirs", shared / "precious"
    theirs.mkdir()
    precious.mkdir()
    (theirs / "state").symlink_to(precious)
    os.chown(theirs, NOBODY, NOBODY)
    os.lchown(theirs / "state", NOBODY, NOBODY)
    with pytest.raises(Refused, match="is a link of user nobody"):
        make_whole(theirs / "state" / "shares", BELOW, TREE)
    assert list(precious.iterdir()) == []
