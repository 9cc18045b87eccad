"""What a plan comes to, as the document that is published: moves, and the steps in an order that is
safe. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from igniterd.colocation import LatencyPrediction
from igniterd.fleet.cluster import Cluster
from igniterd.fleet.sites import Site
from igniterd.fleet.steps import steps_of
from igniterd.fleet.working import PlannedMove

MOST_NAMED = 50
"""Hosts left out, and models whose SLO does not hold, that a message names."""


@dataclass(frozen=True, slots=True)
class Open:
    """A model whose SLO holds after no move that was found, and why."""

    host: str
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class Advice:
    """The outcome of one plan. ``troubled``: hosts on which an SLO does not hold now. ``touched``:
    by GPU, the sites of the moves as they are now, and as they are after all moves."""

    cluster: Cluster
    aim: str
    moves: tuple[PlannedMove, ...] = ()
    touched: Mapping[str, tuple[Site, Site]] = field(default_factory=dict)
    unsolved: tuple[Open, ...] = ()
    troubled: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    """Hosts that could not be looked at for a fault of ours, and what it was."""
    unfinished: bool = False
    """Whether there are GPUs in trouble that were not looked into: the same plan once more does."""

    def document(self, *, speaker: str, term: int, number: int, time_s: float) -> dict[str, Any]:
        """As ``messages.rebalance.Rebalance`` has it, with all moves."""
        failed = {host: f"could not be looked at: {why}" for host, why in self.failed.items()}
        left_out = sorted({**self.cluster.left_out, **failed}.items())
        used = len(self.cluster.hosts) - len(failed)
        hosts = {"known": used + len(left_out), "used": used}
        unsolved = [{"host": o.host, "model": o.model, "reason": o.why} for o in self.unsolved]
        return {
            "cluster": self.cluster.name,
            "speaker": speaker,
            "term": term,
            "number": number,
            "time_s": round(time_s, 3),
            "aim": self.aim,
            "feasible": not self.unsolved,
            "why": self._why(),
            "hosts": hosts | {"troubled": self.troubled},
            "moves": [self._move(n, move) for n, move in enumerate(self.moves, start=1)],
            "steps": steps_of(self.moves, self.touched),
            "freed": [
                {"host": self.touched[gpu][0].host, "gpu_uuid": gpu} for gpu in self._freed()
            ],
            "unsolved": unsolved[:MOST_NAMED],
            "left_out": [{"host": h, "reason": why} for h, why in left_out[:MOST_NAMED]],
            "more_left_out": max(0, len(left_out) - MOST_NAMED),
            "more_unsolved": max(0, len(unsolved) - MOST_NAMED),
            "rests_on": self._rests_on(),
        }

    def _why(self) -> str:
        count = len(self.moves)
        moves = f"{count} move{'' if count == 1 else 's'}"
        hosts = f"{self.troubled} host{'' if self.troubled == 1 else 's'}"
        if self.unsolved:
            left = len(self.unsolved)
            rest = f"for {left} model{'' if left == 1 else 's'} nothing was found"
            return f"{hosts} in trouble: {moves}; {rest}"
        if self.troubled:
            return f"{hosts} in trouble: after {moves} every SLO that was judged holds"
        if count:
            return f"every SLO that was judged holds; after {moves} more GPUs are empty"
        return "every SLO that was judged holds"

    def _rests_on(self) -> list[dict[str, Any]]:
        names = dict.fromkeys(before.host for before, _ in self.touched.values())
        views = [self.cluster.hosts[name] for name in names]
        return [{"host": view.name, "run": view.run, "tick": view.tick} for view in views]

    def _freed(self) -> list[str]:
        """The GPUs that nobody is on after all moves."""
        homes = dict.fromkeys(move.home for move in self.moves)
        return [gpu for gpu in homes if self._empty(gpu)]

    def _empty(self, gpu: str) -> bool:
        after = self.touched[gpu][1]
        return not after.others and not any(gpu in seat.gpus for seat in after.seats)

    def _move(self, number: int, move: PlannedMove) -> dict[str, Any]:
        seat, spot = move.seat, move.spot
        source, target = self.touched[move.home], self.touched[spot.gpu]
        arrived = next(s for s in target[1].seats if s.key == seat.key)
        here, devices = arrived.here, seat.here.devices
        home = {"host": source[0].host, "gpu_uuid": move.home, "triton": seat.model.triton}
        return {
            "number": number,
            "kind": move.kind,
            "model": seat.model.name,
            "served_as": seat.served_as,
            "from": home | ({"device": devices[0]} if devices else {}),
            "to": {
                "host": target[0].host,
                "gpu_uuid": spot.gpu,
                "triton": spot.triton,
                "device": spot.device,
            },
            **({} if here.share is None else {"share": _round(here.share)}),
            "max_batch_size": here.max_batch_size,
            "max_queue_delay_us": here.max_queue_delay_us,
            "replicas": here.instances,
            "weight": _round(move.weight),
            "rate_per_s": _round(arrived.rate_per_s),
            "slo_p99_ms": seat.model.slo_p99_ms,
            "at_source": list(_fares(*source)),
            "at_target": list(_fares(*target)),
            "frees": self._frees(number, move, source[1]),
            "why": move.why,
        }

    def _frees(self, number: int, move: PlannedMove, after: Site) -> dict[str, Any]:
        seat = move.seat
        held = (seat.model.busy or 0.0) if seat.here.granted is None else seat.here.granted
        left = next((s.here.granted or 0.0 for s in after.seats if s.key == seat.key), 0.0)
        last = all(other.home != move.home for other in self.moves[number:])
        return {"share": _round(max(0.0, held - left)), "gpu": last and self._empty(move.home)}


def _fares(before: Site, after: Site) -> Iterator[dict[str, Any]]:
    """The models of one side of a move, and their P99 now and after all moves."""
    was, will = before.fares, after.fares
    for key, seat in {s.key: s for s in (*before.seats, *after.seats)}.items():
        yield {
            "model": seat.model.name,
            "slo_p99_ms": seat.model.slo_p99_ms,
            "before_p99_ms": _p99(was, key),
            "after_p99_ms": _p99(will, key),
        }


def _p99(served: Mapping[str, LatencyPrediction], key: str) -> float | None:
    found = served.get(key)
    return None if found is None or not math.isfinite(found.p99_ms) else _round(found.p99_ms)


def _round(value: float) -> float:
    return round(value, 4)
