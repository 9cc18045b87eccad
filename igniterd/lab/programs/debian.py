"""Debian packages without root and without installing them: ``apt`` with folders of its own, then
``dpkg-deb --extract``.

The package lists come from the machine's own sources; only the components ``contrib`` and
``non-free`` are added, because NVIDIA's MPS control daemon lives there. The machine's own lists,
cache and package database are read, never written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from igniterd.errors import CannotRun

COMPONENTS = ("main", "contrib", "non-free")


class Apt:
    """``apt-get`` working in ``folder``. Raises :class:`CannotRun` where there is no apt or no
    source of this release."""

    def __init__(
        self,
        folder: Path,
        *,
        etc: Path = Path("/etc/apt"),
        os_release: Path = Path("/etc/os-release"),
    ) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise CannotRun("there is no apt-get and dpkg-deb on this machine")
        self._folder = folder
        codename = _codename(os_release)
        stanzas = [s for s in _stanzas(etc) if _fits(s, codename)]
        if not stanzas:
            raise CannotRun(f"{etc} names no source of packages of {codename or 'this release'}")
        for part in ("lists/partial", "archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "igniterd.sources").write_text("\n".join(_render(s) for s in stanzas))

    def update(self) -> None:
        """Fetch the lists."""
        self._run("update", "-q", timeout_s=300)

    def download_with_dependencies(self, package: str) -> list[Path]:
        """``package`` and those of its dependencies that are not installed."""
        return self._fetch(
            "install", "--download-only", "--no-install-recommends", "-y", "-q", package
        )

    def download(self, *packages: str) -> list[Path]:
        """These packages alone."""
        return self._fetch("download", "-q", *packages)

    def _fetch(self, *command: str) -> list[Path]:
        archives = self._folder / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        self._run(*command, timeout_s=600)
        return sorted(archives.glob("*.deb"))

    def _run(self, *command: str, timeout_s: float) -> None:
        settings = {
            "Dir::Etc::SourceList": self._folder / "igniterd.sources",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": self._folder / "lists",
            "Dir::Cache": self._folder,
            "Dir::Cache::Archives": self._folder / "archives",
            # the folder is ours; without root the machine's lock cannot be had
            "Debug::NoLocking": "1",
            # root's apt would hand the download to a user that cannot enter our folder
            "APT::Sandbox::User": "",
            "Acquire::Retries": "3",
        }
        options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
        try:
            done = subprocess.run(
                ["apt-get", *options, *command],
                cwd=self._folder / "archives",
                env=os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CannotRun(
                f"apt-get {' '.join(command)} did not end within {timeout_s:.0f} s"
            ) from None
        if done.returncode != 0:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise CannotRun(
                f"apt-get {' '.join(command)} failed: {'; '.join(lines[-4:]) or 'it said nothing'}"
            )


def extract(packages: Sequence[Path], into: Path) -> None:
    """Unpack package files into ``into``. Raises :class:`CannotRun` for a file that is not a
    package."""
    for package in packages:
        done = subprocess.run(
            ["dpkg-deb", "--extract", str(package), str(into)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise CannotRun(f"{package.name} cannot be unpacked: {done.stderr.strip()}")


def _codename(os_release: Path) -> str:
    found = (
        re.search(r"^VERSION_CODENAME=\"?([\w.-]+)", os_release.read_text(), re.MULTILINE)
        if os_release.exists()
        else None
    )
    return found.group(1) if found else ""


Stanza = dict[str, str]


def _stanzas(etc: Path) -> Iterator[Stanza]:
    """Sources of binary packages in both of apt's formats, as the fields of the newer one."""
    parts = etc / "sources.list.d"
    for path in [etc / "sources.list", *sorted(parts.glob("*.list"))]:
        if path.exists():
            yield from (s for line in path.read_text().splitlines() if (s := _one_line(line)))
    for path in sorted(parts.glob("*.sources")):
        for block in re.split(r"\n\s*\n", path.read_text()):
            fields = _fields(block)
            if (
                "deb" in fields.get("Types", "").split()
                and fields.get("Enabled", "yes").lower() != "no"
            ):
                yield fields


def _one_line(line: str) -> Stanza | None:
    found = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+?)\s*(?:#.*)?$", line.strip())
    if found is None:
        return None
    options, uri, suite, components = found.groups()
    names = {"signed-by": "Signed-By", "arch": "Architectures", "trusted": "Trusted"}
    extra = dict(part.split("=", 1) for part in (options or "").split() if "=" in part)
    return {"URIs": uri, "Suites": suite, "Components": components} | {
        names[k]: v for k, v in extra.items() if k in names
    }


def _fields(block: str) -> Stanza:
    lines = [
        line for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    fields: Stanza = {}
    last = ""
    for line in lines:
        if line[0].isspace() and last:
            fields[last] += f"\n{line}"
        elif ":" in line:
            last, value = (part.strip() for part in line.split(":", 1))
            fields[last] = value
    return fields


def _fits(stanza: Stanza, codename: str) -> bool:
    """Whether the source carries this release of the distribution itself, not some vendor's
    packages."""
    of_release = {codename, f"{codename}-updates", f"{codename}-security"}
    return (
        bool(codename)
        and "main" in stanza.get("Components", "").split()
        and bool(of_release & set(stanza.get("Suites", "").split()))
    )


def _render(stanza: Stanza) -> str:
    components = list(dict.fromkeys([*stanza["Components"].split(), *COMPONENTS]))
    fields = stanza | {"Types": "deb", "Components": " ".join(components)}
    return "".join(f"{key}: {value}\n" for key, value in fields.items())
