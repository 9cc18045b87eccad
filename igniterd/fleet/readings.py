"""What a desk shows of itself: to Prometheus, to programs, to systemd."""

from __future__ import annotations

from typing import Any

from igniterd.clients.fleet_metrics import ClusterReading
from igniterd.fleet.desk import Desk
from igniterd.fleet.thinking import DURATIONS_S


def reading(desk: Desk) -> ClusterReading:
    """The desk for the page of metrics."""
    link, thoughts, said = desk.listener.statistics, desk.thinking.statistics, desk.said
    speaks = desk.speaks
    about = said if speaks else None
    unsolved = None if about is None else len(about["unsolved"]) + about.get("more_unsolved", 0)
    seen = desk.seen
    left_out, offline = len(seen.left_out), len(seen.offline)
    return ClusterReading(
        cluster=desk.cluster,
        hosts={"used": len(seen.hosts), "left_out": left_out - offline, "offline": offline},
        messages=dict(desk.view.counts),
        received_bytes=link.bytes,
        plans=dict(thoughts.outcomes),
        durations=dict(thoughts.durations),
        buckets=DURATIONS_S,
        duration_s=thoughts.total_s,
        moves=None if about is None else len(about["moves"]) + about.get("more_moves", 0),
        unsolved=unsolved,
        feasible=None if unsolved is None else unsolved == 0,
        speaks=speaks,
        term=desk.speakership.term,
        connected=link.connected,
        connection_failures=link.failures,
        published=dict(link.published),
        refused=dict(link.refused),
        answered_s=desk.statistics.answered_s,
        profiles=len(desk.view.profiles()),
        troubles=len(desk.troubles()),
    )


def shown(desk: Desk) -> dict[str, Any]:
    """The desk for ``/state``."""
    return {
        "connected": desk.listener.statistics.connected,
        "speaks": desk.speaks,
        "speaker": desk.speakership.holder,
        "hosts": {
            name: {"run": host.run, "tick": host.tick} for name, host in desk.seen.hosts.items()
        },
        "left_out": dict(desk.seen.left_out),
        "troubles": desk.troubles(),
        "rebalance": desk.said if desk.speaks else None,
    }


def sentence(desk: Desk) -> str:
    """The desk in a few words."""
    if not desk.listener.statistics.connected:
        return f"{desk.cluster}: no broker"
    known = f"{desk.cluster}: {len(desk.seen.hosts)} hosts"
    if desk.seen.left_out:
        known += f" and {len(desk.seen.left_out)} left out"
    if not desk.speaks:
        return f"{known}, {desk.speakership.holder or 'nobody'} speaks"
    if desk.said is None:
        return f"{known}, speaks, nothing advised yet"
    moves = len(desk.said["moves"]) + desk.said.get("more_moves", 0)
    return f"{known}, speaks, {moves} moves advised"
