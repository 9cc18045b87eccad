import json
import queue
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from igniterd.decisions import ActResult, DecisionKind, Plan, Tick
from igniterd.hands import Rebalanced
from igniterd.loads import Estimate
from igniterd.records import Allocation, Observation, Window
from igniterd.state.history import KEEP_S, RECENT, SAMPLE_EVERY_S, SCHEMA, History

SMALL, LARGE = Allocation(0.2, 8), Allocation(0.4, 8)


def tick(at_s: float, outcome: DecisionKind = DecisionKind.HOLD) -> Tick:
    return Tick(
        int(at_s),
        at_s,
        1000 + at_s,
        Observation(at_s),
        Window(at_s, 1.0),
        Estimate(at_s),
        Plan(at_s, outcome, "because"),
        ActResult(),
    )


def rows(path: Path) -> list[tuple]:
    with sqlite3.connect(path) as connection:
        return connection.execute(
            "SELECT time_s, outcome, why, moved, state FROM tick ORDER BY time_s"
        ).fetchall()


def test_keeps_changes_of_mind_and_a_sample_a_minute(tmp_path: Path) -> None:
    history = History(tmp_path / "state" / "history.db")
    for second in range(int(SAMPLE_EVERY_S) + 5):
        outcome = DecisionKind.WAIT if second == 20 else DecisionKind.HOLD
        history.record(tick(float(second), outcome), partial(dict, second=second))
    history.close(60.0)  # a busy disk
    kept = rows(tmp_path / "state" / "history.db")
    assert [json.loads(row[4])["second"] for row in kept] == [0, 20, 21]
    assert kept[1][:4] == (1020.0, "wait", "because", 0)


def test_keeps_what_a_rebalance_changed(tmp_path: Path) -> None:
    history, change = History(tmp_path / "history.db"), Rebalanced(SMALL, LARGE)
    for second in range(4):
        changed = {"m": change} if second == 2 else {}
        history.record(replace(tick(float(second)), rebalanced=changed), partial(dict, at=second))
    history.close(60.0)  # a busy disk
    kept = [(json.loads(row[4])["at"], row[3]) for row in rows(tmp_path / "history.db")]
    assert kept == [(0, 0), (2, 1)]


def test_a_disk_that_refuses_costs_no_tick_and_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    history = History(tmp_path / "state" / "history.db")
    history.record(tick(0.0), lambda: {})
    history.record(replace(tick(1.0), plan=Plan(1.0, DecisionKind.MOVE, "why")), lambda: {})
    history.close(60.0)  # a busy disk
    assert capsys.readouterr().out.count("history is not written") == 1


def test_a_clock_that_jumps_ahead_for_a_while_does_not_empty_the_history(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db")
    for second in range(6):
        year_s = 366 * 86_400.0 if second == 3 else 0.0
        outcome = DecisionKind.WAIT if second % 2 else DecisionKind.HOLD
        history.record(
            replace(tick(float(second), outcome), wall_time_s=1000.0 + second + year_s), lambda: {}
        )
    history.close(60.0)  # a busy disk
    assert len(rows(tmp_path / "history.db")) == 6


def test_after_a_month_it_is_forgotten(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db")
    for number in range(RECENT + 20):
        outcome = DecisionKind.WAIT if number % 2 else DecisionKind.HOLD
        month_s = KEEP_S + 1000.0 if number >= 20 else 0.0
        history.record(
            replace(tick(float(number), outcome), wall_time_s=1000.0 + number + month_s), lambda: {}
        )
    history.close(60.0)  # a busy disk
    assert len(rows(tmp_path / "history.db")) == RECENT


def test_a_file_that_is_no_database_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history.db").write_bytes(b"somebody else's file, long enough to be looked at" * 50)
    history = History(tmp_path / "history.db")
    for second in range(3):
        history.record(
            tick(float(second), DecisionKind.WAIT if second % 2 else DecisionKind.HOLD), lambda: {}
        )
    history.close(60.0)  # a busy disk
    assert len(rows(tmp_path / "history.db")) == 2
    assert (tmp_path / "history.db.unreadable").read_bytes().startswith(b"somebody else's")
    said = capsys.readouterr().out
    assert said.count("history is not written") == said.count("history is written again") == 1


def test_a_database_with_another_table_is_set_aside(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "history.db") as connection:
        connection.execute("CREATE TABLE tick (time_s REAL, somebody TEXT)")
    connection.close()
    history = History(tmp_path / "history.db")
    for second in range(3):
        history.record(
            tick(float(second), DecisionKind.WAIT if second % 2 else DecisionKind.HOLD), lambda: {}
        )
    history.close(60.0)  # a busy disk
    assert len(rows(tmp_path / "history.db")) == 2
    assert (tmp_path / "history.db.unreadable").exists()


def has_room(waiting: queue.Queue[object]) -> bool:
    """As told by whoever holds its lock."""
    return len(waiting.queue) < waiting.maxsize


def filled(path: Path, count: int, limit: int, row: str = "x" * 10_000) -> History:
    """A history that was told of as many decisions, each of the size of ``row``."""
    history = History(path, limit)
    for number in range(count):
        with history._queue.not_full:
            assert history._queue.not_full.wait_for(partial(has_room, history._queue), 60.0)
        history.record(
            tick(float(number), DecisionKind.WAIT if number % 2 else DecisionKind.HOLD),
            lambda: {"models": row},
        )
    history.close(60.0)
    return history


def test_it_stays_below_its_limit_and_the_oldest_go_first(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    filled(path, 800, 2_000_000)
    assert path.stat().st_size <= 2_000_000 * 1.1
    kept = [row[0] for row in rows(path)]
    assert len(kept) > 100, "and no more than that goes"
    assert kept == [1000.0 + number for number in range(800 - len(kept), 800)]


def test_a_limit_that_is_lowered_is_kept_by_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    filled(path, 600, 50_000_000)
    assert path.stat().st_size > 4_000_000
    filled(path, 30, 1_000_000)
    assert path.stat().st_size <= 1_000_000 * 1.1
    assert rows(path)[-1][0] == 1029.0 or len(rows(path)) > 30


@pytest.mark.parametrize("limit", [1_000_000, 6_000_000])
def test_a_file_of_an_older_igniterd_shrinks_too(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "history.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA.replace("PRAGMA auto_vacuum = INCREMENTAL;", ""))
        connection.executemany(
            "INSERT INTO tick VALUES (?, 'hold', 'why', 0, ?)",
            [(float(n), "x" * 10_000) for n in range(800)],
        )
    connection.close()
    assert path.stat().st_size > 8_000_000
    filled(path, 10, limit)
    assert path.stat().st_size <= limit * 1.1
    assert len(rows(path)) > limit / 20_000


def test_one_row_above_the_limit_stays(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    filled(path, 3, 1_000_000, row="x" * 3_000_000)
    assert [row[0] for row in rows(path)] == [1002.0]


def test_another_reader_holds_up_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    filled(path, 50, 50_000_000)
    with sqlite3.connect(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM tick").fetchone()
        History(path).close()
