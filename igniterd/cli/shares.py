"""``igniterd shares``: what others execute of igniterd, made once by root, so that the daemon
writes none of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from igniterd.config import Config


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    app.command(short_help="Make the environments of shares once, as root.")(shares)


def shares(
    install: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the shares: [state] shares.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="The daemon's: the units of its profiles, its Tritons' python.",
        ),
    ] = None,
    unit: Annotated[
        list[float] | None,
        typer.Option(
            min=0.1, max=100.0, metavar="PERCENT", help="Shares are multiples of this; repeatable."
        ),
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="Environment that models come with, as Triton sees it; repeatable."
        ),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="The server's python3, as [[triton]] python; repeatable."
        ),
    ] = None,
    install_backend: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Triton's backend directory, for the shim backend igniterd_python ([[triton]] "
            "shim_backend).",
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="table or json.")
    ] = "table",
) -> None:
    """Make the environments that give models their shares, and the shim backend, once and as root.

    The daemon then uses what it finds there and writes nothing that others execute. What is right
    already is left alone.
    """
    import json

    from igniterd.cli.common import cannot, configured
    from igniterd.cli.wording import one_of
    from igniterd.clients import installed

    one_of("--format", form, "table", "json")
    if install is None and install_backend is None:
        raise typer.BadParameter(
            "name a folder to fill, or --install-backend DIR", param_hint="--install"
        )
    if wrong := [path for path in python or [] if not path.startswith("/")]:
        raise typer.BadParameter(
            f"{wrong[0]!r} should be the whole path of a python3 as Triton sees it",
            param_hint="--python",
        )
    made: dict[str, list[str]] = {}
    with cannot():
        if install is not None:
            folder = _folder(install)
            told = None if config is None else configured(config)
            units = [percent / 100.0 for percent in unit or []] + (
                [] if told is None else _units(told, folder)
            )
            if not units:
                raise typer.BadParameter(
                    "give --config FILE with profiles, or --unit PERCENT", param_hint="--install"
                )
            servers = (
                []
                if told is None
                else [
                    None if server.python is None else str(server.python) for server in told.triton
                ]
            )
            pythons = list(dict.fromkeys([*(servers or [None]), *(python or [])]))
            made["shares"] = [
                str(path)
                for path in installed.install_shares(folder, units, environment or [], pythons)
            ]
            if warning := installed.in_others_hands(folder):
                print(
                    f"igniterd: {warning}: better a folder of root's own, named with [state] "
                    "shares",
                    file=sys.stderr,
                )
        if install_backend is not None:
            made["backend"] = [str(installed.install_backend(install_backend))]
    if form == "json":
        print(json.dumps(made, indent=2))
        return
    for what, paths in made.items():
        print(
            f"{what}: {paths[0]}"
            if len(paths) == 1
            else f"{what}: {len(paths)} folders, {paths[0]} to {paths[-1]}"
        )


def _folder(path: Path) -> Path:
    """Checked as the configuration's is: a shell of Triton gets the path unquoted."""
    from pydantic import ValidationError

    from igniterd.config import State

    try:
        State(shares=path.absolute())
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(f"{str(path)!r} {said}", param_hint="--install") from error
    return path.absolute()


def _units(told: Config, folder: Path) -> list[float]:
    """The granularities of the profiles; a folder that the configuration does not name is filled
    all the same, with a word."""
    from igniterd.perf import Profile

    if told.shares.absolute() != folder:
        print(
            f"igniterd: the configuration's shares are in {told.shares}: set [state] shares = "
            f'"{folder}"',
            file=sys.stderr,
        )
    return sorted(
        {Profile.load(path).board.share_unit for model in told.model for path in model.profiles}
    )
