"""What ``igniterd check --live`` says of the GPUs of each Triton: which its device numbers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.config import Config
    from igniterd.devices import Devices, ServerFacts
    from igniterd.records import BoardReading


def devices(
    settings: Config,
    boards: Sequence[BoardReading],
    labels: Mapping[str, tuple[str, ...]],
    servers: Mapping[int, ServerFacts],
) -> Iterator[Finding]:
    """A finding for each Triton. ``labels``: of the GPUs on its metrics page, by its name;
    ``servers``: what its process was started with, by gRPC port."""
    from dataclasses import replace

    from igniterd.devices import ServerFacts, devices_of

    names = {board.uuid: board.name for board in boards}
    for server in settings.triton:
        facts = replace(servers.get(server.port, ServerFacts()), labels=labels.get(server.name, ()))
        found = devices_of(server.name, server.gpus, boards, facts)
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
