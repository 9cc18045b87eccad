"""The lanes of several GPUs: who has what where, and who changes lanes."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.demo.lanes import Lane, crossings
from igniterd.demo.layout import Span, spans
from igniterd.demo.markup import Scale, el
from igniterd.demo.recording import Applied, Recording
from tests.demo.runs import NEW, OLD, STAYS, on_two, recording

X, Y = Scale(1000.0, 1030.0, 0.0, 600.0), Scale(0.0, 1.0, 100.0, 0.0)


def lane(run: Recording, gpu: int | None) -> Lane:
    return Lane(gpu, {m: spans(run, m) for m in run.models}, X, Y)


def told(run: Recording, gpu: int | None) -> list[str]:
    drawn = ET.fromstring(el("svg", *lane(run, gpu).drawn()))  # noqa: S314  it is ours
    return ["".join(text.itertext()) for text in drawn.iter("text")]


def test_each_gpu_has_its_models_above_each_other() -> None:
    first, second = lane(on_two(), 0), lane(on_two(), 1)
    assert [(b.model, b.begin_s, b.end_s, b.low, b.high, b.applied) for b in first.blocks] == [
        ("alexnet", 1016.0, 1030.0, 0.0, 0.375, STAYS),
        ("vgg19", 1016.0, 1025.0, 0.375, 0.875, OLD),
    ]
    assert [(b.model, b.begin_s, b.end_s, b.low, b.high, b.applied) for b in second.blocks] == [
        ("vgg19", 1025.0, 1030.0, 0.0, 0.75, NEW)
    ]


def test_who_has_no_share_and_where_no_model_is_is_said() -> None:
    assert told(on_two(), 0) == ["alexnet 37.5%", "vgg19 50.0%", "alexnet, vgg19: no shares"]
    assert told(on_two(), 1) == ["vgg19 75.0%", "no model"]


def test_the_only_gpu_of_a_server_that_knows_of_none() -> None:
    assert told(recording(), None) == [
        "alexnet 25.0%",
        "no shares: the models take turns",
        "vgg19: in turns",
    ]


def test_an_arrow_goes_from_what_a_model_had_to_what_it_has() -> None:
    run = on_two()
    every = {m: spans(run, m) for m in run.models}
    lanes = [Lane(gpu, every, X, Scale(0, 1, 100.0 + 200 * gpu, 200.0 * gpu)) for gpu in (0, 1)]
    (arrow,) = [ET.fromstring(text) for text in crossings(lanes, every)]  # noqa: S314  it is ours
    assert arrow.findtext("text") == "vgg19 to GPU 1"
    start = arrow.find("circle")
    assert start is not None
    assert float(start.get("cy") or "nan") == 100 - (0.375 + 0.875) / 2 * 100
    path = arrow.find("path")
    assert path is not None
    assert (path.get("d") or "").endswith(f",{300 - 0.75 / 2 * 100:.1f}")
    assert list(crossings([lane(recording(), None)], {})) == []


allocations = st.builds(
    Applied,
    share=st.none() | st.sampled_from([0.1, 0.25, 0.5]),
    max_batch_size=st.just(8),
    gpu=st.integers(0, 1),
)


@given(st.lists(st.lists(allocations, min_size=1, max_size=5), min_size=1, max_size=4))
def test_every_share_is_drawn_once_and_none_above_another(given: list[list[Applied]]) -> None:
    every = {}
    for number, changes in enumerate(given):
        times = [1000.0 + 30.0 * n / len(changes) for n in range(len(changes))] + [1030.0]
        every[f"m{number}"] = [
            Span(a, b, applied) for (a, b), applied in zip(pairwise(times), changes, strict=True)
        ]
    lanes = [Lane(gpu, every, X, Y) for gpu in (0, 1)]
    for model, parts in every.items():
        wanted = sum((s.end_s - s.begin_s) * (s.applied.share or 0) for s in parts)
        drawn = [b for one in lanes for b in one.blocks if b.model == model]
        assert sum((b.end_s - b.begin_s) * (b.high - b.low) for b in drawn) == pytest.approx(wanted)
    for one in lanes:
        for a in one.blocks:
            for b in one.blocks:
                if a is not b and a.begin_s < b.end_s and b.begin_s < a.end_s:
                    assert a.high <= b.low + 1e-9 or b.high <= a.low + 1e-9
