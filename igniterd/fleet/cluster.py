"""A cluster as its hosts say it is now: what is planned for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from igniterd.messages.state import AppliedState, BoardState, HostState, ModelState, TritonState
from igniterd.records import Allocation


@dataclass(frozen=True, slots=True)
class HostView:
    """One host, its parts joined. It is not changed: a newer state is a new view."""

    name: str
    run: str
    tick: int
    state: HostState  # with the models of all parts
    boards: Mapping[str, BoardState]  # by UUID
    models: Mapping[str, ModelState]  # by name
    tritons: Mapping[str, TritonState]  # by name
    degraded: str = ""  # why its daemon says so: it is planned with, and is not to take models

    @classmethod
    def of(cls, state: HostState, *, degraded: str = "") -> HostView:
        return cls(
            state.host,
            state.run,
            state.tick,
            state,
            {board.uuid: board for board in state.boards},
            {model.name: model for model in state.models},
            {triton.name: triton for triton in state.tritons},
            degraded,
        )


@dataclass(frozen=True, slots=True)
class Cluster:
    """All hosts of one cluster that are known. ``left_out``: hosts that no move may touch, and
    why; ``hosts`` has the others. ``offline``: those left out whose connection ended."""

    name: str
    hosts: Mapping[str, HostView] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    offline: frozenset[str] = frozenset()


def allocation_from(applied: AppliedState) -> Allocation:
    """What a message says of an allocation, as the records have it."""
    return Allocation(
        applied.share,
        applied.max_batch_size,
        applied.max_queue_delay_us,
        applied.instances,
        tuple(applied.devices),
    )
