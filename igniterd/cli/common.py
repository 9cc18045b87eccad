"""What the verbs share: reading the configuration, saying why something cannot be done, logging."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import ConsoleOptions
    from rich.table import Table
    from rich.text import Text

    from igniterd.config import Config

_UNBOUNDED = 100_000


@contextlib.contextmanager
def cannot() -> Iterator[None]:
    """Errors igniterd raises on purpose become their sentence on standard error and exit status
    1."""
    from igniterd.errors import ConfigError, IgniterdError

    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            print(f"igniterd: {error.source}: {problem}", file=sys.stderr)
        raise typer.Exit(1) from error
    except BrokenPipeError:  # the reader of standard output has gone: main() knows
        raise
    except (IgniterdError, OSError) as error:
        print(f"igniterd: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def shown(*parts: Table | Text | str) -> None:
    """Print tables and lines whole, whatever the width of the terminal: half a name or a figure is
    worse than a long line.

    Names are printed as they are; nothing in them is read as markup or an emoji.
    """
    from rich.console import Console, RenderableType
    from rich.measure import Measurement
    from rich.segment import Segment
    from rich.table import Table

    class Plain(Console):
        """Words of servers and models colour nothing, and move no cursor."""

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(_plain_lines(text), style, control)

        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(_plain_lines(text), **how)  # columns are measured by it

    console = Plain(markup=False, emoji=False, highlight=False)
    wide = console.options.update(width=_UNBOUNDED)
    console.width = max(
        [
            console.width,
            *(
                Measurement.get(console, wide, part).maximum
                for part in parts
                if isinstance(part, Table)
            ),
        ]
    )
    for part in parts:
        console.print(part, soft_wrap=not isinstance(part, Table))


def configured(path: Path) -> Config:
    """The configuration at ``path``, or exit status 1 with every problem on standard error."""
    from igniterd.config import load_config

    with cannot():
        return load_config(path)


def _plain_values(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Nothing that a server or a model says begins another line, or is obeyed by a terminal."""
    return {
        key: _plain_lines(value) if key == "exception" else _plain_value(value)
        for key, value in event.items()
    }


def _plain_lines(text: str) -> str:
    from igniterd.plain import plain

    return "\n".join(map(plain, text.split("\n")))


def _plain_value(value: Any) -> Any:
    from igniterd.plain import plain

    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {_plain_value(key): _plain_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain_value(each) for each in value]
    return value


def log_to_stderr(form: str) -> None:
    """Log lines to standard error: coloured text on a terminal, JSON for a collector (``form``:
    text, json or auto)."""
    import structlog

    if form not in ("auto", "text", "json"):
        raise typer.BadParameter(
            f"{form!r} should be auto, text or json", param_hint="--log-format"
        )
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _plain_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=True,
    )
