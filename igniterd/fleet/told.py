"""The rebalance that is to be carried out: from a file, or retained by the broker."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from igniterd.clients.mqtt_broker import broker_of
from igniterd.clients.mqtt_retained import read_retained
from igniterd.config_sections import Mqtt
from igniterd.documents import faults
from igniterd.errors import CannotRun, ConfigError, Refused
from igniterd.messages.event import Event, read_event
from igniterd.messages.rebalance import Rebalance
from igniterd.messages.topics import cluster_topic

_MOST_BYTES = 1 << 20


async def read_rebalance(broker: Mqtt, cluster: str, deadline_s: float) -> Rebalance:
    """What the broker retains for the cluster. Raises :class:`IgniterdError` where that is nothing,
    or no rebalance."""
    topic = cluster_topic(cluster, "rebalance")
    payload = await read_retained(broker_of(broker), topic, deadline_s)
    if not payload:
        raise CannotRun(
            f"{broker.url} has no rebalance at {topic}: is igniterd fleet running there, and does "
            f"it speak for cluster {cluster!r}? May this user read it?"
        )
    try:
        return read_event(payload, "rebalance", Event[Rebalance]).data
    except Refused as error:
        raise CannotRun(f"the message at {topic} {error}") from error


def rebalance_from(path: Path) -> Rebalance:
    """A file with the whole event, or its data alone. Raises :class:`ConfigError` naming what is
    wrong with it."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    if len(raw) > _MOST_BYTES:
        raise ConfigError(str(path), [f"has more than {_MOST_BYTES} bytes: it is no rebalance"])
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), [f"is not JSON: {error}"]) from error
    if isinstance(data, dict) and "specversion" in data:
        try:
            return read_event(raw, "rebalance", Event[Rebalance]).data
        except Refused as error:
            raise ConfigError(str(path), [str(error)]) from error
    try:
        return Rebalance.model_validate_json(raw)
    except ValidationError as error:
        raise ConfigError(str(path), faults(error, Rebalance)) from error
