"""The picture: well-formed, whole, and of this run."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.demo.layout import apart, spans
from igniterd.demo.measure import figures
from igniterd.demo.recording import Applied, Recording
from igniterd.demo.timeline import Timeline
from tests.demo.runs import BARE, GIVEN, log, on_two, recording

SVG = "{http://www.w3.org/2000/svg}"


def drawn(run: Recording) -> ET.Element:
    seen = log()
    return ET.fromstring(Timeline(run, seen, figures(seen, run)).svg())  # noqa: S314  it is ours


def texts(svg: ET.Element) -> list[str]:
    return ["".join(t.itertext()) for t in svg.iter(f"{SVG}text")]


def test_it_names_phases_models_slos_and_shares() -> None:
    said = texts(drawn(recording()))
    for wanted in (
        "phase bare",
        "igniterd acts",
        "no igniterd",
        "alexnet",
        "SLO 60 ms",
        "SLO 240 ms",
        "P99 20 ms",
        "100%",
    ):
        assert wanted in said
    assert any(text.startswith("alexnet 25.0%") for text in said)


def test_every_change_has_a_flag_that_says_why() -> None:
    flags = [g for g in drawn(recording()).iter(f"{SVG}g") if g.get("class") == "flag"]
    assert len(flags) == 1
    tip = flags[0].findtext(f"{SVG}title")
    assert tip is not None
    assert tip.startswith("1. 16 s: alexnet: no share, batch 8 -> 25.0%, batch 4, waits 1.5 ms")
    assert "at <20>/s" in tip


@pytest.mark.parametrize("run", [recording(), on_two()], ids=["one GPU", "two"])
def test_nothing_lies_outside_the_picture(run: Recording) -> None:
    svg = drawn(run)
    _, _, width, height = map(float, (svg.get("viewBox") or "").split())
    for box in svg.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.get(key) or "nan") for key in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width + 0.1 and 0 <= y <= y + h <= height + 0.1


def test_every_gpu_has_a_lane_and_a_move_between_them_an_arrow() -> None:
    svg = drawn(on_two())
    said = texts(svg)
    assert "GPU 0: shares (MPS)" in said and "GPU 1: shares (MPS)" in said
    assert "vgg19 to GPU 1" in said
    assert len([g for g in svg.iter(f"{SVG}g") if g.get("class") == "crossing"]) == 1
    tips = [
        g.findtext(f"{SVG}title") or "" for g in svg.iter(f"{SVG}g") if g.get("class") == "flag"
    ]
    assert tips[1].startswith("2. 25 s: vgg19: GPU 0 -> GPU 1, 50.0%, batch 8 -> 75.0%, batch 6")
    assert tips[1].endswith("vgg19 to GPU 1 relieves GPU 0")


def test_a_run_without_samples_or_moves_is_drawn_too() -> None:
    svg = drawn(recording(samples=[], moves=[]))
    assert "no shares: the models take turns" in texts(svg)


def test_spans_follow_what_was_read_back() -> None:
    found = spans(recording(), "alexnet")
    assert [(s.begin_s, s.end_s, s.applied) for s in found] == [
        (1000.0, 1016.0, BARE),
        (1016.0, 1030.0, GIVEN),
    ]
    assert [s.applied for s in spans(recording(), "vgg19")] == [BARE]


@given(st.lists(st.floats(100.0, 1000.0), max_size=20).map(sorted))
def test_flags_stand_apart_and_in_order(wanted: list[float]) -> None:
    places = apart(wanted, 19.0, 100.0, 1000.0)
    assert len(places) == len(wanted)
    assert all(b - a >= 19.0 - 1e-9 for a, b in pairwise(places))
    assert all(100.0 - 1e-9 <= x <= 1000.0 for x in places)


@pytest.mark.parametrize(
    ("applied", "said"),
    [
        (Applied(share=0.125, max_batch_size=32), "12.5%, batch 32"),
        (Applied(share=None, max_batch_size=8), "no share, batch 8"),
    ],
)
def test_an_allocation_in_words(applied: Applied, said: str) -> None:
    assert str(applied) == said
