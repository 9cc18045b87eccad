"""The tables of the fleet's file: ``[broker]``, ``[fleet]`` and ``[metrics]``."""

from __future__ import annotations

import socket
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from igniterd.config_sections import Metrics, Mqtt, Name, Seconds, Section
from igniterd.messages.topics import is_name

ALL = "+"
"""In place of the names of clusters: whichever has something to say."""
_LISTEN = "127.0.0.1:9410"


def _named(name: str) -> str:
    if name != ALL and not is_name(name):
        raise ValueError(
            "should be a cluster's name (letters, digits and . _ -, the first of them a letter or "
            f"a digit) or {ALL!r}"
        )
    return name


ClusterName = Annotated[str, Field(max_length=128), AfterValidator(_named)]


class Fleet(Section):
    """What is planned, and for whom."""

    name: Name = Field(default_factory=lambda: socket.gethostname().split(".")[0] or "fleet")
    """This process, as it appears in what it says. By default the host's own name, up to the first
    dot."""
    clusters: Annotated[list[ClusterName], Field(min_length=1)]
    """The clusters to plan for, as the hosts' ``[host] cluster`` names them; ``["+"]``: those that
    no other ``igniterd fleet`` plans for, as they say that something is wrong."""
    most_clusters: Annotated[int, Field(ge=1, le=1000)] = 16
    """With ``["+"]``: how many this process takes at most."""
    consolidate: bool = False
    """Whether to empty GPUs, of what nobody in trouble could use."""
    anywhere: bool = False
    """Whether every Triton is taken to be able to load every model. Otherwise a model goes only
    where a host says that it could be loaded."""
    settle_s: Seconds = 1.0
    """After a change so long is waited for others, before it is planned."""
    least_interval_s: Seconds = 2.0
    """Least time from the beginning of one plan of a cluster to that of the next."""
    plan_timeout_s: Seconds = 60.0
    """A plan that takes longer is not published: what it rests on has passed."""
    expiry_s: Annotated[int, Field(ge=5, le=86_400)] = 60
    """The broker forgets what was advised after so long, unless it is said again."""
    lease_s: Annotated[float, Field(ge=2, le=3600, allow_inf_nan=False)] = 10.0
    """Of several ``igniterd fleet`` for one cluster, the next one speaks at the latest so long
    after the one that spoke is gone. The same for all of them."""

    @field_validator("clusters")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if twice := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: given twice")
        if ALL in value and len(value) > 1:
            raise ValueError("should be names, or '+' alone")
        return value

    @model_validator(mode="after")
    def _few(self) -> Fleet:
        if len(self.clusters) > self.most_clusters:
            raise ValueError(
                f"{len(self.clusters)} clusters are more than most_clusters = {self.most_clusters}"
            )
        return self


class FleetMetrics(Metrics):
    """The admin address."""

    listen: str = _LISTEN
    """Address of /metrics, /state, /livez and /readyz."""


class FleetBroker(Mqtt):
    """The broker that the hosts of the clusters say their states to."""
