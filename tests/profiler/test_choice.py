"""Which point of a model is next: what there is time for, and what is known already is not reckoned
again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from igniterd.perf.profile import Board, SoloPoint
from igniterd.profiler.board import now_s
from igniterd.profiler.choice import Choice
from igniterd.profiler.drive import Source
from igniterd.profiler.measure import Effort
from igniterd.profiler.model import Model
from igniterd.profiler.partial import Done, Partial, Settings
from igniterd.profiler.points import Point, Span
from igniterd.profiler.server import Server
from tests.profiler.fake import FakeTriton, config_of, plain_ms

pytestmark = pytest.mark.looptime
FOREVER = float("inf")


@dataclass
class Known:
    """Models ``a`` and ``b``, of which ``a`` is measured."""

    partial: Partial
    choice: Choice
    model: Model

    def measure(self, point: Point, factor: float = 1.0) -> None:
        ms = factor * plain_ms("a", *point, 0)
        solo = SoloPoint(batch=point[0], share=point[1], latency_ms=ms, latency_error=0.004)
        self.partial.models["a"].solo.append(solo)


@pytest.fixture
def known(tmp_path: Path) -> Known:
    settings = Settings(models=["a", "b"], triton="fake", shares=tmp_path / "shares")
    board = Board(name="Fake", sm_count=80, share_unit=0.025, pcie_bytes_per_ms=12e6)
    partial = Partial(settings=settings, board=board, models={"a": Done()})
    configs = {name: config_of(name) for name in ("a", "b")}
    server = Server(FakeTriton(configs.values()), configs, settings.shares)
    model = Model("a", Span(32, 0.1, 0.025), cast(Source, None))
    return Known(partial, Choice(partial, Effort(), server), model)


async def test_the_ends_then_the_slowest_then_the_settings_beside_others(known: Known) -> None:
    order = []
    for _ in range(7):
        point = known.choice.next(known.model, FOREVER, FOREVER)
        assert point is not None
        known.measure(point)
        order.append(point)
    assert order[:4] == [(1, 1.0), (32, 1.0), (1, 0.1), (32, 0.1)]
    assert order[4:6] == [(16, 0.4), (2, 0.6)]
    assert order[6] not in order[:6]


@pytest.mark.parametrize(("left_s", "expected"), [(200.0, (32, 0.1)), (20.0, (16, 0.1))])
async def test_the_slowest_end_is_what_three_times_the_time_for_a_point_allows(
    known: Known, left_s: float, expected: Point
) -> None:
    for corner in known.model.span.corners[:3]:
        known.measure(corner)
    assert known.choice.next(known.model, now_s() + left_s, FOREVER) == expected


async def test_out_of_time_nothing_is_next_but_the_fewest_points_of_a_profile(known: Known) -> None:
    for corner in known.model.span.corners[:3]:
        assert known.choice.next(known.model, now_s(), FOREVER) == corner
        known.measure(corner)
    assert known.choice.next(known.model, now_s(), FOREVER) is None


async def test_what_is_unknown_is_reckoned_once_for_what_was_measured(known: Known) -> None:
    for corner in known.model.span.corners[:3]:
        known.measure(corner)
    first = known.choice.unknown(known.model)
    assert known.choice.unknown(known.model) is first
    known.measure((32, 0.1))
    assert known.choice.unknown(known.model) is not first
