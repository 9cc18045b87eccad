"""A document as it is sent: short, and within what its own schema allows. Pure."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic.fields import FieldInfo

from igniterd.documents import Document

_NAMES = {"ge": "least", "le": "most", "gt": "above", "lt": "below", "max_length": "longest"}


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of one field. ``above`` and ``below`` are not reached."""

    default: Any
    required: bool
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    longest: int | None = None


def lean(schema: type[Document], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as ``schema`` takes them: nothing that is null or at its default, numbers brought
    within their limits, texts and lists cut where they are too long.

    A number that no limit brings into the range (0 where it must be above) is left out. Raises
    ``KeyError`` for a field that the schema does not have.
    """
    limits, out = _limits(schema), {}
    for name, value in values.items():
        limit = limits[name]
        if value is None or (not limit.required and _default(value, limit.default)):
            continue
        kept = _within(value, limit)
        if kept is not None:
            out[name] = kept
    return out


def _default(value: Any, default: Any) -> bool:
    """Lists of a schema are tuples."""
    return bool(value == default) or (default == () and value == [])


def _within(value: Any, limit: _Limits) -> Any:
    kind = type(value)
    if kind is bool or kind is dict:
        return value
    if isinstance(value, int | float):
        if limit.least <= value <= limit.most and limit.above < value < limit.below:
            return value
        if not (math.isfinite(value) and limit.above < value < limit.below):
            return None
        return kind(min(max(value, limit.least), limit.most))
    if limit.longest is not None and len(value) > limit.longest:
        return value[: limit.longest]
    return value


@cache
def _limits(schema: type[Document]) -> Mapping[str, _Limits]:
    return {
        field.alias or name: _of(field, list(_marks(field)))
        for name, field in schema.model_fields.items()
    }


def _of(field: FieldInfo, marks: list[Any]) -> _Limits:
    bounds = {
        _NAMES[key]: getattr(mark, key) for mark in marks for key in _NAMES if hasattr(mark, key)
    }
    default = field.get_default(call_default_factory=True)
    return _Limits(default, field.is_required(), **bounds)


def _marks(field: FieldInfo) -> Iterator[Any]:
    """The limits of a field: not those of the items of a list."""
    yield from field.metadata
    yield from _in(field.annotation)


def _in(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *marks = typing.get_args(annotation)
        for mark in marks:
            yield from mark.metadata if isinstance(mark, FieldInfo) else (mark,)
        yield from _in(inner)
    elif origin in (typing.Union, types.UnionType):
        for choice in typing.get_args(annotation):
            yield from _in(choice)
