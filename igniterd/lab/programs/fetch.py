"""Fetch the real programs that the emulated host runs: ``python -m igniterd.lab.programs.fetch
[demo]``.

tritonserver comes out of NVIDIA's ``nvidia-pytriton`` wheel (through this Python's pip), and the
oldest one that igniterd steers out of an older wheel; the MQTT broker, the MPS control daemon,
promtool and, where there is no C compiler, a small one are Debian packages, unpacked into the cache
and not installed; the environment that hosted models run in comes from pip. Wheels are checked
against hashes kept here, Debian's packages by apt against the signatures of the machine's own
sources. No root is needed, nothing outside the cache is written, and what is there already (in the
cache or on PATH) is not fetched again. Exit status 1 only when the newer tritonserver is missing in
the end: everything but the tests of the oldest one and of hosted models runs on it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from igniterd.errors import CannotRun, Refused
from igniterd.files import make_folder, others_hand
from igniterd.lab.programs import programs
from igniterd.lab.programs.debian import Apt, extract
from igniterd.lab.programs.fetch_engines import fetch_engines
from igniterd.lab.programs.wheels import download

Say = Callable[[str], None]
_PIP_S = 900.0

# program -> (packages, whether their dependencies are needed too, what to do by hand)
_DEBIAN = {
    "mosquitto": (("mosquitto",), True, "install the package mosquitto"),
    "nvidia-cuda-mps-control": (
        ("nvidia-cuda-mps", "libcuda1"),
        False,
        "install the package nvidia-cuda-mps (Debian: component non-free), or NVIDIA's driver",
    ),
    "promtool": (("prometheus",), False, "install the package prometheus"),
    "C compiler": (("tcc",), False, "install the package gcc or tcc"),
}
_FIND: dict[str, Callable[[], programs.Program | None]] = {
    "mosquitto": programs.mosquitto,
    "nvidia-cuda-mps-control": programs.mps_control,
    "promtool": programs.promtool,
    "C compiler": programs.c_compiler,
}


def fetch(say: Say, *, demo: bool = False) -> list[str]:
    """Fetch what is missing, for the ``demo`` only what that runs.

    Returns the names of programs that could not be had, each already explained through ``say``.
    """
    root = programs.cache_root()
    make_folder(root)
    if hand := others_hand(root):
        raise CannotRun(f"what is fetched is run, and others could put theirs in its place: {hand}")
    os.umask(os.umask(0o022) | 0o022)
    with _alone(root):
        if demo:
            return [*_tritonserver(programs.SERVER, say), *_debian(say)]
        servers = [missing for server in programs.SERVERS for missing in _tritonserver(server, say)]
        return [*servers, *_debian(say), *fetch_engines(say)]


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One fetch at a time: two test runs started together must not unpack into each other."""
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------- tritonserver


def _tritonserver(server: str, say: Say) -> list[str]:
    what = f"tritonserver {server}"
    try:
        if not (programs.triton_root(server) / "pytriton").is_dir():
            _unpack_wheel(server, say)
        if programs.libpython() is None:
            say(f"libpython{programs.PYTHON} is not on this machine: fetching Debian's")
            _unpack_debian([f"libpython{programs.PYTHON}"], with_dependencies=True, say=say)
        found = programs.required(programs.tritonserver(server), what)
        if missing := found.missing_libraries():
            raise CannotRun(f"it needs {', '.join(missing)}")
    except CannotRun as problem:
        say(f"{what}: {problem}")
        say(
            f"{what}: needs Linux on x86-64 with glibc 2.35 or later, pip with access to a "
            "package index, "
            f"and libpython{programs.PYTHON} (Debian: apt-get install libpython{programs.PYTHON})"
        )
        return [what]
    say(f"{what}: {found.path}")
    return []


def _unpack_wheel(server: str, say: Say) -> None:
    version, size_mb = programs.SERVERS[server]
    package = f"nvidia-pytriton=={version}"
    say(f"fetching {package} (about {size_mb} MB)")
    with tempfile.TemporaryDirectory(dir=programs.cache_root()) as name:
        work = Path(name)
        wheel = download(package, work, _PIP_S)
        say("unpacking it")
        unpacked = work / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        _make_runnable(unpacked / "pytriton" / "tritonserver")
        unpacked.rename(programs.triton_root(server))


def _make_runnable(triton: Path) -> None:
    """Zip files carry no mode, and a stub must stand where the backend looks for it."""
    stub = triton / "python_backend_stubs" / programs.PYTHON / "triton_python_backend_stub"
    if not stub.exists():
        known = ", ".join(sorted(p.name for p in (triton / "python_backend_stubs").iterdir()))
        raise CannotRun(f"its Python backend is for Python {known}, this is {programs.PYTHON}")
    shutil.copy(stub, triton / "backends" / "python" / stub.name)
    for path in (triton / "bin" / "tritonserver", *triton.rglob("triton_python_backend_stub")):
        path.chmod(0o755)


# ---------------------------------------------------------------- Debian packages


def _debian(say: Say) -> list[str]:
    missing = []
    for name, (packages, with_dependencies, by_hand) in _DEBIAN.items():
        try:
            if _FIND[name]() is None:
                _unpack_debian(list(packages), with_dependencies=with_dependencies, say=say)
            found = programs.required(_FIND[name](), name)
            if lacking := found.missing_libraries():
                raise CannotRun(f"it needs {', '.join(lacking)}")
            say(f"{name}: {found.path}")
        except CannotRun as problem:
            say(f"{name}: {problem}")
            say(f"{name}: to have it, {by_hand}; igniterd finds it on PATH")
            missing.append(name)
    return missing


def _unpack_debian(packages: list[str], *, with_dependencies: bool, say: Say) -> None:
    say(f"fetching {', '.join(packages)} from this machine's Debian sources")
    with tempfile.TemporaryDirectory(dir=programs.cache_root()) as name:
        apt = Apt(Path(name))
        apt.update()
        files = (
            [f for p in packages for f in apt.download_with_dependencies(p)]
            if with_dependencies
            else apt.download(*packages)
        )
        if not files:
            raise CannotRun(f"apt-get brought no package for {', '.join(packages)}")
        extract(files, programs.debian_root())


def main() -> int:
    """Fetch everything, one line about each program on standard output."""

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        return (
            1
            if f"tritonserver {programs.SERVER}" in fetch(say, demo=sys.argv[1:] == ["demo"])
            else 0
        )
    # a cache that cannot be written, a user without a home
    except (CannotRun, Refused, OSError) as problem:
        sys.stderr.write(f"nothing can be fetched: {problem}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
