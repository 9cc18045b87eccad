"""Wheels by pip, each checked against the hash in ``data/wheels.txt`` before it is used.

Only wheels: a source distribution would run its own code while it is built. And only those that are
named, without what they depend on: ONNX Runtime runs models with numpy alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from igniterd.errors import CannotRun

PINS = "wheels.txt"
_QUIET = ("--quiet", "--disable-pip-version-check")
_CHECKED = ("--no-deps", "--only-binary", ":all:", "--require-hashes")


def read_pins() -> dict[str, str]:
    """The line of each wheel, by ``name==version``."""
    text = resources.files("igniterd.data").joinpath(PINS).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.split()[0]: line for line in lines}


def download(package: str, into: Path, timeout_s: float) -> Path:
    """The wheel of ``package`` (name==version). Raises :class:`CannotRun`."""
    _pip(
        f"pip download {package}",
        ("download", *_QUIET, *_CHECKED, "--dest", str(into)),
        [package],
        timeout_s,
    )
    wheel = next(into.glob("*.whl"), None)
    if wheel is None:
        raise CannotRun(f"pip download {package} left no wheel")
    return wheel


def install(packages: Sequence[str], python: Path, timeout_s: float) -> None:
    """Install ``packages`` into the environment of ``python``. Raises :class:`CannotRun`."""
    _pip(
        "pip install", ("--python", str(python), "install", *_QUIET, *_CHECKED), packages, timeout_s
    )


def _pip(what: str, command: Sequence[str], packages: Sequence[str], timeout_s: float) -> None:
    pins = read_pins()
    if unknown := [package for package in packages if package not in pins]:
        raise CannotRun(f"{what}: there is no hash of {', '.join(unknown)} in igniterd/data/{PINS}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("".join(f"{pins[package]}\n" for package in packages))
        file.flush()
        whole = [sys.executable, "-m", "pip", *command, "--requirement", file.name]
        try:
            done = subprocess.run(
                whole, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise CannotRun(f"{what} did not end within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise CannotRun(f"{what} failed: {_why(done.stderr)}")


def _why(said: str) -> str:
    if "DO NOT MATCH THE HASHES" in said:
        return (
            f"what the index has is not the wheel that igniterd/data/{PINS} names (the hashes are "
            "of Linux on x86-64 and CPython 3.11; on another machine, or where a file was "
            f"changed, it is not used): {said.strip()}"
        )
    return said.strip() or "it said nothing"
