"""The ``igniterd`` command: each verb lives in a module of its own, which registers itself here.

Exit status: 0 done, 1 cannot (the reason on standard error), 2 wrong usage. Verb modules import
what is heavy inside their functions, so that ``igniterd --help`` answers at once.
"""

from __future__ import annotations

import importlib

import typer

from igniterd import __version__

VERBS: tuple[str, ...] = (
    "run",
    "check",
    "show",
    "plan",
    "predict",
    "simulate",
    "profile",
    "shares",
    "adopt",
    "release",
    "fleet",
    "demo",
)
"""Modules of this package that have ``register(app)``, in the order of ``--help``."""

app = typer.Typer(
    name="igniterd",
    help="Keeps latency SLOs on shared GPUs beside NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _said_version(wanted: bool) -> None:
    if wanted:
        print(f"igniterd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        callback=_said_version,
        help="Print the version and exit.",
    ),
) -> None:
    """Keeps latency SLOs on shared GPUs beside NVIDIA Triton."""


for _verb in VERBS:
    importlib.import_module(f"igniterd.cli.{_verb}").register(app)
