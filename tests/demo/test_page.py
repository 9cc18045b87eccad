"""The page: one file that loads nothing, with everything escaped."""

import re
from html.parser import HTMLParser

from igniterd.demo.measure import figures, problems
from igniterd.demo.page import Page
from igniterd.demo.recording import Recording
from igniterd.lab.load.load import RequestLog
from tests.demo.runs import log, on_two, recording

VOID = {"meta"}


class Reader(HTMLParser):
    """Checks that tags close in order; keeps the words and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page(seen: RequestLog, run: Recording) -> str:
    results = figures(seen, run)
    return Page(run, seen, results, problems(seen, run, results)).html()


def test_it_says_what_was_found() -> None:
    text = Reader(page(log(), recording())).text
    assert "Every P99 stayed within its SLO after settling, and no request failed." in text
    assert "0 of 900" in text
    assert "igniterd decided:  because <b>." in text
    assert "at <20>/s" in text
    assert "offer: 25.0% of V100 could be given away" in text
    assert text.count("offer:") == 1  # said again, it is not told again
    assert "shed: vgg19: does not fit" in text
    assert "overload: a queue that only grows" in text


def test_it_says_what_is_wrong() -> None:
    text = Reader(page(log(slow={"vgg19": 300.0}, failed_at_s=(1005.0,)), recording())).text
    assert "Not as it should be" in text
    assert "P99 of vgg19 is 300.0 ms" in text
    assert "2 of 900 requests failed" in text
    assert "Every P99 stayed" not in text


def test_it_loads_nothing() -> None:
    html = page(log(), recording())
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|\bsrc=|\bhref=", html)
    assert set(re.findall(r"url\(([^)]*)\)", html)) == {"#tl-hatch"}


def test_a_frozen_phase_that_was_played_needs_no_forecast() -> None:
    run = recording()
    played = run.model_copy(
        update={"phases": [run.phases[0], run.phases[1].model_copy(update={"key": "frozen"})]}
    )
    assert "Had the plan stood still" in page(log(), run)
    assert "Had the plan stood still" not in page(log(), played)


def test_two_gpus_are_told_of_by_their_numbers() -> None:
    html = page(log(), on_two())
    text = Reader(html).text
    assert "two models and their SLOs on two shared GPUs" in text
    assert "on two emulated V100s" in text
    assert "0 is GPU-aaaa, 1 is GPU-bbbb." in text
    assert text.count("vgg19 to GPU 1 relieves GPU 0.") == 1  # each of its steps said it
    assert "is being reloaded" not in text
    assert "vgg19 moved under traffic, in 2.5 s" in text
    assert "<b>GPU 0 → GPU 1</b>: 50.0%, batch 8 → 75.0%, batch 6" in html
    assert "GPU 1: 75.0%, batch 6" in text  # at the end
    assert [text.count(f"offer: 25.0% of GPU {n} could") for n in (0, 1)] == [1, 1]
    assert "igniterd demo --gpus 2 --keep" in text


def test_one_gpu_is_not_counted() -> None:
    text = Reader(page(log(), recording())).text
    assert "two models and their SLOs on one shared GPU" in text
    assert "on an emulated V100" in text
    assert "--gpus" not in text
