"""``igniterd demo`` on a run that is over."""

import csv
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.demo import runner
from igniterd.demo.recording import REQUESTS
from igniterd.demo.scenario import Scenario, paper, two_gpus
from igniterd.errors import CannotRun
from igniterd.lab.load.load import LOG_FIELDS, RequestLog
from tests.demo.runs import log, recording


def kept(folder: Path, seen: RequestLog) -> Path:
    """A folder as a finished run leaves it."""
    folder.mkdir()
    recording().save(folder)
    with (folder / REQUESTS).open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(LOG_FIELDS)
        for i in range(len(seen)):
            latency, ok = f"{seen.latency_ms[i]:.3f}", int(seen.ok[i])
            rows.writerow(
                (
                    seen.model[i],
                    seen.phase[i],
                    seen.scheduled_s[i],
                    seen.sent_s[i],
                    latency,
                    ok,
                    seen.error[i],
                )
            )
    return folder


def test_a_good_run_is_drawn_again(tmp_path: Path) -> None:
    folder, picture = kept(tmp_path / "run", log()), tmp_path / "demo.svg"
    result = CliRunner().invoke(
        app, ["demo", "--redraw", "--folder", str(folder), "--picture", str(picture)]
    )
    assert result.exit_code == 0, result.output
    assert "no request failed" in result.output
    assert (folder / "index.html").read_text().startswith("<!doctype html>")
    assert ET.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314  it is ours


def test_a_bad_run_ends_with_status_1_and_says_which(tmp_path: Path) -> None:
    folder = kept(tmp_path / "run", log(slow={"vgg19": 300.0}))
    result = CliRunner().invoke(app, ["demo", "--redraw", "--folder", str(folder)])
    assert result.exit_code == 1
    assert "P99 of vgg19 is 300.0 ms, above its SLO of 240 ms" in result.output


def test_nothing_to_draw(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--redraw", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "run `igniterd demo` first" in result.stderr


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "not empty" in result.stderr


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], paper()),
        (["--gpus", "1", "--frozen"], paper(frozen=True)),
        (["--gpus", "2", "--seed", "3"], two_gpus(seed=3)),
        (["--gpus", "2", "--frozen"], two_gpus(frozen=True)),
    ],
    ids=["one", "one, frozen", "two", "two, frozen"],
)
def test_what_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], wanted: Scenario
) -> None:
    played: list[Scenario] = []

    async def play(scenario: Scenario, *_: object, **__: object) -> None:
        played.append(scenario)
        raise CannotRun("not here")

    monkeypatch.setattr(runner, "play", play)
    result = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path / "run"), *given])
    assert result.exit_code == 1 and "not here" in result.stderr
    assert played == [wanted]


@pytest.mark.parametrize("count", ["0", "3"])
def test_a_number_of_gpus_that_is_not_played(tmp_path: Path, count: str) -> None:
    result = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path / "run"), "--gpus", count])
    assert result.exit_code == 2
    assert not (tmp_path / "run").exists()
