"""Whether each model has the share that its configuration names. Pure.

Triton says OK to a share that no process reads, and its configuration reads back as asked. So a
share is ``proven``, ``unproven`` or ``refuted``, by what can be seen of the processes themselves.
Evidence, the strongest first:

1. *The model's processes*: every instance has one, and each has left the receipt of this share, or
   shows it in its environment. Another share, or none in an environment that can be read, refutes.
2. *MPS control*: its server is not in FAULT, caps nobody below the share, and has the processes
   among its clients. An environment that no MPS server reads is no share.
3. *Service times*: see :mod:`igniterd.estimators.effect`. They can refute whatever the others say;
   they prove only where processes cannot be seen.

What is refuted, or not proven for ``[mps] prove_within_s``, is planned as an uncapped neighbour:
:func:`planned_view` is the one place where that is decided. A model that a reload of ours may mend
(its share came from elsewhere, or from an older igniterd) goes through the take-over once more;
after that its share stays as it is until its server starts anew. A share once disbelieved is
believed again when it is proven, not when the evidence against it is out of sight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from igniterd.config import Mps
from igniterd.decisions import ActResult
from igniterd.evidence import NO_PROCESS, SAME, Finding, by_process, serving, stubs_of
from igniterd.loads import Load
from igniterd.records import Effect, Gap, ModelReading, MpsReading, Observation, ShareState, Stub

CONNECT_S = 2.0  # a process is a client of MPS so long after it is there, or has first executed
SHOWN_S = 6.0  # what tells of a new process has been asked by then
# a share whose mending was refused is left so long, and each time twice as long
MEND_AGAIN_S = 300.0
DEAD_TICKS = 3  # a process missing at so many ticks is gone, not just being replaced


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one model, since when they are these, and since when they are known to
    execute."""

    pids: tuple[int, ...]
    since_s: float
    ran_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """A reload of ours that was to give a share its effect, on the server with this pid: nothing
    else of the kind is tried before ``until_s``; ``refused``: how often it was refused."""

    server: int
    until_s: float = float("inf")
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Proofs:
    """What one tick hands to the next. ``states``: also of models that were not read this time;
    ``tried``: those that a reload of ours did not mend; ``missing``: ticks in a row without a
    process; ``unseen``: models that we, or a rebalance, loaded and whose processes have not all
    been seen since."""

    states: Mapping[str, ShareState] = field(default_factory=dict)
    tried: Mapping[str, Tried] = field(default_factory=dict)
    unseen: frozenset[str] = frozenset()
    missing: Mapping[str, int] = field(default_factory=dict)
    served_by: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, Processes] = field(default_factory=dict)
    mps_seen: bool = False
    servers_seen: bool = False

    @property
    def dead(self) -> frozenset[str]:
        """Models that Triton calls ready though a process of theirs is gone: their requests
        fail."""
        return frozenset(name for name, ticks in self.missing.items() if ticks >= DEAD_TICKS)


# ---------------------------------------------------------------- MPS control


@dataclass(frozen=True, slots=True)
class _Context:
    """What MPS control is asked about: one model with its processes, or ``None`` where they cannot
    be seen. ``executed``: it has answered requests, so that its process has a CUDA context if it
    ever has one; ``emulated``: its models are no clients of any MPS server on purpose."""

    mine: Sequence[Stub] | None
    since_s: float
    executed: bool
    emulated: bool
    before: Proofs


def _by_mps(observation: Observation, share: float, of: _Context) -> Finding:
    mps = observation.mps
    if mps is None:
        gap = next((gap.reason for gap in observation.gaps if gap.source == "mps"), None)
        lost = gap is not None and (not of.emulated or of.before.mps_seen)
        return Finding(Effect.UNPROVEN if lost else None, f"MPS control: {gap}")
    if "FAULT" in mps.states.values():
        return Finding(Effect.UNPROVEN, "MPS control: a server is in FAULT and takes no new client")
    if mps.default_share is not None and mps.default_share < share - SAME:
        cap = f"MPS control caps every client at {mps.default_share:.0%}"
        return Finding(Effect.REFUTED, f"{cap}: set_default_active_thread_percentage 100")
    if not mps.server_pids and of.before.servers_seen:
        return Finding(Effect.UNPROVEN, "MPS control: its server is gone")
    if (of.emulated and not mps.server_pids) or not of.executed:
        return Finding(None)
    return _by_clients(mps, of)


_NOT_CLIENTS = (
    " though the model executes: Triton's processes are not its clients (pipe directory not "
    "mounted or not Triton's CUDA_MPS_PIPE_DIRECTORY, no --ipc=host, or another user; or the model "
    "does not use the GPU)"
)


def _by_clients(mps: MpsReading, of: _Context) -> Finding:
    clients, mine = mps.client_pids, of.mine
    if clients is None:
        return Finding(None)
    if mps.at_s is not None and mps.at_s < of.since_s + CONNECT_S:
        return Finding(Effect.UNPROVEN, "MPS control has not been asked since its process executes")
    if not clients:
        which = "no client" if mps.server_pids else "no server"
        return Finding(Effect.REFUTED, f"MPS control has {which}{_NOT_CLIENTS}", absent=True)
    if not mine or 0 in clients:  # 0: a process of a pid namespace that the server does not see
        return Finding(None)
    outside = [stub.pid for stub in mine if not clients.intersection(stub.pids)]
    if outside:
        return Finding(
            Effect.REFUTED, f"process {outside[0]} is no client of MPS{_NOT_CLIENTS}", absent=True
        )
    return Finding(Effect.PROVEN, "a client of MPS")


# ---------------------------------------------------------------- all together


def _by_times(load: Load | None, share: float, shown: bool) -> Finding:
    """``shown``: the processes have the share, by all that they show."""
    test = load.share_test if load is not None else None
    if test is None or test.verdict is None or abs(test.share - share) > SAME:
        return Finding(None, test.said if test is not None else "too little traffic")
    if test.weak and shown and test.verdict is Effect.REFUTED:
        return Finding(None, test.said)
    return Finding(test.verdict, test.said)


def _judge(process: Finding, mps: Finding, times: Finding) -> Finding:
    """One verdict of three: whatever refutes, refutes; whatever is in doubt, is unproven."""
    findings = (process, mps, times)
    for finding in findings:
        if finding.effect is Effect.REFUTED:
            return finding
    for finding in findings:
        if finding.effect is Effect.UNPROVEN:
            return finding
    if process.effect is Effect.PROVEN:
        said = [f.said for f in findings if f.effect is Effect.PROVEN]
        return Finding(Effect.PROVEN, "; ".join(said))
    if times.effect is Effect.PROVEN:
        return Finding(Effect.PROVEN, f"service times: {times.said}")
    return Finding(Effect.UNPROVEN, f"{process.said}; service times do not tell: {times.said}")


def prove(
    observation: Observation,
    loads: Mapping[str, Load],
    before: Proofs,
    outcome: ActResult,
    *,
    rules: Mps,
    emulated: bool,
    ports: Mapping[str, int | None],
    loaded: Collection[str] = (),
) -> Proofs:
    """What is known of every share now. ``loads``: of the tick before; ``ports``: the gRPC port of
    each Triton by its name, to tell servers apart; ``loaded``: models that a rebalance has loaded
    since, beside those of ``outcome``."""
    mps, seen = observation.mps, _find_processes(observation, ports)
    served_by = {
        **before.served_by,
        **{name: mine[0].server_pid for name, mine in seen.items() if mine},
    }
    visible = {observation.models[name].triton for name, mine in seen.items() if mine}
    loaded = {*loaded, *(done.step.model for done in outcome.actuations if done.ok)}
    short = {
        name
        for name, mine in seen.items()
        if len(mine) < observation.models[name].allocation.instances
    }
    unseen = (before.unseen | loaded) - (seen.keys() - short)
    tried = _keep_tried(before, outcome, served_by, observation.at_s)
    processes, missing = dict(before.processes), dict[str, int]()
    states = {
        name: state
        for name, state in before.states.items()
        if name not in {*observation.models, *observation.absent}
    }
    for name, reading in observation.models.items():
        share, mine = reading.allocation.share, seen.get(name)
        lost = name in short and _has_lost_processes(
            reading, name in unseen, name in before.served_by, reading.triton in visible
        )
        missing[name] = before.missing.get(name, 0) + 1 if lost else 0
        now = None if mine is None else serving(mine, share or 0.0, reading.allocation.instances)
        there = processes[name] = _follow_processes(
            now, processes.get(name), observation.at_s, reading.success_count > 0
        )
        if share is None:
            continue
        new = now is not None and there.since_s == observation.at_s
        asked_after_s = max(there.since_s if now else float("-inf"), there.ran_s or float("-inf"))
        context = _Context(now, asked_after_s, reading.success_count > 0, emulated, before)
        gone = mine == [] and bool(missing[name])
        shows = (
            Finding(Effect.UNPROVEN, f"{NO_PROCESS} any more")
            if gone
            else by_process(reading, share, mine, new)
        )
        by_times = _by_times(loads.get(name), share, shows.effect is Effect.PROVEN)
        found = _judge(shows, _by_mps(observation, share, context), by_times)
        if not rules.enabled:
            found = Finding(
                Effect.REFUTED,
                "[mps] enabled is false: without MPS a share has no effect",
                absent=True,
            )
        if found.effect is Effect.PROVEN:
            tried.pop(name, None)
        afresh = name in loaded or served_by.get(name) != before.served_by.get(name)
        shown_s = max(
            rules.prove_within_s, SHOWN_S if observation.at_s - there.since_s < SHOWN_S else 0.0
        )
        states[name] = _next_state(
            share, found, None if afresh else before.states.get(name), observation.at_s, shown_s
        )
    return Proofs(
        states,
        tried,
        unseen,
        missing,
        served_by,
        processes,
        before.mps_seen or mps is not None,
        before.servers_seen or bool(mps and mps.server_pids),
    )


def _find_processes(
    observation: Observation, ports: Mapping[str, int | None]
) -> dict[str, list[Stub]]:
    """The processes of each model; nothing where they cannot be seen."""
    stubs = observation.stubs
    if stubs is None:
        return {}
    return {
        name: stubs_of(reading, stubs, ports.get(reading.triton))
        for name, reading in observation.models.items()
    }


def _keep_tried(
    before: Proofs, outcome: ActResult, served_by: Mapping[str, int], now_s: float
) -> dict[str, Tried]:
    """Those that a reload of ours did not mend, on a server that is there yet."""
    tried = {
        name: each
        for name, each in before.tried.items()
        if served_by.get(name, each.server) == each.server
    }
    for done in outcome.actuations:
        name, state = done.step.model, before.states.get(done.step.model)
        if done.ok and done.step.after.share is not None:
            tried[name] = Tried(served_by.get(name, 0))
        elif not done.ok and state is not None and state.effective is None:
            times = tried[name].refused if name in tried else 0
            tried[name] = Tried(
                served_by.get(name, 0), now_s + MEND_AGAIN_S * 2 ** min(times, 6), times + 1
            )
    return tried


def _follow_processes(
    mine: Sequence[Stub] | None, before: Processes | None, now_s: float, executed: bool
) -> Processes:
    pids = tuple(sorted(stub.pid for stub in mine or ()))
    if before is None or (mine is not None and pids != before.pids):
        before = Processes(pids, now_s)
    return replace(before, ran_s=now_s) if executed and before.ran_s is None else before


def _has_lost_processes(reading: ModelReading, unseen: bool, shown: bool, visible: bool) -> bool:
    """Whether a ready model that lacks processes has lost them.

    A process may be there and not be seen, as one that overwrites its arguments. Where the last
    load of ours brought none to light (``unseen``), only requests that all fail tell. Where none
    was ever seen (not ``shown``) though others of its server are (``visible``), it may have been
    lost before anybody looked.
    """
    if not (reading.ready and not reading.loading and reading.instance_names):
        return False
    fails = reading.failure_count > 0
    if unseen:
        return fails and reading.success_count == 0
    return shown or (visible and (fails or reading.success_count == 0))


def _next_state(
    share: float, found: Finding, before: ShareState | None, now_s: float, within_s: float
) -> ShareState:
    """``before``: of the same processes; what was disbelieved then is not believed now without a
    proof."""
    effect = found.effect or Effect.UNPROVEN
    if before is not None and abs(before.applied - share) > SAME:
        before = None
    since_s = before.since_s if before is not None and before.effect is effect else now_s
    proven = effect is Effect.PROVEN
    pending = (
        effect is Effect.UNPROVEN
        and now_s - since_s < within_s
        and (before is None or before.effective is not None)
    )
    return ShareState(
        applied=share,
        effect=effect,
        by=found.said if proven else "",
        reason="" if proven else found.said,
        since_s=since_s,
        effective=share if proven or pending else None,
        mendable=found.mendable,
        absent=found.absent,
    )


def planned_view(observation: Observation, proofs: Proofs) -> Observation:
    """The host as it may be planned with: a share that has no effect is no share, and none that it
    could be given, unless a reload of ours may still mend it. One that is only in doubt may be held
    all the same: its part of the GPU is given to nobody else."""
    models = dict(observation.models)
    gaps = list(observation.gaps)
    for name, state in proofs.states.items():
        if state.effective is not None or name not in models:
            continue
        reading = models[name]
        tried = proofs.tried.get(name)
        again = state.mendable and (tried is None or observation.at_s >= tried.until_s)
        fixed = "" if again else f"its share is {state.effect}: {state.reason}"
        models[name] = replace(
            reading,
            allocation=replace(reading.allocation, share=None),
            claimed_share=state.applied,
            reserved_share=0.0 if state.absent else state.applied * reading.allocation.instances,
            share_fixed=reading.share_fixed or fixed,
        )
        gaps.append(Gap(f"share:{name}", f"{state.effect}: {state.reason}", observation.at_s))
    gone = "Triton calls it ready, but a process of it is gone: requests fail"
    gaps += [
        Gap(f"model:{name}", gone, observation.at_s) for name in sorted(proofs.dead & models.keys())
    ]
    return replace(observation, models=models, gaps=tuple(gaps))
