"""The page of a run: one file, nothing loaded from anywhere, readable in light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources

from igniterd import __version__
from igniterd.demo.markup import Markup, el
from igniterd.demo.measure import Figures
from igniterd.demo.recording import Move, PhaseResult, Recording
from igniterd.demo.terminal import ms, reason
from igniterd.demo.timeline import Timeline
from igniterd.lab.load.load import RequestLog

_STYLE = resources.files("igniterd").joinpath("data", "demo.css").read_text(encoding="utf-8")


class Page:
    """Draws one run. ``html`` is the whole file."""

    def __init__(
        self,
        recording: Recording,
        log: RequestLog,
        results: Sequence[Figures],
        problems: Sequence[str],
    ) -> None:
        self.recording, self.results, self.problems = recording, results, problems
        self.timeline = Timeline(recording, log, results)
        self.requests = len(log)
        self.failed = log.failed

    def html(self) -> str:
        """The file."""
        body = el(
            "main",
            *self._head(),
            el("h2", "Timeline"),
            el("div", self.timeline.svg(), class_="wide"),
            el(
                "p",
                "Hover over a numbered flag to read what was changed and why; the tables below "
                "say the same.",
                class_="soft",
            ),
            el("h2", "Phase by phase"),
            *(part for phase in self.recording.phases for part in self._phase(phase)),
            *self._frozen(),
            *self._messages(),
            *self._next(),
            *self._made(),
        )
        head = el(
            "head",
            Markup(
                '<meta charset="utf-8"><meta name="viewport" '
                'content="width=device-width,initial-scale=1">'
            ),
        )
        head = Markup(
            head.replace(
                "</head>", el("title", "igniterd demo") + el("style", Markup(_STYLE)) + "</head>"
            )
        )
        return f'<!doctype html>\n<html lang="en">{head}{el("body", body)}</html>\n'

    # ------------------------------------------------------------ the top

    def _head(self) -> Iterator[Markup]:
        r = self.recording
        yield el("h1", "igniterd: three models and their SLOs on one shared GPU")
        when = datetime.fromtimestamp(r.began_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        yield el(
            "p",
            f"Run of {when} on {r.machine}. A real tritonserver on an emulated V100, "
            f"{r.slow_factor:g} times slower than a real one: "
            f"SLOs times {r.slow_factor:g}, rates divided by {r.slow_factor:g}. Open-loop "
            "Poisson traffic; latency counts from the moment "
            "a request was due.",
            class_="soft",
        )
        if self.problems:
            yield el(
                "div",
                "Not as it should be",
                el("ul", *(el("li", p) for p in self.problems)),
                class_="verdict bad",
            )
        else:
            yield el(
                "div",
                "Every P99 stayed within its SLO after settling, and no request failed.",
                class_="verdict good",
            )
        yield el(
            "div",
            *(
                el("div", el("b", big), el("span", small), class_="fact")
                for big, small in self._facts()
            ),
            class_="facts",
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        judged = [
            f for f in self.results if f.phase in {p.key for p in self.recording.phases if p.judged}
        ]
        sent = sum(f.requests for f in judged)
        if sent:
            within = sum(f.attainment * f.requests for f in judged if f.requests) / sent
            yield f"{within:.2%}", "of requests within their SLO in igniterd's phases"
        yield f"{self.failed} of {self.requests:,}", "requests failed in the whole run"
        reloads = [m for m in self.recording.moves if m.ok]
        if reloads:
            longest = max(m.duration_s for m in reloads)
            yield (
                f"{len(reloads)} changes",
                f"made under traffic, each a reload of at most {longest:.1f} s",
            )
        for phase in self.recording.phases:
            settled = self._settled_s(phase)
            if phase.judged and settled is not None:
                yield (
                    f"{settled:.0f} s",
                    f"until the last change of “{phase.title}” (judged from "
                    f"{phase.measured_s - phase.begin_s:.0f} s on)",
                )

    def _settled_s(self, phase: PhaseResult) -> float | None:
        times = [
            m.at_s - phase.begin_s
            for m in self.recording.moves
            if phase.begin_s <= m.at_s < phase.measured_s
        ]
        return max(times) if times else None

    # ------------------------------------------------------------ phases

    def _phase(self, phase: PhaseResult) -> Iterator[Markup]:
        yield el("h3", phase.title)
        length = phase.end_s - phase.measured_s
        yield el(
            "p",
            f"{phase.said[:1].upper()}{phase.said[1:]}. Measured for {length:.0f} s.",
            class_="soft",
        )
        columns = (
            "offered/s",
            "requests",
            "P50 ms",
            "P99 ms",
            "SLO ms",
            "within SLO",
            "failed",
            "applied at the end",
        )
        head = el("tr", el("th", "model", class_="l"), *(el("th", c) for c in columns))
        rows = [self._row(f, phase) for f in self.results if f.phase == phase.key]
        yield el("div", el("table", el("thead", head), el("tbody", *rows)), class_="wide")
        moves = [
            (n, m)
            for n, m in enumerate(self.timeline.moves, start=1)
            if phase.begin_s <= m.at_s < phase.end_s
        ]
        if moves:
            yield el("p", *self._reasons(phase))
            yield el("div", self._moves(moves, phase), class_="wide moves")

    def _row(self, f: Figures, phase: PhaseResult) -> Markup:
        index = self.recording.models.index(f.model)
        applied = self._applied_at(f.model, phase.end_s)
        return el(
            "tr",
            el("td", f.model, class_=f"l m{index}"),
            el("td", f"{f.rate_per_s:.1f}"),
            el("td", f"{f.requests:,}"),
            el("td", ms(f.p50_ms)),
            el("td", el("b", ms(f.p99_ms)), class_="good" if f.held else "bad"),
            el("td", f"{f.slo_ms:g}"),
            el("td", f"{f.attainment:.2%}"),
            el("td", str(f.failed), class_="bad" if f.failed else None),
            el("td", applied),
        )

    def _applied_at(self, model: str, at_s: float) -> str:
        before = [
            s.applied[model]
            for s in self.recording.samples
            if s.at_s <= at_s and model in s.applied
        ]
        return str(before[-1] if before else self.recording.initial[model])

    def _reasons(self, phase: PhaseResult) -> Iterator[Markup]:
        """The decisions behind the changes, in the daemon's words."""
        said = [
            s
            for s in self.recording.samples
            if phase.begin_s <= s.at_s < phase.end_s and s.outcome in ("move", "infeasible")
        ]
        sentences = dict.fromkeys(s.why for s in said if not s.why.startswith("carrying on"))
        for sentence in sentences:
            yield el("span", "igniterd decided: ", el("b", f"{sentence}."), " ")

    def _moves(self, moves: Sequence[tuple[int, Move]], phase: PhaseResult) -> Markup:
        head = el(
            "tr",
            el("th", "what igniterd changed", colspan=4, class_="l"),
            el("th", "took"),
            el("th", "why", class_="l"),
        )
        return el(
            "table", el("thead", head), el("tbody", *(self._move(n, m, phase) for n, m in moves))
        )

    def _move(self, number: int, move: Move, phase: PhaseResult) -> Markup:
        index = self.recording.models.index(move.model)
        why = reason(move) if move.ok else f"refused: {move.error}"
        return el(
            "tr",
            el(
                "td", el("span", number, class_=f"n {f'b{index}' if move.ok else 'bx'}"), class_="l"
            ),
            el("td", f"+{move.at_s - phase.begin_s:.0f} s", class_="l tight"),
            el("td", move.model, class_=f"l m{index}"),
            el("td", f"{move.before} → {move.after}", class_="l"),
            el("td", f"{move.duration_s:.1f} s", class_="tight"),
            el("td", why, class_="l why"),
        )

    # ------------------------------------------------------------ the rest

    def _frozen(self) -> Iterator[Markup]:
        """What would have been, by the model; where it was played, the phase above shows it."""
        if not self.recording.forecast_p99_ms or any(
            p.key == "frozen" for p in self.recording.phases
        ):
            return
        yield el("h3", "Had the plan stood still")
        said = []
        for model, p99 in self.recording.forecast_p99_ms.items():
            slo = self.recording.slos_ms[model]
            value = "overload: a queue that only grows" if p99 is None else f"{p99:.0f} ms"
            miss = p99 is None or p99 > slo
            said.append(
                el(
                    "li",
                    f"{model}: ",
                    el("b", value, class_="bad" if miss else "good"),
                    f" (SLO {slo:g} ms)",
                )
            )
        text = (
            "With the shares and batches of before the shift, igniterd's model (with the "
            "corrections it had learnt) predicts these P99s "
            "for the shifted traffic. It is a prediction; igniterd demo --frozen plays it."
        )
        yield el("p", text)
        yield el("ul", *said)

    def _messages(self) -> Iterator[Markup]:
        heard = self.recording.messages
        if not heard:
            return
        yield el("h2", "What a subscriber of the broker heard")
        states = sum(m.topic == "state" for m in heard)
        yield el(
            "p",
            f"{states} snapshots on …/state, and these on …/status and …/hint (repeated ones "
            "once):",
        )
        rows, last = [], ""
        for message in heard:
            said = _said(message.data) if message.topic != "state" else ""
            key = (
                f"{message.topic} {message.data.get('kind')} {message.data.get('status')} "
                f"{message.data.get('model')}"
            )
            if not said or key == last:
                continue
            last = key
            at = f"{message.at_s - self.timeline.begin_s:.0f} s"
            rows.append(
                el(
                    "tr",
                    el("td", at),
                    el("td", el("code", f"…/{message.topic}"), class_="l"),
                    el("td", said, class_="l"),
                )
            )
        yield el("div", el("table", el("tbody", *rows)), class_="wide")

    def _next(self) -> Iterator[Markup]:
        yield el("h2", "Look further")
        text = (
            "Start it again with --keep and everything goes on running after the last phase, "
            "until Ctrl-C. Then, for instance "
            "(after make demo, igniterd is .venv/bin/igniterd):"
        )
        yield el("p", text)
        commands = (
            "igniterd demo --keep\n"
            "igniterd show --config .demo/igniterd.toml          # what the daemon sees, "
            "predicts and last decided\n"
            "curl http://ADDRESS/state                           # the same as JSON; ADDRESS is "
            "[metrics] listen in .demo/igniterd.toml\n"
            "curl http://ADDRESS/metrics | grep igniterd_        # for Prometheus\n"
            "curl http://ADDRESS/readyz\n"
            'sqlite3 .demo/state/history.db \'select datetime(time_s, "unixepoch"), outcome, '
            "why from tick'\n"
            "igniterd demo --frozen                              # also plays the shift with the "
            "plan standing still"
        )
        yield el("pre", commands)

    def _made(self) -> Iterator[Markup]:
        yield el("h2", "What is real here")
        text = (
            "Real: tritonserver and its batcher, its API and hot reloads, the gRPC traffic, "
            f"igniterd {__version__}, and MPS control and "
            "the MQTT broker where they were had. Emulated: the GPU. A model executes for the "
            "time that measurements of a V100 give "
            "(Xu et al., IEEE TPDS 34(3), 2023) for its batch, its share and the neighbours "
            "executing at that moment, with dispersion; "
            "the emulator knows nothing of igniterd's predictions. Models without shares take "
            "turns, as on a board without MPS. "
            "The P99 curves are over sliding windows of 5 s and so rise above the P99 of a whole "
            "phase now and then."
        )
        yield el("p", text, class_="soft")
        if self.recording.notes:
            yield el("ul", *(el("li", note) for note in self.recording.notes), class_="soft")


def _said(data: dict[str, object]) -> str:
    """A status or a hint in words."""
    if "status" in data:
        return f"{data['status']}" + (f": {data['reason']}" if data.get("reason") else "")
    if data.get("kind") == "offer":
        return f"offer: {float(str(data['share'])):.1%} of {data.get('gpu')} could be given away"
    if data.get("kind") == "shed":
        return f"shed: {data.get('model')}: {data.get('reason')}"
    return ""
