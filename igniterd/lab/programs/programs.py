"""Where the real programs of the emulated host are: on the machine's own PATH first, else in the
cache that ``fetch`` fills.

Nothing here downloads or starts anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from igniterd.errors import CannotRun

SERVERS = {"24.10": ("0.7.0", 55), "23.12": ("0.5.0", 40)}
"""tritonserver's releases (2.51 and 2.41): the version of nvidia-pytriton whose wheel carries it,
and the wheel's MB."""
SERVER = "24.10"
PYTRITON = SERVERS[SERVER][0]
# models run in this Python: what it has installed must be importable there
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ENGINES = {"numpy": "1.26.4", "onnxruntime": "1.20.1", "onnx": "1.17.0", "protobuf": "5.29.5"}
"""What the environment of hosted models is made of; numpy 1, as Triton up to 24.10 wants it.
``wheels.txt`` has the hash of each."""
FETCH = "python -m igniterd.lab.programs.fetch"

_SYSTEM_LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib",
)


@dataclass(frozen=True, slots=True)
class Program:
    """A program that can be started: its file, and the library folders it needs besides the
    system's."""

    path: Path
    libraries: tuple[Path, ...] = ()

    def environment(self) -> dict[str, str]:
        """``LD_LIBRARY_PATH`` for it, with what was set before kept behind."""
        before = os.environ.get("LD_LIBRARY_PATH", "")
        parts = [*(str(p) for p in self.libraries), *([before] if before else [])]
        return {"LD_LIBRARY_PATH": ":".join(parts)} if parts else {}

    def missing_libraries(self) -> tuple[str, ...]:
        """Shared libraries that it needs and that are not found, by name."""
        asked = subprocess.run(
            ["ldd", str(self.path)],
            env=os.environ | self.environment(),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        return tuple(line.split()[0] for line in asked.stdout.splitlines() if "not found" in line)


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/igniterd``, by default ``~/.cache/igniterd``. Raises :class:`CannotRun` for
    a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "igniterd"
    except RuntimeError as error:
        raise CannotRun(
            "this user has no home: name a folder for downloads with XDG_CACHE_HOME"
        ) from error


def triton_root(server: str = SERVER) -> Path:
    """The unpacked wheel."""
    return cache_root() / f"pytriton-{SERVERS[server][0]}"


def engines_root() -> Path:
    """The Python environment that hosted models run in, made by ``fetch``."""
    return cache_root() / f"engines-{ENGINES['onnxruntime']}-{PYTHON}"


def engines_ready() -> bool:
    """Whether it is whole: the last thing that ``fetch`` writes is there."""
    return (engines_root() / "ready").is_file()


def torch_root() -> Path:
    """Debian's PyTorch and what it links against, unpacked; a folder of its own because it is
    large."""
    return cache_root() / "torch"


def torch_libraries() -> tuple[Path, ...]:
    """Library folders that PyTorch needs, or none where it was not fetched."""
    root = torch_root()
    if not (root / "usr/lib/python3/dist-packages/torch").is_dir():
        return ()
    base = root / "usr/lib/x86_64-linux-gnu"
    return (
        base,
        base / "blas",
        base / "lapack",
        base / "pulseaudio",
        root / "usr/lib",
        root / "lib/x86_64-linux-gnu",
    )


def debian_root() -> Path:
    """Debian packages unpacked without being installed; one folder for all."""
    return cache_root() / "debian"


def debian_libraries() -> tuple[Path, ...]:
    """Library folders of the unpacked Debian packages that exist."""
    root = debian_root()
    found = [
        root / part
        for part in (
            "usr/lib/x86_64-linux-gnu",
            "lib/x86_64-linux-gnu",
            "usr/lib/x86_64-linux-gnu/nvidia/current",
        )
    ]
    return tuple(p for p in found if p.is_dir())


def libpython() -> Path | None:
    """Folder with ``libpython3.X.so.1.0`` of this Python, which Triton's Python stub links against;
    ``None`` when there is none."""
    name = f"libpython{PYTHON}.so.1.0"
    places = [
        sysconfig.get_config_var("LIBDIR") or "",
        f"{sys.base_prefix}/lib",
        *_SYSTEM_LIBRARIES,
        *(str(p) for p in debian_libraries()),
    ]
    return next((Path(p) for p in places if p and (Path(p) / name).exists()), None)


def tritonserver(server: str = SERVER) -> Program | None:
    """tritonserver with its Python backend, or ``None`` when it is not in the cache."""
    program = triton_root(server) / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    library = libpython()
    if library is None or not program.exists() or not python_stub(server).exists():
        return None
    return Program(program, (library,))


def backends(server: str = SERVER) -> Path:
    """Triton's backend directory."""
    return triton_root(server) / "pytriton" / "tritonserver" / "backends"


def python_stub(server: str = SERVER) -> Path:
    """The program that runs a Python model; the wheel has one for every version of Python that it
    knows."""
    return (
        triton_root(server)
        / "pytriton"
        / "tritonserver"
        / "python_backend_stubs"
        / PYTHON
        / "triton_python_backend_stub"
    )


def _on_path_or_unpacked(name: str) -> Program | None:
    here = shutil.which(
        name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    )
    if here is not None:
        return Program(Path(here))
    for folder in ("usr/bin", "usr/sbin"):
        unpacked = debian_root() / folder / name
        if unpacked.exists():
            return Program(unpacked, debian_libraries())
    return None


def mosquitto() -> Program | None:
    """The MQTT broker."""
    return _on_path_or_unpacked("mosquitto")


def mps_control() -> Program | None:
    """NVIDIA's MPS control daemon."""
    return _on_path_or_unpacked("nvidia-cuda-mps-control")


def promtool() -> Program | None:
    """Prometheus' checker of rules."""
    return _on_path_or_unpacked("promtool")


def c_compiler() -> Program | None:
    """The machine's own compiler, else Debian's small one, which brings all that it needs."""
    own = shutil.which("cc") or shutil.which("gcc")
    return Program(Path(own)) if own else _on_path_or_unpacked("tcc")


def tcc_folder(compiler: Program) -> Path | None:
    """Where an unpacked tcc has its own files, which it looks for where it was built for; ``None``
    for any other compiler."""
    if not compiler.path.is_relative_to(debian_root()):
        return None
    return debian_root() / "usr/lib/x86_64-linux-gnu/tcc"


def required(program: Program | None, name: str) -> Program:
    """``program``, or :class:`CannotRun` saying how to get it."""
    if program is None:
        raise CannotRun(f"{name} is not on this machine: run `{FETCH}` (or `make assets`) first")
    return program
