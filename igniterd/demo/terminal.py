"""What the demo says in the terminal while it works and at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from igniterd.demo.measure import Figures
from igniterd.demo.recording import Move, PhaseResult, Recording

_LINE_EVERY_S = 5.0


class DemoConsole:
    """Progress in sentences: a line for everything that is done, and what is going on now below
    them (a line now and then without a terminal)."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._began_s = time.monotonic()
        self._status: Status | None = None
        self._said_s = float("-inf")

    def say(self, text: str, style: str = "") -> None:
        """One line, with the seconds since the start."""
        at = f"[dim]{time.monotonic() - self._began_s:5.0f} s[/]  "
        self.console.print(
            at + (f"[{style}]{escape(text)}[/]" if style else escape(text)),
            highlight=False,
            soft_wrap=True,
        )

    def now(self, text: str) -> None:
        """What is going on at this moment."""
        if not self.console.is_terminal:
            if time.monotonic() - self._said_s >= _LINE_EVERY_S:
                self._said_s = time.monotonic()
                self.say(text, "dim")
            return
        if self._status is None:
            self._status = self.console.status("")
            self._status.start()
        self._status.update(f"{time.monotonic() - self._began_s:4.0f} s  {escape(text)}")

    def quiet(self) -> None:
        """Nothing is going on."""
        self._said_s = float("-inf")
        if self._status is not None:
            self._status.stop()
            self._status = None


def describe_move(move: Move) -> str:
    """A change in one sentence."""
    what = f"{move.model}: {'' if not move.relocates else f'{gpus_of(move)}, '}"
    what += f"{move.before} -> {move.after}"
    return (
        f"{what} ({move.kind}, {move.duration_s:.1f} s)"
        if move.ok
        else f"{what} REFUSED: {move.error}"
    )


def gpus_of(move: Move, arrow: str = "->") -> str:
    """Where a model is, and where it is moved to; empty where its server knows of no GPU."""
    here, there = (f"GPU {each.gpu}" for each in (move.before, move.after))
    if move.before.gpu is None and move.after.gpu is None:
        return ""
    return f"{here} {arrow} {there}" if move.relocates else here


def reason(move: Move) -> str:
    """Why, without what was changed, which the daemon's sentence says first."""
    what, _, why = move.why.partition(": ")
    changed = " -> " in what or move.relocates
    return why if changed and why else move.why


def progress(
    phase: str, left_s: float, line: Mapping[str, Any] | None, slos_ms: Mapping[str, float]
) -> str:
    """The generator's last second against the SLOs."""
    left = "until you stop it (Ctrl-C)" if math.isinf(left_s) else f"{left_s:.0f} s to go"
    if line is None:
        return f"{phase}, {left}"
    parts = []
    for model, slo in slos_ms.items():
        seen = line["models"].get(model)
        value = "-" if not seen or seen["p99_ms"] is None else f"{seen['p99_ms']:.0f}"
        parts.append(f"{model} {value}/{slo:.0f} ms")
    return f"{phase}, {left}: P99 of the last second {', '.join(parts)}; {line['failed']} failed"


def ms(value: float) -> str:
    """Milliseconds for people."""
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def tables(console: Console, recording: Recording, results: Sequence[Figures]) -> None:
    """Every phase: its figures, and what igniterd changed and why."""
    console.print(
        "\nLatency from the moment a request was due, in the measured part of each phase",
        style="dim",
    )
    for phase in recording.phases:
        console.print()
        console.print(_table(phase, [r for r in results if r.phase == phase.key]))
        _changes(console, recording, phase)
    console.print()


def _table(phase: PhaseResult, results: Sequence[Figures]) -> Table:
    how = {None: "no daemon", "observe": "the daemon watches"}.get(phase.mode, "the daemon acts")
    title = f"[bold]{escape(phase.title)}[/] ({how}, {phase.end_s - phase.measured_s:.0f} s)"
    table = Table(
        title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("model")
    for name in ("offered/s", "requests", "P50 ms", "P99 ms", "SLO ms", "in SLO", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results:
        colour = "green" if row.held else "red"
        table.add_row(
            row.model,
            f"{row.rate_per_s:.1f}",
            f"{row.requests:,}",
            ms(row.p50_ms),
            f"[{colour}]{ms(row.p99_ms)}[/]",
            f"{row.slo_ms:g}",
            f"{row.attainment:.2%}",
            f"[red]{row.failed}[/]" if row.failed else "0",
        )
    return table


def _changes(console: Console, recording: Recording, phase: PhaseResult) -> None:
    moves = [m for m in recording.moves if phase.begin_s <= m.at_s < phase.end_s]
    if not moves:
        return
    for move in moves:
        line = escape(f"  +{move.at_s - phase.begin_s:.0f} s  {describe_move(move)}")
        why = escape(recording.said(reason(move)))
        console.print(f"{line}\n      [dim]{why}[/]", highlight=False, soft_wrap=True)


def ending(console: Console, recording: Recording, problems: Sequence[str], page: Path) -> None:
    """The verdict, and where to look next."""
    for note in recording.notes:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(f"page: [bold]{escape(page.as_uri())}[/]", highlight=False, soft_wrap=True)
    if problems:
        for problem in problems:
            console.print(
                f"[red]not as it should be[/] {escape(problem)}", highlight=False, soft_wrap=True
            )
    else:
        console.print(
            "[green]every P99 within its SLO after settling, and no request failed[/]",
            highlight=False,
        )
