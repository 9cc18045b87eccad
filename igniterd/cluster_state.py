"""What a host says of itself to its cluster: what is needed to predict its models elsewhere, and to
plan for it (:class:`igniterd.messages.state.HostState`). Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from igniterd import __version__
from igniterd.config import Config, Model
from igniterd.decide.demands import batches, items_brought, steerable
from igniterd.decide.uncapped import after, busy_part, taken
from igniterd.decisions import Tick
from igniterd.hints import number, stuck
from igniterd.jsontext import dumps
from igniterd.loads import BiasEstimate, Load
from igniterd.messages.event import MOST_DATA
from igniterd.messages.lean import lean
from igniterd.messages.state import (
    AppliedState,
    BoardState,
    DecisionState,
    HostState,
    Latency,
    Learnt,
    ModelState,
    PlanTerms,
    ShareEffect,
    TritonState,
    short,
)
from igniterd.placement import HOMELESS
from igniterd.profiled import Predictors
from igniterd.records import BoardReading, ModelReading, most_on_one

SCHEMA = 1
MOST_LOADABLE = 12 * 1024
"""Bytes of the names of all models that could be loaded: of a repository with more, some are not
named."""
_ROOM = 1024  # bytes of a host's first part that are left free for its frame
_DIGITS = 4


def cluster_state(
    tick: Tick,
    config: Config,
    knowledge: Predictors,
    *,
    run: str,
    loadable: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """All of a host's ``state``, in one piece.

    ``run`` names the process that says it; ``loadable``: by Triton, the models of its repository
    that it did not serve when it was last asked for them.
    """
    plan = tick.plan
    decision = {
        "outcome": plan.outcome.value,
        "why": short(plan.why),
        "feasible": plan.feasible,
        "headroom": number(plan.headroom, _DIGITS),
        "allocated_share": number(plan.allocated_share, _DIGITS),
        "least_share": number(plan.least_share, _DIGITS),
        "least_by_gpu": {gpu: number(part, _DIGITS) for gpu, part in plan.least_by_gpu.items()},
    }
    terms = {"level": config.decide.level, "slo_margin": config.decide.slo_margin}
    head = {
        "schema": SCHEMA,
        "igniterd": __version__,
        "host": config.host.name,
        "cluster": config.host.cluster,
        "run": run,
        "mode": config.loop.mode,
        "tick": tick.number,
        "time_s": round(tick.wall_time_s, 3),
        "terms": lean(PlanTerms, terms) or None,
        "decision": lean(DecisionState, decision),
        "boards": [_board(tick, board) for board in tick.observation.boards],
    }
    room = MOST_DATA - _ROOM - len(dumps(head))
    head["tritons"] = _tritons(tick, config, loadable or {}, room)
    profiled = knowledge.all_profiled
    models = [
        _model(tick, config, name, model, knowledge, profiled.get(name))
        for name, model in config.by_name().items()
    ]
    return lean(HostState, head) | {"models": models}


def _tritons(
    tick: Tick, config: Config, loadable: Mapping[str, Collection[str]], room: int
) -> list[dict[str, Any]]:
    """Every Triton, in ``room`` bytes where that can be: what could be loaded there is named as far
    as it goes, the configured models first."""
    seen = tick.observation
    out: dict[str, dict[str, Any]] = {
        server.name: {
            "name": server.name,
            "gpus": list(seen.devices.get(server.name, ())),
            "shares": str(config.shares),
            "loadable": [],
        }
        for server in config.triton
    }
    room = min(MOST_LOADABLE, room - len(dumps(out)))
    for name, told in out.items():
        mine = [model for model in config.model if model.triton == name]
        absent = sorted(model.name for model in mine if model.tenant in seen.absent)
        served = {model.name for model in mine if model.tenant in seen.models}
        for each in (*absent, *sorted(set(loadable.get(name, ())) - served - set(absent))):
            room -= len(dumps(each)) + 1
            if room < 0:
                break
            told["loadable"].append(each)
    return [lean(TritonState, told) for told in out.values()]


def _board(tick: Tick, board: BoardReading) -> dict[str, Any]:
    values = {
        "uuid": board.uuid,
        "name": board.name,
        "sm_count": board.sm_count,
        "memory_used_bytes": board.memory_used_bytes,
        "memory_total_bytes": board.memory_total_bytes,
        "reserved": number(_of_strangers(tick, board.uuid), _DIGITS),
        "fault": short(board.fault),
    }
    return lean(BoardState, values)


def _of_strangers(tick: Tick, gpu: str) -> float:
    """The part of ``gpu`` to leave free for what nobody configured: as is seen now, and where the
    host plans the GPU, at least what it leaves them itself."""
    plan, seen = tick.plan, tick.observation
    busy = after(None, seen.foreign_busy.get(gpu, 0.0), tick.at_s)
    now = seen.foreign.get(gpu, 0.0) + (busy.level if busy is not None else 0.0)
    known = sum(
        part for m, part in plan.takes.items() if m in seen.models and gpu in seen.models[m].gpus
    )
    return max(now, plan.reserved.get(gpu, 0.0) - known)


def _model(
    tick: Tick,
    config: Config,
    name: str,
    model: Model,
    knowledge: Predictors,
    profiled_as: str | None,
) -> dict[str, Any]:
    seen = tick.observation
    reading, standing = seen.models.get(name), tick.standings.get(name)
    load, verdict = tick.estimate.loads.get(name), tick.plan.verdicts.get(name)
    values: dict[str, Any] = {
        "name": name,
        "triton": model.triton,
        "model": _other(model.name, name),
        "slo_p99_ms": model.slo_p99_ms,
        "priority": model.priority,
        "min_share": model.min_share,
        "max_share": model.max_share,
        "seen": reading is not None,
        "absent": name in seen.absent,
        "state": standing.state.value if standing is not None else None,
        "why": short(standing.why) if standing is not None else "",
        "stays": short(why_it_stays(tick, name, model, profiled=profiled_as is not None)),
        "profiles": list(knowledge.digests.get(name, ())),
        "profile_model": _other(profiled_as, name),
    }
    if reading is not None:
        values |= _read(tick, config, name, reading)
        part = _reserved(tick, name, model, reading, planned=profiled_as is not None)
        values["reserved"] = number(part, _DIGITS)
    if load is not None:
        values |= _loaded(load) | {"items": items_brought(model, load)}
    if reading is not None and load is not None and profiled_as is not None:
        values["batches"] = batches(model, reading, load, _largest_batch(knowledge, name))
    if verdict is not None:
        values |= {
            "feasible": verdict.feasible,
            "reason": short(verdict.reason),
            "needs_share": number(verdict.needs_share, _DIGITS),
            "planned_p99_ms": number(verdict.predicted_p99_ms),
        }
    return lean(ModelState, values)


def _other(one: str | None, name: str) -> str | None:
    return None if one == name else one


def _read(tick: Tick, config: Config, name: str, reading: ModelReading) -> dict[str, Any]:
    here, share = reading.allocation, tick.shares.get(name)
    effect = None
    if share is not None:
        of = {"applied": share.applied, "effective": share.effective, "state": share.effect.value}
        effect = lean(ShareEffect, of)
    return {
        "ready": reading.ready,
        "gpus": list(dict.fromkeys(reading.gpus)),
        "applied": lean(AppliedState, here.figures()),
        "share": effect,
        "keeps_batch": here.max_batch_size if reading.batching_fixed else None,
        "steerable": steerable(reading, config),
    }


def _reserved(
    tick: Tick, name: str, model: Model, reading: ModelReading, *, planned: bool
) -> float:
    share = tick.shares.get(name)
    in_doubt = share is not None and share.effective is None and not share.absent
    doubted = share.applied * reading.allocation.instances if share is not None and in_doubt else 0
    if name in tick.plan.takes:
        return max(tick.plan.takes[name], doubted)
    load = tick.estimate.loads.get(name)
    if (planned and not reading.left_alone and load is not None) or not reading.gpus:
        return doubted
    busy = busy_part(load, most_on_one(reading.gpu_of_each, 1)) if load is not None else 0.0
    part = after(None, busy, tick.at_s) if reading.allocation.share is None else None
    return max(taken(reading, gpu, model.reserve_share, part) for gpu in reading.gpus)


def _loaded(load: Load) -> dict[str, Any]:
    values: dict[str, Any] = {
        "rate_per_s": number(load.rate_per_s),
        "rate_upper_per_s": number(load.rate_upper_per_s),
        "busy": number(load.utilisation),
        "mean_batch": number(load.mean_batch),
        "burstiness": number(load.arrival_scv),
        "items_per_request": number(load.items_per_request),
        "bias": number(load.bias, _DIGITS),
    }
    values["learnt"] = _learnt(load.published_bias)
    for key in ("measured", "predicted"):
        times = {k: number(getattr(load, f"{key}_{k}_ms")) for k in ("mean", "p50", "p99")}
        values[key] = lean(Latency, times) or None
    return values


def _learnt(bias: BiasEstimate | None) -> dict[str, Any] | None:
    """None where a number is none: a correction is whole or not there."""
    if bias is None:
        return None
    fields = Learnt.model_fields
    found = lean(Learnt, {key: number(getattr(bias, key), 6) for key in fields})
    return found if len(found) == len(fields) - (bias.cv is None) else None


def _largest_batch(knowledge: Predictors, name: str) -> int:
    """Of the profiles of all kinds of boards; on each kind its own profile is a limit too."""
    return max(
        (
            kind.predictors.upper.model.max_batch(kind.profiled[name])
            for kind in knowledge.kinds
            if kind.predictors is not None and name in kind.profiled
        ),
        default=1,
    )


def why_it_stays(tick: Tick, name: str, model: Model, *, profiled: bool) -> str:
    """Why the model must not be taken from this host, in words; empty where it may be.

    As between the GPUs of a host (``Between._movable``), but that it needs no share of its own:
    another host may do with its model what it does with its own.
    """
    seen = tick.observation
    reading, standing = seen.models.get(name), tick.standings.get(name)
    if standing is not None and not standing.free:
        return standing.why or f"it is {standing.state.value}"
    if reading is None:
        return "Triton does not serve it" if name in seen.absent else "it is not read"
    told = "" if model.gpu is None else f"[[model]] gpu = {model.gpu!r} says where it belongs"
    return next(
        filter(
            None,
            (
                "it is being loaded, or not ready" if reading.loading or not reading.ready else "",
                reading.hands_off,
                stuck(tick, name),
                reading.left_alone,
                "" if profiled else "it has no profile",
                tick.estimate.left_out.get(name, ""),
                "" if name in tick.estimate.loads else "nothing is known of its traffic yet",
                HOMELESS if HOMELESS in (reading.share_fixed, reading.batching_fixed) else "",
                told,
                _why_of_its_gpus(tick, reading),
            ),
        ),
        "",
    )


def _why_of_its_gpus(tick: Tick, reading: ModelReading) -> str:
    gpus = set(reading.gpus)
    if len(gpus) != 1:
        return f"it is on {len(gpus)} GPUs" if gpus else "it is on no GPU"
    seen = tick.observation
    known = {board.uuid for board in seen.boards}.union(*seen.devices.values())
    return "" if gpus <= known else "which GPU it is on is not known"
