"""Files that igniterd replaces, in folders that another user owns or can write to."""

import os
import stat
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from igniterd import pictures
from igniterd.errors import ProfileError, Refused
from igniterd.files import make_folder, opened_folder, others_hand, replace_file
from igniterd.perf import Profile
from tests.users import NOBODY, another_user, as_root

V100 = Path("igniterd/data/v100/v100.profile.json")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> object:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_are_given_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    make_folder(tmp_path / "a" / "b")
    replace_file(tmp_path / "a" / "b" / "file", "text")
    replace_file(tmp_path / "private", "text", mode=0o600)
    assert mode_of(tmp_path / "a") == mode_of(tmp_path / "a" / "b") == 0o755
    assert mode_of(tmp_path / "a" / "b" / "file") == 0o644
    assert mode_of(tmp_path / "private") == 0o600


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", "before")
    with pytest.raises(UnicodeEncodeError):
        replace_file(tmp_path / "file", "half \ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    precious.chmod(0o600)
    (tmp_path / "file").symlink_to(precious)
    replace_file(tmp_path / "file", "text")
    assert not (tmp_path / "file").is_symlink()
    assert (precious.read_text(), mode_of(precious)) == ("precious", 0o600)


def test_ones_own_links_to_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "there" / "back").symlink_to(tmp_path / "there" / ".." / "there")
    replace_file(tmp_path / "link" / "back" / "file", "text")
    assert (tmp_path / "there" / "file").read_text() == "text"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="too many links"), opened_folder(tmp_path / "loop"):
        pass


@as_root
def test_root_does_not_follow_a_link_that_another_user_put_in_the_way(shared: Path) -> None:
    theirs, precious = shared / "theirs", shared / "precious"
    theirs.mkdir()
    precious.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    (theirs / "out").symlink_to(precious)
    os.lchown(theirs / "out", NOBODY, NOBODY)
    profile = Profile.load(V100)
    with pytest.raises(ProfileError, match="is a link of user nobody, which root does not follow"):
        profile.save(theirs / "out" / "a.json")
    with pytest.raises(Refused):
        make_folder(theirs / "out" / "below")
    assert list(precious.iterdir()) == []


@as_root
def test_what_root_makes_in_a_users_folder_is_the_users(shared: Path) -> None:
    """After ``sudo igniterd profile`` the daemon's user must be able to go on writing there."""
    state = shared / "state"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    make_folder(state / "profiles")
    Profile.load(V100).save(state / "profiles" / "a.json")

    def go_on() -> Path:
        replace_file(state / "profiles" / "a.json", "changed")
        return state

    with another_user(go_on):
        assert (state / "profiles" / "a.json").read_text() == "changed"


@as_root
def test_a_file_that_another_user_made_ready_is_not_written_to(shared: Path) -> None:
    """Neither a file nor a name that can be foretold is used: the attacker's keeps what it had."""
    shared.chmod(0o1777)
    with another_user(lambda: (shared / "a.json.part").write_text("theirs")):
        Profile.load(V100).save(shared / "a.json")
    assert (shared / "a.json.part").read_text() == "theirs"
    assert (shared / "a.json").stat().st_uid == 0


@pytest.mark.parametrize(
    ("mode", "said"), [(0o755, ""), (0o757, "chmod go-w"), (0o1777, "chmod go-w"), (0o700, "")]
)
def test_whether_others_have_a_hand_in_a_folder(tmp_path: Path, mode: int, said: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    assert (said in others_hand(folder)) and bool(others_hand(folder)) == bool(said)


def test_a_folder_above_counts_and_a_sticky_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "above" / "mine").mkdir(parents=True)
    (tmp_path / "above").chmod(0o777)
    assert f"{tmp_path}/above can be written by others" in others_hand(tmp_path / "above" / "mine")
    (tmp_path / "above").chmod(0o1777)
    assert others_hand(tmp_path / "above" / "mine") == ""


@as_root
def test_another_users_folder_is_in_other_hands(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    assert "belongs to user nobody" in others_hand(tmp_path / "missing" / "too")
    assert others_hand(tmp_path, trusted=frozenset({NOBODY})) == ""


@as_root
def test_a_picture_is_not_written_through_a_link(shared: Path) -> None:
    """``sudo igniterd profile --show --plot`` into the folder of another user."""
    theirs, precious = shared / "theirs", shared / "precious"
    theirs.mkdir()
    precious.write_text("precious")
    (theirs / "a.svg").symlink_to(precious)
    for each in (theirs, theirs / "a.svg"):
        os.lchown(each, NOBODY, NOBODY)
    pictures.save(Figure(), theirs / "a.svg", 50)
    assert precious.read_text() == "precious"
    assert "<svg" in (theirs / "a.svg").read_text()


@as_root
def test_who_became_root_by_sudo_works_in_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    assert others_hand(tmp_path / "state") == ""
    monkeypatch.setenv("SUDO_UID", "1")
    assert "belongs to user nobody" in others_hand(tmp_path / "state")
