"""The decision: from what is believed to what should change, and why. Pure; ``now_s`` is an argument.

What is applied is judged first. It is left alone as long as it holds every SLO that can be held; a search is made when it does not,
and now and then to see whether much more head-room is to be had. A plan is carried out a step a tick, and thrown away when the
traffic has outgrown it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from igniterd.config import Config
from igniterd.decide.gpu import CAUTIONS, Case, Oracles, Part
from igniterd.decide.hold import Held, after, came_after_all, rollbacks, why_not_now
from igniterd.decide.steps import granted
from igniterd.model.oracle import Demand, Service
from igniterd.records import (
    Allocation,
    Estimate,
    Load,
    ModelReading,
    Observation,
    Outcomes,
    Plan,
    Step,
    StepKind,
    Verdict,
)

MUCH_MORE = 1.2  # less than this is no memory but the rate as it is

__all__ = ["Held", "Oracles", "after", "decide", "demands_of"]


def demands_of(
    estimate: Estimate,
    observation: Observation,
    config: Config,
    profiled: Mapping[str, str],
    oracles: Oracles,
    caution: float = 1.0,
    floors: Mapping[str, int] | None = None,
) -> dict[int, list[Demand]]:
    """What to plan for on every GPU of the host, by its index.

    ``caution`` 1: rates at their upper quantile and SLOs less their margin; 0: both as they are; ``REMEMBERING``: as 1, but rates no
    lower than they were of late or usually are at this time, where that is much more. ``floors``: batch limits not to lower.
    """
    floors = floors or {}
    out: dict[int, list[Demand]] = {}
    for name, model in config.by_name().items():
        if name not in profiled or name not in observation.models or name not in estimate.loads:
            continue
        reading, load = observation.models[name], estimate.loads[name]
        largest = oracles.promises.model.max_batch(profiled[name])
        least = max(floors.get(name, 1), reading.least_batch)
        largest = max(min(largest, model.max_batch_size or largest), least)
        if reading.batching_fixed:  # a plan with another batch would be refused, again and again, and with it the share
            largest = least = reading.allocation.max_batch_size
        items = reading.items_per_request
        out.setdefault(reading.gpu_index, []).append(
            Demand(
                model=name,
                profiled_as=profiled[name],
                rate_per_s=items * _rate(load, caution),
                slo_ms=model.slo_p99_ms * (1 - min(1.0, caution) * config.decide.slo_margin),
                priority=model.priority,
                min_share=model.min_share,
                max_share=model.max_share,
                max_batch=largest,
                min_batch=least,
                bias=load.bias,
                learnt=load.learnt,
                burstiness=load.burstiness,
                steerable=reading.owns_process and not reading.share_fixed and config.mps.enabled,
                instances=max(1, reading.allocation.instances),
                reserved=reading.reserved_share,
            )
        )
    return out


def least_batch(reading: ModelReading) -> int:
    """The smallest batch limit that refuses nobody: Triton rejects a request whose own batch is above the limit. Which batches clients
    bring is not told, so where they bring any the limit is not lowered."""
    return reading.allocation.max_batch_size if reading.items_per_request > 1 + 1e-9 else 1


def _rate(load: Load, caution: float) -> float:
    if caution <= 1:
        return load.rate_per_s + caution * (load.rate_upper_per_s - load.rate_per_s)
    return load.remembered_per_s if load.remembered_per_s > MUCH_MORE * load.rate_upper_per_s else load.rate_upper_per_s


def _in_the_way(observation: Observation, config: Config) -> str:
    """The source that must answer before anything is decided, or an empty string."""
    acts, gaps = config.loop.mode == "act", observation.gaps
    for gap in gaps:
        if gap.source.startswith("triton:"):
            return f"{gap.source} does not answer: {gap.reason}"
    for gap in gaps if acts else ():
        if gap.source.startswith("control:"):
            return f"Triton {gap.source.removeprefix('control:')} cannot be steered: {gap.reason}"
        if gap.source == "mps" and not config.gpu.source.startswith("emulated:"):
            # a process started now would find no MPS and run without its share: what runs is left as it is
            return f"MPS control does not answer, and nothing is reloaded without it: {gap.reason}"
    mps = observation.mps
    if acts and mps is not None and "FAULT" in mps.states.values():
        return "an MPS server is in FAULT: what is started now finds no MPS and runs without a share"
    return ""


def _blocked(estimate: Estimate, observation: Observation, held: Held, config: Config) -> str:
    """Why nothing can be decided in this tick, or an empty string."""
    gap = _in_the_way(observation, config)
    if gap:
        return gap
    missing = [m.name for m in config.model if m.name not in held.seen and m.name not in observation.absent]
    if missing:
        reasons = [gap.reason for gap in observation.gaps if gap.source.removeprefix("model:") in missing]
        return f"waiting for {', '.join(missing)}: " + ("; ".join(reasons) or "not seen yet")
    loading = [name for name, reading in observation.models.items() if reading.loading or not reading.ready]
    if loading:
        return f"not ready, or still being loaded: {', '.join(loading)}"
    if not estimate.warm:
        return f"watching traffic for {config.decide.warmup_s:g} s before the first decision"
    return ""


def decide(
    estimate: Estimate,
    observation: Observation,
    held: Held,
    *,
    config: Config,
    profiled: Mapping[str, str],
    oracles: Oracles | None,
    now_s: float,
    dead: frozenset[str] = frozenset(),
) -> tuple[Plan, Held]:
    """The plan of this tick and what it leaves to the next. The same inputs always give the same plan.

    ``dead``: models whose process is gone though Triton calls them ready.
    """
    applied = {name: reading.allocation for name, reading in observation.models.items()}
    held = _same_knobs(held, observation)
    floors = {m: max(held.floors.get(m, 1), least_batch(reading)) for m, reading in observation.models.items()}
    held = replace(
        came_after_all(held, applied), seen=held.seen | set(applied), floors={**held.floors, **{m: b for m, b in floors.items() if b > 1}}
    )
    upkeep = _upkeep(dead, observation, held, config, now_s)
    if upkeep is not None:
        verdicts = _verdicts(config, applied, {}, held)
        steps, total = (upkeep,), _total(applied)
        return Plan(now_s, Outcomes.MOVE, upkeep.why, verdicts, steps, not held.gone, None, total), replace(held, target={})
    blocked = _blocked(estimate, observation, held, config)
    if not profiled:
        blocked = blocked or "no model has a profile: watching only"
    elif oracles is None:
        blocked = blocked or "mode is observe: reading only"
    elif not applied.keys() & profiled.keys():
        blocked = blocked or "no model with a profile is served now"
    if blocked or oracles is None:
        return Plan(now_s, Outcomes.WAIT, blocked, _verdicts(config, applied, {}, held), allocated_share=_total(applied)), held
    back = rollbacks(held, estimate.loads, applied, config.decide, now_s)
    if back:
        plan = Plan(now_s, Outcomes.MOVE, back[0].why, _verdicts(config, applied, {}, held), tuple(back), not held.gone)
        return replace(plan, allocated_share=_total(applied)), replace(held, target={})

    @cache
    def demands(caution: float) -> dict[int, list[Demand]]:
        return demands_of(estimate, observation, config, profiled, oracles, caution, held.floors)

    parts: list[Part] = []
    for gpu, there in demands(CAUTIONS[0]).items():
        here = {d.model: applied[d.model] for d in there}
        case = Case(gpu, partial(_on, demands, gpu), here, held, config.decide, oracles, now_s)
        parts.append(case.decide())
        held = parts[-1].held
    return _qualified(_merged(parts, applied, held, config, now_s), observation), held


def _same_knobs(held: Held, observation: Observation) -> Held:
    """``held`` without the plan in flight, once what can be steered is not what it was made for."""
    fixed = frozenset(name for name, reading in observation.models.items() if reading.share_fixed)
    if fixed == held.fixed:
        return held
    return replace(held, fixed=fixed, target={}, judged={})


def _upkeep(dead: frozenset[str], observation: Observation, held: Held, config: Config, now_s: float) -> Step | None:
    """The load that a model needs whatever its traffic: one whose process has died is brought back, and
    one that its owner wants in a process of its own is given it. One at a time, none too often."""
    if config.loop.mode != "act" or _in_the_way(observation, config):
        return None
    own = {model.name for model in config.model if model.process == "own"}
    for name, reading in sorted(observation.models.items()):
        if reading.left_alone or reading.loading or not reading.ready:
            continue
        as_it_is = replace(reading.allocation, share=reading.claimed_share or reading.allocation.share)
        if name in dead:
            why = "Triton calls it ready, but its process is gone and its requests fail: loaded again"
            step = Step(name, StepKind.REVIVE, as_it_is, as_it_is, why)
        elif name in own and not reading.owns_process:
            why = f"its owner wants it in a process of its own, and its backend {reading.backend} runs inside tritonserver"
            step = Step(name, StepKind.ADOPT, as_it_is, as_it_is, why)
        else:
            continue
        if not why_not_now(held, (step,), config.decide, now_s):
            return step
    return None


def _qualified(plan: Plan, observation: Observation) -> Plan:
    """``plan`` with what it rests on: beside a model whose share has no effect there is no room to promise."""
    without = sorted(name for name, reading in observation.models.items() if reading.claimed_share is not None)
    if not without:
        return plan
    why = f"{plan.why}; but the share of {', '.join(without)} is not shown to have an effect: planned as uncapped neighbours"
    return replace(plan, why=why, headroom=None, least_share=None, least_by_gpu={})


def _on(demands: Callable[[float], Mapping[int, Sequence[Demand]]], gpu: int, caution: float) -> Sequence[Demand]:
    return demands(caution)[gpu]


def _total(applied: Mapping[str, Allocation]) -> float:
    return sum(granted(a) for a in applied.values() if a.share is not None)


def _merged(parts: Sequence[Part], applied: Mapping[str, Allocation], held: Held, config: Config, now_s: float) -> Plan:
    target, served = dict(applied), dict[str, Service]()
    for part in parts:
        target.update(part.target)
        served.update(part.served)
    rank = list(Outcomes)
    worst = max(parts, key=lambda p: rank.index(p.outcome))
    steps = tuple(step for part in parts for step in part.steps)
    rooms = [part.headroom for part in parts if part.headroom is not None]
    return Plan(
        at_s=now_s,
        outcome=worst.outcome,
        why="; ".join(dict.fromkeys(part.why for part in parts)),
        verdicts=_verdicts(config, target, served, held),
        steps=steps,
        feasible=not held.gone,
        headroom=min(rooms) if rooms else None,
        allocated_share=_total(applied),
        least_share=sum(held.least_share.values()) if held.least_share else None,
        least_by_gpu=held.least_share,
    )


def _verdicts(config: Config, target: Mapping[str, Allocation], served: Mapping[str, Service], held: Held) -> dict[str, Verdict]:
    out = {}
    for model in config.model:
        if model.name not in target:
            continue
        service = served.get(model.name)
        known = service is not None and not service.overloaded
        out[model.name] = Verdict(
            model=model.name,
            allocation=target[model.name],
            feasible=model.name not in held.gone,
            predicted_p99_ms=service.p99_ms if service is not None and known else None,
            slo_p99_ms=model.slo_p99_ms,
            utilisation=service.busy if service is not None else None,
            reason=held.gone.get(model.name, ""),
            needs_share=held.needs.get(model.name),
        )
    return out
