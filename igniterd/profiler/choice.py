"""Which point of a model to measure next, and its settings in co-runs, as far as it is known."""

from __future__ import annotations

from collections.abc import Callable

from igniterd.profiler.board import now_s
from igniterd.profiler.measure import Effort
from igniterd.profiler.model import Model
from igniterd.profiler.pairs import SLOW_RELOAD_S, operating_points
from igniterd.profiler.partial import Partial
from igniterd.profiler.points import CHEAP_S, FAR, Point, Unknown
from igniterd.profiler.server import Server

LEAST = 3
"""A profile has so many points of every model."""
_TYPICAL_CV = 0.03  # dispersion of single executions before any were seen


class Choice:
    """What to measure of the models of ``partial``."""

    def __init__(self, partial: Partial, effort: Effort, server: Server) -> None:
        self._partial, self._effort, self._server = partial, effort, server
        self._known = dict[str, Unknown]()

    def next(self, model: Model, until_s: float, deadline_s: float) -> Point | None:
        """The point to measure now, or ``None``: accurate enough, enough points, or out of time,
        which is ``deadline_s`` for the fewest points of a profile and ``until_s`` for others."""
        measured = self._partial.models[model.name].measured()
        ends = [c for c in model.span.corners[:-1] if c not in measured]
        if ends:
            return ends[0] if now_s() < self._until(model, until_s, deadline_s) else None
        left = max(0, self._partial.settings.points - len(measured))
        unknown, price = self.unknown(model), self._price(model)
        missing = self._slowest(model, until_s, left) or self._own(model, left)
        if missing is not None:
            return missing if now_s() < self._until(model, until_s, deadline_s) else None
        accurate = unknown.deviation <= self._partial.settings.accuracy
        if (left == 0 or accurate) and len(measured) >= LEAST:
            return None
        best = unknown.best(price)
        if best is None or len(measured) < LEAST:
            return best
        return best if now_s() + price(best, unknown.time_ms(best))[0] <= until_s else None

    def settings(self, model: Model) -> tuple[Point, Point]:
        """(batch, share) of the model in its two settings beside others."""
        board = self._partial.board
        if board is None:
            raise ValueError("settings of co-runs need a board: measure it first")
        return operating_points(
            model.span.max_batch,
            board.share_unit,
            even=bool(self._partial.even),
            surface=self.unknown(model).surface,
        )

    def unknown(self, model: Model) -> Unknown:
        """What is left unknown of a model of which something was measured."""
        measured = self._partial.models[model.name].measured()
        known = self._known.get(model.name)
        if known is None or not known.of(model.span, measured):
            known = self._known[model.name] = Unknown(model.span, measured)
        return known

    def _until(self, model: Model, until_s: float, deadline_s: float) -> float:
        return until_s if len(self._partial.models[model.name].solo) >= LEAST else deadline_s

    def _slowest(self, model: Model, until_s: float, left: int) -> Point | None:
        """The end of the range that takes longest, with a smaller batch where there is not that
        much time."""
        if left == 0:
            return None
        left_s = until_s - now_s()
        each_s = CHEAP_S if left_s == float("inf") else left_s / left
        return self.unknown(model).slowest(self._price(model), min(left_s, FAR * each_s))

    def _own(self, model: Model, left: int) -> Point | None:
        """The model's next setting in co-runs that has not been measured alone."""
        settings, server = self._partial.settings, self._server
        others = [m for m in settings.models if m != model.name and server.steerable(m)]
        if left == 0 or not (settings.pairs and others and server.steerable(model.name)):
            return None
        if self._partial.even is None:
            self._partial.even = server.reload_s > SLOW_RELOAD_S
        measured = self._partial.models[model.name].measured()
        return next((p for p in self.settings(model) if p not in measured), None)

    def _price(self, model: Model) -> Callable[[Point, float], tuple[float, float]]:
        """What measuring a point takes (s), and to what relative error."""
        solo = self._partial.models[model.name].solo
        cvs = [p.latency_cv for p in solo if p.latency_cv is not None]
        cv = sum(cvs) / len(cvs) if cvs else _TYPICAL_CV
        present, reload_s = self._server.share(model.name), self._server.reload_s

        def price(point: Point, ms: float) -> tuple[float, float]:
            cost_s, error = self._effort.expected(ms, cv)
            return cost_s + (0.0 if point[1] == present else reload_s), error

        return price
