"""The part of ``igniterd check --live`` about shares: how they reach a server's models, and what
shows that they have an effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.config import Config, Triton
    from igniterd.records import ModelReading, MpsReading, ShareState, Stub

SOURCED_UP_TO = (2, 59)
"""Since the container 25.08 nothing in the folder of a share is run by the launcher; 25.07 was a
second 2.59."""
UNSEEN = (
    "the processes of its models are not seen from here, so that only service times can prove a "
    "share: run igniterd where "
    "/proc shows them (the host's pid namespace, no hidepid)"
)


def shares(
    settings: Config,
    server: Triton,
    version: str,
    readings: Mapping[str, ModelReading],
    stubs: tuple[Stub, ...] | None,
    mps: MpsReading | None,
) -> Iterator[Finding]:
    """Findings about the shares of one Triton, whose models answered ``readings``.

    ``stubs``: the processes of this host; ``None`` where its table cannot be read.
    """
    from igniterd.evidence import stubs_of
    from igniterd.records import Effect

    what = f"Triton {server.name} shares"
    yield Finding("ok", what, _way(settings, server, version))
    mine = {
        name: stubs_of(r, stubs or (), server.port)
        for name, r in readings.items()
        if r.owns_process
    }
    if mine and not any(mine.values()):
        yield Finding("warn", what, UNSEEN)
    elif mine:
        yield Finding("ok", what, _seen(mine))
    for name, state in _states(settings, server, readings, stubs, mps).items():
        level = {Effect.PROVEN: "ok", Effect.UNPROVEN: "warn", Effect.REFUTED: "bad"}[state.effect]
        said = (
            f"proven by {state.by}"
            if state.effect is Effect.PROVEN
            else f"{state.effect}: {state.reason}"
        )
        yield Finding(level, f"model {name}", f"share {state.applied:.1%} {said}")


def _states(
    settings: Config,
    server: Triton,
    readings: Mapping[str, ModelReading],
    stubs: tuple[Stub, ...] | None,
    mps: MpsReading | None,
) -> Mapping[str, ShareState]:
    """As the daemon judges them at its second look, when nothing has just come."""
    from igniterd.decisions import ActResult
    from igniterd.prove import Proofs, prove
    from igniterd.records import Observation

    proofs, emulated = Proofs(), settings.gpu.source.startswith("emulated:")
    for at_s in (0.0, 60.0):
        asked = None if mps is None else replace(mps, at_s=at_s)
        seen = Observation(at_s, models=readings, stubs=stubs, mps=asked)
        ports = {server.name: server.port}
        proofs = prove(
            seen, {}, proofs, ActResult(), rules=settings.mps, emulated=emulated, ports=ports
        )
    return proofs.states


def _way(settings: Config, server: Triton, version: str) -> str:
    from igniterd.clients.triton.version import named, version_of

    number = version_of(version)
    if number is None:
        launcher = "sources it (up to 25.07) or starts its Python there (25.08 and later)"
    elif number < SOURCED_UP_TO:
        launcher = f"of {named(version)} sources it"
    elif number == SOURCED_UP_TO:
        launcher = f"of {named(version)} sources it (it starts its Python there since 25.08)"
    else:
        launcher = f"of {named(version)} starts its Python there, and runs nothing else of it"
    shim = (
        f"; archives and $$ paths go through the shim backend {server.shim_backend}"
        if server.shim_backend
        else ""
    )
    return (
        f"each is a folder below {settings.shares}, seen under the same path by Triton, whose "
        f"launcher {launcher}{shim}"
    )


def _seen(mine: Mapping[str, list[Stub]]) -> str:
    """Whose processes are seen, and in which namespace."""
    there = [stubs[0] for stubs in mine.values() if stubs]
    servers = ", ".join(sorted({str(stub.server_pid) for stub in there}))
    own = (
        "a pid namespace of its own"
        if any(len(stub.pids) > 1 for stub in there)
        else "this pid namespace"
    )
    return (
        f"the processes of {len(there)} of {len(mine)} models are seen, children of "
        f"tritonserver {servers} in {own}"
    )
