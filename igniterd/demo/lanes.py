"""The shares of each GPU over a run, as a lane of the timeline, and models that change lanes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup

from igniterd.demo.layout import Span
from igniterd.demo.markup import Scale, el
from igniterd.demo.recording import Applied

_WIDE, _NAMED, _TOLD = 96.0, 13.0, 110.0  # what a share with its name, and a sentence, need
_REACH = 13.0  # an arrow begins so far before a move and ends so far after it


@dataclass(frozen=True, slots=True)
class Block:
    """A model's share for some time, between the heights ``low`` and ``high`` of its GPU."""

    model: str
    begin_s: float
    end_s: float
    low: float
    high: float
    applied: Applied


@dataclass(frozen=True, slots=True)
class Turns:
    """Models without shares on a GPU for some time; ``low`` is above the shares of the others."""

    models: tuple[str, ...]
    begin_s: float
    end_s: float
    low: float


class Lane:
    """One GPU; ``gpu`` None is the only one of a server that knows of none. ``every`` has all
    models in the order of their colours."""

    def __init__(
        self, gpu: int | None, every: Mapping[str, Sequence[Span]], x: Scale, y: Scale
    ) -> None:
        self.gpu, self.x, self.y = gpu, x, y
        self.models = list(every)
        self.blocks: list[Block] = []
        self.turns: list[Turns] = []
        cuts = sorted({s.begin_s for spans in every.values() for s in spans})
        ends = [spans[-1].end_s for spans in every.values() if spans]
        for begin_s, end_s in pairwise([*cuts, *ends[:1]]):
            now = {
                model: span.applied
                for model, spans in every.items()
                for span in spans
                if span.begin_s <= begin_s < span.end_s and span.applied.gpu == gpu
            }
            self._stretch(now, begin_s, end_s)

    def _stretch(self, now: Mapping[str, Applied], begin_s: float, end_s: float) -> None:
        """What is applied from ``begin_s`` to ``end_s``; what was so before goes on."""
        low = 0.0
        for model, applied in now.items():
            if applied.share is not None:
                high = low + applied.share
                self._add(Block(model, begin_s, end_s, low, high, applied))
                low = high
        bare = tuple(model for model, applied in now.items() if applied.share is None)
        last = self.turns[-1] if self.turns else None
        if last and (last.models, last.end_s, last.low) == (bare, begin_s, low):
            self.turns[-1] = replace(last, end_s=end_s)
        elif bare or not now:
            self.turns.append(Turns(bare, begin_s, end_s, low))

    def _add(self, block: Block) -> None:
        for place in range(len(self.blocks) - 1, -1, -1):
            other = self.blocks[place]
            if other.end_s == block.begin_s and other == replace(
                block, begin_s=other.begin_s, end_s=other.end_s
            ):
                self.blocks[place] = replace(other, end_s=block.end_s)
                return
        self.blocks.append(block)

    def drawn(self) -> Iterator[Markup]:
        """Shares above each other, and who takes turns in what is left."""
        for block in self.blocks:
            yield from self._block(block)
        for turns in self.turns:
            yield from self._turns(turns)

    def _block(self, block: Block) -> Iterator[Markup]:
        number = self.models.index(block.model)
        x0, x1 = self.x(block.begin_s), self.x(block.end_s)
        y0, y1 = self.y(block.low), self.y(block.high)
        tip = el("title", f"{block.model}: {block.applied}")
        yield el("rect", tip, x=x0, y=y1, width=x1 - x0, height=y0 - y1, class_=f"cut a{number}")
        if x1 - x0 > _WIDE and y0 - y1 > _NAMED:
            text = f"{block.model} {block.high - block.low:.1%}"
            yield el(
                "text", text, x=(x0 + x1) / 2, y=(y0 + y1) / 2 + 4, class_=f"name mid t{number}"
            )

    def _turns(self, turns: Turns) -> Iterator[Markup]:
        x0, x1 = self.x(turns.begin_s), self.x(turns.end_s)
        if x1 - x0 < _TOLD:
            return
        text = self._in_turns(turns)
        y = self.y(turns.low / 2 + 0.5) + 4
        yield el("text", text, x=(x0 + x1) / 2, y=y, class_="soft mid")

    def _in_turns(self, turns: Turns) -> str:
        if not turns.models:
            return "no model"
        if turns.low:
            return f"{', '.join(turns.models)}: in turns"
        if self.gpu is None:
            return "no shares: the models take turns"
        return f"{', '.join(turns.models)}: no shares"

    def middle(self, model: str, at_s: float, *, before: bool) -> float:
        """The height of what ``model`` has here until ``at_s``, or from then on."""
        for block in self.blocks:
            if block.model == model and at_s == (block.end_s if before else block.begin_s):
                return self.y((block.low + block.high) / 2)
        return self.y(0.5)


def crossings(lanes: Sequence[Lane], every: Mapping[str, Sequence[Span]]) -> Iterator[Markup]:
    """An arrow for every model that went from one lane to another."""
    of = {lane.gpu: lane for lane in lanes}
    for number, (model, spans) in enumerate(every.items()):
        for old, new in pairwise(spans):
            source, target = of.get(old.applied.gpu), of.get(new.applied.gpu)
            if source is None or target is None or source is target:
                continue
            y0 = source.middle(model, new.begin_s, before=True)
            y1 = target.middle(model, new.begin_s, before=False)
            yield _arrow(source.x(new.begin_s), y0, y1, number, f"{model} to GPU {target.gpu}")


def _arrow(x: float, y0: float, y1: float, number: int, text: str) -> Markup:
    x0, x1, half = x - _REACH, x + _REACH, (y0 + y1) / 2
    return el(
        "g",
        el("circle", cx=x0, cy=y0, r=4.0, class_=f"t{number}"),
        el(
            "path",
            d=f"M{x0:.1f},{y0:.1f} C{x0:.1f},{half:.1f} {x1 - 8:.1f},{y1:.1f} {x1:.1f},{y1:.1f}",
            class_=f"across k{number}",
        ),
        el(
            "path",
            d=f"M{x1 + 6:.1f},{y1:.1f} l-10,-5.5 v11 z",
            class_=f"t{number}",
        ),
        el("text", text, x=x0 - 8, y=half + 4, class_=f"name halo end t{number}"),
        class_="crossing",
    )
