"""The tables of the fleet's file that tell where its Tritons are."""

from __future__ import annotations

from pathlib import Path

import pytest

from igniterd.errors import ConfigError
from igniterd.fleet.places import read_places

GOOD = """
[[triton]]
host = "gpu-a"
url = "192.0.2.1:8001"
ca_file = "ca.pem"
shares = "/var/lib/igniterd/shares"

[[triton]]
host = "gpu-a"
name = "second"
url = "192.0.2.1:8101"

[route]
command = ["route", "{action}", "{model}", "{from_url}", "{to_url}"]

[broker]
url = "mqtt://broker"
password_file = "password"
username = "fleet"

[fleet]
clusters = ["one"]
settle_s = 2.0
"""


def test_it_is_read_and_paths_are_of_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(GOOD)
    found = read_places(file)
    main = found.of("gpu-a", "main")
    assert main
    assert main.ca_file == tmp_path / "ca.pem"
    assert main.metrics_url is None
    assert found.of("gpu-a", "second")
    assert found.of("gpu-b", "main") is None
    assert found.broker
    assert found.fleet.clusters == ["one"]
    assert found.broker.password_file == tmp_path / "password"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('host = "gpu-a"\nname', "name", "triton[1].host: missing"),
        ('name = "second"\n', "", "given twice"),
        ("{from_url}", "{url}", "{url} means nothing here"),
        ("{from_url}", "{from_url", "'{from_url': "),
        ("192.0.2.1:8101", "192.0.2.1", "triton[1].url: should be host:port"),
        ("/var/lib/igniterd/shares", "shares", "should be a path from the root"),
        ("[route]", "[route", "not TOML"),
        ("[route]", "[rout]", "rout: unknown table; is route meant?"),
        ("ca_file", "cafile", "triton[0].cafile: unknown key; is triton[0].ca_file meant?"),
        ("settle_s", "setle_s", "fleet.setle_s: unknown key; is fleet.settle_s meant?"),
        ("username", "user", "broker.user: unknown key; is broker.username meant?"),
        ("[broker]", "[metrics]\nport = 1\n[broker]", "metrics.port: unknown key; known: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, before: str, after: str, said: str) -> None:
    file = tmp_path / "fleet.toml"
    assert GOOD.count(before) == 1
    file.write_text(GOOD.replace(before, after))
    with pytest.raises(ConfigError) as found:
        read_places(file)
    assert said in str(found.value)


def test_a_header_that_is_wrong_is_not_repeated(tmp_path: Path) -> None:
    """It may be what lets a client in."""
    file = tmp_path / "fleet.toml"
    url = 'url = "192.0.2.1:8001"\n'
    for header in ('"token-1"', "{ Authorization = 1234567 }", '["token-1"]'):
        file.write_text(GOOD.replace(url, f"{url}header = {header}\n"))
        with pytest.raises(ConfigError, match=r"triton\[0\]\.header") as found:
            read_places(file)
        assert "token-1" not in str(found.value)
        assert "1234567" not in str(found.value)
