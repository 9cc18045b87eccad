"""Documents of others, checked by pydantic, and their faults in words.

A schema is a pydantic model or a dataclass. What a field should be stands in its ``description``;
:func:`faults` puts it behind the path and the value that was found. All faults are named at once.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

from igniterd.errors import ConfigError

Path = tuple[int | str, ...]
_OWN_WORDS = ("value_error", "said")
_MOST_SHOWN = 80
"""Letters of a wrong value that an error repeats."""


class Document(BaseModel):
    """A table: frozen, no text or truth value for a number, no number that is not finite."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A whole number, also where it is written as 4.0."""


def said(path: str, found: str, right: str) -> str:
    """The usual sentence about one fault. ``found`` is empty where the field is missing."""
    return f"{path} is {found or 'missing'}" + (f"; should be {right}" if right else "")


T = TypeVar("T")


def check(
    schema: type[T],
    data: object,
    source: str,
    *,
    words: Callable[[str, str, str], str] = said,
    context: Any = None,
) -> T:
    """``data`` as a ``schema``. Raises :class:`ConfigError` of ``source`` with every fault."""
    try:
        return TypeAdapter(schema).validate_python(data, context=context)
    except ValidationError as error:
        raise ConfigError(source, faults(error, schema, words=words)) from error


def faults(
    error: ValidationError, schema: Any, *, words: Callable[[str, str, str], str] = said
) -> list[str]:
    """Every fault of ``error``, in order: path, value found, what would be right.

    The message of a validator of the schema's own goes on where the path ends.
    """
    return [_fault(problem, schema, words) for problem in error.errors(include_url=False)]


def _fault(problem: Any, schema: Any, words: Callable[[str, str, str], str]) -> str:
    path = path_of(problem["loc"])
    if problem["type"] in _OWN_WORDS:
        return f"{path} {problem['msg'].removeprefix('Value error, ')}"
    if problem["type"] == "extra_forbidden":
        return f"{path} means nothing here"
    if problem["type"] == "missing":
        return words(path, "", _right(schema, problem["loc"]))
    found = _shown(problem["input"])
    item = problem["loc"] and isinstance(problem["loc"][-1], int)
    if item and problem["type"] in ("model_type", "dataclass_type"):
        return words(path, found, "a table")
    right = _right(schema, problem["loc"]) or problem["msg"].removeprefix("Input should be ")
    return words(path, found, right)


def path_of(location: Path, whole: str = "the file") -> str:
    """``("model", 0, "slo_p99_ms")`` as ``model[0].slo_p99_ms``; ``whole`` where it is empty."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or whole


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        kind = "table" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of too many digits"
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"


def _right(schema: Any, location: Path) -> str:
    """The description of the innermost field on the way to ``location``."""
    right = ""
    for part in location:
        fields = next(_tables(schema), {})
        if isinstance(part, str) and part in fields:
            schema = fields[part]
            right = next(_descriptions(schema), "")
    return right


def _tables(schema: Any) -> Iterator[dict[str, Any]]:
    """The fields of the tables that ``schema`` is made of, by name."""
    if isinstance(schema, type) and issubclass(schema, RootModel):
        yield from _tables(typing.get_type_hints(schema, include_extras=True)["root"])
    elif isinstance(schema, type) and hasattr(schema, "__annotations__"):
        yield typing.get_type_hints(schema, include_extras=True)
    for part in typing.get_args(schema):
        yield from _tables(part)


def _descriptions(schema: Any) -> Iterator[str]:
    for extra in getattr(schema, "__metadata__", ()):
        if isinstance(extra, FieldInfo) and extra.description:
            yield extra.description
    for part in typing.get_args(schema):
        yield from _descriptions(part)


Name = Annotated[str, Field(min_length=1, description="a name")]
