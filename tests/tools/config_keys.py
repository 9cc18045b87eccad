"""The table of configuration keys in ``systemd/README.md``, written from the configuration's types.

``python -m tests.tools.config_keys`` (``make keys``) rewrites what stands between the two markers.
Keys, kinds and defaults come from the models of :mod:`igniterd.config`. What a key means is the
docstring under its field. So nothing is written twice.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from igniterd.config import Config, Section
from igniterd.fleet.config import FleetConfig

PAGE = Path(__file__).resolve().parents[2] / "systemd" / "README.md"
BEGIN = "<!-- keys: written by `make keys` -->"
END = "<!-- keys: end -->"
KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def main() -> None:
    """Rewrite the table of the page in place."""
    PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def replace_table(page: str) -> str:
    """``page`` with the present table between the markers.

    Raises :class:`ValueError` where the page has not exactly one of each marker, in order.
    """
    for marker in (BEGIN, END):
        if page.count(marker) != 1:
            raise ValueError(
                f"{marker!r} should stand on the page once, not {page.count(marker)} times"
            )
    if page.index(BEGIN) > page.index(END):
        raise ValueError(f"{BEGIN!r} should stand before {END!r}")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}"


def table() -> str:
    """Every section as a heading, a sentence and a table, in the order of :class:`Config`; then
    those of :class:`FleetConfig`."""
    parts = [_table(name, field) for name, field in Config.model_fields.items()]
    parts += [
        _table(name, field, "`igniterd fleet`: ")
        for name, field in FleetConfig.model_fields.items()
    ]
    return "\n".join(parts)


def _table(name: str, field: FieldInfo, before: str = "") -> str:
    section, repeats = _section_of(field)
    heading = f"[[{name}]]" if repeats else f"[{name}]"
    rows = "\n".join(row(section, key) for key in section.model_fields)
    return (
        f"#### {before}`{heading}`\n\n{_plain(section.__doc__ or '')}\n\n"
        f"| key | value | default | meaning |\n|---|---|---|---|\n{rows}\n"
    )


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field of ``section``, its own or of what it is made from; fields
    without one are left out."""
    bases = [base for base in section.__mro__ if issubclass(base, Section)]
    return {key: text for base in reversed(bases) for key, text in _own_meanings(base).items()}


def _own_meanings(section: type) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = _plain(str(text.value.value))
    return found


def sections() -> Iterator[type[Section]]:
    """Every section of both configurations."""
    for field in (*Config.model_fields.values(), *FleetConfig.model_fields.values()):
        yield _section_of(field)[0]


def _section_of(field: FieldInfo) -> tuple[type[Section], bool]:
    """The section that a field of :class:`Config` holds, and whether it may be repeated."""
    choices = [field.annotation, *get_args(field.annotation)]
    (section,) = (c for c in choices if inspect.isclass(c) and issubclass(c, Section))
    return section, get_origin(field.annotation) is list


def row(section: type[BaseModel], key: str) -> str:
    """The row of one key: name, kind with its bounds, default, meaning."""
    field = section.model_fields[key]
    kind = _kind(field.annotation, field.metadata)
    cells = [f"`{key}`", kind, _default(field), meanings(section).get(key, "")]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What may be written for a field, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        annotated = (m for part in inner[1:] for m in getattr(part, "metadata", [part]))
        return _kind(inner[0], [*annotated, *metadata])
    if origin in (Union, types.UnionType):
        choices = [choice for choice in inner if choice is not types.NoneType]
        return " or ".join(_kind(choice, metadata) for choice in choices)
    if origin is Literal:
        return ", ".join(f'`"{choice}"`' for choice in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return "table of text"
    bounds = [
        f"{word} {getattr(mark, name):,}"
        for name, word in BOUNDS.items()
        for mark in metadata
        if annotation is not str and getattr(mark, name, None) is not None
    ]
    return ", ".join([KINDS[annotation], *bounds])


def _default(field: FieldInfo) -> str:
    """What holds where the key is not given."""
    if field.is_required():
        return "**required**"
    if field.default_factory in (list, dict):
        return "none"
    if field.default is PydanticUndefined:
        return "see text"
    if field.default in (None, ""):
        return "unset"
    return f"`{json.dumps(field.default, default=str)}`"


def _plain(text: str) -> str:
    """A docstring as one line of Markdown."""
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    main()
