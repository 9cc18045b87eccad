"""Elements and scales."""

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from igniterd.demo.markup import Scale, el, nice_ticks


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    made = el("p", "<b>", Markup("<i></i>"), class_="a", stroke_width=1.5, title='"x"', gone=None)
    assert made == '<p class="a" stroke-width="1.5" title="&#34;x&#34;">&lt;b&gt;<i></i></p>'


@given(st.floats(0.01, 1e6), st.integers(2, 10))
def test_ticks_are_round_and_inside(high: float, count: int) -> None:
    ticks = nice_ticks(high, count)
    assert ticks[0] == 0 and ticks[-1] <= high * (1 + 1e-6)
    assert len(ticks) <= 1.2 * count + 2


@given(st.floats(-1e6, 1e6))
def test_a_scale_stays_inside_the_drawing(value: float) -> None:
    scale = Scale(0.0, 10.0, 200.0, 100.0)
    assert 100.0 <= scale(value) <= 200.0
    assert (scale(0.0), scale(5.0), scale(10.0)) == (200.0, 150.0, 100.0)
