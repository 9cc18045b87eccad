"""The decision: from what is believed to what should change, and why. Pure; ``now_s`` is an
argument.

What is applied is judged first, a GPU at a time. It is left alone as long as it holds every SLO
that can be held; a search is made when it does not, and now and then to see whether much more
head-room is to be had. A plan is carried out a step a tick, and thrown away when the traffic has
outgrown it, or when the models are not those it was made for.

A model that may not be changed now (:mod:`igniterd.standing`) is a neighbour that stays as it is:
it stops no decision but its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache

from igniterd.config import Config
from igniterd.decide.between import Between
from igniterd.decide.cooldown import came_after_all
from igniterd.decide.demands import demands_of
from igniterd.decide.gpu import GpuContext, GpuDecision
from igniterd.decide.host_plan import (
    UNKNOWN,
    merge,
    qualify,
    total_granted,
    verdicts_of,
    with_measured,
)
from igniterd.decide.judge import PredictorPair
from igniterd.decide.room import Reserved
from igniterd.decide.state import ALL, LADDER, DecisionState, Margins
from igniterd.decide.uncapped import Beside, beside
from igniterd.decide.upkeep import no_shares, upkeep_of
from igniterd.decisions import DecisionKind, Plan
from igniterd.loads import Estimate
from igniterd.placement import GpuGroup, groups_of
from igniterd.predict import Demand
from igniterd.records import Allocation, Observation
from igniterd.states import Standing, State

BasisOf = Callable[[tuple[str, ...]], tuple[Mapping[str, str], PredictorPair | None]]
"""What predictions on GPUs rest on: the configured names of the models that have a profile of such
a board, with their names in it, and the predictors of that kind of board, if there are any."""

PATIENCE_S = 5.0  # a GPU waits so long for a model that was not read; then it goes on beside it
UNSEEN_S = 30.0  # and so long, from the first tick, for one that was never read
MOST_SEARCHED = 2
"""GPUs searched in one tick, each for tens of milliseconds where nothing is remembered; of their
steps one a tick is begun anyway."""
LEFT_OUT_S = 60.0  # a model whose prediction failed is not asked about again for so long


def decide(
    estimate: Estimate,
    observation: Observation,
    held: DecisionState,
    *,
    config: Config,
    profiled: Mapping[str, str],
    predictors: PredictorPair | None,
    now_s: float,
    dead: frozenset[str] = frozenset(),
    standings: Mapping[str, Standing] | None = None,
    began_s: float = float("-inf"),
    busy: Mapping[str, str] | None = None,
    basis: BasisOf | None = None,
    fits: Callable[[str, str], str] | None = None,
) -> tuple[Plan, DecisionState]:
    """The plan of this tick and what it leaves to the next. The same inputs always give the same
    plan.

    ``observation`` holds every model that is not gone, read now or not; ``standings``: the state of
    each (without them all may be changed). ``dead``: models whose process is gone though Triton
    calls them ready. ``began_s``: the first tick. ``busy``: GPUs for which nothing is decided, and
    why. ``basis``: what predictions on some GPUs rest on; without it, on ``profiled`` and
    ``predictors`` everywhere. ``fits``: why a model finds no memory on a GPU, or an empty string.
    """
    applied = {name: reading.allocation for name, reading in observation.models.items()}
    groups = groups_of(observation.models, observation.models)
    held = came_after_all(held.pruned({m: g.name for g in groups for m in g.models}), applied)
    known = (
        standings if standings is not None else {name: Standing(State.STEERED) for name in applied}
    )
    upkeep = upkeep_of(dead, observation, held, config, known, busy or {}, now_s)
    if upkeep is not None:
        verdicts = verdicts_of(config, applied, {}, held)
        gpu, total = held.gpu_of(upkeep.model), total_granted(observation)
        plan = Plan(
            now_s, DecisionKind.MOVE, upkeep.why, verdicts, (upkeep,), not held.shed, None, total
        )
        return plan, held.without_plan(gpu)
    blocked = _blocked(applied, profiled, predictors, known, now_s - began_s)
    if blocked or predictors is None:
        verdicts = verdicts_of(config, applied, {}, held)
        return Plan(
            now_s, DecisionKind.WAIT, blocked, verdicts, allocated_share=total_granted(observation)
        ), held
    basis = basis or (lambda _: (profiled, predictors))
    host = Host(estimate, observation, config, basis, known, now_s, busy or {})
    ours = [group for group in groups if any(model in profiled for model in group.models)]
    parts, held = _parts(host, ours, held, fits or (lambda _model, _gpu: ""))
    plan = qualify(merge(parts, observation, held, config, now_s), observation, known)
    return with_measured(plan, estimate, config), held


def _parts(
    host: Host,
    groups: Sequence[GpuGroup],
    held: DecisionState,
    fits: Callable[[str, str], str],
) -> tuple[list[GpuDecision], DecisionState]:
    """The decisions for all GPUs. One for those between which models are moved, and one for each of
    the others."""
    between = Between(
        host.observation, host.config, host.case, host.demand_on, fits, host.busy, host.now_s
    )
    failed = ""
    try:
        moving, held = between.under_way(groups, held)
    except Exception as error:  # as in ``Host.part``
        moving, held, failed = None, held.without_relocation(), repr(error)
    apart = held.relocation.gpus if held.relocation is not None else frozenset()
    parts, searched = dict[str, GpuDecision](), 0
    # those that were searched longest ago come first: each gets its turn
    for group in sorted(groups, key=lambda g: held.gpu(g.name).searched_at_s):
        if not apart & set(group.gpus):
            part = host.part(group, held, may_search=searched < MOST_SEARCHED)
            parts[group.name], held = part, part.held
            searched += held.gpu(group.name).searched_at_s == host.now_s
    parts = {group.name: parts[group.name] for group in groups if group.name in parts}
    if moving is None:
        try:
            moving, held = between.sought(groups, list(parts.values()), held)
        except Exception as error:  # see above
            failed = failed or repr(error)
            if between.source is not None:  # the others' turn comes before it is tried again
                held = held.with_gpu(between.source, sought_at_s=host.now_s)
        if moving is not None and held.relocation is not None:
            parts = {gpu: p for gpu, p in parts.items() if gpu not in held.relocation.gpus}
    if failed:
        why = f"which models to move cannot be told: {failed}"
        moving = GpuDecision(DecisionKind.WAIT, why, {}, {}, None, held)
    return [*([moving] if moving is not None else []), *parts.values()], held


class Host:
    """What the parts of one decision rest on."""

    def __init__(
        self,
        estimate: Estimate,
        observation: Observation,
        config: Config,
        basis: BasisOf,
        known: Mapping[str, Standing],
        now_s: float,
        busy: Mapping[str, str],
    ) -> None:
        self.busy = busy
        self.estimate, self.observation, self.config = estimate, observation, config
        self.basis, self.known, self.now_s = basis, known, now_s

    def part(self, gpu: GpuGroup, held: DecisionState, *, may_search: bool = True) -> GpuDecision:
        """The decision for one GPU, or for several that share models. A model whose prediction
        fails is left out, and the others go on."""
        over = [m for m, (_, until_s) in held.left_out.items() if self.now_s >= until_s]
        held = held.with_models({m: replace(held.of(m), left_out=None) for m in over})
        out = frozenset(held.left_out)
        if self.basis(gpu.gpus)[1] is None:
            why = self._waits(gpu) or f"{gpu.name}: there is no profile of its kind of board"
            return GpuDecision(DecisionKind.WAIT, why, {}, {}, None, held)
        try:
            return replace(self._case(gpu, held, out), may_search=may_search).decide()
        except Exception as error:  # whatever a reading nobody thought of does to a prediction
            odd = self._odd(gpu, held, out)
            if not odd:
                why = f"{gpu.name}: nothing can be predicted of it: {error!r}"
                return GpuDecision(DecisionKind.WAIT, why, {}, {}, None, held)
            until_s = self.now_s + LEFT_OUT_S
            held = held.with_models(
                {m: replace(held.of(m), left_out=(why, until_s)) for m, why in odd.items()}
            )
        try:
            case = self._case(gpu, held, out | odd.keys())
            return replace(case, may_search=may_search).decide()
        except Exception as error:
            why = f"{gpu.name}: nothing can be predicted of it: {error!r}"
            return GpuDecision(DecisionKind.WAIT, why, {}, {}, None, held)

    def _odd(self, gpu: GpuGroup, held: DecisionState, out: frozenset[str]) -> dict[str, str]:
        """The models of which no prediction can be made even alone, and why not."""
        odd = {}
        for name in self.there(gpu, out):
            try:
                others = frozenset(self.there(gpu, out)) - {name}
                case = self._case(gpu, held, out | others)
                for margins in LADDER:
                    case.predictors.at(margins).together(case.demands(margins), case.here)
            except Exception as error:  # see ``part``
                odd[name] = f"a prediction of it failed: {error!r}"
        return odd

    def there(self, gpu: GpuGroup, out: frozenset[str]) -> list[str]:
        """The models there of which a prediction may be made, less those left ``out``."""
        profiled, predictors = self.basis(gpu.gpus)
        readings = self.observation.models
        return [
            m
            for m in gpu.models
            if predictors is not None
            and m in profiled
            and m not in out
            and not readings[m].left_alone
        ]

    def _case(self, gpu: GpuGroup, held: DecisionState, out: frozenset[str]) -> GpuContext:
        all_profiled, predictors = self.basis(gpu.gpus)
        assert predictors is not None  # noqa: S101  ``there`` names nobody without one
        names = [
            n
            for n in self.there(gpu, out)
            if self.known[n].state is not State.UNPREDICTABLE and n in self.estimate.loads
        ]
        pinned = frozenset(name for name in names if not self.known[name].free)
        profiled = {name: all_profiled[name] for name in names}

        @cache
        def demands(margins: Margins) -> Sequence[Demand]:
            return demands_of(
                self.estimate,
                self.observation,
                self.config,
                profiled,
                predictors,
                margins,
                pinned,
                several=len(gpu.gpus) > 1,
            )

        here = {d.model: self.observation.models[d.model].allocation for d in demands(ALL)}
        others = beside(
            gpu.gpus,
            here,
            self.observation,
            self.estimate.loads,
            self.config.by_name(),
            held,
            self.config.decide.warmup_s,
        )
        held = others.held
        return GpuContext(
            gpu.name,
            demands,
            here,
            held,
            self.config.decide,
            predictors,
            self.now_s,
            pinned={name: self.known[name].why for name in here if name in pinned},
            reserved=self._reserved(gpu, here, others, pinned),
            takes=others.takes,
            bound=self._reserved(gpu, here, others, pinned, bound=True),
            waits=self._waits(gpu),
            no_shares=no_shares(self.observation, self.config),
            unknown=any(m in self.known and self.known[m].state in UNKNOWN for m in gpu.models),
            loads=self.estimate.loads,
        )

    def case(self, gpu: GpuGroup, held: DecisionState) -> GpuContext | None:
        """What is known of one GPU; ``None`` where nothing can be predicted of it."""
        if self.basis(gpu.gpus)[1] is None:
            return None
        return self._case(gpu, held, frozenset(held.left_out))

    def demand_on(self, model: str, gpu: str, margins: Margins) -> Demand | None:
        """What to plan for of ``model`` on a GPU where it is not; ``None`` where that cannot be
        told. What its traffic has taught holds on its own kind of board."""
        profiled, predictors = self.basis((gpu,))
        if predictors is None or model not in profiled or model not in self.estimate.loads:
            return None
        (demand,) = demands_of(
            self.estimate,
            self.observation,
            self.config,
            {model: profiled[model]},
            predictors,
            margins,
        )
        same = self.basis(tuple(dict.fromkeys(self.observation.models[model].gpus)))[1]
        return demand if same is predictors else replace(demand, bias=1.0, learnt=None)

    def _reserved(
        self,
        gpu: GpuGroup,
        here: Mapping[str, Allocation],
        others: Beside,
        pinned: Collection[str],
        *,
        bound: bool = False,
    ) -> Reserved:
        """What of each GPU is taken by what is not planned with, or may soon be; or what of that is
        ``bound``."""
        by_gpu = {
            each: part + _pending(each, self.observation, here, others.held, pinned)
            for each, part in (others.bound if bound else others.by_gpu).items()
        }
        return by_gpu if len(gpu.gpus) > 1 else by_gpu[gpu.name]

    def _waits(self, gpu: GpuGroup) -> str:
        """Why nothing is decided for this GPU in this tick: most often a reading that may come with
        the next."""
        for each in gpu.gpus:
            if each in self.busy:
                return self.busy[each]
        for name in gpu.models:
            standing = self.known.get(name)
            if standing is None:
                continue
            if standing.state is State.UNREAD and self.now_s - standing.since_s < PATIENCE_S:
                return f"{name} was not read: {standing.why}"
            settling = 2 * self.config.decide.warmup_s
            if standing.state is State.WARMING and self.now_s - standing.since_s < settling:
                return standing.why
        return ""


def _pending(
    gpu: str,
    observation: Observation,
    here: Mapping[str, Allocation],
    held: DecisionState,
    pinned: Collection[str],
) -> float:
    """What loads that were not answered would add to the shares of ``gpu`` when they end after all.

    The whole GPU, through which a take-over passes, can be kept free for none that may be changed
    now.
    """
    counts = {
        m: share
        for m in here
        if (share := held.of(m).pending_share) is not None
        and observation.models[m].instances_on(gpu)
        and (share < 1 or m in pinned)
    }
    more = (share - (here[m].granted or 0.0) for m, share in counts.items())
    come = (held.of(m).pending_share or 0.0 for m in held.asked if gpu in _to(m, observation, held))
    return sum(max(0.0, each) for each in more) + sum(come)


def _to(model: str, observation: Observation, held: DecisionState) -> set[str]:
    """The GPUs, other than its own, to which a load that was not answered may bring the model."""
    reading, asked = observation.models.get(model), held.asked[model]
    if reading is None:
        return set()
    there = observation.devices.get(reading.triton, ())
    return {there[n] for n in asked.devices if n < len(there)} - set(reading.gpus)


def _blocked(
    applied: Mapping[str, Allocation],
    profiled: Mapping[str, str],
    predictors: PredictorPair | None,
    known: Mapping[str, Standing],
    ran_s: float,
) -> str:
    """Why nothing can be decided on this host in this tick, or an empty string."""
    unseen = {name: s.why for name, s in known.items() if s.state is State.UNSEEN}
    if unseen and (ran_s < UNSEEN_S or not applied):
        return f"waiting for {', '.join(unseen)}: {'; '.join(dict.fromkeys(unseen.values()))}"
    if not profiled:
        return "no model has a profile: watching only"
    if predictors is None:
        return "mode is observe: reading only"
    return "" if applied.keys() & profiled.keys() else "no model with a profile is served now"
