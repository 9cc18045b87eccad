"""The Python environment that hosted models run in: a virtual environment with ONNX Runtime, and
Debian's PyTorch unpacked beside it and linked into it.

PyPI's PyTorch is a CUDA build of some gigabytes; Debian's for the CPU is 150 MB with all it needs.
It fits where this Python is of the version that Debian's is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from igniterd.errors import CannotRun
from igniterd.lab.programs import programs
from igniterd.lab.programs.debian import Apt, extract
from igniterd.lab.programs.wheels import install

Say = Callable[[str], None]
_PIP_S = 600.0


def fetch_engines(say: Say) -> list[str]:
    """Make what is missing; the names of what could not be had, explained through ``say``."""
    missing = []
    try:
        _torch(say)
    except CannotRun as problem:
        say(f"PyTorch: {problem}")
        say("PyTorch: without it TorchScript models are not hosted in tests")
        missing.append("PyTorch")
    try:
        _environment(say)
    except CannotRun as problem:
        say(f"engines: {problem}")
        missing.append("engines")
    else:
        say(f"engines: {programs.engines_root()}")
    return missing


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, check=False)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{what} did not end within {_PIP_S:.0f} s") from None
    if done.returncode != 0:
        raise CannotRun(f"{what} failed: {done.stderr.strip() or 'it said nothing'}")


def _environment(say: Say) -> None:
    root = programs.engines_root()
    if programs.engines_ready():
        return
    wanted = [f"{name}=={version}" for name, version in programs.ENGINES.items()]
    say(f"making an environment with {', '.join(wanted)} (about 35 MB to fetch)")
    shutil.rmtree(root, ignore_errors=True)  # one that was not finished
    _run([sys.executable, "-m", "venv", "--without-pip", str(root)], "python -m venv")
    install(wanted, root / "bin" / "python", _PIP_S)
    _link_torch(root)
    (root / "ready").write_text("\n".join(wanted) + "\n")


def _link_torch(root: Path) -> None:
    """PyTorch's package among the environment's, its libraries where Triton looks for them: in
    ``lib`` of the environment."""
    libraries = programs.torch_libraries()
    if not libraries:
        return
    packages = programs.torch_root() / "usr/lib/python3/dist-packages"
    site = root / f"lib/python{programs.PYTHON}/site-packages"
    for name in ("torch", "typing_extensions.py"):
        if not (site / name).exists():
            (site / name).symlink_to(packages / name)
    for folder in libraries:
        for library in sorted(folder.glob("*.so*")):
            place = root / "lib" / library.name
            if not place.is_symlink() and library.exists():
                place.symlink_to(library.resolve())


def _torch(say: Say) -> None:
    if programs.torch_libraries():
        return
    say("fetching python3-torch from this machine's Debian sources (about 150 MB)")
    with tempfile.TemporaryDirectory(dir=programs.cache_root()) as name:
        apt = Apt(Path(name))
        apt.update()
        files = apt.download_with_dependencies("python3-torch")
        unpacked = Path(name) / "unpacked"
        unpacked.mkdir()
        extract(files, unpacked)
        tag = f"cpython-{programs.PYTHON.replace('.', '')}-"
        if not any(unpacked.glob(f"usr/lib/python3/dist-packages/torch/_C.{tag}*.so")):
            raise CannotRun(f"Debian's is for another Python than {programs.PYTHON}")
        shutil.rmtree(programs.torch_root(), ignore_errors=True)
        unpacked.rename(programs.torch_root())
