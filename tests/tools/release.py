"""A release: ``python -m tests.tools.release`` (``make release``) makes a wheel in ``dist/``.

It refuses a version that the newest heading of Changes in ``README.md`` does not name, and a wheel
that lacks a file of the package, or has one that the sources do not have.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import igniterd

ROOT = Path(__file__).resolve().parents[2]
LICENSE = "licenses/igniterd/LICENSE"  # below the wheel's folder of metadata
OPTIONAL = {
    "igniterd/LICENSE",
    "igniterd/README.md",
}  # a wheel has them or not: nobody imports them


class CannotRelease(Exception):
    """What is wrong, and what would be right."""


def main() -> int:
    """Check, build, check what was built. Returns the exit status."""
    try:
        check_version(igniterd.__version__, (ROOT / "README.md").read_text(encoding="utf-8"))
        wheel = build(ROOT / "dist")
        with zipfile.ZipFile(wheel) as archive:
            check_content(archive.namelist(), package_files(ROOT), igniterd.__version__)
    except CannotRelease as error:
        print(f"no release: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(wheel.relative_to(ROOT))  # noqa: T201
    return 0


def newest_change(readme: str) -> str:
    """The first heading under Changes, such as ``0.1.0`` or ``Unreleased``; a date may follow it.

    Raises :class:`CannotRelease` where there is none.
    """
    _, _, changes = readme.partition("\n## Changes\n")
    changes = re.split(r"^## ", changes, maxsplit=1, flags=re.MULTILINE)[0]
    if not (heading := re.search(r"^### +(\S+)", changes, re.MULTILINE)):
        raise CannotRelease("README.md has no heading `### VERSION` under `## Changes`")
    return heading[1].strip("[]")


def check_version(version: str, readme: str) -> None:
    """Raise :class:`CannotRelease` unless the newest change is that of ``version``."""
    if (newest := newest_change(readme)) != version:
        raise CannotRelease(
            f"the newest heading of Changes in README.md is {newest!r} and igniterd.__version__ is "
            f"{version!r}: name the changes `### {version}`, or set the version"
        )


def package_files(root: Path) -> set[str]:
    """Every file of the package in the sources that a wheel has to have, relative to ``root``."""
    found = {
        path.relative_to(root).as_posix()
        for path in (root / "igniterd").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return found - OPTIONAL


def check_content(names: Iterable[str], wanted: Iterable[str], version: str) -> None:
    """Raise :class:`CannotRelease` where ``names`` (of a wheel) and ``wanted`` differ.

    The wheel's own metadata is not compared, but the license has to be there.
    """
    metadata = f"igniterd-{version}.dist-info/"
    there, wanted = set(names), set(wanted) | {metadata + LICENSE}
    if missing := sorted(wanted - there):
        raise CannotRelease(
            f"the wheel lacks {', '.join(missing)}: see package-data and license-files in "
            "pyproject.toml"
        )
    if odd := sorted(n for n in there - wanted - OPTIONAL if not n.startswith(metadata)):
        raise CannotRelease(
            f"the wheel has {', '.join(odd)}, which the sources do not have: remove build/"
        )


def build(folder: Path) -> Path:
    """A wheel of the sources in ``folder``.

    Raises :class:`CannotRelease` where pip cannot make one.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--no-deps", "-w", str(folder), str(ROOT)], check=False)
    if done.returncode:
        raise CannotRelease("pip could not make a wheel: see above")
    return folder / f"igniterd-{igniterd.__version__}-py3-none-any.whl"


if __name__ == "__main__":
    sys.exit(main())
