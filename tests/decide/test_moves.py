"""Which models are moved, and the steps of a move, by hand and by property."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from igniterd.config import Decide
from igniterd.decide.gpu import GpuContext
from igniterd.decide.moves import Found, Host, Side
from igniterd.decide.relocation import carried_on
from igniterd.decide.search import find
from igniterd.decide.state import ALL, HALF, DecisionState, Margins
from igniterd.decisions import StepKind
from igniterd.placement import GpuGroup
from igniterd.predict import Demand
from igniterd.records import Allocation
from tests.factories import latency_model, predictor_pair

PAIR = predictor_pair(latency_model(), level=0.95)
SLOS = {"alexnet": 15.0, "resnet50": 40.0, "vgg19": 60.0, "ssd": 60.0}
GPUS = ("A", "B", "C")

Homes = Mapping[str, tuple[str, float]]
"""Model -> its GPU, and its rate."""


class Case:
    """A host of three GPUs with ``homes``, applied as each GPU's own search would have it."""

    def __init__(self, homes: Homes, applied: Mapping[str, Allocation] | None = None) -> None:
        self.homes = homes
        self.sides = [self._side(gpu, applied) for gpu in GPUS]

    def _demand(self, model: str, gpu: str) -> Demand:
        like = model.split("-", maxsplit=1)[0]
        return Demand(model, like, self.homes[model][1], SLOS[like], devices=(GPUS.index(gpu),))

    def _side(self, gpu: str, applied: Mapping[str, Allocation] | None) -> Side[Any]:
        models = tuple(m for m, (home, _) in self.homes.items() if home == gpu)
        demands = [self._demand(m, gpu) for m in models]
        if applied is None:
            here = dict(find(PAIR.upper, demands).allocations) if demands else {}
        else:
            here = {m: applied[m] for m in models}
        case = GpuContext(gpu, lambda _: demands, here, DecisionState(), Decide(), PAIR, 100.0)
        return Side(GpuGroup((gpu,), models), case)

    def demand_on(self, model: str, gpu: str, _: Margins) -> Demand | None:
        return self._demand(model, gpu)

    @property
    def host(self) -> Host:
        return Host(self.sides, {m: gpu for m, (gpu, _) in self.homes.items()}, self.demand_on)

    def granted(self) -> dict[str, float]:
        return {
            side.group.name: sum(a.granted or 0.0 for a in side.case.here.values())
            for side in self.sides
        }


def carried_out(case: Case, found: Found) -> list[StepKind]:
    """The kinds of the steps until ``found`` is applied; after each, no GPU gives more than it
    has."""
    relocation, kinds = found.relocation, list[StepKind]()
    homes = dict(case.homes)
    applied = {m: a for side in case.sides for m, a in side.case.here.items()}
    for _ in range(2 * len(homes) + 1):
        part = carried_on(relocation, case.sides, DecisionState(relocation=relocation), {})
        if part is None:
            break
        (step,) = part.steps
        kinds.append(step.kind)
        applied[step.model] = step.after
        homes[step.model] = (GPUS[step.after.devices[0]], homes[step.model][1])
        case = Case(homes, applied)
        assert all(granted <= 1 + 1e-9 for granted in case.granted().values()), kinds
    assert all(applied[m] == a for m, a in found.relocation.target.items()), kinds
    return kinds


OVERFULL: Homes = {
    "alexnet": ("A", 1000.0),
    "resnet50": ("A", 800.0),
    "vgg19": ("B", 60.0),
    "ssd": ("C", 300.0),
}


def test_the_one_model_that_helps_goes_where_most_room_is_left() -> None:
    case = Case(OVERFULL)
    found = case.host.relieved("A")
    assert found is not None
    (to,) = found.relocation.to.values()
    assert to == "B"
    assert found.headroom >= 1.03
    kinds = carried_out(case, found)
    assert kinds.count(StepKind.RELOCATE) == 1
    at = kinds.index(StepKind.RELOCATE)
    assert StepKind.GROW not in kinds[:at], "what takes a model shrinks before it comes"
    assert StepKind.SHRINK not in kinds[at + 1 :]


def test_nothing_is_moved_where_it_fits_nowhere() -> None:
    homes = {f"resnet50-{gpu}": (gpu, 900.0) for gpu in GPUS} | {"vgg19": ("A", 250.0)}
    assert Case(homes).host.relieved("A") is None


def test_two_models_go_where_one_is_not_enough() -> None:
    homes: Homes = {f"vgg19-{n}": ("A", 140.0) for n in range(4)} | {"ssd": ("C", 20.0)}
    found = Case(homes).host.relieved("A")
    assert found is not None
    assert len(found.relocation.to) == 2


def test_moves_planned_for_less_traffic_than_it_may_be_are_begun_at_that() -> None:
    case = Case(OVERFULL)
    found = case.host.relieved("A")
    assert found is not None
    half = {model: rate / 1.3 for model, rate in found.relocation.made_for.items()}
    with_half = replace(found.relocation, made_for=half, margins=HALF)

    def demands(side: Side[Any]) -> Callable[[Margins], list[Demand]]:
        here = list(side.case.demands(ALL))
        slower = [replace(d, rate_per_s=d.rate_per_s / 1.3) for d in here]
        return lambda margins: slower if margins == HALF else here

    sides = [Side(s.group, replace(s.case, demands=demands(s))) for s in case.sides]
    assert carried_on(with_half, sides, DecisionState(relocation=with_half), {}) is not None
    at_all = replace(with_half, margins=ALL)
    assert carried_on(at_all, sides, DecisionState(relocation=at_all), {}) is None, "outgrown"


def test_a_gpu_with_a_model_that_is_not_planned_with_is_not_emptied() -> None:
    case = Case({"alexnet": ("A", 50.0), "vgg19": ("B", 20.0)})
    assert case.host.emptied("B") is not None
    watched = replace(case.sides[1].group, models=("vgg19", "watched"))
    case.sides[1] = replace(case.sides[1], group=watched)
    assert case.host.emptied("B") is None


def test_what_came_to_nothing_is_not_looked_into_again() -> None:
    host = Case(OVERFULL).host
    found = host.relieved("A")
    assert found is not None
    host.tried = {(*sorted(found.relocation.to.items()), ("", str(ALL.kept)))}
    other = host.relieved("A", (ALL,))
    assert other is None or other.relocation.to != found.relocation.to


@settings(deadline=None, max_examples=25)
@given(
    st.dictionaries(
        st.sampled_from([f"{like}-{n}" for like in SLOS for n in range(2)]),
        st.tuples(st.sampled_from(GPUS), st.integers(2, 60).map(lambda n: n * 10.0)),
        min_size=2,
    )
)
def test_whatever_is_moved_every_state_in_between_is_within_every_gpu(homes: Homes) -> None:
    case = Case(homes)
    if any(granted > 1 + 1e-9 for granted in case.granted().values()):
        return  # a host that is over its GPUs already
    for source in GPUS:
        for found in (case.host.relieved(source), case.host.emptied(source)):
            if found is not None:
                assert set(found.relocation.to) <= {
                    m for m, (gpu, _) in homes.items() if gpu == source
                }
                carried_out(case, found)
