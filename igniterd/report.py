"""One tick as people and machines read it: the state (JSON), log lines, history rows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import structlog

from igniterd import __version__
from igniterd.config import Config, Model
from igniterd.decisions import DecisionKind, StepKind, Tick
from igniterd.edgelog import EdgeLogger, Lately
from igniterd.hints import number, qualified
from igniterd.loads import LiveService, Load
from igniterd.records import Gap

STATE_SCHEMA = 1
SAY_AGAIN_S = 600.0
_FIGURES = re.compile(r"[\w.]*\d[\w.]*")  # words with a digit too: an address, the id of a request
# batches whose service times are shown
_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def _learnt(load: Load) -> dict[str, Any] | None:
    """What live traffic says of the bias, and where: None before anything is learnt."""
    if load.published_bias is None:
        return None
    return {
        name: number(value, 4) for name, value in dataclasses.asdict(load.published_bias).items()
    } | {"upper": number(load.bias_upper, 4)}


def _live(live: LiveService | None) -> dict[str, Any] | None:
    """Service times of a model without a profile."""
    if live is None:
        return None
    shown = [b for b in _SHOWN if b < len(live.mean_ms)] + [len(live.mean_ms)]
    points = [
        {"batch": b, "mean_ms": number(live.mean_ms[b - 1]), "error": number(live.error[b - 1], 4)}
        for b in shown
    ]
    return {"share": live.share, "said": live.said, "cv": number(live.cv, 4), "points": points}


def _share(tick: Tick, name: str) -> dict[str, Any] | None:
    """What was asked for, what the configuration names, and what has been shown to be so."""
    share, verdict = tick.shares.get(name), tick.plan.verdicts.get(name)
    if share is None:
        return None
    return {
        "asked": verdict.allocation.share if verdict is not None else share.applied,
        "applied": share.applied,
        "effective": share.effective,
        "state": share.effect.value,
        "by": share.by,
        "reason": share.reason,
        "since_s": number(tick.wall_time_s + share.since_s - tick.at_s),
    }


def _model_state(tick: Tick, model: Model) -> dict[str, Any]:
    name, reading = model.tenant, tick.observation.models.get(model.tenant)
    load, verdict = tick.estimate.loads.get(name), tick.plan.verdicts.get(name)
    state: dict[str, Any] = {
        "name": name,
        "triton": model.triton,
        "slo_p99_ms": model.slo_p99_ms,
        "priority": model.priority,
        "seen": reading is not None,
    }
    state |= _standing(tick, name)
    if reading is not None:
        state |= {
            "version": reading.version,
            "backend": reading.backend,
            "ready": reading.ready,
        }
        state |= {
            "fixed": list(
                dict.fromkeys(
                    reason for reason in (reading.share_fixed, reading.batching_fixed) if reason
                )
            )
        }
        state |= {
            "gpus": list(dict.fromkeys(reading.gpus)),
            "applied": reading.allocation.figures(),
            "share": _share(tick, name),
            "takes": number(tick.plan.takes.get(name), 4),
        }
    if load is not None:
        state |= {
            "rate_per_s": number(load.rate_per_s),
            "rate_upper_per_s": number(load.rate_upper_per_s),
            "busy": number(load.utilisation),
            "mean_batch": number(load.mean_batch),
            "burstiness": number(load.arrival_scv),
            "remembered_per_s": number(load.remembered_per_s),
            "items_per_request": number(load.items_per_request),
            "stuck_s": number(load.stuck_s, 1),
            "bias": number(load.bias, 4),
            "learnt": _learnt(load),
            "live": _live(load.live),
            "changed": load.changed
            and {
                "time_s": number(tick.wall_time_s + load.changed.at_s - tick.at_s),
                "why": load.changed.why,
            },
            "measured": {
                k: number(getattr(load, f"measured_{k}_ms")) for k in ("mean", "p50", "p99")
            },
            "predicted": {
                k: number(getattr(load, f"predicted_{k}_ms")) for k in ("mean", "p50", "p99")
            },
        }
    if verdict is not None:
        state |= {
            "feasible": verdict.feasible,
            "reason": verdict.reason,
            "needs_share": verdict.needs_share,
        }
        state |= {
            "planned": verdict.allocation.figures(),
            "planned_p99_ms": number(verdict.predicted_p99_ms),
        }
    return state


def _standing(tick: Tick, name: str) -> dict[str, Any]:
    """Its state and why it is in it; ``state`` is null where nobody has judged it yet."""
    standing = tick.standings.get(name)
    if standing is None:
        return {"state": None, "why": ""}
    since_s = tick.wall_time_s + standing.since_s - tick.at_s
    return {"state": standing.state.value, "why": standing.why, "state_since_s": number(since_s)}


def state_of(
    tick: Tick, config: Config, last_moves: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    """The tick as one JSON object: what ``/state`` and ``igniterd show`` give."""
    tick = qualified(tick, config)
    plan = tick.plan
    return {
        "schema": STATE_SCHEMA,
        "igniterd": __version__,
        "host": config.host.name,
        "cluster": config.host.cluster,
        "mode": config.loop.mode,
        "tick": tick.number,
        "time_s": round(tick.wall_time_s, 3),
        "decision": {
            "outcome": plan.outcome.value,
            "why": plan.why,
            "feasible": plan.feasible,
            "headroom": number(plan.headroom),
            "allocated_share": number(plan.allocated_share, 4),
            "least_share": number(plan.least_share, 4),
            "least_by_gpu": {
                str(gpu): number(least, 4) for gpu, least in plan.least_by_gpu.items()
            },
            "steps": [{"model": s.model, "kind": s.kind.value, "why": s.why} for s in plan.steps],
        },
        "models": [_model_state(tick, model) for model in config.model],
        "boards": [
            dataclasses.asdict(board) | {"reserved": number(plan.reserved.get(board.uuid), 4)}
            for board in tick.observation.boards
        ],
        "gaps": [{"source": gap.source, "reason": gap.reason} for gap in tick.observation.gaps],
        "last_moves": list(last_moves),
        "stage_ms": {stage: round(seconds * 1000, 3) for stage, seconds in tick.stage_s.items()},
    }


def moves_of(tick: Tick) -> Iterator[dict[str, Any]]:
    """Every actuation of the tick, and what a rebalance changed before it, in words."""
    for model, change in tick.rebalanced.items():
        yield {
            "time_s": round(tick.wall_time_s, 3),
            "model": model,
            "kind": "rebalance",
            "before": change.before.figures(),
            "after": change.after.figures(),
            "ok": True,
            "duration_s": 0.0,
            "why": "a rebalance of the cluster (igniterd fleet apply) changed it",
            "error": "",
        }
    for done in tick.outcome.actuations:
        yield {
            "time_s": round(tick.wall_time_s, 3),
            "model": done.step.model,
            "kind": done.step.kind.value,
            "before": done.step.before.figures(),
            "after": done.step.after.figures(),
            "ok": done.ok,
            "duration_s": round(done.duration_s, 3),
            "why": done.step.why,
            "error": done.error,
        }


def _refusal_of(move: Mapping[str, Any]) -> str:
    """A refusal without its figures."""
    return f"refused {move['kind']} {move['model']}: {_FIGURES.sub('#', move['error'])}"


def _kind_of(sentence: str, models: Iterable[str]) -> str:
    """What remains of a sentence without its figures, which wobble: the models it names, and its
    words."""
    named = [name for name in models if name in sentence]
    return f"{' '.join(named)}: {_FIGURES.sub('#', sentence)}"


class Reporter:
    """Gives one tick to everybody who wants it. Nothing here waits for anybody."""

    def __init__(
        self,
        config: Config,
        *,
        metrics: Callable[[Tick], None] | None = None,
        announce: Callable[[Tick, bool], None] | None = None,
        history: Callable[[Tick, Callable[[], dict[str, Any]]], None] | None = None,
    ) -> None:
        self.config = config
        self._names = sorted(model.tenant for model in config.model)
        self._tick: Tick | None = None
        self._state: dict[str, Any] = {}
        self._metrics, self._announce, self._history = metrics, announce, history
        self._log = structlog.get_logger("igniterd")
        self._moves: tuple[dict[str, Any], ...] = ()
        self._said: str = ""
        self._lately = Lately(SAY_AGAIN_S)
        self._now_s = 0.0  # of the tick that is being told
        self._silent = EdgeLogger("", clock=lambda: self._now_s)
        self._once = EdgeLogger("mps")

    def __call__(self, tick: Tick) -> None:
        tick, moves = qualified(tick, self.config), tuple(moves_of(tick))
        self._moves = (*self._moves, *moves)[-20:]
        self._tick = tick
        if self._metrics is not None:
            self._metrics(tick)
        self._say(tick, moves)
        if self._announce is not None:
            self._announce(tick, bool(moves))
        if self._history is not None:
            self._history(tick, lambda: self.state)

    @property
    def state(self) -> dict[str, Any]:
        """The last tick for others to read; put together when somebody does, which at most ticks
        nobody does."""
        if self._tick is not None:
            self._state, self._tick = state_of(self._tick, self.config, self._moves), None
        return self._state

    def _say(self, tick: Tick, moves: tuple[dict[str, Any], ...]) -> None:
        """A decision is logged when it changes, a silent source when it falls silent and when it is
        back."""
        for move in moves:
            if (
                not move["ok"]
                and move["kind"] == StepKind.ADOPT.value
                and not self._not_said_lately(_refusal_of(move), tick.at_s)
            ):
                continue  # it is tried again and again
            say = self._log.info if move["ok"] else self._log.warning
            say(
                "moved" if move["ok"] else "move refused",
                **{k: v for k, v in move.items() if k not in ("time_s", "ok") and v != ""},
            )
        plan = tick.plan
        # a sentence's figures wobble, and so do two sentences of a GPU at its limit: what was said
        # lately is not said again
        sentence = (
            plan.outcome.value
            if plan.outcome is DecisionKind.HOLD
            else f"{plan.outcome.value}: {plan.why}"
        )
        spoken = _kind_of(sentence, self._names)
        lasting = plan.outcome is not DecisionKind.MOVE or any(
            step.kind is StepKind.ADOPT for step in plan.steps
        )
        if spoken != self._said and not (lasting and self._lately.said(spoken, tick.at_s)):
            self._log.info("decision", outcome=plan.outcome.value, why=plan.why)
            self._lately.note(spoken, tick.at_s)
        self._said = spoken
        for load in tick.estimate.loads.values():
            if (
                load.changed
                and load.changed.at_s == tick.observation.at_s
                and self._not_said_lately(f"changed {load.model}", tick.at_s)
            ):
                self._log.warning("model changed", model=load.model, why=load.changed.why)
        self._say_cap(tick)
        self._say_gaps(tick)

    def _say_gaps(self, tick: Tick) -> None:
        """A source is told of when it falls silent, and when it is back; one that flaps is summed
        up."""
        self._now_s = tick.at_s
        gaps = {self._key_of(gap): gap for gap in tick.observation.gaps}
        for key, gap in gaps.items():
            kind, _, model = gap.source.partition(":")
            if kind == "share":
                self._silent.failed(
                    key, gap.reason, says="share without effect", more={"model": model}
                )
            else:
                self._silent.failed(
                    key, gap.reason, says="source silent", more={"source": gap.source}
                )
        for key in self._silent.known():
            source = key.partition(" ")[0]
            kind, _, model = source.partition(":")
            if key in gaps:
                continue
            if kind == "share":
                self._silent.worked(key, says="share no longer in doubt", more={"model": model})
            else:
                self._silent.worked(key, says="source answers again", more={"source": source})

    def _key_of(self, gap: Gap) -> str:
        """A share that is in doubt for another reason than before is news; a source that is silent
        is not."""
        return (
            f"{gap.source} {_kind_of(gap.reason, self._names)}"
            if gap.source.startswith("share:")
            else gap.source
        )

    def _say_cap(self, tick: Tick) -> None:
        """A cap on every client makes a larger share than it worth nothing, and nothing else would
        tell."""
        mps = tick.observation.mps
        if mps is None or mps.default_share is None:
            return
        if mps.default_share < 1:
            reason = (
                f"MPS control caps every client at {mps.default_share:.0%}: "
                "set_default_active_thread_percentage 100"
            )
            self._once.failed("cap", reason)
        else:
            self._once.worked("cap")

    def _not_said_lately(self, what: str, at_s: float) -> bool:
        said = self._lately.said(what, at_s)
        self._lately.note(what, at_s)
        return not said
