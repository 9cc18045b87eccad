"""The plan of a host out of the decisions of its GPUs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from igniterd.config import Config
from igniterd.decide.gpu import GpuDecision
from igniterd.decide.state import DecisionState
from igniterd.decisions import DecisionKind, Plan, Verdict
from igniterd.loads import Estimate
from igniterd.predict import LatencyPrediction
from igniterd.records import Allocation, Observation
from igniterd.states import Standing, State

UNKNOWN = (State.NOT_ANSWERING, State.UNPREDICTABLE, State.LOADING, State.UNREAD, State.UNSEEN)
"""Where nothing is known of whether the SLO holds."""


NOT_OURS = (State.STEERED, State.WATCHED)


SAID = (*UNKNOWN, State.REFUSED, State.BY_HAND, State.OLD_COPY, State.UNSTEERABLE)
"""What a plan's sentence says of a model, beside what it decides."""


def qualify(plan: Plan, observation: Observation, known: Mapping[str, Standing]) -> Plan:
    """``plan`` with what it rests on.

    Beside a model whose share has no effect, or that stays without one, there is no room to
    promise; and nothing is said to hold of a model of which nothing is known.
    """
    said = {
        name: s for name, s in known.items() if s.state in SAID and s.why and s.why not in plan.why
    }
    unknown = any(s.state in UNKNOWN for s in known.values())
    models = observation.models
    claimed = sorted(name for name, reading in models.items() if reading.claimed_share is not None)
    bare = sorted(
        n
        for n, r in models.items()
        if r.lacks_share and n not in claimed and n in known and known[n].state not in NOT_OURS
    )
    holds = (
        "no SLO is promised" if bare else "every other SLO holds" if unknown else "every SLO holds"
    )
    why = plan.why.replace("every SLO holds", holds)
    why = "; ".join(filter(None, [why, *(f"{name}: {s.why}" for name, s in said.items())]))
    if claimed:
        why += (
            f"; but the share of {', '.join(claimed)} is not shown to have an effect: planned "
            "as uncapped neighbours"
        )
    if bare:
        why += f"; but {', '.join(bare)} without a share: planned as uncapped neighbours"
    if plan.outcome is DecisionKind.HOLD and (bare or unknown):
        plan = replace(plan, outcome=DecisionKind.WAIT)
    if claimed or bare:
        return replace(
            plan, why=why, headroom=None, headroom_by_gpu={}, least_share=None, least_by_gpu={}
        )
    return plan if why == plan.why else replace(plan, why=why)


def with_measured(plan: Plan, estimate: Estimate, config: Config) -> Plan:
    """``plan`` without the claim that every SLO holds, where one is seen not to: by its mean
    alone."""
    said = []
    for name, load in estimate.loads.items():
        slo_ms = config.by_name()[name].slo_p99_ms
        if (
            load.measured_mean_ms is not None
            and load.measured_mean_ms > slo_ms
            and load.rate_per_s > 0
        ):
            said.append(
                f"{name}: measured {load.measured_mean_ms:.0f} ms on average, above its SLO of "
                f"{slo_ms:g} ms"
            )
    if not said or "every SLO holds" not in plan.why:
        return plan
    why = plan.why.replace("every SLO holds", "every SLO should hold")
    return replace(plan, why="; ".join([why, *said]), headroom=None, headroom_by_gpu={})


def total_granted(observation: Observation) -> float:
    """What all models are granted, of all GPUs."""
    return sum(r.granted_on(gpu) for r in observation.models.values() for gpu in set(r.gpus))


def merge(
    parts: Sequence[GpuDecision],
    observation: Observation,
    held: DecisionState,
    config: Config,
    now_s: float,
) -> Plan:
    target = {name: reading.allocation for name, reading in observation.models.items()}
    served = dict[str, LatencyPrediction]()
    for part in parts:
        target.update(part.target)
        served.update(part.served)
    rank = list(DecisionKind)
    worst = max((part.outcome for part in parts), key=rank.index, default=DecisionKind.WAIT)
    rooms = [part.headroom for part in parts if part.headroom is not None]
    return Plan(
        at_s=now_s,
        outcome=worst,
        why="; ".join(dict.fromkeys(part.why for part in parts)),
        verdicts=verdicts_of(config, target, served, held),
        steps=tuple(step for part in parts for step in part.steps),
        feasible=not held.shed,
        headroom=min(rooms) if rooms else None,
        allocated_share=total_granted(observation),
        least_share=sum(held.least_by_gpu.values()) if held.least_by_gpu else None,
        least_by_gpu=held.least_by_gpu,
        headroom_by_gpu=_headroom_by_gpu(parts),
        reserved={gpu: taken for part in parts for gpu, taken in part.reserved.items()},
        takes={model: taken for part in parts for model, taken in part.takes.items()},
    )


def _headroom_by_gpu(parts: Sequence[GpuDecision]) -> dict[str, float]:
    """Of GPUs that are decided for together, the same."""
    rooms = ((part.reserved, part.headroom) for part in parts)
    return {gpu: room for gpus, room in rooms if room is not None for gpu in gpus}


def verdicts_of(
    config: Config,
    target: Mapping[str, Allocation],
    served: Mapping[str, LatencyPrediction],
    held: DecisionState,
) -> dict[str, Verdict]:
    out = {}
    for name, model in config.by_name().items():
        if name not in target:
            continue
        service = served.get(name)
        known = service is not None and not service.overloaded
        out[name] = Verdict(
            model=name,
            allocation=target[name],
            feasible=held.of(name).shed_why is None,
            predicted_p99_ms=service.p99_ms if service is not None and known else None,
            slo_p99_ms=model.slo_p99_ms,
            utilisation=service.utilisation if service is not None else None,
            reason=held.of(name).shed_why or "",
            needs_share=held.of(name).needs_share,
        )
    return out
