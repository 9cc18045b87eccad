import os
from pathlib import Path

import pytest

from igniterd.cli.check_folders import folders
from igniterd.clients.shares import prepare_share
from igniterd.config import parse_config
from igniterd.files import make_folder, replace_file
from tests.users import NOBODY, as_root


def found(folder: Path) -> dict[str, tuple[str, str]]:
    text = f'[state]\ndirectory = "{folder}"\n[[model]]\nname = "a"\nslo_p99_ms = 1\n'
    return {f.what: (f.level, f.said) for f in folders(parse_config(text, source="x"))}


@pytest.fixture
def state(shared: Path) -> Path:
    """That of a daemon of user nobody; root looks."""
    folder = shared / "state"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    return folder


def levels(folder: Path) -> tuple[str, str]:
    said = found(folder)
    return said["state.directory"][0], said["shares"][0]


@as_root
def test_root_is_told_of_the_user_whose_state_it_is(state: Path) -> None:
    assert levels(state) == ("ok", "ok")
    prepare_share(state / "shares", 0.3, install=True)  # root's now: no other share can be made
    assert levels(state) == ("ok", "bad")
    assert "shares" in found(state)["shares"][1]
    assert os.geteuid() == 0 and os.getegid() == 0


@as_root
@pytest.mark.parametrize("name", ["history.db", "learnt.json", "igniterd.lock"])
def test_a_file_of_roots_in_the_way_is_found(state: Path, name: str) -> None:
    (state / name).touch(mode=0o600)
    level, said = found(state)["state.directory"]
    assert level == "bad" and said.startswith(f"{state / name} cannot be written by user nobody")


@as_root
def test_what_igniterd_itself_writes_as_root_is_in_nobodys_way(state: Path) -> None:
    make_folder(state / "profiles")
    replace_file(state / "learnt.json", "{}")
    replace_file(state / "profiles" / "a.json", "{}")
    assert levels(state) == ("ok", "ok")


@as_root
def test_a_folder_the_user_cannot_reach_or_write_is_found(state: Path) -> None:
    state.chmod(0o500)
    assert levels(state) == ("bad", "bad")
    state.chmod(0o700)
    state.parent.chmod(0o700)
    assert levels(state) == ("bad", "bad")


def test_a_state_that_everybody_may_write_is_found(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    assert levels(tmp_path / "state")[0] == "ok"
    (tmp_path / "state").chmod(0o777)
    level, said = found(tmp_path / "state")["state.directory"]
    assert level == "bad" and "chmod go-w" in said


def test_a_state_that_is_missing_is_made_by_the_daemon(tmp_path: Path) -> None:
    assert levels(tmp_path / "missing" / "state") == ("ok", "ok")
    (tmp_path / "file").touch()
    assert levels(tmp_path / "file" / "state")[0] == "bad"
