"""``igniterd fleet apply`` where there is nothing to reach: what it says, and its exit status."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.fleet.alone import alone
from igniterd.fleet.journal import Journal
from igniterd.messages.rebalance import Rebalance
from tests.fleet.world import CLUSTER, rebalance

TRITONS = "".join(
    f'[[triton]]\nhost = "{host}"\nurl = "127.0.0.1:9"\n' for host in ("gpu-a", "gpu-b")
)


def invoke(
    folder: Path, *words: str, config: str = TRITONS, given: Rebalance | None = None
) -> tuple[int, str]:
    found = given or rebalance(time_s=time.time())
    (folder / "fleet.toml").write_text(config)
    (folder / "rebalance.json").write_text(found.model_dump_json(by_alias=True))
    done = CliRunner().invoke(
        app, ["fleet", "apply", "--config", str(folder / "fleet.toml"), *words]
    )
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--file", "a", "--undo", "b"), "give one of --file, --continue and --undo"),
        (("--routed", "3"), "goes with --continue or --undo"),
        (("--max-age", "inf"), "finite number"),
        ((), "the configuration has no [broker]"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    status, output = invoke(tmp_path, *words)
    assert status == 2
    assert said in " ".join(output.replace("│", " ").split())


def test_addresses_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    file = str(tmp_path / "rebalance.json")
    status, output = invoke(tmp_path, "--file", file, config="")
    assert status == 1
    for host in ("gpu-a", "gpu-b"):
        assert f'[[triton]] host = "{host}" name = "main"' in output


def test_hosts_that_do_not_answer_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    words = ("--file", str(tmp_path / "rebalance.json"), "--yes", "--journal", str(journal))
    status, output = invoke(tmp_path, *words)
    assert status == 1
    assert "Triton 'gpu-a/main' at 127.0.0.1:9" in output
    assert "Triton 'gpu-b/main' at 127.0.0.1:9" in output
    assert not journal.exists()


def test_an_old_rebalance_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    words = ("--file", str(tmp_path / "rebalance.json"), "--yes")
    status, output = invoke(tmp_path, *words, given=rebalance())
    assert status == 1
    assert "ask for a new one, or give --max-age" in output
    assert "127.0.0.1" not in output


def test_a_second_one_for_the_same_cluster_is_refused(tmp_path: Path) -> None:
    with alone(CLUSTER):
        status, output = invoke(tmp_path, "--file", str(tmp_path / "rebalance.json"), "--yes")
    assert status == 1
    assert f"another igniterd fleet apply for cluster {CLUSTER} is at work" in output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ('{"specversion": "1.0"}', "is missing"),
        ("{}", "cluster is missing"),
        (" " * (2**20 + 1), "has more than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_rebalance_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    status, output = invoke(tmp_path, "--file", str(file))
    assert status == 1
    assert said in output


@pytest.mark.parametrize("way", ["--file", "--continue", "--undo"])
def test_one_of_another_cluster_is_refused(tmp_path: Path, way: str) -> None:
    """Its hosts may have the names of hosts here."""
    found = rebalance(time_s=time.time())
    path = tmp_path / ("rebalance.json" if way == "--file" else "journal")
    if way != "--file":
        Journal.start(path, found)
    here = TRITONS + '[fleet]\nclusters = ["hall", "lab"]\n'
    status, output = invoke(tmp_path, way, str(path), config=here)
    assert status == 1
    assert f"the rebalance is of cluster '{CLUSTER}', and not of hall or lab" in output
    status, output = invoke(tmp_path, way, str(path), "--cluster", "hall", config=TRITONS)
    assert status == 1
    assert f"the rebalance is of cluster '{CLUSTER}', and not of hall" in output
    status, output = invoke(tmp_path, way, str(path), "--cluster", CLUSTER, config=here)
    assert "is of cluster" not in output
