"""``igniterd run``: the daemon."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from igniterd.config import Config
    from igniterd.daemon import Daemon

LEAVE_S = 1.0
# objects made and not dropped: a tick makes and drops thousands, none of them in circles
GARBAGE_EVERY = 20_000
CONFIG = typer.Option(
    Path("/etc/igniterd/igniterd.toml"),
    "--config",
    "-c",
    metavar="FILE",
    help="Configuration file.",
)


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""

    @app.command(short_help="The daemon, until it is told to stop.")
    def run(
        config: Path = CONFIG,
        mode: str = typer.Option(
            "", metavar="MODE", help="observe, advise or act: overrides loop.mode of the file."
        ),
        log_format: str = typer.Option(
            "auto", metavar="FORMAT", help="text, json, or auto: text on a terminal."
        ),
    ) -> None:
        """Run the daemon until SIGTERM or SIGINT; SIGHUP reads the configuration again. What it has
        applied goes on serving."""
        import asyncio

        from igniterd.cli.common import cannot, configured, log_to_stderr
        from igniterd.config import load_config

        if mode not in ("", "observe", "advise", "act"):
            raise typer.BadParameter(
                f"{mode!r} should be observe, advise or act", param_hint="--mode"
            )
        settings = _in_mode(configured(config), mode)
        log_to_stderr(log_format)
        _say_exposed(settings, config)
        with cannot():
            from igniterd.daemon import Daemon

            def read_again() -> Config:
                changed = _in_mode(load_config(config), mode)
                _say_exposed(changed, config)
                return changed

            # from a terminal that is closed SIGHUP means the end, as for every program
            reread = None if sys.stderr.isatty() else read_again
            early = threading.Event()
            # one that comes before the daemon listens must not end it, nor be lost
            if reread is not None:
                signal.signal(signal.SIGHUP, lambda *_: early.set())
            # made outside the event loop: there a Ctrl-C ends what takes long, reading profiles and
            # compiling, at once
            daemon = Daemon(settings, reread=reread)
            gc.collect()
            # what starting has made stays: looking through all of it again and again would be a
            # tenth of a tick
            gc.freeze()
            gc.set_threshold(GARBAGE_EVERY)
            asyncio.run(_served(daemon, early))


def _say_exposed(settings: Config, path: Path) -> None:
    import structlog

    from igniterd.exposed import exposed

    for said in exposed(settings, path):
        structlog.get_logger("igniterd").warning("a secret can be read by others", reason=said)


def _in_mode(config: Config, mode: str) -> Config:
    return (
        config.model_copy(update={"loop": config.loop.model_copy(update={"mode": mode})})
        if mode
        else config
    )


async def _served(daemon: Daemon, early: threading.Event) -> None:
    """The daemon's run, and no more than ``LEAVE_S`` for what Python waits for after it without a
    deadline: threads inside a name look-up or a TLS handshake, tasks that swallow their
    cancellation. A SIGHUP that came ``early`` is heard once the daemon listens to it itself."""
    import asyncio

    asyncio.get_running_loop().call_soon(lambda: daemon.rereading.set() if early.is_set() else None)
    await daemon.run()
    leaving = threading.Timer(LEAVE_S, os._exit, (0,))
    leaving.daemon = True
    leaving.start()
