"""``igniterd fleet``: the few moves after which every SLO of a cluster holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from igniterd.cli.fleet_apply import register_apply

if TYPE_CHECKING:
    from igniterd.fleet.config import FleetConfig
    from igniterd.fleet.once import Looked

HELP = """Read what the daemons of a cluster say over MQTT, and say which models are to move: the
fewest moves after which every SLO holds, or fewer GPUs. Advice: nothing is carried out."""

app = typer.Typer(name="fleet", help=HELP, invoke_without_command=True, rich_markup_mode=None)
register_apply(app)


def register(root: typer.Typer) -> None:
    """Add the verb to ``root``."""
    root.add_typer(app, short_help="The fewest moves that make every host of a cluster feasible.")


@app.callback()
def fleet(
    context: typer.Context,
    broker: Annotated[
        str, typer.Option(metavar="URL", help="The broker, mqtt:// or mqtts://host[:port].")
    ] = "",
    cluster: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A cluster, as [host] cluster names it; repeatable."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Configuration; options win over it."),
    ] = None,
    username: Annotated[str, typer.Option(metavar="NAME", help="User at the broker.")] = "",
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the user's password.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who signs the broker's certificate (PEM).")
    ] = None,
    cert_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Own certificate (PEM), with --key-file.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of the own certificate (PEM).")
    ] = None,
    consolidate: Annotated[
        bool | None,
        typer.Option(
            "--consolidate", help="Also empty GPUs, as consolidate of the configuration does."
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Read what the broker has, plan, print, and end.")
    ] = False,
    form: Annotated[
        Literal["table", "json"],
        typer.Option("--format", help="Of --once: for people, or JSON, a line a cluster."),
    ] = "table",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Of --once: GPUs before and after as a picture."),
    ] = None,
    deadline_s: Annotated[
        float, typer.Option("--deadline", metavar="S", min=1.0, help="Of --once: longest wait.")
    ] = 20.0,
    log_format: Annotated[
        str, typer.Option(metavar="FORMAT", help="text, json, or auto: text on a terminal.")
    ] = "auto",
) -> None:
    if context.invoked_subcommand is not None:
        return
    from igniterd.cli.common import cannot, log_to_stderr

    if (plot is not None or form != "table") and not once:
        raise typer.BadParameter("is of --once", param_hint="--plot" if plot else "--format")
    log_to_stderr(log_format)
    options: dict[str, dict[str, Any]] = {
        "broker": {
            "url": broker,
            "username": username,
            "password_file": password_file,
            "ca_file": ca_file,
            "cert_file": cert_file,
            "key_file": key_file,
        },
        "fleet": {"clusters": cluster, "consolidate": consolidate},
    }
    with cannot():
        if once:
            _print_once(_settings(config, options), form, plot, deadline_s)
        else:
            _serve(lambda: _settings(config, options))


def _settings(path: Path | None, options: dict[str, dict[str, Any]]) -> FleetConfig:
    from igniterd.fleet.config import load_fleet_config

    given = {
        section: {key: value for key, value in values.items() if value not in (None, "", [])}
        for section, values in options.items()
    }
    return load_fleet_config(path, {section: values for section, values in given.items() if values})


def _serve(read: Callable[[], FleetConfig]) -> None:
    import asyncio
    import os
    import signal
    import threading

    settings, early = read(), threading.Event()
    # from a terminal that is closed SIGHUP means the end, as for every program
    reread = None if sys.stderr.isatty() else read
    # one that comes before the service listens must not end it, nor be lost
    if reread is not None:
        signal.signal(signal.SIGHUP, lambda *_: early.set())
    from igniterd.cli.run import LEAVE_S
    from igniterd.fleet.service import FleetService

    async def served() -> None:
        service = FleetService(settings, reread=reread)
        running = asyncio.get_running_loop()
        running.call_soon(lambda: service.rereading.set() if early.is_set() else None)
        await service.run()
        # a plan under way, or a look-up of a name, must not keep it
        leaving = threading.Timer(LEAVE_S, os._exit, (0,))
        leaving.daemon = True
        leaving.start()

    asyncio.run(served())


def _print_once(settings: FleetConfig, form: str, plot: Path | None, deadline_s: float) -> None:
    import asyncio

    from igniterd.errors import CannotRun
    from igniterd.fleet.once import look
    from igniterd.fleet.parts import real_parts
    from igniterd.fleet.sections import ALL

    clusters = settings.fleet.clusters
    if ALL in clusters:
        raise CannotRun("--once wants the names of clusters, not '+'")
    if plot is not None and len(clusters) > 1:
        raise CannotRun("--plot shows one cluster: give one --cluster")
    parts = real_parts(anywhere=settings.fleet.anywhere)
    for cluster in clusters:
        looked = asyncio.run(look(settings, cluster, parts, deadline_s=deadline_s))
        _print(looked, form)
        if plot is not None:
            from igniterd.cli.fleet_plot import plot_rebalance

            plot_rebalance(looked.cluster, looked.document, plot)
            print(f"wrote {plot}", file=sys.stderr)


def _print(looked: Looked, form: str) -> None:
    if form == "json":
        from igniterd.jsontext import dumps

        print(dumps(looked.document))
        return
    from igniterd.cli.common import shown
    from igniterd.cli.fleet_table import rebalance_tables

    shown(*rebalance_tables(looked.document, looked.troubles))
