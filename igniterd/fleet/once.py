"""One look at a cluster: what the broker has kept of it, planned once, and nothing said."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from igniterd.clients.mqtt_broker import Broker, broker_of
from igniterd.clients.mqtt_listener import Heard, MqttListener
from igniterd.errors import CannotRun
from igniterd.fleet.asking import Asking, Missing
from igniterd.fleet.cluster import Cluster
from igniterd.fleet.config import FleetConfig
from igniterd.fleet.desk import NOT_ALLOWED, topics_of
from igniterd.fleet.parts import Parts, View
from igniterd.fleet.service import boot_s
from igniterd.fleet.thinking import Thinking
from igniterd.messages.topics import profile_topic

QUIET_S = 2.0
"""Without a retained message for so long, all of them have come."""
DEADLINE_S = 20.0
_EVERY_S = 0.05
_MOST_PLANS = 100  # of a cluster with more trouble than one plan looks into


@dataclass(frozen=True, slots=True)
class Looked:
    """A cluster, and the ``Rebalance`` document for it."""

    cluster: Cluster
    document: dict[str, Any]
    troubles: dict[str, str]


async def look(
    config: FleetConfig,
    cluster: str,
    parts: Parts,
    *,
    deadline_s: float = DEADLINE_S,
    quiet_s: float = QUIET_S,
    clock: Callable[[], float] = boot_s,
) -> Looked:
    """Read what is retained, and plan. Raises :class:`CannotRun` without a broker, without a host
    that can be planned with, or without a plan in time."""
    broker, view = broker_of(config.broker), parts.view(cluster)
    odd = await _gather(broker, cluster, view, deadline_s, quiet_s, clock)
    found, troubles = view.cluster(clock()), {**view.troubles(clock()), **odd}
    if not found.hosts and not found.left_out:
        raise CannotRun(f"cluster {cluster}: no host has said anything ({broker})")
    if not found.hosts:
        why = "; ".join(f"{host}: {reason}" for host, reason in sorted(found.left_out.items())[:3])
        raise CannotRun(f"cluster {cluster}: no host can be planned with: {why}")
    with ThreadPoolExecutor(1) as executor:
        thinking = Thinking(cluster, parts, executor, timeout_s=config.fleet.plan_timeout_s)
        advice = None
        for _ in range(_MOST_PLANS):
            advice = await thinking.advice(
                found, dict(view.profiles()), consolidate=config.fleet.consolidate
            )
            if advice is None or not advice.unfinished:
                break
    if advice is None:
        raise CannotRun(f"cluster {cluster}: {thinking.trouble}")
    document = advice.document(speaker="", term=0, number=1, time_s=round(time.time(), 3))
    return Looked(found, document, troubles)


async def _gather(
    broker: Broker,
    cluster: str,
    view: View,
    deadline_s: float,
    quiet_s: float,
    clock: Callable[[], float],
) -> dict[str, str]:
    """Give the view what the broker has kept, until nothing more of it comes. Returns what was odd
    about that."""
    heard_s = clock()

    def take(heard: Heard) -> None:
        nonlocal heard_s
        if heard.retained:
            heard_s = heard.at_s
        view.take(
            heard.topic,
            heard.payload,
            at_s=heard.at_s,
            left_s=heard.left_s,
            retained=heard.retained,
        )

    name = f"igniterd-fleet-once-{uuid.uuid4().hex[:12]}"
    listener = MqttListener(broker, name, take, clock=clock)
    asking, missing, refused = Asking(), Missing(quiet_s), set[str]()
    listener.want(topics_of(cluster))
    until_s = clock() + deadline_s
    await listener.start()
    try:
        while (now_s := clock()) < until_s:
            wanted, known = view.wanted_profiles(), listener.statistics
            answered = {
                d for d in wanted if profile_topic(cluster, d, "+") in known.answered_topics
            }
            missing.look(answered, heard_s, now_s)
            refused |= known.refused_topics  # which forgets those that are asked for no more
            listener.want(topics_of(cluster, asking.now(missing.of(wanted), now_s)))
            if not known.connected:
                heard_s = now_s
            elif now_s - heard_s >= quiet_s and wanted <= missing.gone:
                break
            await asyncio.sleep(_EVERY_S)
        if listener.statistics.connections == 0:
            why = listener.statistics.last_failure or "no answer"
            raise CannotRun(f"no broker at {broker} within {deadline_s:g} s: {why}")
    finally:
        await listener.close()
    view.give_up(view.wanted_profiles() & missing.gone, clock())
    odd = dict.fromkeys(refused, NOT_ALLOWED)
    if now_s >= until_s:
        odd["deadline"] = f"not all that the broker keeps was heard within {deadline_s:g} s"
    return odd
