"""C files are compiled by what there is, once."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from igniterd.errors import CannotRun
from igniterd.lab.programs import programs
from igniterd.lab.programs.compiler import shared_library


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "five.c"
    path.write_text("int five(void) { return 5; }\n")
    return path


def test_a_library_is_made_once_for_each_text(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shared_library(source)
    assert ctypes.CDLL(str(made)).five() == 5
    before = made.stat()
    assert shared_library(source) == made
    assert made.stat() == before
    source.write_text("int five(void) { return 6; }\n")
    assert ctypes.CDLL(str(shared_library(source))).five() == 6
    monkeypatch.setenv("PATH", "")
    shared_library(source)  # what is made needs no compiler


def test_without_a_compiler_it_says_how_to_get_one(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "c_compiler", lambda: None)
    with pytest.raises(CannotRun, match=r"a C compiler \(cc, gcc or tcc\) is not on this machine"):
        shared_library(source)


def test_an_error_of_the_compiler_is_passed_on(source: Path) -> None:
    source.write_text("int five(void) { return nothing; }\n")
    with pytest.raises(CannotRun, match=r"five\.c cannot be compiled by .*nothing"):
        shared_library(source)
    assert not list(programs.cache_root().iterdir())


def test_an_unpacked_tcc_is_told_where_its_own_files_are(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tcc = programs.debian_root() / "usr" / "bin" / "tcc"
    tcc.parent.mkdir(parents=True)
    tcc.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho made > "$7"\n')
    tcc.chmod(0o755)
    monkeypatch.setattr("igniterd.lab.programs.programs.shutil.which", lambda *_, **__: None)
    assert shared_library(source).read_text() == "made\n"
    folder = programs.debian_root() / "usr" / "lib" / "x86_64-linux-gnu" / "tcc"
    assert (tmp_path / "asked").read_text().startswith(f"-B {folder} -shared -fPIC -nostdlib -o ")
