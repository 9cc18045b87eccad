"""What ``igniterd check --live`` says of the GPUs of each Triton: which its device numbers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.config import Config
    from igniterd.devices import Devices, ServerFacts
    from igniterd.profiled import Predictors
    from igniterd.records import BoardReading, ModelReading


def devices(
    settings: Config,
    boards: Sequence[BoardReading],
    labels: Mapping[str, tuple[str, ...]],
    servers: Mapping[int, ServerFacts],
    known: dict[str, Devices],
) -> Iterator[Finding]:
    """A finding for each Triton. ``labels``: of the GPUs on its metrics page, by its name;
    ``servers``: what its process was started with, by gRPC port; ``known`` takes what is found."""
    from dataclasses import replace

    from igniterd.devices import ServerFacts, devices_of

    names = {board.uuid: board.name for board in boards}
    for server in settings.triton:
        facts = replace(servers.get(server.port, ServerFacts()), labels=labels.get(server.name, ()))
        found = devices_of(server.name, server.gpus, boards, facts)
        known[server.name] = found
        yield Finding(*_said(found, f"Triton {server.name} GPUs", names))


def _said(found: Devices, what: str, names: Mapping[str, str]) -> tuple[str, str, str]:
    """Level, what and words of a finding."""
    if found.wrong:
        return "bad", what, found.wrong
    if found.ambiguous:
        return "warn", what, f"which is which is not known: {found.ambiguous}"
    numbered = ", ".join(
        f"device {number} is {uuid}" + (f" ({names[uuid]})" if uuid in names else "")
        for number, uuid in enumerate(found.gpus)
    )
    return "ok", what, f"{numbered}; from {found.rests_on}" if numbered else found.rests_on


def kinds(boards: Sequence[BoardReading], knowledge: Predictors) -> Iterator[Finding]:
    """The profiles that are of no board of this host."""
    if not boards:
        return
    for kind in knowledge.kinds:
        reasons = {kind.why_not(board) for board in boards}
        if kind.profiled and "" not in reasons:
            yield Finding(
                "warn",
                f"profiles of {kind.board}",
                f"of no board of this host, and without effect for {', '.join(kind.profiled)}: "
                f"{'; '.join(sorted(reasons))}",
            )


def on_their_gpus(
    settings: Config, readings: Mapping[str, ModelReading], known: Mapping[str, Devices]
) -> dict[str, ModelReading]:
    """``readings`` with the GPU of each model."""
    from igniterd.devices import Devices
    from igniterd.placement import placed

    models = settings.by_name()
    emulated = settings.gpu.source.startswith("emulated:")
    return {
        name: placed(
            reading,
            known.get(models[name].triton, Devices()),
            models[name].gpu,
            cpu_counts=emulated,
        )
        for name, reading in readings.items()
    }
