"""``igniterd`` as a process: what becomes of standard output, of a user without a home, and of
names nobody expects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from igniterd import __version__
from igniterd import kernel_cache as kernels
from igniterd.cli.app import VERBS, app
from igniterd.cli.common import shown
from igniterd.errors import CannotRun

CASE = '[{"tenants": [{"model": "alexnet", "batch": 3, "share": 0.2}]}]'


def igniterd(
    *arguments: str, given: str = "", **kwargs: object
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "igniterd", *arguments]
    return subprocess.run(
        command, input=given, text=True, timeout=120, check=False, stderr=subprocess.PIPE, **kwargs
    )  # type: ignore[call-overload,no-any-return]


def test_the_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"igniterd {__version__}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_each_option_is_for(verb: str) -> None:
    done = CliRunner().invoke(app, [verb, "--help"], terminal_width=200)
    assert done.exit_code == 0
    options = [line for line in done.stdout.splitlines() if line.lstrip().startswith("-")]
    assert options
    assert all(len(line.split(None, 1)[-1]) > 20 for line in options if "--help" not in line), (
        done.stdout
    )


def test_a_reader_that_has_seen_enough_gets_no_complaint() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = igniterd("--version", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_cannot_be_written_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = igniterd("--version", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "igniterd: standard output: No space left on device\n"


def test_where_no_compiled_kernel_can_be_kept_it_works_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for a user without a home, with a package that root installed."""
    at_the_end: list[Any] = []
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    monkeypatch.setattr(kernels, "_beside", lambda: Path("/proc/package/__pycache__"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/home")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("atexit.register", lambda *what, **how: at_the_end.append((what, how)))
    kernels.ensure_cache()
    made = Path(os.environ["NUMBA_CACHE_DIR"])
    assert made.parent.parent == tmp_path and made.is_dir()
    kernels.ensure_cache()  # as a child does
    assert os.environ["NUMBA_CACHE_DIR"] == str(made)
    assert "set NUMBA_CACHE_DIR" in capsys.readouterr().err
    ((remove, *arguments), how) = at_the_end[0]
    remove(*arguments, **how)
    assert not made.parent.exists()  # nothing is left behind


def test_where_nothing_at_all_can_be_written_it_says_what_would_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "_writable", lambda folder: False)
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    with pytest.raises(CannotRun, match="set NUMBA_CACHE_DIR to a folder that this user can write"):
        kernels.ensure_cache()


def test_names_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.table import Table

    monkeypatch.setenv("COLUMNS", "20")
    name = "[/] [red] :bug: " + "a name that is longer than the terminal is wide"
    table = Table("name", "figure", box=None)
    table.add_row(name, "1")
    shown(table, name)
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert name in first and first.split()[-1] == "1"
    assert second == name


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("predict", ["--level", "nan"]),
        ("plan", ["--level", "nan"]),
        ("plan", ["--burstiness", "inf"]),
        ("profile", ["--budget", "inf"]),
        ("profile", ["--accuracy", "nan"]),
    ],
)
def test_a_figure_that_is_none_is_wrong_usage(
    tmp_path: Path, verb: str, options: list[str]
) -> None:
    path = tmp_path / "cases.json"
    path.write_text(CASE)
    done = CliRunner().invoke(app, [verb, str(path), *options])
    assert done.exit_code == 2
    assert f"Invalid value for '{options[0]}'" in done.output


def test_json_of_any_depth_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    for arguments in (
        ["predict", str(path)],
        ["simulate", str(path)],
        ["profile", "--show", str(path)],
    ):
        done = CliRunner().invoke(app, arguments)
        assert (done.exit_code, done.stdout) == (1, "")
        assert str(path) in done.stderr


def test_a_plan_with_figures_that_are_none_is_refused(tmp_path: Path) -> None:
    tenant = {
        "workload": "W",
        "model": "alexnet",
        "slo_p99_ms": -1,
        "rate_per_s": 10**400,
        "share": 0.3,
        "max_batch_size": 0.5,
    }
    path = tmp_path / "plan.json"
    path.write_text(
        json.dumps({"gpus": [{"gpu": "v100", "tenants": [tenant | {"max_queue_delay_us": -5}]}]})
    )
    done = CliRunner().invoke(app, ["simulate", str(path)])
    assert done.exit_code == 1
    for field in ("slo_p99_ms", "rate_per_s", "max_batch_size", "max_queue_delay_us"):
        assert f"gpus[0].tenants[0].{field} is" in done.stderr


def test_more_requests_than_memory_holds_are_refused(tmp_path: Path) -> None:
    tenant = {
        "workload": "W",
        "model": "alexnet",
        "rate_per_s": 100.0,
        "share": 0.3,
        "max_batch_size": 4,
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"gpus": [{"gpu": "v100", "tenants": [tenant]}]}))
    done = CliRunner().invoke(app, ["simulate", str(path), "--duration", "1e9"])
    assert done.exit_code == 1
    assert "too many to keep; at most 1e+06 s" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["plan", "none.csv", "--plot"], "--plot"),
        (["profile", "--show", "none.json", "--plot"], "--plot"),
        (["demo", "--folder", "never", "--picture"], "--picture"),
    ],
)
@pytest.mark.parametrize(
    ("name", "said"),
    [("picture.txt", "should end in"), ("no/such/folder/x.svg", "there is no folder")],
)
def test_where_a_picture_goes_is_asked_first(
    tmp_path: Path, arguments: list[str], option: str, name: str, said: str
) -> None:
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / name)])
    assert done.exit_code == 1
    assert f"{option} {tmp_path / name}: " in done.stderr
    assert said in done.stderr
