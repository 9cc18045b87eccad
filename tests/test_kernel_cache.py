"""What numba finds in its cache it runs, so nobody else may have put it there."""

import ast
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from igniterd import kernel_cache as kernels
from tests.users import NOBODY, as_root

PACKAGE = Path(kernels.__file__).parent
VERSION = kernels.version_of(PACKAGE)
CODE = "from igniterd.estimators.kernels import trends; print(trends.skew(1.0))"


class Marks:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def started(cache: Path, home: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache), "XDG_CACHE_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", CODE],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_a_cache_that_others_can_write_is_not_run(tmp_path: Path) -> None:
    cache, home, mark = tmp_path / "cache", tmp_path / "home", tmp_path / "ran"
    first = started(cache, home)
    assert first.stderr == ""
    found = list(cache.rglob("*.nbi"))
    for index in found:
        index.write_bytes(pickle.dumps(Marks(mark)))
    cache.chmod(0o777)
    done = started(cache, home)
    assert found and not mark.exists()
    assert done.stdout == first.stdout
    assert f"{cache} can be written by others" in done.stderr
    own = home / "igniterd" / "kernels" / VERSION
    assert f"they are kept in {own}" in done.stderr
    assert own.stat().st_mode & 0o777 == 0o700 and list(own.rglob("*.nbi"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with an index in it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (folder / VERSION / "kernels_0").mkdir(parents=True)
    (folder / VERSION / "kernels_0" / "trends.nbi").write_bytes(b"")
    return folder


def taken(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    kernels.ensure_cache()
    return os.environ["NUMBA_CACHE_DIR"], capsys.readouterr().err


def test_one_of_this_users_own_is_used(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in ("a process", "its child"):
        assert taken(capsys) == (str(cache / VERSION), "")


@pytest.mark.parametrize(
    "place", [".", "..", VERSION, f"{VERSION}/kernels_0", f"{VERSION}/kernels_0/trends.nbi"]
)
def test_whatever_others_may_write_is_passed_over(
    cache: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / place).chmod(0o777)
    folder, said = taken(capsys)
    assert folder != str(cache / VERSION) and "what others wrote there would be run" in said


@as_root
@pytest.mark.parametrize(
    "place", [".", VERSION, f"{VERSION}/kernels_0", f"{VERSION}/kernels_0/trends.nbi"]
)
def test_whatever_another_user_owns_is_passed_over(
    cache: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(cache / place, NOBODY, NOBODY)
    folder, said = taken(capsys)
    assert folder != str(cache / VERSION) and "belongs to user nobody" in said


CALLED = "FACTOR = {factor}\n"
CALLS = """
from numba import njit
from igniterd.kernels.called import FACTOR

@njit(cache=True)
def product(x):
    return FACTOR * x
"""


def test_an_upgrade_of_what_a_kernel_imports_is_not_run_with_what_it_was(tmp_path: Path) -> None:
    """numba alone looks at the kernel's own file."""
    package = tmp_path / "igniterd"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    folder = package / "kernels"
    folder.mkdir()
    (folder / "__init__.py").write_text("from igniterd import kernel_cache as kernel_cache\n")
    (folder / "calls.py").write_text(CALLS)
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    found = []
    for factor in (2.0, 3.0):
        (folder / "called.py").write_text(CALLED.format(factor=factor))
        code = "from igniterd.kernels.calls import product; print(product(1.0))"
        done = subprocess.run(
            [sys.executable, "-B", "-c", code],
            env=env | {"PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found.append(float(done.stdout))
    assert found == [2.0, 3.0]
    assert len(list((package / "__pycache__").glob("igniterd-*"))) == 2


def test_kernels_are_made_of_kernels_alone() -> None:
    """So that the version of a kernel is known by their files."""
    for file in PACKAGE.glob("**/kernels/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("igniterd"):
                within = ".kernels." in f"{node.module}."
                # types, and this
                assert within or node.module in ("igniterd", "igniterd.arrays"), (file, node.module)
