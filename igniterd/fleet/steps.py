"""The steps of moves, in an order in which it is safe to stop after any of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from igniterd.fleet.sites import Seat, Site
from igniterd.fleet.working import PlannedMove
from igniterd.records import Allocation

Touched = Mapping[str, tuple[Site, Site]]


def steps_of(moves: Sequence[PlannedMove], touched: Touched) -> list[dict[str, Any]]:
    """As ``messages.rebalance.Step`` has them.

    At the target those that stay shrink first, then those grow that need to, which then fits; the
    model is loaded; its traffic goes there; it is unloaded at the source. What is allocated is what
    holds after all moves, so that nobody is changed twice. At the source the others are left to
    its daemon, or, where that only looks on, brought to what then fits once the last has gone.
    """
    steps: list[dict[str, Any]] = []
    settled: set[str] = set()
    last = {touched[move.home][0].name: number for number, move in enumerate(moves, start=1)}
    for number, move in enumerate(moves, start=1):
        before, after = touched[move.spot.gpu]
        if before.name not in settled:
            settled.add(before.name)
            steps += _settling(number, before, after)
        arrived = next(seat for seat in after.seats if seat.key == move.seat.key)
        there = _step(number, before.host, move.spot.triton, move.spot.gpu, move.seat)
        steps.append({**there, "action": "load", "allocation": _applied(arrived.here)})
        steps.append({**there, "action": "route"})
        source = touched[move.home]
        if move.kind == "move":
            home = _step(number, source[0].host, move.seat.model.triton, move.home, move.seat)
            steps.append({**home, "action": "unload", "before": _applied(move.seat.here)})
        name = source[0].name
        if last[name] == number and not source[0].acts and name not in settled:
            settled.add(name)
            steps += _settling(number, *source)
    return [{"number": at, **step} for at, step in enumerate(steps, start=1)]


def _settling(number: int, before: Site, after: Site) -> list[dict[str, Any]]:
    """Those that stay are brought to what they have after all moves: who shrinks makes room, also
    for the share of one that had none."""
    changes = _changes(before, after)
    less = sorted((c for c in changes if _shrinks(*c)), key=lambda c: c[0].here.share is None)
    return [
        *(_change(number, "shrink", before, *c) for c in less),
        *(_change(number, "grow", before, *c) for c in changes if not _shrinks(*c)),
    ]


def _changes(before: Site, after: Site) -> list[tuple[Seat, Allocation]]:
    """Who stays on a site and is given something else there."""
    will = {seat.key: seat.here for seat in after.seats}
    return [
        (seat, will[seat.key])
        for seat in before.seats
        if seat.key in will and will[seat.key] != seat.here
    ]


def _shrinks(seat: Seat, after: Allocation) -> bool:
    """Whether it is granted less than before. Who had no share and gets one is confined by it."""
    if after.share is None:
        return False
    return seat.here.share is None or (after.granted or 0.0) < (seat.here.granted or 0.0)


def _change(number: int, action: str, site: Site, seat: Seat, after: Allocation) -> dict[str, Any]:
    step = _step(number, site.host, seat.model.triton, seat.gpus[0], seat)
    return {
        **step,
        "action": action,
        "allocation": _applied(after),
        "before": _applied(seat.here),
    }


def _step(number: int, host: str, triton: str, gpu: str, seat: Seat) -> dict[str, Any]:
    return {
        "move": number,
        "host": host,
        "triton": triton,
        "gpu_uuid": gpu,
        "model": seat.served_as,
    }


def _applied(allocation: Allocation) -> dict[str, Any]:
    figures = allocation.figures()
    if allocation.share is None:
        del figures["share"]
    else:
        figures["share"] = round(allocation.share, 4)
    return figures
