"""All that decisions take from one tick to the next. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from igniterd.belief import EstimatorState
from igniterd.decide.state import DecisionState
from igniterd.decisions import Step
from igniterd.loads import Load
from igniterd.prove import Proofs
from igniterd.records import BoardReading, Observation
from igniterd.standing import Known


@dataclass(frozen=True, slots=True)
class Carry:
    """All that outlives a tick and decisions rest on. With the observation, what came of steps (and
    what was found just before them) and the time, a decision can be made again from it.

    Outside it stay the tasks of the steps ``under_way`` (:mod:`igniterd.acting`), connections, and
    what was said in the log.
    """

    seen: Observation | None = None
    belief: EstimatorState = field(default_factory=dict)
    held: DecisionState = field(default_factory=DecisionState)
    number: int = 0
    proofs: Proofs = field(default_factory=Proofs)
    loads: Mapping[str, Load] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    under_way: Mapping[str, Step] = field(default_factory=dict)
    """By GPU: the step being carried out when the tick ended."""
    boards: Mapping[str, BoardReading] = field(default_factory=dict)
    """By GPU: what was last read of it."""
