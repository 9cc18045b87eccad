"""``igniterd run``: the daemon."""

from __future__ import annotations

from pathlib import Path

import typer

CONFIG = typer.Option(Path("/etc/igniterd/igniterd.toml"), "--config", "-c", help="Configuration file.")


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""

    @app.command()
    def run(
        config: Path = CONFIG,
        mode: str = typer.Option("", help="observe, advise or act: overrides loop.mode of the file."),
        log_format: str = typer.Option("auto", help="text, json, or auto: text on a terminal."),
    ) -> None:
        """Run the daemon until SIGTERM or SIGINT. What it has applied goes on serving."""
        import asyncio

        from igniterd.cli.common import cannot, configured, log_to_stderr

        settings = configured(config)
        if mode:
            if mode not in ("observe", "advise", "act"):
                raise typer.BadParameter(f"{mode!r} should be observe, advise or act", param_hint="--mode")
            settings = settings.model_copy(update={"loop": settings.loop.model_copy(update={"mode": mode})})
        log_to_stderr(log_format)
        with cannot():
            from igniterd.daemon import Daemon

            async def serve() -> None:
                await Daemon(settings).run()

            asyncio.run(serve())
