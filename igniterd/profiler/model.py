"""One model being profiled: its range, and where its requests come from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.info import IndexEntry
from igniterd.errors import CannotRun
from igniterd.profiler.drive import Source, source
from igniterd.profiler.inputs import feed_of, output_bytes_of, read_items
from igniterd.profiler.measure import Reading
from igniterd.profiler.partial import Done, Partial
from igniterd.profiler.points import Span


class Client(Reading, Protocol):
    """What is asked of a Triton client."""

    async def index(self) -> tuple[IndexEntry, ...]: ...

    async def config(self, model: str) -> ModelConfig: ...

    async def load(self, model: str, config: ModelConfig, *, exact: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Model:
    """One model being profiled."""

    name: str
    span: Span
    requests: Source


def check_inputs(partial: Partial) -> None:
    """Raise :class:`CannotRun` for a shape or an array that is no model's input: it would be left
    out without a word."""
    inputs, own = set[str](), set[str]()
    for name, config in partial.originals.items():
        names = {each["name"] for each in config.get("input", ())}
        inputs |= names
        own |= {f"{name}:{each}" for each in names}
    settings = partial.settings
    given = read_items(settings.input) if settings.input else {}
    strange = [f"--shape {name}" for name in settings.shapes if name not in inputs | own]
    strange += [f"--input {name}" for name in given if name not in inputs]
    if strange:
        raise CannotRun(
            f"{', '.join(strange)}: no model has an input of that name; the inputs are "
            f"{', '.join(sorted(inputs))}"
        )


async def prepare_model(
    name: str, partial: Partial, client: Client, stack: AsyncExitStack, *, steerable: bool
) -> Model:
    """The model with its range and requests; what those need is closed with ``stack``.

    ``steerable``: whether it can be given shares. Raises :class:`CannotRun` where there is too
    little to measure.
    """
    settings, config = partial.settings, partial.originals[name]
    if partial.board is None:
        raise CannotRun("the board has not been measured")
    inputs = {each["name"] for each in config.get("input", ())}
    configured = int(config.get("max_batch_size", 0))
    largest = 1 if configured == 0 else (settings.max_batch or configured)
    given = read_items(settings.input) if settings.input else {}
    feed = feed_of(
        config,
        largest,
        shapes=_shapes_of(name, inputs, settings.shapes),
        items={key: value for key, value in given.items() if key in inputs},
    )
    done = partial.models.setdefault(name, Done())
    span = Span(largest, settings.min_share if steerable else 1.0, partial.board.share_unit)
    span = span.within(done.most_batch or largest)
    if len(span.candidates) < 3:
        raise CannotRun(
            f"model {name}: there are only {len(span.candidates)} points to measure (batches "
            f"to {span.max_batch}, "
            f"{'all shares' if steerable else 'no share of its own'}); a "
            "profile needs 3"
        )
    partial.item_bytes[name] = (feed.item_bytes, output_bytes_of(config))
    return Model(name, span, await stack.enter_async_context(source(client, feed)))


def _shapes_of(
    model: str, inputs: set[str], shapes: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """The shapes meant for ``model``: ``MODEL:INPUT`` goes before ``INPUT``."""
    for_all = {name: dims for name, dims in shapes.items() if name in inputs}
    own = {
        name.removeprefix(f"{model}:"): dims
        for name, dims in shapes.items()
        if name.startswith(f"{model}:")
    }
    return for_all | {name: dims for name, dims in own.items() if name in inputs}
