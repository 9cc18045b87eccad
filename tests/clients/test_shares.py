import subprocess
from pathlib import Path

import pytest

from igniterd.clients.shares import prepare_share
from igniterd.errors import Refused


def sourced(folder: Path) -> str:
    """What a shell sees after sourcing the folder's activate."""
    command = f'. "{folder}/bin/activate" && echo "$CUDA_MPS_ACTIVE_THREAD_PERCENTAGE $OWN"'
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def test_the_folder_sets_the_share(tmp_path: Path) -> None:
    folder = prepare_share(tmp_path / "shares", 0.125)
    assert folder == tmp_path / "shares" / "12.5"
    assert (folder / "lib").is_dir()
    assert sourced(folder) == "12.5"


def test_a_models_own_environment_comes_first(tmp_path: Path) -> None:
    own = tmp_path / "own env's"
    (own / "bin").mkdir(parents=True)
    (own / "lib").mkdir()
    (own / "bin" / "activate").write_text("export OWN=kept CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=99\n")
    folder = prepare_share(tmp_path / "shares", 0.3, str(own))
    assert sourced(folder) == "30 kept"
    assert (folder / "lib").resolve() == own / "lib"


def test_a_folder_that_is_right_is_left_alone(tmp_path: Path) -> None:
    activate = prepare_share(tmp_path / "shares", 0.3) / "bin" / "activate"
    before = activate.stat().st_mtime_ns, activate.stat().st_ino
    prepare_share(tmp_path / "shares", 0.3)
    assert (activate.stat().st_mtime_ns, activate.stat().st_ino) == before
    activate.write_text("half a fi")
    prepare_share(tmp_path / "shares", 0.3)
    assert sourced(activate.parent.parent) == "30"


def test_a_place_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "shares").write_text("a file is in the way")
    with pytest.raises(Refused, match="cannot write the environment of a share"):
        prepare_share(tmp_path / "shares", 0.3)


def test_an_environment_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    folder = prepare_share(tmp_path / "shares", 0.125)
    (folder / "bin" / "activate").write_bytes(b"\xff\xfe half a \x80 file")
    assert sourced(prepare_share(tmp_path / "shares", 0.125)) == "12.5"


def test_a_try_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "shares" / "12.5" / "bin" / "activate").mkdir(parents=True)  # cannot be replaced by a file
    with pytest.raises(Refused, match="cannot write the environment of a share"):
        prepare_share(tmp_path / "shares", 0.125)
    assert [p.name for p in (tmp_path / "shares" / "12.5" / "bin").iterdir()] == ["activate"]
