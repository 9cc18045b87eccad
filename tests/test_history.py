import json
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from igniterd.history import KEEP_S, RECENT, SAMPLE_EVERY_S, History
from igniterd.records import Estimate, Observation, Outcome, Outcomes, Plan, Tick, Window


def tick(at_s: float, outcome: Outcomes = Outcomes.HOLD) -> Tick:
    return Tick(
        int(at_s), at_s, 1000 + at_s, Observation(at_s), Window(at_s, 1.0), Estimate(at_s), Plan(at_s, outcome, "because"), Outcome()
    )


def rows(path: Path) -> list[tuple]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT time_s, outcome, why, moved, state FROM tick ORDER BY time_s").fetchall()


def test_keeps_changes_of_mind_and_a_sample_a_minute(tmp_path: Path) -> None:
    history = History(tmp_path / "state" / "history.db")
    for second in range(int(SAMPLE_EVERY_S) + 5):
        outcome = Outcomes.WAIT if second == 20 else Outcomes.HOLD
        history.record(tick(float(second), outcome), partial(dict, second=second))
    history.close()
    kept = rows(tmp_path / "state" / "history.db")
    assert [json.loads(row[4])["second"] for row in kept] == [0, 20, 21]
    assert kept[1][:4] == (1020.0, "wait", "because", 0)


def test_a_disk_that_refuses_costs_no_tick_and_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    history = History(tmp_path / "state" / "history.db")
    history.record(tick(0.0), lambda: {})
    history.record(replace(tick(1.0), plan=Plan(1.0, Outcomes.MOVE, "why")), lambda: {})
    history.close()
    assert capsys.readouterr().out.count("history is not written") == 1


def test_a_clock_that_jumps_ahead_for_a_while_does_not_empty_the_history(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db")
    for second in range(6):
        year_s = 366 * 86_400.0 if second == 3 else 0.0
        outcome = Outcomes.WAIT if second % 2 else Outcomes.HOLD
        history.record(replace(tick(float(second), outcome), wall_time_s=1000.0 + second + year_s), lambda: {})
    history.close()
    assert len(rows(tmp_path / "history.db")) == 6


def test_after_a_month_it_is_forgotten(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db")
    for number in range(RECENT + 20):
        outcome = Outcomes.WAIT if number % 2 else Outcomes.HOLD
        month_s = KEEP_S + 1000.0 if number >= 20 else 0.0
        history.record(replace(tick(float(number), outcome), wall_time_s=1000.0 + number + month_s), lambda: {})
    history.close()
    assert len(rows(tmp_path / "history.db")) == RECENT


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "history.db").write_bytes(b"somebody else's file, long enough to be looked at" * 50)
    history = History(tmp_path / "history.db")
    for second in range(3):
        history.record(tick(float(second), Outcomes.WAIT if second % 2 else Outcomes.HOLD), lambda: {})
    history.close()
    assert len(rows(tmp_path / "history.db")) == 2
    assert (tmp_path / "history.db.unreadable").read_bytes().startswith(b"somebody else's")
    said = capsys.readouterr().out
    assert said.count("history is not written") == said.count("history is written again") == 1
