"""Whether each model has the share that its configuration names. Pure.

Triton says OK to a share that no process reads, and its configuration reads back as asked. So a
share is ``proven``, ``unproven`` or ``refuted``, by what can be seen of the processes themselves.
Evidence, the strongest first:

1. *The model's processes*: every instance has one, and each has left the receipt of this share, or
   shows it in its environment. Another share, or none in an environment that can be read, refutes.
2. *MPS control*: its server is not in FAULT, caps nobody below the share, and has the processes
   among its clients. An environment that no MPS server reads is no share.
3. *Service times*: see :mod:`igniterd.model.effect`. They can refute whatever the others say; they
   prove only where processes cannot be seen.

What is refuted, or not proven for ``[mps] prove_within_s``, is planned as an uncapped neighbour:
:func:`planned_view` is the one place where that is decided. A model that a reload of ours may mend
(its share came from elsewhere, or from an older igniterd) goes through the take-over once more;
after that its share stays as it is until its server starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from igniterd.config import Mps
from igniterd.evidence import SAME, Finding, by_process, serving, stubs_of
from igniterd.records import (
    Effect,
    Gap,
    Load,
    ModelReading,
    MpsReading,
    Observation,
    Outcome,
    ShareState,
    Stub,
)

CONNECT_S = 2.0  # a process is a client of MPS so long after it is there
DEAD_TICKS = 3  # a process missing at so many ticks is gone, not just being replaced


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one model, and since when they are these."""

    pids: tuple[int, ...]
    since_s: float


@dataclass(frozen=True, slots=True)
class Proofs:
    """What one tick hands to the next. ``tried``: the servers on which a reload of ours gave the
    share and it was not proven afterwards; ``missing``: ticks in a row without a process."""

    states: Mapping[str, ShareState] = field(default_factory=dict)
    tried: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    served_by: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, Processes] = field(default_factory=dict)
    mps_seen: bool = False
    servers_seen: bool = False

    @property
    def dead(self) -> frozenset[str]:
        """Models that Triton calls ready though a process of theirs is gone: their requests fail."""
        return frozenset(name for name, ticks in self.missing.items() if ticks >= DEAD_TICKS)


# ---------------------------------------------------------------- MPS control


@dataclass(frozen=True, slots=True)
class _Context:
    """What MPS control is asked about: one model with its processes, or ``None`` where they cannot be
    seen. ``executed``: it has answered requests, so that its process has a CUDA context if it ever
    has one; ``emulated``: its models are no clients of any MPS server on purpose."""

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
    if mine and mps.at_s is not None and mps.at_s < of.since_s + CONNECT_S:
        return Finding(Effect.UNPROVEN, "MPS control has not been asked since its process started")
    if not clients:
        which = "no client" if mps.server_pids else "no server"
        return Finding(Effect.REFUTED, f"MPS control has {which}{_NOT_CLIENTS}")
    if not mine or 0 in clients:  # 0: a process of a pid namespace that the server does not see
        return Finding(None)
    outside = [stub.pid for stub in mine if not clients.intersection(stub.pids)]
    if outside:
        return Finding(Effect.REFUTED, f"process {outside[0]} is no client of MPS{_NOT_CLIENTS}")
    return Finding(Effect.PROVEN, "a client of MPS")


# ---------------------------------------------------------------- all together


def _by_times(load: Load | None, share: float) -> Finding:
    test = load.share_test if load is not None else None
    if test is None or test.verdict is None or abs(test.share - share) > SAME:
        return Finding(None, test.said if test is not None else "too little traffic")
    return Finding(test.verdict, test.said)


def _judged(process: Finding, mps: Finding, times: Finding) -> Finding:
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
    outcome: Outcome,
    *,
    rules: Mps,
    emulated: bool,
    ports: Mapping[str, int | None],
) -> Proofs:
    """What is known of every share now. ``loads``: of the tick before; ``ports``: the gRPC port of
    each Triton by its name, to tell servers apart."""
    seen, mps = observation.stubs, observation.mps
    states, missing = dict[str, ShareState](), dict[str, int]()
    served_by, tried = dict(before.served_by), dict(before.tried)
    processes = dict(before.processes)
    given = {a.step.model for a in outcome.actuations if a.ok and a.step.after.share is not None}
    for name, reading in observation.models.items():
        share, now = reading.allocation.share, None
        mine = None if seen is None else stubs_of(reading, seen, ports.get(reading.triton))
        if mine is not None:
            served_by[name] = mine[0].server_pid if mine else served_by.get(name, 0)
            missing[name] = _missing(reading, mine, before)
            now = serving(mine, share or 0.0, reading.allocation.instances)
            processes[name] = _since(now, processes.get(name), observation.at_s)
        server = served_by.get(name, 0)
        if name in given:
            tried[name] = server
        if share is None:
            continue
        since_s = processes[name].since_s if name in processes else float("-inf")
        context = _Context(now, since_s, reading.success_count > 0, emulated, before)
        found = _judged(
            by_process(reading, share, mine, since_s == observation.at_s),
            _by_mps(observation, share, context),
            _by_times(loads.get(name), share),
        )
        if found.effect is Effect.PROVEN or tried.get(name, server) != server:
            tried.pop(name, None)
        states[name] = _state(share, found, before.states.get(name), observation.at_s, rules)
    return Proofs(
        states,
        tried,
        missing,
        served_by,
        processes,
        before.mps_seen or mps is not None,
        before.servers_seen or bool(mps and mps.server_pids),
    )


def _since(mine: Sequence[Stub], before: Processes | None, now_s: float) -> Processes:
    pids = tuple(sorted(stub.pid for stub in mine))
    return before if before is not None and before.pids == pids else Processes(pids, now_s)


def _missing(reading: ModelReading, mine: Sequence[Stub], before: Proofs) -> int:
    """Ticks in a row at which a ready model had fewer processes than instances, of a server whose
    processes have been seen."""
    lacks = len(mine) < reading.allocation.instances
    counts = reading.ready and not reading.loading and bool(reading.instance_names)
    seen = before.served_by.get(reading.model, 0) != 0
    return before.missing.get(reading.model, 0) + 1 if seen and lacks and counts else 0


def _state(
    share: float,
    found: Finding,
    before: ShareState | None,
    now_s: float,
    rules: Mps,
) -> ShareState:
    effect = found.effect or Effect.UNPROVEN
    same = before is not None and before.effect is effect and abs(before.applied - share) <= SAME
    since_s = before.since_s if same and before is not None else now_s
    proven = effect is Effect.PROVEN
    pending = effect is Effect.UNPROVEN and now_s - since_s < rules.prove_within_s
    return ShareState(
        applied=share,
        effect=effect,
        by=found.said if proven else "",
        reason="" if proven else found.said,
        since_s=since_s,
        effective=share if proven or pending else None,
        mendable=found.mendable,
    )


def planned_view(observation: Observation, proofs: Proofs) -> Observation:
    """The host as it may be planned with: a share that has no effect is no share, and none that it
    could be given, unless a reload of ours may still mend it."""
    models = dict(observation.models)
    gaps = list(observation.gaps)
    for name, state in proofs.states.items():
        if state.effective is not None or name not in models:
            continue
        reading = models[name]
        again = state.mendable and name not in proofs.tried
        fixed = "" if again else f"its share is {state.effect}: {state.reason}"
        models[name] = replace(
            reading,
            allocation=replace(reading.allocation, share=None),
            claimed_share=state.applied,
            share_fixed=reading.share_fixed or fixed,
        )
        gaps.append(Gap(f"share:{name}", f"{state.effect}: {state.reason}", observation.at_s))
    return replace(observation, models=models, gaps=tuple(gaps))
