"""The configuration of ``igniterd fleet``: a file, options, both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from igniterd.errors import ConfigError
from igniterd.fleet.config import load_fleet_config

Options = dict[str, dict[str, Any]]


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def problems(path: Path | None, options: Options | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_fleet_config(path, options)
    return list(raised.value.problems)


def test_a_broker_and_a_cluster_are_enough() -> None:
    options: Options = {"broker": {"url": "mqtt://broker"}, "fleet": {"clusters": ["lab"]}}
    config = load_fleet_config(None, options)
    assert config.broker.url == "mqtt://broker"
    assert (config.fleet.clusters, config.fleet.consolidate) == (["lab"], False)
    assert config.metrics.address == ("127.0.0.1", 9410)


def test_options_win_and_paths_are_those_of_who_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(
        tmp_path,
        '[broker]\nurl = "mqtts://broker"\nca_file = "ca.pem"\ncert_file = "cert.pem"\n'
        '[fleet]\nclusters = ["lab", "hall"]\nconsolidate = true\n',
    )
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    options: Options = {"broker": {"ca_file": Path("mine.pem")}, "fleet": {"clusters": ["other"]}}
    config = load_fleet_config(path, options)
    assert config.broker.ca_file == here / "mine.pem"
    assert config.broker.cert_file == tmp_path / "cert.pem"
    assert (config.fleet.clusters, config.fleet.consolidate) == (["other"], True)


def test_all_problems_are_said_at_once_with_path_and_value(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[broker]\nurl = "http://broker"\n[fleet]\nclusters = ["a b"]\nsettle_s = 0\nmost = 1\n',
    )
    said = problems(path)
    assert [line.partition(":")[0] for line in said] == [
        "broker.url",
        "fleet.clusters[0]",
        "fleet.settle_s",
        "fleet.most",
    ]
    assert "should be mqtt or mqtts://host[:port]" in said[0] or "mqtt://host" in said[0]
    assert "'a b'" in said[1]


@pytest.mark.parametrize(
    ("clusters", "why"),
    [
        (["lab", "lab"], "lab: given twice"),
        (["lab", "+"], "'+' alone"),
        ([f"c{n}" for n in range(17)], "17 clusters are more than most_clusters = 16"),
    ],
)
def test_clusters_that_do_not_go_together(clusters: list[str], why: str) -> None:
    options: Options = {"broker": {"url": "mqtt://broker"}, "fleet": {"clusters": clusters}}
    (said,) = problems(None, options)
    assert why in said


def test_what_is_missing_without_a_file_is_said_as_an_option() -> None:
    assert problems(None) == ["no broker: give --broker URL, or --config FILE"]
    assert problems(None, {"broker": {"url": "mqtt://b"}}) == [
        "no cluster: give --cluster NAME, or --config FILE"
    ]


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    assert "cannot be read" in problems(tmp_path / "gone.toml")[0]
    assert "not TOML" in problems(written(tmp_path, "[broker"))[0]


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    path = written(tmp_path, '[broker]\nurl = "mqtt://me:secret@b"\n[fleet]\nclusters = ["a"]\n')
    assert "secret" not in " ".join(problems(path))


def test_a_misspelt_table_or_key_is_named_with_what_is_meant(tmp_path: Path) -> None:
    text = '[broker]\nurl = "mqtt://b"\n[fleet]\nclusters = ["a"]\n'
    for wrong, said in (
        ('[metric]\nlisten = "127.0.0.1:1"\n', "metric: unknown table; is metrics meant?"),
        ('[[tritons]]\nhost = "a"\n', "tritons: unknown table; is triton meant?"),
        ("settles_s = 1.0\n", "fleet.settles_s: unknown key; is fleet.settle_s meant?"),
        ("x = 1\n", "fleet.x: unknown key; known: name, clusters, most_clusters, "),
    ):
        (found,) = problems(written(tmp_path, text + wrong))
        assert found.startswith(said)


def test_the_tables_of_apply_may_be_in_the_same_file_and_are_checked(tmp_path: Path) -> None:
    text = (
        '[broker]\nurl = "mqtt://b"\n[fleet]\nclusters = ["a"]\n'
        '[[triton]]\nhost = "gpu-a"\nurl = "10.0.0.1:8001"\n'
        '[route]\ncommand = ["route", "{model}"]\n'
    )
    assert load_fleet_config(written(tmp_path, text)).triton[0].host == "gpu-a"
    (said,) = problems(written(tmp_path, text.replace(":8001", "")))
    assert said.startswith("triton[0].url: should be host:port")
