"""pip with a folder of wheels and no index, as on a machine without a network."""

import hashlib
import re
import zipfile
from pathlib import Path

import pytest

from igniterd.errors import CannotRun
from igniterd.lab.programs import programs, wheels

NAME, VERSION = "protobuf", programs.ENGINES["protobuf"]
PACKAGE = f"{NAME}=={VERSION}"
INFO = f"{NAME}-{VERSION}.dist-info"
FILES = {
    f"{INFO}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/RECORD": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "wheels"
    place.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def wheel_in(folder: Path) -> Path:
    path = folder / f"{NAME}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return path


def fetched(tmp_path: Path) -> Path:
    into = tmp_path / "into"
    into.mkdir(exist_ok=True)
    return wheels.download(PACKAGE, into, 60.0)


def test_a_wheel_with_the_hash_that_is_pinned_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = wheel_in(folder)
    line = f"{PACKAGE} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    monkeypatch.setattr(wheels, "read_pins", lambda: {PACKAGE: line})
    assert fetched(tmp_path).read_bytes() == wheel.read_bytes()


def test_a_wheel_that_was_changed_is_not_used(folder: Path, tmp_path: Path) -> None:
    wheel_in(folder)
    with pytest.raises(CannotRun, match=r"is not the wheel that igniterd/data/wheels\.txt names"):
        fetched(tmp_path)
    assert list((tmp_path / "into").iterdir()) == []


def test_a_source_distribution_is_not_built(folder: Path, tmp_path: Path) -> None:
    (folder / f"{NAME}-{VERSION}.tar.gz").write_bytes(b"")
    with pytest.raises(CannotRun, match=f"pip download {PACKAGE} failed"):
        fetched(tmp_path)


def test_a_package_without_a_hash_is_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"there is no hash of other==1 in"):
        wheels.download("other==1", tmp_path, 60.0)


def test_everything_that_is_fetched_by_pip_has_one_hash() -> None:
    engines = [f"{name}=={version}" for name, version in programs.ENGINES.items()]
    servers = [f"nvidia-pytriton=={version}" for version, _ in programs.SERVERS.values()]
    pins = wheels.read_pins()
    assert set(pins) == {*engines, *servers}
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in pins.values())
