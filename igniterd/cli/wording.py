"""Checks of options, and words, that several verbs have."""

from __future__ import annotations

import math
import os
from pathlib import Path

import typer


def one_of(option: str, value: str, *allowed: str) -> str:
    """``value`` if it is one of ``allowed``; wrong usage (exit status 2) otherwise."""
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} should be {' or '.join(allowed)}", param_hint=option)
    return value


def address(option: str, value: str) -> str:
    """``host:port``; wrong usage otherwise."""
    host, _, port = value.rpartition(":")
    if (
        not host
        or not port.isdigit()
        or not 0 < int(port) < 65536
        or any(c.isspace() or c in "/?#@" for c in host)
    ):
        raise typer.BadParameter(f"{value!r} should be host:port", param_hint=option)
    return value


def finite(value: float | None) -> float | None:
    """Callback of an option: ``nan`` and ``inf`` are numbers for Python, and pass every range that
    is compared with them."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} should be a finite number")
    return value


def given(path: Path) -> Path:
    """The file to read; ``-`` is standard input."""
    return Path("/dev/stdin") if str(path) == "-" else path


def share_text(share: float, form: str) -> str:
    """A share in a table; a share of 1 caps nothing."""
    from igniterd.perf.api import UNCAPPED

    return "uncapped" if share >= UNCAPPED else format(share, form)


def picture_path(option: str, path: Path | None, *endings: str) -> None:
    """Whether a picture can be written there, asked before anything is computed or measured. Raises
    :class:`ConfigError`."""
    from igniterd.errors import ConfigError

    if path is None:
        return
    folder = path.absolute().parent
    problems = (
        [] if path.suffix.lower() in endings else [f"the name should end in {', '.join(endings)}"]
    )
    if not folder.is_dir():
        problems.append(f"there is no folder {folder}")
    elif path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        problems.append("cannot be written")
    if problems:
        raise ConfigError(f"{option} {path}", problems)


def names(models: list[str]) -> list[str]:
    """``models`` if each is a name that Triton can be asked for, given once; wrong usage
    otherwise."""
    for model in models:
        # what is no UTF-8 on the command line is not printable
        if not model or not model.isprintable():
            raise typer.BadParameter(f"{model!r} should be the name of a model", param_hint="MODEL")
    if len(set(models)) < len(models):
        raise typer.BadParameter("a model is named twice", param_hint="MODEL")
    return models
