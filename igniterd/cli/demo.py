"""``igniterd demo``: the daemon moving a real Triton on an emulated GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from igniterd.demo.recording import Recording
    from igniterd.demo.scenario import Scenario
    from igniterd.demo.terminal import DemoConsole
    from igniterd.lab.load.load import RequestLog


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""

    @app.command(short_help="All of it at work on this machine, no GPU needed.")
    def demo(
        folder: Path = typer.Option(
            Path(".demo"), "--folder", metavar="FOLDER", help="Where everything of the run is kept."
        ),
        gpus: int = typer.Option(
            1,
            "--gpus",
            min=1,
            max=2,
            help="With 2, traffic shifts to more than one GPU holds, and a model is moved.",
        ),
        seed: int = typer.Option(
            1, min=0, help="Another one gives other arrivals and service times."
        ),
        frozen: bool = typer.Option(
            False,
            "--frozen",
            help="Also play the shifted traffic with the plan standing still (a minute more).",
        ),
        keep: bool = typer.Option(
            False, "--keep", help="Go on running after the last phase, until Ctrl-C."
        ),
        picture: Path | None = typer.Option(
            None, "--picture", metavar="FILE.svg", help="Also write the timeline as a picture."
        ),
        redraw: bool = typer.Option(
            False, "--redraw", help="Play nothing: draw the last run in the folder again."
        ),
    ) -> None:
        """Show igniterd at work on this machine, no GPU needed (about three minutes): real
        tritonserver, emulated V100s."""
        from igniterd.cli.common import cannot
        from igniterd.cli.wording import picture_path
        from igniterd.demo.scenario import paper, two_gpus
        from igniterd.demo.terminal import DemoConsole

        console = DemoConsole()
        with cannot():
            picture_path("--picture", picture, ".svg")
            if redraw:
                recording, log = _last(folder.resolve())
                wrong = _shown(console, recording, log, folder.resolve(), picture)
            else:
                play = two_gpus if gpus > 1 else paper
                wrong = _played(
                    console, folder, play(frozen=frozen, seed=seed), keep=keep, picture=picture
                )
        raise typer.Exit(1 if wrong else 0)


def _played(
    console: DemoConsole, folder: Path, scenario: Scenario, *, keep: bool, picture: Path | None
) -> list[str]:
    """Play and show; what is not as it should be."""
    import asyncio

    from igniterd.demo.environment import workplace
    from igniterd.demo.runner import play

    wrong: list[str] = []
    shown = False
    with workplace(folder) as place:

        def show(recording: Recording, log: RequestLog) -> None:
            nonlocal shown
            shown = True
            wrong.extend(_shown(console, recording, log, place, picture))

        try:
            asyncio.run(play(scenario, place, console, show, keep=keep))
        except (KeyboardInterrupt, asyncio.CancelledError) as reason:
            console.quiet()
            console.say("told to stop: everything that was started is stopped")
            if not keep or wrong or not shown:
                raise typer.Exit(130 if isinstance(reason, KeyboardInterrupt) else 143) from None
    return wrong


def _last(folder: Path) -> tuple[Recording, RequestLog]:
    from igniterd.demo.recording import REQUESTS, Recording
    from igniterd.lab.load.load import RequestLog

    return Recording.load(folder), RequestLog.read(folder / REQUESTS)


def _shown(
    console: DemoConsole, recording: Recording, log: RequestLog, folder: Path, picture: Path | None
) -> list[str]:
    """Tables, page and picture; what is not as it should be."""
    from igniterd.demo.measure import figures, problems
    from igniterd.demo.page import Page
    from igniterd.demo.terminal import ending, tables

    results = figures(log, recording)
    wrong = problems(log, recording, results)
    page = Page(recording, log, results, wrong)
    where = folder / "index.html"
    where.write_text(page.html(), encoding="utf-8")
    if picture is not None:
        picture.write_text(page.timeline.svg() + "\n", encoding="utf-8")
    tables(console.console, recording, results)
    ending(console.console, recording, wrong, where)
    return wrong
