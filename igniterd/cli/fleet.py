"""``igniterd fleet``: the cluster's view."""

from __future__ import annotations

import typer

from igniterd.cli.fleet_apply import register_apply


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    group = typer.Typer(help="A cluster's hosts together.", no_args_is_help=True)
    register_apply(group)
    app.add_typer(group, name="fleet")
