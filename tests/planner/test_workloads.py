"""Reading workloads: what is wrong with a file is one error, what is wrong with a row names the
row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from igniterd.errors import ConfigError
from igniterd.planner.workloads import Workload, check_rows, read_workloads


def test_the_papers_workloads(v100_workloads: tuple[Workload, ...]) -> None:
    assert len(v100_workloads) == 12
    assert v100_workloads[0] == Workload("W1", "alexnet", 10.0, 1200.0)


def test_toml_says_the_same_as_csv(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text(
        "workload,model,slo_p99_ms,rate_per_s,burstiness\nA,ssd,25,150,poisson\nB,ssd,40,50,\n"
    )
    (tmp_path / "w.toml").write_text(
        '[[workload]]\nname="A"\nmodel="ssd"\nslo_p99_ms=25\nrate_per_s=150\nburstiness="poisson"\n'
        '[[workload]]\nworkload="B"\nmodel="ssd"\nslo_p99_ms=40.0\nrate_per_s=50\n'
    )
    expected = (Workload("A", "ssd", 25.0, 150.0, 1.0), Workload("B", "ssd", 40.0, 50.0)), ()
    assert read_workloads(tmp_path / "w.csv") == expected
    assert read_workloads(tmp_path / "w.toml") == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"slo_p99_ms": "-5"}, ["slo_p99_ms is '-5'", "above 0"]),
        ({"slo_p99_ms": "fast"}, ["slo_p99_ms is 'fast'", "milliseconds"]),
        ({"rate_per_s": "nan"}, ["rate_per_s is 'nan'", "requests a second"]),
        ({"rate_per_s": ""}, ["rate_per_s is missing"]),
        ({"rate_per_s": True}, ["rate_per_s is True"]),
        ({"model": " "}, ["model is empty"]),
        ({"burstiness": "spiky"}, ["burstiness is 'spiky'", "poisson"]),
        ({"slo_p99_ms": "0", "rate_per_s": "inf"}, ["slo_p99_ms is '0'", "rate_per_s is 'inf'"]),
    ],
)
def test_a_bad_row_is_named_with_all_that_is_wrong(row: Any, said: Any) -> None:
    good = {"workload": "G", "model": "ssd", "slo_p99_ms": "25", "rate_per_s": "10"}
    kept, rejected = check_rows([good, {**good, "workload": "B", **row}])
    assert [w.name for w in kept] == ["G"]
    assert [entry.workload for entry in rejected] == ["B"]
    for part in said:
        assert part in rejected[0].reason


def test_a_name_used_twice_is_refused() -> None:
    row = {"workload": "A", "model": "ssd", "slo_p99_ms": 25, "rate_per_s": 10}
    kept, rejected = check_rows([row, row])
    assert len(kept) == 1
    assert "used before" in rejected[0].reason


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("w.csv", "workload,model,slo_p99_ms\nA,ssd,25\n", "lacks rate_per_s"),
        ("w.csv", "workload,model,slo_p99_ms,rate_per_s,prio\nA,ssd,25,1,2\n", "has 'prio'"),
        ("w.csv", "workload,model,slo_p99_ms,rate_per_s\n", "holds no workload"),
        ("w.toml", "[[workload]\n", "is not TOML"),
        ("w.toml", "[model]\nname='x'\n", "[[workload]] tables only"),
    ],
)
def test_a_file_that_is_no_table_of_workloads(
    tmp_path: Path, name: Any, text: Any, said: Any
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match="w\\.") as error:
        read_workloads(path)
    assert said in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_workloads(tmp_path / "none.csv")
