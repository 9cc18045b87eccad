"""The journal as another process finds it."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from igniterd.errors import CannotRun, ConfigError
from igniterd.fleet.apply import carry_out
from igniterd.fleet.journal import Begun, Journal
from igniterd.fleet.undo import take_back
from tests.fleet.test_apply import again, started
from tests.fleet.world import World


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    world = World.made()
    journal = started(tmp_path)
    asyncio.run(carry_out(journal, world.crew()))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"entry":"beg')
    assert again(journal).done.keys() == journal.done.keys()
    assert journal.path.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1 is none"),
        ('{"entry":"started","format":"other"}\n', "line 1"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "other.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Journal.read(path)


def test_a_journal_is_not_written_over(tmp_path: Path) -> None:
    started(tmp_path)
    with pytest.raises(CannotRun, match="is there already"):
        started(tmp_path)


def test_one_that_is_taken_back_does_not_go_on(tmp_path: Path) -> None:
    world = World.made()
    journal = started(tmp_path)
    asyncio.run(carry_out(journal, world.crew()))
    asyncio.run(take_back(journal, world.crew()))
    with pytest.raises(CannotRun, match="is being taken back"):
        asyncio.run(carry_out(again(journal), world.crew()))


def test_a_line_that_the_disk_does_not_take_whole_is_not_there(tmp_path: Path) -> None:
    """What comes after it is read."""
    journal = started(tmp_path)
    before = journal.path.read_bytes()
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, most[1]))
    try:
        with pytest.raises(CannotRun, match="cannot be written: the disk is full"):
            journal.write(Begun(step=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert journal.path.read_bytes() == before
    assert not journal.begun
    journal.write(Begun(step=2))
    assert again(journal).begun.keys() == {2}
