"""The timeline of a run as one SVG: traffic, P99 against SLO, the shares of each GPU, largest
batches, and every change igniterd made.

It carries its own style (light and dark), so that the same text is a picture of its own and a part
of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib import resources

from markupsafe import Markup

from igniterd.demo.lanes import Lane, crossings
from igniterd.demo.layout import apart, join_batches, runs_of, spans, wrap_title
from igniterd.demo.markup import Scale, el, nice_ticks, points
from igniterd.demo.measure import Figures, Trace, trace
from igniterd.demo.recording import Move, Recording
from igniterd.demo.terminal import describe_move
from igniterd.lab.load.load import RequestLog

WIDTH, LEFT, RIGHT = 1120.0, 96.0, 24.0
_HEAD, _FLAGS, _GAP, _AXIS = 58.0, 40.0, 30.0, 30.0
_RATES, _P99, _SHARES, _BATCH = 84.0, 92.0, 130.0, 22.0
_DAEMON = {
    None: "no igniterd",
    "act": "igniterd acts",
    "observe": "igniterd only watches",
    "advise": "igniterd only advises",
}
_TOP_OF_SLO = 1.5  # the P99 panels end at this many SLOs; what is above is drawn at their edge

STYLE = resources.files("igniterd").joinpath("data", "timeline.css").read_text(encoding="utf-8")


class Timeline:
    """Draws one run. ``svg`` is the whole picture."""

    def __init__(self, recording: Recording, log: RequestLog, results: Sequence[Figures]) -> None:
        self.recording, self.results = recording, results
        self.begin_s, self.end_s = recording.phases[0].begin_s, recording.phases[-1].end_s
        self.x = Scale(self.begin_s, self.end_s, LEFT, WIDTH - RIGHT)
        self.traces: dict[str, Trace] = {
            m: trace(log, m, self.begin_s, self.end_s) for m in recording.models
        }
        self.moves = [m for m in recording.moves if self.begin_s <= m.at_s <= self.end_s]
        self.y = 0.0

    def svg(self) -> Markup:
        """The picture, with its own style."""
        self.y = _HEAD + _FLAGS
        top = self.y
        panels = [
            self._rates(),
            *(self._p99(i, m) for i, m in enumerate(self.recording.models)),
            *self._lanes(),
            self._batches(),
        ]
        bottom = self.y - _GAP + 8
        height = bottom + _AXIS
        return el(
            "svg",
            el("style", Markup(STYLE)),  # noqa: S704  a file of this package
            el("title", "Timeline of the run"),
            self._hatch(),
            el("rect", x=0, y=0, width=WIDTH, height=height, class_="paper"),
            *self._bands(bottom),
            *panels,
            *self._flags(top, bottom),
            *self._legend(),
            *self._axis(bottom),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
            role="img",
            class_="tl",
        )

    # ------------------------------------------------------------ phases and time

    def _hatch(self) -> Markup:
        line = el("path", d="M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4", class_="hatch")
        return el(
            "defs",
            el("pattern", line, id="tl-hatch", width=8, height=8, patternUnits="userSpaceOnUse"),
        )

    def _bands(self, bottom: float) -> Iterator[Markup]:
        for number, phase in enumerate(self.recording.phases):
            x0, x1 = self.x(phase.begin_s), self.x(phase.end_s)
            if number % 2 == 0:
                yield el("rect", x=x0, y=0, width=x1 - x0, height=bottom, class_="band")
            settled = self.x(phase.measured_s)
            note = "settling: not judged" if phase.judged else "settling"
            yield el(
                "rect",
                el("title", note),
                x=x0,
                y=_HEAD + _FLAGS,
                width=settled - x0,
                height=bottom - _HEAD - _FLAGS,
                class_="settle",
            )
            yield el("line", x1=x0, x2=x0, y1=0, y2=bottom, class_="edge")
            lines = wrap_title(phase.title, int((x1 - x0 - 12) / 7.6))
            for row, line in enumerate(lines):
                yield el("text", line, x=x0 + 8, y=19 + 16 * row, class_="head")
            yield el(
                "text", _DAEMON[phase.mode], x=x0 + 8, y=19 + 16 * len(lines), class_="soft small"
            )

    def _legend(self) -> Iterator[Markup]:
        x = WIDTH - RIGHT
        yield el("text", "settling", x=x - 22, y=19, class_="soft small end")
        yield el("rect", x=x - 16, y=9, width=16, height=12, class_="settle boxed")

    def _axis(self, bottom: float) -> Iterator[Markup]:
        yield el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="edge")
        length = self.end_s - self.begin_s
        for tick in nice_ticks(length, 8):
            x = self.x(self.begin_s + tick)
            yield el("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="edge")
            yield el("text", f"{tick:.0f} s", x=x, y=bottom + 18, class_="soft small mid")

    # ------------------------------------------------------------ panels

    def _panel(
        self,
        height: float,
        title: str,
        unit: str,
        scale: Scale,
        ticks: Sequence[float],
        *body: Markup,
    ) -> Markup:
        """A panel at the present height of the pen; the pen moves below it."""
        lines = []
        for tick in ticks:
            y = scale(tick)
            lines.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            lines.append(
                el("text", f"{tick:g}{unit}", x=LEFT - 8, y=y + 4, class_="soft small end")
            )
        heading = el("text", title, x=LEFT + 8, y=self.y - 8, class_="name halo")
        self.y += height + _GAP
        return el("g", *lines, heading, *body)

    def _rates(self) -> Markup:
        rates = [r for p in self.recording.phases for r in p.rates_per_s.values()]
        high = (
            max(
                [
                    *rates,
                    *(float(t.rate_per_s.max()) for t in self.traces.values() if len(t.rate_per_s)),
                ]
            )
            * 1.05
        )
        scale = Scale(0, high, self.y + _RATES, self.y)
        body = []
        for i, (_model, seen) in enumerate(self.traces.items()):
            line = points(
                (self.x(t), scale(r)) for t, r in zip(seen.at_s, seen.rate_per_s, strict=True)
            )
            body.append(el("polyline", points=line, class_=f"trace k{i}"))
        names = [
            el("tspan", f"   {m}", class_=f"t{i}") for i, m in enumerate(self.recording.models)
        ]
        body.append(el("text", *names, x=WIDTH - RIGHT, y=self.y - 8, class_="name halo end"))
        return self._panel(_RATES, "requests a second", "", scale, nice_ticks(high, 3), *body)

    def _p99(self, index: int, model: str) -> Markup:
        slo = self.recording.slos_ms[model]
        scale = Scale(0, slo * _TOP_OF_SLO, self.y + _P99, self.y)
        seen = [
            (self.x(t), float(v))
            for t, v in zip(self.traces[model].at_s, self.traces[model].p99_ms, strict=True)
        ]
        body = [self._over(run, scale, slo) for run in runs_of(seen)]
        body += [
            el("polyline", points=points((x, scale(v)) for x, v in run), class_=f"trace k{index}")
            for run in runs_of(seen)
        ]
        expected = [(self.x(s.at_s), s.predicted_p99_ms.get(model)) for s in self.recording.samples]
        for run in runs_of([(x, math.nan if v is None else v) for x, v in expected]):
            body.append(
                el(
                    "polyline",
                    points=points((x, scale(v)) for x, v in run),
                    class_=f"guess k{index}",
                )
            )
        y = scale(slo)
        body.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="slo"))
        body.append(
            el("text", f"SLO {slo:g} ms", x=WIDTH - RIGHT - 6, y=y - 5, class_="bad small halo end")
        )
        body += list(self._verdicts(model, index, scale))
        title = f"{model}: P99 of the last 5 s" + (
            ", dotted: as igniterd predicts it" if index == 0 else ""
        )
        return self._panel(_P99, title, " ms", scale, [0.0, slo / 2], *body)

    def _over(self, run: Sequence[tuple[float, float]], scale: Scale, slo: float) -> Markup:
        """What is above the SLO, filled."""
        base = scale(slo)
        up = [(x, min(base, scale(v))) for x, v in run]
        return el(
            "polygon", points=points([(run[0][0], base), *up, (run[-1][0], base)]), class_="over"
        )

    def _verdicts(self, model: str, index: int, scale: Scale) -> Iterator[Markup]:
        """The P99 of the whole measured part of each phase."""
        for phase in self.recording.phases:
            found = next(
                (f for f in self.results if f.phase == phase.key and f.model == model), None
            )
            if found is None or math.isnan(found.p99_ms):
                continue
            middle = (self.x(phase.measured_s) + self.x(phase.end_s)) / 2
            text = "P99 never" if math.isinf(found.p99_ms) else f"P99 {found.p99_ms:.0f} ms"
            y = scale.start - 8
            yield el(
                "text",
                text,
                x=middle,
                y=y,
                class_=f"name halo mid {f't{index}' if found.held else 'bad'}",
            )

    def _lanes(self) -> Iterator[Markup]:
        """A panel of shares for each GPU, and which model went from which to which."""
        every = {m: spans(self.recording, m) for m in self.recording.models}
        lanes, panels = list[Lane](), list[Markup]()
        for gpu in range(len(self.recording.gpus)) or (None,):
            scale = Scale(0, 1, self.y + _SHARES, self.y)
            lanes.append(Lane(gpu, every, self.x, scale))
            title = "share of the GPU (MPS)" if gpu is None else f"GPU {gpu}: shares (MPS)"
            body = (*lanes[-1].drawn(), *self._percents(scale))
            panels.append(self._panel(_SHARES, title, "", scale, [], *body))
        yield from panels
        yield from crossings(lanes, every)

    def _percents(self, scale: Scale) -> Iterator[Markup]:
        for part in (0.0, 0.5, 1.0):
            yield el("text", f"{part:.0%}", x=LEFT - 8, y=scale(part) + 4, class_="soft small end")

    def _batches(self) -> Markup:
        rows = len(self.recording.models)
        scale = Scale(0, 1, self.y + rows * _BATCH, self.y)
        body = []
        for i, model in enumerate(self.recording.models):
            top = self.y + i * _BATCH
            body.append(el("text", model, x=LEFT - 8, y=top + 15, class_=f"name end small t{i}"))
            for span in join_batches(spans(self.recording, model)):
                x0, x1 = self.x(span.begin_s), self.x(span.end_s)
                wait = span.applied.max_queue_delay_us
                text = f"{span.applied.max_batch_size}" + (
                    f", waits {wait / 1000:g} ms" if wait and x1 - x0 > 90 else ""
                )
                tip = el("title", f"{model}: {span.applied}")
                body.append(
                    el(
                        "rect",
                        tip,
                        x=x0,
                        y=top + 1,
                        width=x1 - x0,
                        height=_BATCH - 2,
                        class_=f"cut a{i}",
                    )
                )
                if x1 - x0 > 14:
                    body.append(el("text", text, x=(x0 + x1) / 2, y=top + 15, class_="mid small"))
        return self._panel(rows * _BATCH, "largest batch", "", scale, [], *body)

    # ------------------------------------------------------------ changes

    def _flags(self, top: float, bottom: float) -> Iterator[Markup]:
        """A numbered flag for every change, a stripe while it was made and a line at its end; flags
        that would overlap are moved apart."""
        places = apart([self.x(m.at_s) for m in self.moves], 19.0, LEFT + 10, WIDTH - RIGHT - 10)
        for number, (move, place) in enumerate(zip(self.moves, places, strict=True), start=1):
            yield self._flag(number, move, place, top, bottom)

    def _flag(self, number: int, move: Move, place: float, top: float, bottom: float) -> Markup:
        index, x, y = self.recording.models.index(move.model), self.x(move.at_s), _HEAD + 10
        began = self.x(move.at_s - move.duration_s)
        tip = f"{number}. {move.at_s - self.begin_s:.0f} s: {describe_move(move)}. "
        tip += self.recording.said(move.why)
        return el(
            "g",
            el("title", tip),
            el(
                "rect",
                x=began,
                y=top - 6,
                width=x - began,
                height=bottom - top + 6,
                class_=f"t{index} during",
            ),
            el(
                "path",
                d=f"M{place:.1f},{y + 8} L{x:.1f},{top - 6} V{bottom:.1f}",
                class_=f"mark k{index}",
                fill="none",
            ),
            el("circle", cx=place, cy=y, r=8.5, class_=f"t{index}" if move.ok else "bad"),
            el("text", number, x=place, y=y + 4, class_="mid"),
            class_="flag",
        )
