"""``igniterd release`` gives models back to their owner, ``igniterd take`` takes them again."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from igniterd.cli.adopt import Format, Models, Url, each, end, tenants_of
from igniterd.cli.common import cannot, configured
from igniterd.cli.wording import names, one_of
from igniterd.errors import CannotRun

if TYPE_CHECKING:
    from igniterd.adopt_compare import Adoption
    from igniterd.clients.triton.client import TritonClient
    from igniterd.config import Config, Triton

_MOST_WAIT_S = 10.0
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The daemon's configuration: where Triton is, and [state] directory.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add both verbs to ``app``."""
    app.command(name="release", short_help="Give models back as their owner's files have them.")(
        release
    )
    app.command(name="take", short_help="Let igniterd steer released models again.")(take)


def release(
    models: Models = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="Every model with something of igniterd's on it, configured or not."
        ),
    ] = False,
    config: ConfigFile = None,
    url: Url = None,
    form: Format = "table",
) -> None:
    """Give each MODEL back as its owner's files have it, by one reload: no request fails.

    Its share, batching and process of its own go, whichever igniterd gave them. A running daemon
    leaves it alone from then on, until igniterd take MODEL; it must be told with --config. For
    good: the parameter IGNITERD_HANDS_OFF in the model's own config.pbtxt. Exit status 1 when one
    was not.
    """
    one_of("--format", form, "table", "json")
    if every == bool(models):
        raise typer.BadParameter("name models to release, or give --all", param_hint="MODEL")
    names(models or [])
    with cannot():
        settings = None if config is None else configured(config)
        end(*asyncio.run(_released(models, settings, url)), form)


def take(
    models: Models = None,
    every: Annotated[bool, typer.Option("--all", help="Every model that was released.")] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="The daemon's configuration."),
    ] = None,
) -> None:
    """Let igniterd steer each released MODEL again. Exit status 1 when one was not released."""
    from igniterd.state.released import taken_again

    if every == bool(models):
        raise typer.BadParameter("name models to take, or give --all", param_hint="MODEL")
    if config is None:
        raise typer.BadParameter(
            "give the daemon's configuration: it says where the list of released models is",
            param_hint="--config",
        )
    named = names(models or [])
    with cannot():
        settings = configured(config)
        wanted = _tenants(named, settings)
        gone = taken_again(settings.state.directory, None if every else wanted)
        print(
            "\n".join(f"{name}: igniterd steers it again" for name in gone)
            or "no model was released"
        )
        if strange := [name for name in wanted if name not in gone]:
            raise CannotRun(
                f"{', '.join(strange)}: not released, so there is nothing to take again"
            )


async def _released(
    models: list[str] | None, settings: Config | None, url: str | None
) -> tuple[list[Adoption], list[str]]:
    from igniterd.clients.environments import DEFAULT_SHARES
    from igniterd.giveback import release as given_back
    from igniterd.giveback import shares_left, touched_models

    shares = DEFAULT_SHARES if settings is None else str(settings.shares)
    beside: list[str] = []

    async def work(client: TritonClient, server: Triton | None, model: str) -> Adoption:
        found = await given_back(client, model, shares, server.repository if server else ())
        if models is not None and found.outcome == "released":
            beside[:] = await shares_left(client, shares, models)
        return found

    async def found_on(
        client: TritonClient, server: Triton | None
    ) -> tuple[list[str], dict[str, str]]:
        there, unread = await touched_models(client, shares)
        await _told(settings, _tenants([*there, *unread], settings, server))
        return there, unread

    if models is not None:
        await _told(settings, _tenants(models, settings))
    found, silent = await each(models, settings, url, work, found_on if models is None else None)
    if beside:
        _note(
            f"released models have no share, so what was promised of {', '.join(beside)} beside "
            "them no longer holds"
        )
    return found, silent


def _tenants(models: list[str], settings: Config | None, server: Triton | None = None) -> list[str]:
    """What the daemon calls them; those of ``server`` alone, if that is given."""
    called = []
    for model in models:
        told = tenants_of(model, settings)
        there = [m.tenant for m in told if server is None or m.triton == server.name]
        called += there or [model]
    return called


async def _told(settings: Config | None, models: list[str]) -> None:
    """Let the daemon know first, and give it time to end the change it may be making."""
    from igniterd.engines.hosting import SHADOW
    from igniterd.state.released import given_back

    kept = [name for name in models if not name.startswith(SHADOW)]
    if not kept:
        return
    if settings is None:
        _note(
            "a daemon that steers them takes them again: give its --config, or "
            "IGNITERD_HANDS_OFF in their config.pbtxt"
        )
        return
    directory = settings.state.directory
    if not directory.exists():
        _note(
            f"{directory} (state.directory) is not on this host: if the daemon runs on another "
            "one, run this there"
        )
        return
    given_back(directory, kept)
    await asyncio.sleep(min(_MOST_WAIT_S, 2 * settings.loop.interval_s))


def _note(text: str) -> None:
    print(f"igniterd: {text}", file=sys.stderr)
