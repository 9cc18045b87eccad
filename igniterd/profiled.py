"""The profiles of the configured models, as predictors. They stay while the daemon runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from igniterd.decide.judge import PredictorPair
from igniterd.records import Observation


@dataclass(frozen=True, slots=True)
class Predictors:
    """What does not change while the daemon runs: profiles, as predictors."""

    # configured name -> name in the profile
    profiled: Mapping[str, str] = field(default_factory=dict)
    predictors: PredictorPair | None = None
    # configured name -> what its profile is, in short
    identities: Mapping[str, str] = field(default_factory=dict)
    board: str = ""  # the board the profiles are of
    sm_count: int | None = None
    # configured name -> device memory of one instance, where profiled
    copy_bytes: Mapping[str, int] = field(default_factory=dict)

    def steerable(self, seen: Observation) -> Mapping[str, str]:
        """``profiled``, less the models that are of a kind that can only be watched."""
        return {
            name: of
            for name, of in self.profiled.items()
            if name not in seen.models or not seen.models[name].left_alone
        }
