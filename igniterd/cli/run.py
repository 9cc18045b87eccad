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
    from igniterd.daemon import Daemon, Fresh

LEAVE_S = 1.0
GARBAGE_EVERY = 20_000  # objects made and not dropped: a tick makes and drops thousands, none of them in circles
CONFIG = typer.Option(Path("/etc/igniterd/igniterd.toml"), "--config", "-c", metavar="FILE", help="Configuration file.")


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""

    @app.command(short_help="The daemon, until it is told to stop.")
    def run(
        config: Path = CONFIG,
        mode: str = typer.Option("", metavar="MODE", help="observe, advise or act: overrides loop.mode of the file."),
        log_format: str = typer.Option("auto", metavar="FORMAT", help="text, json, or auto: text on a terminal."),
    ) -> None:
        """Run the daemon until SIGTERM or SIGINT; SIGHUP reads the configuration again. What it has applied goes on serving."""
        import asyncio

        from igniterd.cli.common import cannot, configured, log_to_stderr
        from igniterd.config import load_config

        if mode not in ("", "observe", "advise", "act"):
            raise typer.BadParameter(f"{mode!r} should be observe, advise or act", param_hint="--mode")
        settings = _in_mode(configured(config), mode)
        log_to_stderr(log_format)
        _say_exposed(settings, config)
        with cannot():
            from igniterd.daemon import Daemon

            def read_again() -> Config:
                return _in_mode(load_config(config), mode)

            # from a terminal that is closed SIGHUP means the end, as for every program
            reread = None if sys.stderr.isatty() else read_again
            _deaf_to_hangups(reread is not None)
            # made outside the event loop: there a Ctrl-C ends what takes long, reading profiles and compiling, at once
            daemon = Daemon(settings, reread=reread)
            gc.collect()
            gc.freeze()  # what starting has made stays: looking through all of it again and again would be a tenth of a tick
            gc.set_threshold(GARBAGE_EVERY)
            while (fresh := asyncio.run(_served(daemon))) is not None:
                _deaf_to_hangups(reread is not None)  # the loop that ended has put the default back, which is to die
                daemon = Daemon(fresh.config, knowledge=fresh.knowledge, carry=fresh.carry, reread=reread)


def _say_exposed(settings: Config, path: Path) -> None:
    import structlog

    from igniterd.exposed import exposed

    for said in exposed(settings, path):
        structlog.get_logger("igniterd").warning("a secret can be read by others", reason=said)


def _deaf_to_hangups(yes: bool) -> None:
    """While nobody listens to SIGHUP it must not end the daemon: systemd takes that for a clean end and starts no other."""
    if yes:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _in_mode(config: Config, mode: str) -> Config:
    return config.model_copy(update={"loop": config.loop.model_copy(update={"mode": mode})}) if mode else config


async def _served(daemon: Daemon) -> Fresh | None:
    """The daemon's run, and no more than ``LEAVE_S`` for what Python waits for after it without a deadline: threads inside a name
    look-up or a TLS handshake, tasks that swallow their cancellation."""
    fresh = await daemon.run()
    if fresh is None:
        leaving = threading.Timer(LEAVE_S, os._exit, (0,))
        leaving.daemon = True
        leaving.start()
    return fresh
