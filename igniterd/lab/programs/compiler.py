"""C files of the lab, compiled where they are needed and kept in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

from igniterd.errors import CannotRun
from igniterd.files import make_folder, others_hand
from igniterd.lab.programs import programs

_OPTIONS = ("-shared", "-fPIC", "-nostdlib")
_LONGEST_S = 60.0


def shared_library(source: Path) -> Path:
    """``source`` as a shared library, in the cache; made anew when its text has changed.

    The file may call the C library and must declare what it calls: its headers may be missing.
    Raises :class:`~igniterd.errors.CannotRun` without a compiler, or with what the compiler said.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    root = programs.cache_root()
    library = root / f"{source.stem}-{digest}.so"
    if not library.exists():
        make_folder(root)
        if hand := others_hand(root):
            raise CannotRun(
                f"what is compiled is run, and others could put theirs in its place: {hand}"
            )
        with tempfile.TemporaryDirectory(dir=root) as work:
            made = Path(work) / library.name
            _compile(source, made)
            made.replace(library)  # whole or not at all: others may compile it at the same time
    return library


def _compile(source: Path, made: Path) -> None:
    compiler = programs.required(programs.c_compiler(), "a C compiler (cc, gcc or tcc)")
    own = [] if (include := programs.tcc_folder(compiler)) is None else ["-B", str(include)]
    command = [str(compiler.path), *own, *_OPTIONS, "-o", str(made), str(source)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CannotRun(f"{source.name} cannot be compiled: {problem}") from problem
    if done.returncode != 0:
        said = " | ".join(done.stderr.strip().splitlines()[-4:]) or "it said nothing"
        raise CannotRun(f"{source.name} cannot be compiled by {compiler.path}: {said}")
