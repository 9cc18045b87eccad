"""What the host's process table shows of a tritonserver: which GPUs it was told to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from igniterd.devices import ServerFacts

SERVER = "tritonserver"
MPS = "nvidia-cuda-mps"  # control and server: the kernel keeps fifteen characters of a name

_VISIBLE, _ORDER, _CONTAINER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"
WANTED = frozenset({_VISIBLE, _ORDER, _CONTAINER})  # nothing else of an environment is kept
_DEFAULT_GRPC_PORT = 8001
_DAEMON = frozenset({"-d", "-f"})  # arguments of MPS control that stays; others only ask it


@dataclass(frozen=True, slots=True)
class Program:
    """A tritonserver, or a daemon of MPS."""

    name: str
    words: Sequence[str]  # its arguments
    environment: Mapping[str, str] | None = None  # what is wanted of it; None: not readable
    network: str = ""  # the network namespace; empty where it is not readable
    other_pids: bool = False  # whether it has a pid namespace of its own

    @property
    def facts(self) -> ServerFacts:
        """Of a server: what its environment says."""
        seen = self.environment
        if seen is None:
            return ServerFacts()
        inside = self.other_pids or seen.get(_CONTAINER, "all") not in ("all", "")
        return ServerFacts(seen.get(_VISIBLE), seen.get(_ORDER), True, confined=inside)

    @property
    def stays(self) -> bool:
        """Whether it is more than a question to MPS control."""
        if self.name == SERVER:
            return True
        return PurePath(self.words[0]).name.endswith("-server") or bool(_DAEMON & {*self.words})


def facts_by_port(programs: Iterable[Program], network: str) -> dict[int, ServerFacts]:
    """What is known of each server, by its gRPC port. ``network``: this process's namespace.

    Servers of several namespaces may claim the same port: it is that of this namespace, else nobody
    knows whose.
    """
    claims: dict[int, list[Program]] = {}
    remapped: str | None = None
    for program in programs:
        if program.name != SERVER:
            given = (program.environment or {}).get(_VISIBLE)
            remapped = remapped if given is None else given
        elif program.words[0] and (port := grpc_port_of(program.words)) is not None:
            claims.setdefault(port, []).append(program)
    found = {port: _of_claims(claiming, network) for port, claiming in claims.items()}
    return {port: replace(facts, remapped=remapped) for port, facts in found.items()}


def _of_claims(claiming: Sequence[Program], network: str) -> ServerFacts:
    here = [program for program in claiming if network and program.network == network]
    facts = {program.facts for program in here or claiming}
    return facts.pop() if len(facts) == 1 else ServerFacts()


def grpc_port_of(words: Iterable[str]) -> int | None:
    """The gRPC port in tritonserver's arguments: ``--grpc-port=N``, ``--grpc-port N``, or its
    default."""
    words = list(words)
    for number, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == "--grpc-port":
            value = value or (words[number + 1] if number + 1 < len(words) else "")
            return int(value) if value.isdecimal() else None
    return _DEFAULT_GRPC_PORT
