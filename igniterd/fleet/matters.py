"""What of a state matters for planning, as one number: figures that wobble do not change it.
Pure."""

from __future__ import annotations

import math

from igniterd.fleet.cluster import HostView
from igniterd.messages.state import BoardState, ModelState

_RATE_STEP = math.log(1.1)


def matters(view: HostView) -> int:
    """Equal for two states of a host that plans may treat alike."""
    decision = view.state.decision
    return hash(
        (
            view.run,
            view.degraded,
            view.state.terms.level,
            view.state.terms.slo_margin,
            decision is None or decision.feasible,
            tuple((t.name, t.gpus, t.shares, t.loadable) for t in view.state.tritons),
            tuple(
                (b.uuid, b.name, b.sm_count, _memory(b), _part(b.reserved), b.fault)
                for b in view.state.boards
            ),
            tuple(_of_model(model) for model in view.state.models),
        )
    )


def _of_model(model: ModelState) -> tuple[object, ...]:
    applied = model.applied
    return (
        model.name,
        model.triton,
        model.model,
        model.slo_p99_ms,
        model.priority,
        model.min_share,
        model.max_share,
        model.absent,
        model.stays,
        model.ready,
        model.gpus,
        applied
        and (
            applied.share,
            applied.max_batch_size,
            applied.max_queue_delay_us,
            applied.instances,
            applied.devices,
        ),
        _part(model.reserved),
        _rate(model.rate_upper_per_s),
        _part(model.bias),
        model.learnt and _part(model.learnt.level),
        model.items,
        _rate(model.items_per_request),
        _rate(model.burstiness),
        model.batches,
        model.keeps_batch,
        model.steerable,
        model.feasible,
        model.profiles,
        model.profile_model,
    )


def _memory(board: BoardState) -> tuple[int | None, int | None]:
    """All of it, and what is used of it in steps of a sixteenth."""
    total, used = board.memory_total_bytes, board.memory_used_bytes
    return total, None if not total or used is None else 16 * used // total


def _rate(rate: float | None) -> int | None:
    """A rate in steps of a tenth."""
    return None if rate is None else round(math.log(max(rate, 0.01)) / _RATE_STEP)


def _part(part: float | None) -> int | None:
    """A part of a GPU, or a correction, in steps of a twentieth."""
    return None if part is None else round(20 * part)
