"""Checks of options that several verbs have."""

from __future__ import annotations

import typer


def one_of(option: str, value: str, *allowed: str) -> str:
    """``value`` if it is one of ``allowed``; wrong usage (exit status 2) otherwise."""
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} should be {' or '.join(allowed)}", param_hint=option)
    return value
