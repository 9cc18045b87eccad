"""What was decided and done, kept in SQLite: every change, every decision that changed, and a
sample a minute, for a month, or for as long as the file's limit allows.

Writing happens on a thread of its own, behind a bounded queue: a slow or full disk costs history,
never a tick.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from igniterd.decisions import Tick
from igniterd.edgelog import EdgeLogger
from igniterd.errors import Refused
from igniterd.files import make_folder

SAMPLE_EVERY_S = 60.0
KEEP_S = 31 * 86_400
RECENT = 100
"""Of the latest rows the earliest says what month it is: a clock that is wrong for an hour must not
empty the history."""
FORGET_ROWS = 100
"""Oldest rows that go at once, and in how many goes after a row is written: few at a time, so that
the queue is not kept waiting."""
FORGET_GOES = 20
FORGET_PAGES = 2000
LIMIT_BYTES = 512_000_000
SCHEMA = """
PRAGMA auto_vacuum = INCREMENTAL;
CREATE TABLE IF NOT EXISTS tick
  (time_s REAL NOT NULL, outcome TEXT NOT NULL, why TEXT NOT NULL, moved INTEGER NOT NULL, state TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS tick_time ON tick (time_s);
"""  # noqa: E501
FORGET = (
    "DELETE FROM tick WHERE time_s < (SELECT min(time_s) FROM (SELECT time_s FROM tick "
    "ORDER BY rowid DESC LIMIT ?)) - ?"
)
COLUMNS = ["time_s", "outcome", "why", "moved", "state"]
OLDEST = "DELETE FROM tick WHERE rowid IN (SELECT rowid FROM tick ORDER BY rowid LIMIT ?)"


class History:
    """``history.db`` of one host. ``record`` never waits; ``close`` writes what is queued, within
    ``timeout_s``."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(maxsize=1000)
        self._sampled_s = float("-inf")
        self._last = ""
        self._made_anew = False
        self._log = structlog.get_logger("igniterd.state.history")
        self._once, self._where = EdgeLogger("history"), {"path": str(path)}
        self._thread = threading.Thread(target=self._write, name="history", daemon=True)
        self._thread.start()

    def record(self, tick: Tick, state: Callable[[], dict[str, Any]]) -> None:
        """Keep ``tick`` if it is worth keeping, with the ``state`` it gives."""
        moved = bool(tick.outcome.actuations or tick.rebalanced)
        changed = tick.plan.outcome.value != self._last
        if not (moved or changed or tick.at_s - self._sampled_s >= SAMPLE_EVERY_S):
            return
        self._last, self._sampled_s = tick.plan.outcome.value, tick.at_s
        try:
            self._queue.put_nowait(
                (
                    tick.wall_time_s,
                    tick.plan.outcome.value,
                    tick.plan.why,
                    int(moved),
                    json.dumps(state()),
                )
            )
        except queue.Full:
            self._failed("the disk does not keep up")

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued and stop."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _failed(self, reason: str) -> None:
        self._once.failed("write", reason, says="history is not written", more=self._where)

    def _set_aside(self) -> None:
        """A file that SQLite cannot read makes room for a new one, and stays for whoever wants to
        look."""
        aside = self.path.with_name(f"{self.path.name}.unreadable")
        with contextlib.suppress(OSError):
            self.path.replace(aside)
            self._log.warning("begun anew", path=str(self.path), before=str(aside))

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Let the oldest rows go while there is more than the limit, and give their pages back."""

        def pragma(name: str) -> int:
            return int(connection.execute(f"PRAGMA {name}").fetchone()[0])

        size = pragma("page_size")
        for _ in range(FORGET_GOES):
            if (pragma("page_count") - pragma("freelist_count")) * size <= self.limit_bytes:
                break
            with connection:
                rows = connection.execute(
                    "SELECT count(*) FROM (SELECT 1 FROM tick LIMIT ?)", (FORGET_ROWS,)
                ).fetchone()[0]
                if rows < 2:  # the one just written stays, whatever its size
                    return
                connection.execute(OLDEST, (min(FORGET_ROWS, rows // 2),))
        if pragma("page_count") * size <= self.limit_bytes:
            return
        if pragma("auto_vacuum"):
            # a script: a statement without columns would be stepped once, which is one page
            connection.executescript(f"PRAGMA incremental_vacuum({FORGET_PAGES})")
        elif (
            pragma("page_count") - pragma("freelist_count")
        ) * size <= self.limit_bytes and not self._made_anew:
            # the file of an older igniterd; once, for it wants as much disk again
            self._made_anew = True
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")

    def _write(self) -> None:
        connection: sqlite3.Connection | None = None
        while (row := self._queue.get()) is not None:
            try:
                if connection is None:
                    make_folder(self.path.parent)
                    connection = sqlite3.connect(self.path, timeout=1.0)
                    connection.executescript(SCHEMA)
                    if [row[1] for row in connection.execute("PRAGMA table_info(tick)")] != COLUMNS:
                        raise sqlite3.DatabaseError("its table tick is not igniterd's")
                with connection:
                    connection.execute("INSERT INTO tick VALUES (?, ?, ?, ?, ?)", row)
                    connection.execute(FORGET, (RECENT, KEEP_S))
                self._shrink(connection)
            except (sqlite3.Error, OSError, Refused) as error:
                self._failed(str(error))
                if connection is not None:
                    connection.close()
                    connection = None
                # no database, or a damaged one: waiting would not mend it
                if type(error) is sqlite3.DatabaseError:
                    self._set_aside()
            else:
                self._once.worked("write", says="history is written again", more=self._where)
        if connection is not None:
            connection.close()
