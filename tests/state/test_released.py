"""The list of models that were given back, as the command writes it and the daemon reads it."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.errors import CannotRun
from igniterd.state.released import FILE, MOST, Released, given_back, taken_again


def test_what_one_writes_the_other_reads_at_once(tmp_path: Path) -> None:
    daemon = Released(tmp_path / FILE)
    assert daemon.now() == frozenset()
    given_back(tmp_path, ["a", "b"])
    assert daemon.now() == {"a", "b"}
    given_back(tmp_path, ["c"])
    assert daemon.now() == {"a", "b", "c"}
    assert "igniterd take a takes it again" in daemon.why()["a"]
    assert taken_again(tmp_path, ["a", "never"]) == ["a"]
    assert daemon.now() == {"b", "c"}
    assert sorted(taken_again(tmp_path, None)) == ["b", "c"]
    assert daemon.now() == frozenset()
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o644


def test_a_restarted_daemon_knows_them(tmp_path: Path) -> None:
    given_back(tmp_path, ["a"])
    assert Released(tmp_path / FILE).now() == {"a"}


def test_commands_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    wanted = [f"m{n}" for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: given_back(tmp_path, [name]), wanted))
    assert Released(tmp_path / FILE).now() == set(wanted)


ODD = [
    "",
    "{",
    "[]",
    '{"models": 3}',
    '{"models": {"a": {}}}',
    '{"format": "x"}',
    "\0",
    "[" * 100_000,
    '{"version": 2}',
]


@pytest.mark.parametrize("text", ODD)
def test_what_cannot_be_read_is_said_once_and_the_last_list_stands(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / FILE
    given_back(tmp_path, ["a"])
    daemon = Released(path)
    assert daemon.now() == {"a"}
    path.write_text(text)
    with capture_logs() as said:
        assert [daemon.now() for _ in range(3)] == [{"a"}] * 3
    assert len(said) == 1
    assert str(path) in said[0]["reason"]
    with pytest.raises(CannotRun, match="not what igniterd release writes"):
        given_back(tmp_path, ["b"])
    path.unlink()
    with capture_logs() as said:
        assert [daemon.now() for _ in range(3)] == [frozenset()] * 3
    assert [line["event"] for line in said] == ["the list of released models can be read again"]


def test_a_pipe_or_a_folder_in_its_place_does_not_hold_up_a_tick(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    assert Released(tmp_path / FILE).now() == frozenset()
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    assert Released(tmp_path / FILE).now() == frozenset()


def test_it_is_bounded(tmp_path: Path) -> None:
    given_back(tmp_path, (f"m{n}" for n in range(MOST)))
    with pytest.raises(CannotRun, match=f"at most {MOST}"):
        given_back(tmp_path, ["one more"])
    assert len(Released(tmp_path / FILE).now()) == MOST


def test_a_state_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        CannotRun,
        match=r"run this on the daemon's host as the user that owns .* IGNITERD_HANDS_OFF",
    ):
        given_back(tmp_path / "none", ["a"])


def test_take_by_the_command(tmp_path: Path) -> None:
    file = tmp_path / "igniterd.toml"
    file.write_text(
        f'[state]\ndirectory = "{tmp_path}"\n[[triton]]\nurl = "127.0.0.1:9"\n[[model]]\nname = '
        '"a"\nslo_p99_ms = 5\n'
    )
    given_back(tmp_path, ["a", "b"])
    done = CliRunner().invoke(app, ["take", "a", "c", "--config", str(file)])
    assert done.exit_code == 1
    assert done.stdout == "a: igniterd steers it again\n"
    assert "c: not released" in done.stderr
    done = CliRunner().invoke(app, ["take", "--all", "--config", str(file)])
    assert (done.exit_code, done.stdout) == (0, "b: igniterd steers it again\n")
    assert json.loads((tmp_path / FILE).read_text())["models"] == {}
    assert CliRunner().invoke(app, ["take", "--all"]).exit_code == 2
    assert CliRunner().invoke(app, ["take", "--config", str(file)]).exit_code == 2
