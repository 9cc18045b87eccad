"""The performance model: profiles in, service times out. ``load_model`` is the way in;
:mod:`igniterd.perf.api` has the vocabulary."""

from __future__ import annotations

from typing import Literal

from igniterd.perf.api import PerformanceModel
from igniterd.perf.profile import Profile, builtin_profile, builtin_profiles, resolve_profile

ModelKind = Literal["igniterd", "igniter"]

__all__ = [
    "ModelKind",
    "PerformanceModel",
    "Profile",
    "builtin_profile",
    "builtin_profiles",
    "load_model",
    "resolve_profile",
]


def load_model(profile: Profile, kind: ModelKind = "igniterd") -> PerformanceModel:
    """Fit a model to ``profile``: igniterd's own, or the published one (``"igniter"``).

    Raises :class:`igniterd.errors.ProfileError` when the profile lacks what that model is fitted
    from.
    """
    if kind == "igniter":
        from igniterd.perf.igniter_model import IgniterModel

        return IgniterModel(profile)
    if kind == "igniterd":
        from igniterd.perf.surface_model import SurfaceModel

        return SurfaceModel(profile)
    raise ValueError(f"no model is called {kind!r}: igniterd or igniter")
