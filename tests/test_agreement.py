"""What the planner promises for a GPU is what the daemon judges for the same allocations, as far as
the daemon's rounding allows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.colocation import BATCH_STEP, IDLE, UTILISATION_STEP
from igniterd.config import Config, parse_config
from igniterd.data import v100
from igniterd.decide.decide import decide
from igniterd.decide.judge import PredictorPair
from igniterd.decide.state import DecisionState
from igniterd.decisions import Plan
from igniterd.loads import Estimate, Load
from igniterd.perf.api import Tenant
from igniterd.planner.evaluate import Placement, evaluate
from igniterd.planner.gpu_types import parse_gpu
from igniterd.planner.plan import PlannedTenant, plan_from_json
from igniterd.planner.strategies import Request, plan
from igniterd.planner.workloads import read_workloads
from igniterd.predict import (
    BIAS_STEP,
    RATE_STEP,
    SETTLED,
    CoLocation,
    LatencyPrediction,
    LatencyPredictor,
    Neighbours,
    as_tenants,
    quantised,
)
from igniterd.records import Allocation, ModelReading, Observation
from igniterd.states import Standing, State

GPU = parse_gpu("v100")
LEVEL = 0.95
DAEMON = PredictorPair(
    upper=LatencyPredictor(GPU.model, level=LEVEL),
    mean=LatencyPredictor(GPU.model, level=LEVEL, upper=False),
)
EXACT = PredictorPair(
    upper=GPU.predictor(LEVEL),
    mean=LatencyPredictor(GPU.model, level=LEVEL, upper=False, exact=True),
)
NUMERIC = 0.02
"""What the queue's own figures are good to: under constant arrivals one may fall by a percent while
the rate rises by two."""
ROUNDS = 12
"""Turns in which the others' being busier comes back to everybody."""
SETTLING = 1.005
"""The fixed point is settled to so much of a batch; near saturation that is several per cent of a
P99, as half a per cent more traffic is."""
PROCESSES = (0.0, 1.0)  # constant and Poisson arrivals


@st.composite
def gpus(draw: st.DrawFn) -> list[Placement]:
    """The tenants of one GPU: shares within it, loads up to nearly what full batches can serve."""
    tenants = draw(st.integers(1, 5))
    cuts = draw(st.permutations(range(1, 20)))[: tenants - 1]
    edges = [0, *sorted(2 * cut for cut in cuts), 40]
    placements = []
    for low, high in pairwise(edges):
        model, share = draw(st.sampled_from(GPU.model.models)), (high - low) / 40
        batch = draw(st.sampled_from((1, 2, 3, 4, 8, 16, 32)))
        full_ms = GPU.model.service_curve_ms(model, share, (), batch, level=LEVEL)[1][-1]
        rate = draw(st.floats(0.02, 0.95)) * 1e3 * batch / float(full_ms)
        placements.append(
            Placement(model, share, batch, 0.0, rate, draw(st.sampled_from(PROCESSES)))
        )
    return placements


def co_location(placements: Sequence[Placement]) -> CoLocation:
    named = {str(i): p for i, p in enumerate(placements)}
    return CoLocation(
        [p.demand(name) for name, p in named.items()],
        {name: p.allocation for name, p in named.items()},
    )


def shifted(beside: Neighbours, *, utilisation: float, batch: float) -> Neighbours:
    return tuple(
        Tenant(
            t.model,
            max(1.0, t.batch + batch),
            t.share,
            min(1.0, max(0.0, t.utilisation + utilisation)),
        )
        for t in beside
    )


def corner(
    exact: LatencyPredictor, gpu: CoLocation, *, growth: float, utilisation: float
) -> dict[str, list[LatencyPrediction]]:
    """How everybody fares when its rate is ``growth`` times as high and the others are busier by
    ``utilisation``, whichever way their batches were rounded.

    Who is slower is busier in turn, and slows the others: near saturation by many times the step.
    """
    served = exact.together(gpu.demands, gpu.allocations, growth=growth)
    out: dict[str, list[LatencyPrediction]] = {}
    for _ in range(ROUNDS if utilisation > 0 else 1):
        for own in gpu.demands:
            others = [d for d in gpu.demands if d is not own]
            beside = tuple(
                t for d in others for t in as_tenants(d, gpu.allocations[d.model], served[d.model])
            )
            out[own.model] = [
                exact.served(
                    own,
                    gpu.allocations[own.model],
                    shifted(beside, utilisation=utilisation, batch=batch),
                    growth=growth,
                )
                for batch in (-BATCH_STEP / 2, BATCH_STEP / 2)
            ]
        served = {name: max(found, key=lambda f: f.utilisation) for name, found in out.items()}
    return out


@settings(max_examples=80, deadline=None)
@given(gpus(), st.sampled_from(("upper", "mean")))
def test_the_daemon_is_within_its_rounding_of_what_is_exact(
    placements: list[Placement], which: str
) -> None:
    exact, daemon, gpu = getattr(EXACT, which), getattr(DAEMON, which), co_location(placements)
    judged = daemon.together(gpu.demands, gpu.allocations)
    easier = corner(exact, gpu, growth=1.0, utilisation=-IDLE - SETTLED)
    # up to a step, and the fixed point of rounded questions ends within half of one
    harder = corner(exact, gpu, growth=RATE_STEP * SETTLING, utilisation=1.5 * UTILISATION_STEP)
    for name, found in judged.items():
        for figure in ("p99_ms", "mean_ms", "utilisation"):
            low = min(getattr(each, figure) for each in easier[name])
            high = max(getattr(each, figure) for each in harder[name])
            assert low * (1 - NUMERIC) <= getattr(found, figure) <= high * (1 + NUMERIC), figure


@settings(max_examples=40, deadline=None)
@given(gpus())
def test_a_plan_promises_what_the_daemon_judges(placements: list[Placement]) -> None:
    gpu = co_location(placements)
    evaluate([(GPU, placements)], level=LEVEL)
    judged = DAEMON.upper.together(gpu.demands, gpu.allocations)
    harder = corner(
        EXACT.upper, gpu, growth=RATE_STEP * SETTLING, utilisation=1.5 * UTILISATION_STEP
    )
    for i, placement in enumerate(placements):
        now, worst = judged[str(i)], harder[str(i)]
        highest = max(each.p99_ms for each in worst) * (1 + NUMERIC)
        assert placement.p99_ms * (1 - NUMERIC) <= now.p99_ms <= highest
        busiest = max(each.utilisation for each in worst) * (1 + NUMERIC)
        assert placement.utilisation - 0.01 <= now.utilisation <= busiest
        assert placement.p99_ms < math.inf or now.overloaded


@given(gpus(), st.sampled_from(("upper", "mean")), st.integers(-20, 25), st.floats(1.0, 4.0))
@settings(max_examples=40, deadline=None)
def test_a_remembered_answer_is_the_exact_one_to_a_rounded_question(
    placements: list[Placement], which: str, biased: int, growth: float
) -> None:
    exact, daemon, gpu = getattr(EXACT, which), getattr(DAEMON, which), co_location(placements)
    own, *others = (replace(demand, bias=BIAS_STEP**biased) for demand in gpu.demands)
    beside = quantised(t for d in others for t in as_tenants(d, gpu.allocations[d.model], None))
    asked = replace(own, rate_per_s=daemon.planned_rate(own, growth))
    assert own.rate_per_s * growth <= asked.rate_per_s <= own.rate_per_s * growth * RATE_STEP
    allocation = gpu.allocations[own.model]
    remembered = daemon.served(own, allocation, beside, growth=growth)
    assert remembered == daemon.served(own, allocation, beside, growth=growth)
    assert remembered == exact.served(asked, allocation, beside)


# ---------------------------------------------------------------- from a plan into the daemon


def daemon_config(tenants: Sequence[PlannedTenant], folder: Path) -> Config:
    """A host of these workloads; no margin below the SLO, as the plan has none."""
    models = "".join(
        f'[[model]]\nname = "{t.workload}"\nslo_p99_ms = {t.slo_p99_ms}\n'
        f'profile = "v100.json"\nprofile_model = "{t.model}"\n'
        for t in tenants
    )
    return parse_config(
        f'[host]\nname = "test"\n[decide]\nslo_margin = 0\n[state]\ndirectory = "{folder}/s"\n'
        f"{models}",
        source="test",
        folder=folder,
    )


def decided(tenants: Sequence[PlannedTenant], folder: Path) -> Plan:
    """The daemon's plan where these run as planned, under the traffic that was planned for,
    and nothing may be changed."""
    loads = {
        t.workload: Load(t.workload, t.rate_per_s, t.rate_per_s, confident=True) for t in tenants
    }
    readings = {
        t.workload: ModelReading(
            t.workload,
            "1",
            "main",
            ready=True,
            backend="python",
            allocation=Allocation(t.share, t.max_batch_size, t.max_queue_delay_us),
        )
        for t in tenants
    }
    answer, _ = decide(
        Estimate(100.0, loads, warm=True),
        Observation(100.0, models=readings),
        DecisionState(),
        config=daemon_config(tenants, folder),
        profiled={t.workload: t.model for t in tenants},
        predictors=DAEMON,
        now_s=100.0,
        standings={t.workload: Standing(State.HANDS_OFF) for t in tenants},
    )
    return answer


def test_tenants_of_a_plan_have_the_same_p99_in_the_daemon(tmp_path: Path) -> None:
    csv = Path(v100.__file__).with_name("workloads.csv")
    workloads = tuple(read_workloads(csv)[0])
    document = plan(Request(workloads, (GPU,), 1.0), "igniterd").as_json()
    planned = plan_from_json(json.loads(json.dumps(document)), "test")
    assert planned.gpus
    for gpu in planned.gpus:
        verdicts = decided(gpu.tenants, tmp_path).verdicts
        for tenant in gpu.tenants:
            verdict = verdicts[tenant.workload]
            assert tenant.p99_ms is not None
            assert verdict.predicted_p99_ms is not None
            assert 0.99 * tenant.p99_ms <= verdict.predicted_p99_ms <= 1.06 * tenant.p99_ms
            assert verdict.utilisation == pytest.approx(tenant.utilisation, abs=0.03)
            assert verdict.feasible
