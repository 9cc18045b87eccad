"""The page of a run: one file, nothing loaded from anywhere, readable in light and dark.

What it says is in ``page.html.j2``; here are its figures, as text where they have a format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from igniterd import __version__
from igniterd.demo.measure import Figures
from igniterd.demo.recording import Message, Move, PhaseResult, Recording
from igniterd.demo.terminal import gpus_of, ms, reason
from igniterd.demo.timeline import Timeline
from igniterd.lab.load.load import RequestLog

_TO_GO = re.compile(r": \d+ to go$")
_GOES_ON = re.compile(r"^carrying on|is being reloaded$|^every SLO holds")
"""What a decision about several GPUs says of one for which nothing is decided now."""
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
        run = self.recording
        # a name that the template has and this does not is an error, not an empty place
        loader = PackageLoader("igniterd.demo", "")
        templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        return templates.get_template("page.html.j2").render(
            style=Markup(_STYLE),  # noqa: S704  a file of this package
            run=run,
            heading=self._heading(),
            boards=f"{_count(len(run.gpus))} emulated V100s" if run.gpus else "an emulated V100",
            option=f" --gpus {len(run.gpus)}" if run.gpus else "",
            when=f"{datetime.fromtimestamp(run.began_s, UTC):%Y-%m-%d %H:%M} UTC",
            slow=f"{run.slow_factor:g}",
            problems=self.problems,
            facts=list(self._facts()),
            timeline=self.timeline.svg(),
            phases=[self._phase(phase) for phase in run.phases],
            forecast=list(self._forecast()),
            snapshots=sum(message.topic == "state" for message in run.messages),
            messages=list(self._messages()),
            version=__version__,
        )

    # ------------------------------------------------------------ the top

    def _heading(self) -> str:
        run = self.recording
        many = len(run.gpus) > 1
        where = f"{_count(len(run.gpus))} shared GPUs" if many else "one shared GPU"
        return f"{_count(len(run.models))} models and their SLOs on {where}"

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Pairs of a figure and what it means."""
        run = self.recording
        judged = {phase.key for phase in run.phases if phase.judged}
        figures = [each for each in self.results if each.phase in judged]
        sent = sum(each.requests for each in figures)
        if sent:
            within = sum(each.attainment * each.requests for each in figures if each.requests)
            yield f"{within / sent:.2%}", "of requests within their SLO in igniterd's phases"
        yield f"{self.failed} of {self.requests:,}", "requests failed in the whole run"
        reloads = [move for move in run.moves if move.ok]
        if reloads:
            longest_s = max(move.duration_s for move in reloads)
            yield (
                f"{len(reloads)} changes",
                f"made under traffic, each a reload of at most {longest_s:.1f} s",
            )
        for move in reloads:
            if move.relocates:
                yield (
                    gpus_of(move, "→"),
                    f"{move.model} moved under traffic, in {move.duration_s:.1f} s",
                )
        for phase in run.phases:
            settled_s = self._settled_s(phase)
            if phase.judged and settled_s is not None:
                yield (
                    f"{settled_s:.0f} s",
                    f"until the last change of “{phase.title}” (judged from "
                    f"{phase.measured_s - phase.begin_s:.0f} s on)",
                )

    def _settled_s(self, phase: PhaseResult) -> float | None:
        """From the beginning of ``phase`` to the last change before it was measured."""
        times = [
            move.at_s - phase.begin_s
            for move in self.recording.moves
            if phase.begin_s <= move.at_s < phase.measured_s
        ]
        return max(times) if times else None

    # ------------------------------------------------------------ phases

    def _phase(self, phase: PhaseResult) -> dict[str, Any]:
        return {
            "title": phase.title,
            "said": f"{phase.said[:1].upper()}{phase.said[1:]}",
            "length_s": f"{phase.end_s - phase.measured_s:.0f}",
            "rows": [self._row(each, phase) for each in self.results if each.phase == phase.key],
            "reasons": self._reasons(phase),
            "moves": [
                self._move(number, move, phase)
                for number, move in enumerate(self.timeline.moves, start=1)
                if phase.begin_s <= move.at_s < phase.end_s
            ],
        }

    def _row(self, figures: Figures, phase: PhaseResult) -> dict[str, Any]:
        return {
            "index": self.recording.models.index(figures.model),
            "model": figures.model,
            "rate": f"{figures.rate_per_s:.1f}",
            "requests": f"{figures.requests:,}",
            "p50": ms(figures.p50_ms),
            "p99": ms(figures.p99_ms),
            "held": figures.held,
            "slo": f"{figures.slo_ms:g}",
            "attainment": f"{figures.attainment:.2%}",
            "failed": figures.failed,
            "applied": self._applied_at(figures.model, phase.end_s),
        }

    def _applied_at(self, model: str, at_s: float) -> str:
        before = [
            sample.applied[model]
            for sample in self.recording.samples
            if sample.at_s <= at_s and model in sample.applied
        ]
        applied = before[-1] if before else self.recording.initial[model]
        return f"{applied}" if applied.gpu is None else f"GPU {applied.gpu}: {applied}"

    def _reasons(self, phase: PhaseResult) -> list[str]:
        """The decisions behind the changes, in the daemon's words."""
        said = [
            sample.why
            for sample in self.recording.samples
            if phase.begin_s <= sample.at_s < phase.end_s
            and sample.outcome in ("move", "infeasible")
        ]
        kept = dict.fromkeys(filter(None, map(self._decided, said)))
        return [self.recording.said(why) for why in kept]

    def _decided(self, why: str) -> str:
        """What was decided anew; empty where a plan is only carried on."""
        if len(self.recording.gpus) < 2:
            return "" if why.startswith("carrying on") else why
        parts = [_TO_GO.sub("", part) for part in why.split("; ")]
        return "; ".join(part for part in parts if not _GOES_ON.search(part))

    def _move(self, number: int, move: Move, phase: PhaseResult) -> dict[str, Any]:
        return {
            "number": number,
            "index": self.recording.models.index(move.model),
            "ok": move.ok,
            "after_s": f"{move.at_s - phase.begin_s:.0f}",
            "model": move.model,
            "gpus": gpus_of(move, "→"),
            "relocates": move.relocates,
            "before": move.before,
            "after": move.after,
            "took_s": f"{move.duration_s:.1f}",
            "why": self.recording.said(reason(move)) if move.ok else f"refused: {move.error}",
        }

    # ------------------------------------------------------------ the rest

    def _forecast(self) -> Iterator[dict[str, Any]]:
        """What would have been, by the model; where it was played, the phase above shows it."""
        if any(phase.key == "frozen" for phase in self.recording.phases):
            return
        for model, p99_ms in self.recording.forecast_p99_ms.items():
            slo_ms = self.recording.slos_ms[model]
            overload = "overload: a queue that only grows"
            yield {
                "model": model,
                "value": overload if p99_ms is None else f"{p99_ms:.0f} ms",
                "missed": p99_ms is None or p99_ms > slo_ms,
                "slo": f"{slo_ms:g}",
            }

    def _messages(self) -> Iterator[dict[str, str]]:
        """Statuses and hints; what is said again is left out."""
        lately, kind = set[str](), ""
        for message in self.recording.messages:
            said, key = _describe(message, self.recording), _key(message)
            if not said:
                continue
            lately, kind = lately if _kind(message) == kind else set(), _kind(message)
            if key in lately:
                continue
            lately.add(key)
            at_s = message.at_s - self.timeline.begin_s
            yield {"at_s": f"{at_s:.0f}", "topic": message.topic, "said": self.recording.said(said)}


def _key(message: Message) -> str:
    data = message.data
    return f"{_kind(message)} {data.get('status')} {data.get('model')} {data.get('gpu_uuid')}"


def _kind(message: Message) -> str:
    return f"{message.topic} {message.data.get('kind')}"


def _count(number: int) -> str:
    """A small number in words."""
    words = ("no", "one", "two", "three", "four", "five", "six")
    return words[number] if number < len(words) else str(number)


def _describe(message: Message, run: Recording) -> str:
    """A status or a hint in words; empty for a snapshot."""
    data = message.data
    if message.topic == "state":
        return ""
    if "status" in data:
        return f"{data['status']}" + (f": {data['reason']}" if data.get("reason") else "")
    if data.get("kind") == "offer":
        gpu = data.get("gpu_uuid") if data.get("gpu_uuid") in run.gpus else data.get("gpu")
        return f"offer: {float(str(data['share'])):.1%} of {gpu} could be given away"
    if data.get("kind") == "shed":
        return f"shed: {data.get('model')}: {data.get('reason')}"
    return ""
