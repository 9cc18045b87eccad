"""The machine's own sources of packages, read in both of apt's formats; only this release's own are
used."""

from __future__ import annotations

from pathlib import Path

import pytest

from igniterd.errors import CannotRun
from igniterd.lab.programs.debian import Apt, extract

OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_CODENAME=bookworm\n'


def sources(folder: Path, **files: str) -> dict[str, Path]:
    etc = folder / "etc"
    (etc / "sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        suffix = {
            "deb822": "sources.list.d/debian.sources",
            "line": "sources.list",
            "other": "sources.list.d/other.list",
        }[name]
        (etc / suffix).write_text(text)
    (folder / "os-release").write_text(OS_RELEASE)
    return {"etc": etc, "os_release": folder / "os-release"}


def written(folder: Path) -> list[dict[str, str]]:
    blocks = (folder / "apt" / "igniterd.sources").read_text().split("\n\n")
    return [dict(line.split(": ", 1) for line in block.strip().splitlines()) for block in blocks]


def test_deb822_sources_get_the_missing_components(tmp_path: Path) -> None:
    text = (
        "Types: deb deb-src\n# a comment\nURIs: http://mirror.invalid/debian\nSuites: bookworm "
        "bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nURIs: http://vendor.invalid/x\n"
        "Suites: nodistro\nComponents: main\n"
        "\nTypes: deb-src\nURIs: http://mirror.invalid/debian\nSuites: bookworm\nComponents: main\n"
        "\nTypes: deb\nEnabled: no\nURIs: http://off.invalid/debian\nSuites: bookworm\n"
        "Components: main\n"
    )
    Apt(tmp_path / "apt", **sources(tmp_path, deb822=text))
    assert written(tmp_path) == [
        {
            "Types": "deb",
            "URIs": "http://mirror.invalid/debian",
            "Suites": "bookworm bookworm-updates",
            "Components": "main contrib non-free",
            "Signed-By": "/usr/share/keyrings/k.gpg",
        }
    ]


def test_one_line_sources_keep_their_options(tmp_path: Path) -> None:
    line = (
        "# deb http://commented.invalid/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian bookworm-security main "
        "non-free-firmware  # here\n"
        "deb-src http://mirror.invalid/debian bookworm main\n"
    )
    other = "deb https://vendor.invalid/apt cloud-sdk-bookworm main\n"
    Apt(tmp_path / "apt", **sources(tmp_path, line=line, other=other))
    assert written(tmp_path) == [
        {
            "URIs": "http://mirror.invalid/debian",
            "Suites": "bookworm-security",
            "Components": "main non-free-firmware contrib non-free",
            "Architectures": "amd64",
            "Signed-By": "/k.gpg",
            "Types": "deb",
        }
    ]


def test_a_machine_without_fitting_sources_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="names no source of packages of bookworm"):
        Apt(
            tmp_path / "apt",
            **sources(tmp_path, other="deb https://vendor.invalid/apt stable main\n"),
        )


def test_a_machine_without_apt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match="no apt-get"):
        Apt(tmp_path / "apt", **sources(tmp_path))


def test_a_file_that_is_no_package_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.deb"
    broken.write_text("not a package")
    with pytest.raises(CannotRun, match=r"broken\.deb cannot be unpacked"):
        extract([broken], tmp_path)
