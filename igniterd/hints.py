"""What the cluster should know of a tick, and of which models it cannot say that their SLO holds.
Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from igniterd.config import Config, Model
from igniterd.decisions import DecisionKind, Tick
from igniterd.states import State

OFFER_LEAST = 0.05  # a smaller share is not worth a hint
_ALL_HOLD = "every SLO holds"
_UNJUDGED = frozenset(
    {State.WATCHED, State.UNPREDICTABLE, State.UNREAD, State.UNSEEN, State.ABSENT}
)


def number(value: float | None, digits: int = 3) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def not_judged(tick: Tick, config: Config) -> dict[str, str]:
    """The configured models of which this tick cannot say whether their SLO holds, and why."""
    found = {model.tenant: _why_not_judged(tick, model) for model in config.model}
    return {name: why for name, why in found.items() if why}


def _why_not_judged(tick: Tick, model: Model) -> str:
    name, seen = model.tenant, tick.observation
    reading, standing = seen.models.get(name), tick.standings.get(name)
    odd = tick.estimate.left_out.get(name, "") or stuck(tick, name)
    if odd:
        return odd
    if name in seen.unread:
        return f"not read: {seen.unread[name]}"
    if reading is None:
        return "Triton does not serve it" if name in seen.absent else "not seen"
    if standing is not None and standing.state in _UNJUDGED:
        return standing.why or standing.state.value
    spoken_of = bool(model.profiles) and name in tick.plan.verdicts
    return reading.left_alone or (
        "" if spoken_of else "no plan speaks of it" if model.profiles else "it has no profile"
    )


def stuck(tick: Tick, name: str) -> str:
    """That it does not answer, in words; empty where it does."""
    load, standing = tick.estimate.loads.get(name), tick.standings.get(name)
    if load is not None and load.stuck_s > 0:
        return f"requests wait for {load.stuck_s:.0f} s and nothing is executed"
    mute = standing is not None and standing.state is State.NOT_ANSWERING
    return (standing.why or standing.state.value) if standing is not None and mute else ""


def qualified(tick: Tick, config: Config) -> Tick:
    """``tick``, whose plan says that every SLO holds only where every model was judged."""
    plan = tick.plan
    if _ALL_HOLD not in plan.why:
        return tick
    out = not_judged(tick, config)
    if not out:
        return tick
    which = "; ".join(f"{name}: {why}" for name, why in out.items())
    why = (
        f"{plan.why.replace(_ALL_HOLD, 'every SLO that was judged holds', 1)}; not judged: {which}"
    )
    return replace(tick, plan=replace(plan, why=why))


def hints_of(tick: Tick, config: Config) -> Iterator[dict[str, Any]]:
    """What the cluster should know: models that do not fit here, shares without effect, and room to
    give away."""
    for verdict in tick.plan.verdicts.values():
        if verdict.feasible:
            continue
        load = tick.estimate.loads.get(verdict.model)
        yield {
            "kind": "shed",
            "model": verdict.model,
            "slo_p99_ms": verdict.slo_p99_ms,
            "rate_per_s": number(load.rate_upper_per_s if load else None),
            "needs_share": verdict.needs_share,
            "reason": verdict.reason,
        }
    for name, share in tick.shares.items():
        if share.effective is None:
            yield {
                "kind": "share",
                "model": name,
                "share": share.applied,
                "state": share.effect.value,
                "reason": share.reason,
            }
    for name in config.by_name():
        reason, load = stuck(tick, name), tick.estimate.loads.get(name)
        if reason:
            waits_s = number(load.stuck_s if load else None, 1)
            yield {
                "kind": "not_answering",
                "model": name,
                "stuck_s": waits_s,
                "reason": reason,
            }
    yield from _offers(tick, config)


def _offers(tick: Tick, config: Config) -> Iterator[dict[str, Any]]:
    """The room on each GPU of which every model was judged."""
    plan, seen = tick.plan, tick.observation
    if not plan.feasible or plan.outcome is not DecisionKind.HOLD:
        return
    unclear = not_judged(tick, config)
    if any(name not in seen.models for name in unclear if name not in seen.absent):
        return  # wherever it runs
    boards = {board.uuid: board for board in seen.boards}
    for gpu, least in plan.least_by_gpu.items():
        there = [name for name, reading in seen.models.items() if gpu in reading.gpus]
        room = 1 - least - plan.reserved.get(gpu, seen.foreign.get(gpu, 0.0))
        if not there or any(name in unclear for name in there) or room < OFFER_LEAST:
            continue
        board, free = boards.get(gpu), None
        if board and board.memory_total_bytes is not None and board.memory_used_bytes is not None:
            free = board.memory_total_bytes - board.memory_used_bytes
        named = {"gpu_uuid": gpu, "gpu": board.name if board else None}
        yield {"kind": "offer", **named, "share": round(room, 4), "memory_free_bytes": free}
