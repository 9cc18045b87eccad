"""Readings made of what Triton says."""

from __future__ import annotations

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from igniterd.clients.triton.metrics import ModelMetrics
from igniterd.clients.triton.reading import by_model, known_of, reading


@pytest.mark.parametrize(
    ("counts", "former"),
    [
        # (answered by all copies as the page counts, by this one as the statistics do)
        ([(100, 0), (108, 2), (115, 5)], [100, 106, 110]),
        # the page is read a little before the statistics, or after them: neither takes back
        ([(108, 2), (109, 6), (112, 6)], [106, 106, 106]),
        # before the first answer of the one there ever was
        ([(0, 1), (5, 5)], [0, 0]),
        # another server counts anew
        ([(108, 2), (3, 3), (40, 4)], [106, 0, 36]),
        # nobody looks
        ([(108, 2), (None, 3), (120, 4)], [106, None, 116]),
    ],
)
def test_what_former_copies_have_answered(
    counts: list[tuple[int | None, int]], former: list[int | None]
) -> None:
    known = known_of(model_config_pb2.ModelConfig(name="m", backend="python"), 0.0)
    found = []
    for answered, own in counts:
        statistics = service_pb2.ModelStatistics(name="m", version="1")
        statistics.inference_stats.success.count = own // 2
        statistics.inference_stats.fail.count = own - own // 2
        metrics = {("m", "1"): ModelMetrics(answered=answered)}
        served = by_model([statistics])["m"]
        found.append(reading("main", served, known, metrics).former_count)
    assert found == former
