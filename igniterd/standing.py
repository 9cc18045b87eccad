"""What is known of every model in this tick, and what may be done with it. Pure.

Three things happen here, and nowhere else:

1. A model that was not read is planned with as it was read last (:func:`scene`): it is there, it is
   not changed, and nobody gets its share. One that Triton says it does not serve is gone.
2. Somebody else's hand is told from our own, from a rebalance (:mod:`igniterd.hands`), from a new
   version of the model, and from a server that started anew (:func:`followed`).
3. Every model gets its one :class:`~igniterd.states.State` (:func:`standings`). Only what is
   STEERED is changed; everything else is a neighbour that stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from igniterd.config import Config
from igniterd.decide.cooldown import alike
from igniterd.decide.state import DecisionState, only
from igniterd.decisions import ActResult, StepKind
from igniterd.evidence import stubs_of
from igniterd.hands import Hand, Rebalanced, by_hand, by_rebalance, in_words, newest
from igniterd.loads import Load
from igniterd.records import Allocation, ModelReading, Observation
from igniterd.states import Cause, Standing, State

LINGER_S = 10.0  # an old copy may answer its last requests for so long
LEFT_OVER_S = 30.0  # after the first tick: a load of the daemon before may end

Ports = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Known:
    """What one tick hands to the next about the models.

    ``last``: the last reading of each that is not gone, its ``at_s`` set. ``expected``: what the
    next reading should show; a model without an entry may show anything. ``brings``: what a step of
    ours has brought since. ``anew``: Tritons that this tick found started anew. ``began_s``: the
    first tick. ``rebalanced``: what this tick found a rebalance to have changed.
    """

    began_s: float | None = None
    last: Mapping[str, ModelReading] = field(default_factory=dict)
    read_at_s: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, Allocation] = field(default_factory=dict)
    brings: Mapping[str, Allocation] = field(default_factory=dict)
    anew: frozenset[str] = frozenset()
    hands: Mapping[str, Hand] = field(default_factory=dict)
    # pid of each Triton, where it can be seen
    servers: Mapping[str, int] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()  # Tritons that did not answer at the last tick
    # the last load of each model, ours or a rebalance's
    loaded_s: Mapping[str, float] = field(default_factory=dict)
    # Unix time of the latest mark of a rebalance on each model
    marked_s: Mapping[str, float] = field(default_factory=dict)
    rebalanced: Mapping[str, Rebalanced] = field(default_factory=dict)
    standings: Mapping[str, Standing] = field(default_factory=dict)

    def loaded_at(self, at_s: float) -> frozenset[str]:
        """The models that were found loaded at that tick, by us or a rebalance: a rebalance loads
        also what was not there, and has changed nothing then."""
        return frozenset(name for name, when_s in self.loaded_s.items() if when_s == at_s)


def followed(
    known: Known,
    seen: Observation,
    outcome: ActResult,
    *,
    config: Config,
    acting: Iterable[str] = (),
    came: Mapping[str, Allocation] | None = None,
    ports: Ports | None = None,
    released: Collection[str] = (),
    wall_s: float,
) -> Known:
    """``known`` after this tick's observation.

    ``outcome``: of our steps since; ``acting``: models that a step of ours is changing now;
    ``came``: what loads that were not answered may bring yet; ``ports``: the gRPC port of each
    Triton; ``released``: models given back to their owner, who may do with them what he likes;
    ``wall_s``: Unix time now.
    """
    busy, configured = set(acting), config.by_name().keys()
    servers = _servers(known, seen, ports or {})
    changed = busy | {done.step.model for done in outcome.actuations}
    tritons = {reading.triton for reading in seen.models.values()}
    anew = {name for name in tritons if _started_anew(name, known, seen, servers, changed)}
    expected, brings = dict(known.expected), dict(known.brings)
    _after_steps(expected, brings, outcome)
    hands = {m: h for m, h in known.hands.items() if m in configured and m not in seen.absent}
    rebalanced, loaded = dict[str, Rebalanced](), set[str]()
    for name, reading in seen.models.items():
        if name in busy:
            continue  # what was expected before the step is, if it comes to nothing
        if name in released:
            expected.pop(name, None)
            hands.pop(name, None)
            continue
        here, wanted, brought = reading.allocation, expected.get(name), brings.pop(name, None)
        asked = [each for each in (brought, (came or {}).get(name)) if each is not None]
        # a step of ours ended, and nobody knows how; or it began before this daemon did
        unforeseen = (wanted is None and brought is None) or _left_over(
            name, here, wanted, known, seen.at_s
        )
        as_it_was = wanted is not None and alike(here, wanted)
        ours = unforeseen or as_it_was or any(as_asked(here, each) for each in asked)
        before = known.last.get(name)
        deployed = before is not None and before.version != reading.version
        unread_s = seen.at_s - known.read_at_s.get(name, seen.at_s)
        fleets = not as_it_was and by_rebalance(reading, known.marked_s.get(name), unread_s, wall_s)
        # a rebalance's is steered on; as its file has it: nobody chose that for it by hand
        if fleets or reading.triton in anew or deployed:
            hands.pop(name, None)
        elif not ours:
            hands[name] = by_hand(hands.get(name), here, seen.at_s, config.decide.respect_s)
        if fleets:
            # of one from before this daemon's first tick nothing is known
            loaded |= set() if known.began_s is None else {name}
            had = wanted if wanted is not None or before is None else before.allocation
            if had is not None:
                rebalanced[name] = Rebalanced(had, here)
        expected[name] = here
    return replace(
        known,
        began_s=seen.at_s if known.began_s is None else known.began_s,
        last=_last(known, seen, configured),
        read_at_s={**only(known.read_at_s, configured), **dict.fromkeys(seen.models, seen.at_s)},
        expected={m: a for m, a in expected.items() if m in configured and m not in seen.absent},
        brings={m: a for m, a in brings.items() if m in configured and m not in seen.absent},
        anew=frozenset(anew),
        hands=hands,
        servers=servers,
        silent=frozenset(
            g.source.removeprefix("triton:") for g in seen.gaps if g.source.startswith("triton:")
        ),
        loaded_s={
            **known.loaded_s,
            **{d.step.model: seen.at_s for d in outcome.actuations if d.ok},
            **dict.fromkeys(loaded, seen.at_s),
        },
        marked_s=newest(
            only(known.marked_s, configured),
            {m: r for m, r in seen.models.items() if m not in busy},
        ),
        rebalanced=rebalanced,
    )


def _last(known: Known, seen: Observation, configured: Collection[str]) -> dict[str, ModelReading]:
    last = {m: r for m, r in only(known.last, configured).items() if m not in seen.absent}
    for name, reading in seen.models.items():
        last[name] = reading if reading.at_s is not None else replace(reading, at_s=seen.at_s)
    return last


def _after_steps(
    expected: dict[str, Allocation], brings: dict[str, Allocation], outcome: ActResult
) -> None:
    """Take up what our steps have surely brought, and what they may have."""
    for done in outcome.actuations:
        model = done.step.model
        if done.cause in (Cause.HELD, Cause.BY_HAND):
            continue
        expected.pop(model, None)
        if done.ok and done.step.kind not in (StepKind.REVIVE, StepKind.ADOPT):
            brings[model] = done.step.after


def _left_over(
    name: str, here: Allocation, wanted: Allocation | None, known: Known, now_s: float
) -> bool:
    """Whether a load that the daemon before this one left behind may have brought this share."""
    lately = known.began_s is not None and now_s < known.began_s + LEFT_OVER_S
    return (
        lately
        and name not in known.loaded_s
        and here.share is not None
        and wanted is not None
        and here.share != wanted.share
    )


def stepped(known: Known, outcome: ActResult) -> Known:
    """``known`` after steps of ours, before anything is read anew."""
    expected, brings = dict(known.expected), dict(known.brings)
    _after_steps(expected, brings, outcome)
    return replace(known, expected=expected, brings=brings)


def as_asked(here: Allocation, asked: Allocation) -> bool:
    """Whether ``here`` is what was asked; where no share was, one without effect may stand
    there."""
    return alike(here, asked if asked.share is not None else replace(asked, share=here.share))


def _servers(known: Known, seen: Observation, ports: Ports) -> dict[str, int]:
    """The pid of each Triton, from the parents of its models' processes."""
    out = dict(known.servers)
    for reading in seen.models.values() if seen.stubs else ():
        mine = stubs_of(reading, seen.stubs or (), ports.get(reading.triton))
        if mine:
            out[reading.triton] = mine[-1].server_pid
    return out


def _started_anew(
    triton: str, known: Known, seen: Observation, servers: Mapping[str, int], ours: Collection[str]
) -> bool:
    """Whether this is another server than the last time: its models are as their files have them.

    Its pid says so where it can be seen. Else: every model that had counted counts from the start,
    and there are several of them, or it was silent in between. Those that we changed (``ours``)
    count from the start anyhow; one that still has the share it had shows that the server is the
    same.
    """
    before, now = known.servers.get(triton), servers.get(triton)
    if before is not None and now is not None and now != before:
        return True
    pairs = [
        (known.last[m], r)
        for m, r in seen.models.items()
        if r.triton == triton and m in known.last and m not in ours
    ]
    if any(_kept(was, now) for was, now in pairs):
        return False
    counted = [(was, now) for was, now in pairs if was.success_count + was.failure_count > 0]
    back = all(
        now.success_count + now.failure_count < was.success_count + was.failure_count
        for was, now in counted
    )
    return bool(pairs) and back and (triton in known.silent or len(counted) > 1)


def _kept(was: ModelReading, now: ModelReading) -> bool:
    """Whether it still has the share it had, which its file may have only where we never change
    it."""
    share, ours = now.allocation.share, not (now.hands_off or now.left_alone)
    counts_on = now.success_count + now.failure_count >= was.success_count + was.failure_count
    return ours and counts_on and share is not None and share == was.allocation.share


def unread_as_found(known: Known, found: Mapping[str, Allocation], seen: Observation) -> Known:
    """``known``, and models that are not read as a look just before a step ``found`` them."""
    last = {
        m: replace(known.last[m], allocation=a)
        for m, a in found.items()
        if m in known.last and m not in seen.models
    }
    return replace(known, last={**known.last, **last}) if last else known


def scene(seen: Observation, known: Known) -> Observation:
    """``seen``, and the models that were not read as they were read last."""
    missing = {m: r for m, r in known.last.items() if m not in seen.models and m not in seen.absent}
    return seen if not missing else replace(seen, models={**seen.models, **missing})


# ---------------------------------------------------------------- the one state of each model


@dataclass(frozen=True, slots=True)
class Facts:
    """What the states rest on, beside the readings."""

    now_s: float
    config: Config
    known: Known
    held: DecisionState
    loads: Mapping[str, Load] = field(default_factory=dict)
    profiled: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)  # a prediction of it failed, and how
    released: Mapping[str, str] = field(default_factory=dict)  # given back to its owner, and when
    ports: Ports = field(default_factory=dict)
    acting: frozenset[str] = frozenset()  # a reload of ours is under way, and has both copies


def standings(view: Observation, facts: Facts) -> dict[str, Standing]:
    """The state of every configured model. ``view``: the :func:`scene` as it may be planned
    with."""
    out = {}
    for name in facts.config.by_name():
        state, why = _state(name, view, facts)
        before = facts.known.standings.get(name)
        same = before is not None and before.state is state
        out[name] = Standing(
            state, why, before.since_s if before is not None and same else facts.now_s
        )
    return out


def _state(name: str, view: Observation, facts: Facts) -> tuple[State, str]:
    reading = view.models.get(name)
    if name in view.absent:
        return State.ABSENT, _gap(view, name) or "Triton does not serve it"
    if reading is None:
        return State.UNSEEN, _gap(view, name) or "not seen yet"
    if facts.known.read_at_s.get(name) != view.at_s:
        return State.UNREAD, _gap(view, name, reading.triton) or "its reading is missing"
    for state, why in _reasons(name, reading, view, facts):
        if why:
            return state, why
    return State.STEERED, ""


def _reasons(
    name: str, reading: ModelReading, view: Observation, facts: Facts
) -> Iterable[tuple[State, str]]:
    """Each reason not to change it, the one to be said first."""
    now_s, load = facts.now_s, facts.loads.get(name)
    yield (
        State.LOADING,
        "it is being loaded, or not ready" if reading.loading or not reading.ready else "",
    )
    yield State.HANDS_OFF, reading.hands_off or facts.released.get(name, "")
    yield State.NOT_ANSWERING, _stuck(load, reading)
    yield (
        State.WATCHED,
        reading.left_alone or ("" if name in facts.profiled else "it has no profile"),
    )
    yield State.UNPREDICTABLE, facts.left_out.get(name, "")
    yield State.UNSTEERABLE, _control(view, reading.triton)
    yield State.OLD_COPY, _lingering(name, reading, view, facts)
    hand = facts.known.hands.get(name)
    yield State.BY_HAND, in_words(hand, now_s) if hand is not None and now_s < hand.until_s else ""
    hold = facts.held.of(name)
    if now_s < hold.refused_until_s:
        why = hold.refused_why or "its last change failed"
        yield State.REFUSED, f"{why}; next try in {hold.refused_until_s - now_s:.0f} s"
    if load is None or load.watched_s < facts.config.decide.warmup_s:
        yield (
            State.WARMING,
            f"watching traffic for {facts.config.decide.warmup_s:g} s before the first decision",
        )


def _stuck(load: Load | None, reading: ModelReading) -> str:
    if load is None or load.stuck_s <= 0:
        return ""
    waiting = (
        "requests wait"
        if reading.pending_count is None
        else f"{reading.pending_count} requests wait"
    )
    return f"{waiting} and nothing was executed for {load.stuck_s:.0f} s"


def _control(view: Observation, triton: str) -> str:
    found = next((g.reason for g in view.gaps if g.source == f"control:{triton}"), "")
    return f"Triton {triton} cannot be steered: {found}" if found else ""


def _gap(view: Observation, name: str, triton: str = "") -> str:
    found = view.unread.get(name, "")
    for gap in view.gaps if not found else ():
        if gap.source in (f"model:{name}", f"triton:{triton}"):
            return (
                gap.reason
                if gap.source.startswith("model:")
                else f"Triton {triton} does not answer: {gap.reason}"
            )
    return found


def _lingering(name: str, reading: ModelReading, view: Observation, facts: Facts) -> str:
    """An old copy that does not go: the next reload would leave one more."""
    loaded_s = facts.known.loaded_s.get(name)
    if (
        view.stubs is None
        or loaded_s is None
        or facts.now_s < loaded_s + LINGER_S
        or name in facts.acting
    ):
        return ""
    mine = stubs_of(reading, view.stubs, facts.ports.get(reading.triton))
    servers = {stub.server_pid for stub in mine}  # another server may have a model of this name
    each = ([stub for stub in mine if stub.server_pid == pid] for pid in sorted(servers))
    over = next((copies for copies in each if len(copies) > reading.allocation.instances), [])
    if not over:
        return ""
    oldest = min(over, key=lambda stub: (stub.started, stub.pid))
    return (
        f"an old copy of it is still there (pid {oldest.pid}): it is not reloaded until that "
        "has ended"
    )
