"""Profiles of one kind of board as one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from igniterd.perf.profile import CoRun, Profile

_DIGITS = 8  # of a hash, in a name
_LETTERS = 150  # of a name before it; a profile takes names of 200

Names = Mapping[tuple[str, str], str]
"""By the hash of a profile and the name of a model there: its name in the merged profile."""


@dataclass(frozen=True, slots=True)
class Merged:
    profile: Profile
    names: Names


def merged(profiles: Mapping[str, Profile]) -> Merged:
    """Profiles (by hash, one at least) of equal boards as one, whatever order they came in.

    A model that several profile with the same figures is one. Of a name with several figures, the
    profile of the lowest hash has the name, the others' are ``name@hash``.
    """
    ordered = sorted(profiles.items())
    native = {name for _, profile in ordered for name in profile.models}
    models: dict[str, object] = {}
    names: dict[tuple[str, str], str] = {}
    for digest, profile in ordered:
        for name, figures in profile.models.items():
            given, digits = name, _DIGITS
            while models.get(given, figures) != figures or (given != name and given in native):
                given, digits = f"{name[:_LETTERS]}@{digest[:digits]}", digits + 1
            models[given] = figures
            names[digest, name] = given
    runs = dict.fromkeys(
        _renamed(run, digest, names) for digest, profile in ordered for run in profile.co_runs
    )
    whole = Profile.model_validate(
        {"board": ordered[0][1].board, "models": models, "co_runs": tuple(runs)}
    )
    return Merged(whole, names)


def _renamed(run: CoRun, digest: str, names: Names) -> CoRun:
    tenants = tuple(
        tenant.model_copy(update={"model": names[digest, tenant.model]}) for tenant in run.tenants
    )
    return run.model_copy(update={"tenants": tenants})
