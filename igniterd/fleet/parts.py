"""What the service is made of: view, knowledge and planner, each behind what is used of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Protocol

from igniterd.fleet.cluster import Cluster
from igniterd.fleet.knowledge import build
from igniterd.fleet.view import ClusterView
from igniterd.perf import Profile


class View(Protocol):
    """The messages of a cluster, as a cluster."""

    counts: Counter[tuple[str, str]]

    def take(
        self, topic: str, payload: bytes, *, at_s: float, left_s: float | None, retained: bool
    ) -> None: ...

    def wanted_profiles(self) -> Set[str]: ...

    def give_up(self, digests: Iterable[str], at_s: float) -> None: ...

    def profiles(self) -> Mapping[str, Profile]: ...

    def cluster(self, at_s: float) -> Cluster: ...

    def troubles(self, at_s: float) -> Mapping[str, str]: ...

    def changed(self) -> bool: ...


class Advice(Protocol):
    @property
    def unfinished(self) -> bool:
        """Whether there is more to be found in the same cluster."""

    def document(
        self, *, speaker: str, term: int, number: int, time_s: float
    ) -> dict[str, Any]: ...


class Planner(Protocol):
    def plan(self, cluster: Cluster, knowledge: Any, *, consolidate: bool = False) -> Advice: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Makers of the parts of one cluster. ``build(profiles, previous)`` gives knowledge."""

    view: Callable[[str], View]
    build: Callable[[Mapping[str, Profile], Any], Any]
    planner: Callable[[str], Planner]


def real_parts(*, anywhere: bool = False) -> Parts:
    """Those of a running ``igniterd fleet``: models are fitted in processes of their own.
    ``anywhere``: every Triton is taken to be able to load every model."""
    # both are slow to import, and `igniterd fleet --help` is not to wait for them
    from igniterd.fleet import planning
    from igniterd.predictors import fitted

    return Parts(
        view=ClusterView,
        build=lambda profiles, previous: build(profiles, fit=fitted, previous=previous),
        planner=lambda cluster: planning.Planner(cluster, anywhere),
    )
