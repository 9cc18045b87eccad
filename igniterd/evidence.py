"""What the processes of a model show of its share. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from igniterd.records import Effect, ModelReading, Stub

SAME = 5e-5  # a share is written down with three decimals of a percent
# so Triton begins the names of folders of files that came with a load, in its folder for temporary
# files
SENT = "/folder"
NO_PROCESS = "no process of it is seen on this host"


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of evidence: for or against a share, or nothing.

    ``mendable``: a reload may mend it; ``absent``: the process surely is confined to nothing at
    all.
    """

    effect: Effect | None
    said: str = ""
    mendable: bool = False
    absent: bool = False


def stubs_of(reading: ModelReading, stubs: Sequence[Stub], port: int | None) -> list[Stub]:
    """The processes of a model, the newest first. Where several servers of the host run a model of
    this name, those of the one that listens at ``port``, though it may have none any more; all of
    them where no server with a process does."""
    here = [stub for stub in stubs if stub.grpc_port == port]
    return newest_of(reading.instance_names, reading.model, here or stubs)


def newest_of(names: Collection[str], model: str, stubs: Iterable[Stub]) -> list[Stub]:
    """The processes of instances with these names, the newest first; where models share the names
    of their groups, those that run the code in the model's folder, or one that was sent with its
    load."""
    named = [stub for stub in stubs if stub.instance in names]
    found = (
        [stub for stub in named if f"/{model}/" in stub.path]
        or [stub for stub in named if SENT in stub.path]
        or named
    )
    return sorted(found, key=lambda stub: stub.started, reverse=True)


def serving(mine: Sequence[Stub], share: float, instances: int) -> Sequence[Stub]:
    """The processes that serve now, of all that there are while one copy takes another's place: the
    configuration is that of the copy that serves, so those with its share; else the newest."""
    right = [stub for stub in mine if stub.share is not None and abs(stub.share - share) <= SAME]
    return (right if len(right) >= instances else mine)[:instances]


def by_process(
    reading: ModelReading, share: float, mine: Sequence[Stub] | None, new: bool
) -> Finding:
    """``new``: the processes came since the last tick, and the configuration may be that of the
    copy before."""
    if not mine:
        return Finding(
            None, "the processes of this host cannot be seen" if mine is None else NO_PROCESS
        )
    servers = sorted({stub.server_pid for stub in mine})
    found = [
        _of_server(reading, share, [stub for stub in mine if stub.server_pid == pid], new)
        for pid in servers
    ]
    if len({finding.effect for finding in found}) == 1:
        return found[0]
    pids = " and ".join(map(str, servers))
    said = (
        f"servers {pids} have a model of this name, and their arguments do not tell by a "
        "--grpc-port which is the one that is asked"
    )
    return Finding(Effect.UNPROVEN, said)


def _of_server(reading: ModelReading, share: float, mine: Sequence[Stub], new: bool) -> Finding:
    if len(mine) < reading.allocation.instances:
        said = f"{len(mine)} of {reading.allocation.instances} processes are alive"
        return Finding(Effect.UNPROVEN, said)
    mine = serving(mine, share, reading.allocation.instances)
    if new and any(stub.share is None or abs(stub.share - share) > SAME for stub in mine):
        return Finding(Effect.UNPROVEN, "its process has just come")
    return of_processes(mine, share)


def of_processes(mine: Sequence[Stub], share: float) -> Finding:
    """Of the processes that serve: whether they all have the share."""
    for stub in mine:
        if stub.share is not None and abs(stub.share - share) > SAME:
            said = f"process {stub.pid} has {stub.share:.4g} by its {stub.by}, not {share:.4g}"
            return Finding(Effect.REFUTED, said, mendable=True)
    without = [stub for stub in mine if stub.share is None]
    if without:
        return _without_share(without)
    kinds = " and ".join(sorted({stub.by for stub in mine}))
    pids = ", ".join(str(stub.pid) for stub in mine)
    return Finding(Effect.PROVEN, f"{kinds} of process {pids}")


def _without_share(without: Sequence[Stub]) -> Finding:
    """Of processes that show no share: why, by how they were started."""
    stub = next((each for each in without if each.environment_read), None)
    if stub is None:
        said = f"process {without[0].pid} left no receipt, and its environment is another user's"
        return Finding(Effect.UNPROVEN, said)
    if stub.virtual_env:
        return Finding(
            Effect.REFUTED,
            f"process {stub.pid} has no share: its launcher (Triton 25.08 or later) does not run "
            f"bin/activate, and nothing else in {stub.virtual_env} gave it one: the folder is of "
            "an older igniterd, or damaged",
            mendable=True,
            absent=True,
        )
    said = f"process {stub.pid} was started without the share's environment"
    return Finding(Effect.REFUTED, said, mendable=True, absent=True)
