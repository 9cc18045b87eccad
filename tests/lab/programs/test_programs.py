"""Finding and fetching the real programs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from igniterd.errors import CannotRun
from igniterd.lab.programs import fetch, fetch_engines, programs


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "igniterd"


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_an_empty_cache_has_nothing_and_says_what_to_do(empty_cache: Path) -> None:
    assert programs.cache_root() == empty_cache
    assert programs.tritonserver() is None
    with pytest.raises(
        CannotRun,
        match=r"not on this machine: run `python -m igniterd\.lab\.programs\.fetch`",
    ):
        programs.required(programs.tritonserver(), "tritonserver")


def test_the_machine_s_own_program_goes_before_the_unpacked_one(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = program(empty_cache / "debian" / "usr" / "bin" / "nvidia-cuda-mps-control")
    (empty_cache / "debian" / "usr" / "lib" / "x86_64-linux-gnu").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = programs.mps_control()
    assert found is not None
    assert found.path == unpacked
    assert found.environment()["LD_LIBRARY_PATH"].startswith(
        str(empty_cache / "debian" / "usr" / "lib")
    )
    own = program(tmp_path / "bin" / "nvidia-cuda-mps-control")
    found = programs.mps_control()
    assert found == programs.Program(own)


def test_missing_libraries_are_named() -> None:
    assert programs.Program(Path("/bin/sh")).missing_libraries() == ()


def test_fetching_without_an_index_says_what_is_needed(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty_cache))
    monkeypatch.setattr(fetch, "_DEBIAN", {})
    monkeypatch.setattr(fetch, "fetch_engines", lambda _: [])
    said: list[str] = []
    assert fetch.fetch(said.append) == ["tritonserver 24.10", "tritonserver 23.12"]
    text = "\n".join(said)
    assert "No matching distribution found for nvidia-pytriton==" in text
    assert "needs Linux on x86-64" in text
    assert not programs.triton_root().exists()


def test_a_missing_package_is_explained_and_does_not_stop_the_rest(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_apt(*_: object, **__: object) -> None:
        raise CannotRun("there is no apt-get and dpkg-deb on this machine")

    monkeypatch.setattr(fetch, "Apt", no_apt)
    monkeypatch.setattr(fetch, "_tritonserver", lambda *_: [])
    monkeypatch.setattr(fetch, "_FIND", dict.fromkeys(fetch._DEBIAN, lambda: None))
    monkeypatch.setattr(fetch, "fetch_engines", lambda _: [])
    said: list[str] = []
    assert fetch.fetch(said.append) == [
        "mosquitto",
        "nvidia-cuda-mps-control",
        "promtool",
        "C compiler",
    ]
    assert "mosquitto: to have it, install the package mosquitto; igniterd finds it on PATH" in said


def test_engines_without_an_index_are_explained_and_nothing_counts_as_made(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_apt(*_: object, **__: object) -> None:
        raise CannotRun("there is no apt-get and dpkg-deb on this machine")

    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, int("pip" in command), "", "ERROR: no index here"
        )

    monkeypatch.setattr(fetch_engines, "Apt", no_apt)
    monkeypatch.setattr(fetch_engines.subprocess, "run", refuse)
    said: list[str] = []
    empty_cache.mkdir(exist_ok=True)
    assert fetch_engines.fetch_engines(said.append) == ["PyTorch", "engines"]
    assert "PyTorch: there is no apt-get and dpkg-deb on this machine" in said
    assert "engines: pip install failed: ERROR: no index here" in said
    assert not programs.engines_ready()


@pytest.mark.parametrize(
    ("cache", "said"), [("/proc/nowhere", "nothing can be fetched"), ("", "this user has no home")]
)
def test_without_a_place_to_fetch_to_it_is_said(
    cache: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    if not cache:
        monkeypatch.setattr(Path, "expanduser", nobody)
    assert fetch.main() == 1
    assert said in capsys.readouterr().err
