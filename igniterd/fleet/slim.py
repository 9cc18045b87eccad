"""States kept small. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from igniterd.messages.state import HostState

_NONE_SET: set[str] = set()


def slim(state: HostState) -> HostState:
    """``state`` without its record of which fields were given and which are defaults.

    Pydantic keeps a set of names for every table; together they take as much memory as the figures.
    """
    for table in _tables(state):
        object.__setattr__(table, "__pydantic_fields_set__", _NONE_SET)
    return state


def _tables(state: HostState) -> Iterator[Any]:
    yield from (state, state.terms, *state.tritons, *state.boards, *state.models)
    if state.decision is not None:
        yield state.decision
    for model in state.models:
        for table in (
            model.applied,
            model.share,
            model.learnt,
            model.measured,
            model.predicted,
        ):
            if table is not None:
                yield table
