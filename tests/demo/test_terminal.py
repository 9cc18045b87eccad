"""What is said in the terminal."""

import io
import math
from pathlib import Path

from rich.console import Console

from igniterd.demo.measure import figures, problems
from igniterd.demo.recording import Move
from igniterd.demo.terminal import (
    DemoConsole,
    describe_move,
    ending,
    gpus_of,
    ms,
    progress,
    reason,
    tables,
)
from tests.demo.runs import BARE, GIVEN, NEW, OLD, SLOS, log, on_two, recording


def console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def said(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def move(**other: object) -> Move:
    first = Move(
        at_s=0,
        model="alexnet",
        kind="shrink",
        before=BARE,
        after=GIVEN,
        ok=True,
        duration_s=1.5,
        why="",
    )
    return first.model_copy(update=other)


def test_the_tables_fit_a_narrow_terminal() -> None:
    on, seen, run = console(), log(slow={"vgg19": 1300.0}), recording()
    tables(on, run, figures(seen, run))
    text = said(on)
    assert "…" not in text
    assert "1,300" in text and "0.00%" in text
    assert "alexnet: no share, batch 8 -> 25.0%, batch 4, waits 1.5 ms" in text
    assert "at <20>/s" in text


def test_a_move_to_another_gpu_is_told_as_one() -> None:
    on, run = console(), on_two()
    tables(on, run, figures(log(), run))
    assert "vgg19: GPU 0 -> GPU 1, 50.0%, batch 8 -> 75.0%, batch 6 (relocate, 2.5 s)" in said(on)
    assert "      vgg19 to GPU 1 relieves GPU 0" in said(on)
    assert "GPU-" not in said(on)
    refused = move(before=OLD, after=NEW, ok=False, error="no memory")
    assert "GPU 0 -> GPU 1" in describe_move(refused) and "REFUSED" in describe_move(refused)
    assert [gpus_of(move()), gpus_of(move(before=OLD, after=OLD))] == ["", "GPU 0"]


def test_the_end_says_where_the_page_is_and_what_is_wrong(tmp_path: Path) -> None:
    on, run = console(200), recording(notes=["short of CPU"])
    good, bad = log(), log(slow={"vgg19": 300.0})
    ending(on, run, problems(good, run, figures(good, run)), tmp_path / "index.html")
    assert (
        f"file://{tmp_path}/index.html" in said(on)
        and "no request failed" in said(on)
        and "short of CPU" in said(on)
    )
    ending(on, run, problems(bad, run, figures(bad, run)), tmp_path / "index.html")
    assert "not as it should be" in said(on) and "P99 of vgg19 is 300.0 ms" in said(on)


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    on = console()
    teller = DemoConsole(on)
    for left in range(50):
        teller.now(f"{left} s to go")
    assert said(on).count("to go") == 1
    teller.quiet()
    teller.now("at once again")
    assert "at once again" in said(on)


def test_changes_and_reasons_in_words() -> None:
    assert describe_move(move()).endswith("(shrink, 1.5 s)")
    assert describe_move(move(ok=False, error="no memory")).endswith("REFUSED: no memory")
    assert (
        reason(move(why="no share, batch 8 -> 25.0%, batch 4: at 20/s P99 9 ms -> 8 ms"))
        == "at 20/s P99 9 ms -> 8 ms"
    )
    assert reason(move(why="mean latency 9 ms: taken back")) == "mean latency 9 ms: taken back"


def test_the_last_second_in_words() -> None:
    line = {"models": {"alexnet": {"p99_ms": 31.4}, "vgg19": {"p99_ms": None}}, "failed": 2}
    assert (
        progress("measuring", 12.3, line, SLOS)
        == "measuring, 12 s to go: P99 of the last second alexnet 31/60 ms, vgg19 -/240 ms; 2 "
        "failed"
    )
    assert progress("settling", 3.0, None, SLOS) == "settling, 3 s to go"
    for line_now in (None, line):
        assert "inf" not in progress("running on", math.inf, line_now, SLOS)
        assert "until you stop it" in progress("running on", math.inf, line_now, SLOS)


def test_milliseconds() -> None:
    assert [ms(x) for x in (math.nan, math.inf, 31.44, 1234.5)] == ["-", "never", "31.4", "1,234"]
