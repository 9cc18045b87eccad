import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igniterd.clients.environments import ENV_PATH, VARIABLE, Own, Reach, share_of
from igniterd.clients.shares import look_at, prepare_config, prepare_share
from igniterd.errors import Refused
from igniterd.records import Allocation
from tests.users import NOBODY, another_user, as_root

PYTHON = f"{sys.base_prefix}/bin/python3"
ODD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


def sourced(
    folder: Path, command: str = 'echo "$CUDA_MPS_ACTIVE_THREAD_PERCENTAGE $OWN"', **env: str
) -> str:
    """What a shell says after sourcing the folder's activate, as Triton up to 25.07 does."""
    whole = (
        f'source "{folder}/bin/activate" && exec env {command}'
        if command.startswith("/")
        else f'. "{folder}/bin/activate" && {command}'
    )
    environment = {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin"} | env
    done = subprocess.run(
        ["bash", "-c", whole], capture_output=True, timeout=20, check=True, env=environment
    )
    return done.stdout.decode().strip()


def started(
    folder: Path, code: str, env: Mapping[str, str] | None = None, *, refused: bool = False
) -> str:
    """What a Python says whose launcher made ``folder`` its environment, as Triton does from 25.08
    on."""
    path = f"{folder}/bin:{sys.base_prefix}/bin:/usr/bin:/bin"
    environment = {
        "PATH": path,
        "VIRTUAL_ENV": str(folder),
        "LD_LIBRARY_PATH": f"{folder}/lib",
        **(env or {}),
    }
    # A stub embeds Python, which finds its environment by the first python3 on PATH; a program
    # finds it by its own name.
    done = subprocess.run(
        [f"{folder}/bin/python3", "-c", code],
        executable=PYTHON,
        env=environment,
        capture_output=True,
        timeout=20,
        check=not refused,
    )
    return (done.stdout + done.stderr).decode().strip()


SEES = (
    "import os; print(os.environ['CUDA_MPS_ACTIVE_THREAD_PERCENTAGE'], "
    "open('/proc/self/comm').read())"
)


def test_the_folder_sets_the_share_both_ways_and_leaves_its_receipt(tmp_path: Path) -> None:
    folder = prepare_share(tmp_path / "shares", 0.125)
    assert folder == tmp_path / "shares" / "igniterd-v2" / "12.5"
    assert sourced(folder) == "12.5"
    assert started(folder, SEES) == "12.5 tritonpy@12.5%"


def test_the_folder_may_be_carried_elsewhere(tmp_path: Path) -> None:
    folder = prepare_share(tmp_path / "shares", 0.125).rename(tmp_path / "moved")
    assert sourced(folder, 'echo "$VIRTUAL_ENV"') == str(folder)
    assert started(folder, SEES) == "12.5 tritonpy@12.5%"


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(values=st.lists(ODD, min_size=3, max_size=3))
def test_any_value_comes_through_both_ways(tmp_path: Path, values: list[str]) -> None:
    variables = {f"V{n}": value for n, value in enumerate(values)}
    folder = prepare_share(tmp_path / "shares", 0.5, variables=variables)
    code = (
        "import os; print([os.environb.get(b'V%d' % n) for n in range(3)], "
        "os.environ['CUDA_MPS_ACTIVE_THREAD_PERCENTAGE'])"
    )
    wanted = f"{[value.encode() for value in values]} 50"
    assert sourced(folder, f"{PYTHON} -c {_quoted(code)}") == wanted
    assert started(folder, code) == wanted
    assert (
        started(folder, code, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
        == wanted
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.mark.parametrize(("name", "value"), [("a b", "x"), ("", "x"), ("A=B", "x"), ("A", "x\0")])
def test_what_cannot_be_a_variable_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(Refused, match="a name has letters, digits and _, a value no NUL"):
        prepare_share(tmp_path / "shares", 0.5, variables={name: value})


def own_environment(
    folder: Path, activate: str = "export OWN=kept CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=99\n"
) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "bin" / "activate").write_text(activate)
    return folder


def test_a_models_own_environment_comes_first(tmp_path: Path) -> None:
    own = own_environment(tmp_path / "own env's")
    (own / "lib" / "libown.so").touch()
    (own / "lib" / "python3.11").mkdir()
    folder = prepare_share(tmp_path / "shares", 0.3, str(own))
    assert sourced(folder) == "30 kept"
    assert (folder / "lib" / "libown.so").resolve() == own / "lib" / "libown.so"
    assert (folder / "lib" / "python3.11").resolve() == folder / "lib" / "python"
    code = (
        "import os; print(os.environ['PATH'].split(':')[0], os.environ['LD_LIBRARY_PATH'], "
        "os.environ['VIRTUAL_ENV'])"
    )
    assert started(folder, code) == f"{own}/bin {own}/lib {own}"


def test_an_environment_that_only_triton_sees_is_linked_by_the_names_it_must_have(
    tmp_path: Path,
) -> None:
    folder = prepare_share(tmp_path / "shares", 0.3, "/only/in/the/container")
    assert (folder / "bin" / "python3").readlink() == Path("/only/in/the/container/bin/python3")
    assert (folder / "lib" / "libpython3.12.so.1.0").readlink() == Path(
        "/only/in/the/container/lib/libpython3.12.so.1.0"
    )


def test_a_named_python_is_the_one_that_is_found(tmp_path: Path) -> None:
    plain, named = (
        prepare_share(tmp_path / "shares", 0.3, python=python) for python in (None, PYTHON)
    )
    assert plain != named, "what is in a folder is told by its path"
    assert (named / "bin" / "python3").readlink() == Path(PYTHON)
    assert started(named, SEES) == "30 tritonpy@30%"


def test_a_python_that_is_found_only_by_its_place_on_path_is_left_to_be_found(
    tmp_path: Path,
) -> None:
    """The stub of an older server would end at once for want of a standard library, and the load
    hang for ever."""
    folder, moved = prepare_share(tmp_path / "shares", 0.3), tmp_path / "moved"
    moved.mkdir()
    (moved / "python3").write_text("#!/bin/sh\nexit 1\n")
    (moved / "python3").chmod(0o755)
    said = sourced(
        folder,
        'echo "$CUDA_MPS_ACTIVE_THREAD_PERCENTAGE ${VIRTUAL_ENV-none} $PATH"',
        PATH=f"{moved}:/usr/bin:/bin",
    )
    assert said == f"30 none {moved}:/usr/bin:/bin"
    said = sourced(
        folder,
        'echo "$CUDA_MPS_ACTIVE_THREAD_PERCENTAGE ${VIRTUAL_ENV-none} $PYTHONHOME"',
        PYTHONHOME="/somewhere",
    )
    assert said == "30 none /somewhere"


def test_whoever_runs_the_folders_python_gets_the_next_one(tmp_path: Path) -> None:
    one, other = (prepare_share(tmp_path / "shares", share) for share in (0.3, 0.4))
    path = f"{one}/bin:{other}/bin:{sys.base_prefix}/bin:/usr/bin:/bin"
    done = subprocess.run(
        [str(one / "bin" / "python3"), "-c", "import sys; print(sys.prefix)"],
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.strip() == sys.base_prefix


@pytest.mark.parametrize("spoil", ["", "1 / 0", "def half a fi", "raise SystemExit(3)"])
def test_an_error_in_the_share_is_no_model_without_a_share(tmp_path: Path, spoil: str) -> None:
    folder = prepare_share(tmp_path / "shares", 0.3)
    script = folder / "lib" / "share.py"
    script.write_text(spoil) if spoil else script.unlink()
    said = started(folder, "import triton_python_backend_utils", refused=True)
    assert "igniterd: the share of this model cannot be set up, so it is not served" in said
    assert said.splitlines()[-1].startswith(
        "ImportError: igniterd: the share of this model cannot be set up"
    )


def test_a_folder_that_is_right_is_left_alone(tmp_path: Path) -> None:
    folder = prepare_share(tmp_path / "shares", 0.3)
    before = folder.stat().st_ino
    prepare_share(tmp_path / "shares", 0.3)
    assert folder.stat().st_ino == before
    (folder / "bin" / "activate").write_bytes(b"\xff\xfe half a \x80 file")
    prepare_share(tmp_path / "shares", 0.3)
    assert sourced(folder) == "30"


def test_a_place_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "shares").write_text("a file is in the way")
    with pytest.raises(
        Refused,
        match=r"cannot write the environment of a share: .*igniterd shares --install .*/shares",
    ):
        prepare_share(tmp_path / "shares", 0.3)


@as_root
def test_what_root_installed_is_used_by_a_user_who_may_not_write(tmp_path: Path) -> None:
    shares = tmp_path / "shares"
    folder = prepare_share(shares, 0.3)
    for above in (tmp_path, *(p for p in tmp_path.parents if "pytest-of-" in str(p))):
        above.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from igniterd.clients.shares import "
        "prepare_share\n"
        "prepare_share(Path(sys.argv[1]), 0.3)  # all of Python that it needs is read while that "
        "is allowed\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for share in (0.3, 0.4):\n"
        "    try: print(prepare_share(Path(sys.argv[1]), share))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(shares)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    there, missing = done.stdout.splitlines()
    assert there == str(folder)
    assert missing.startswith("Refused")
    assert (
        "Permission denied; let root make the shares once with igniterd shares --install" in missing
    )


@as_root
def test_root_does_not_shut_the_daemon_out_of_its_own_folder(shared: Path) -> None:
    """``sudo igniterd profile`` makes shares where the daemon, a user of its own, then makes
    others."""
    state = shared / "state"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    first = prepare_share(state / "shares", 0.3)
    folders = [first, *first.parents[:2], first / "bin", first / "lib"]
    assert {each.stat().st_uid for each in folders} == {NOBODY}

    def daemon() -> Path:
        before = first.stat().st_ino
        assert prepare_share(state / "shares", 0.3).stat().st_ino == before
        (first / "pyvenv.cfg").write_text("spoilt")
        prepare_share(state / "shares", 0.3)
        return prepare_share(state / "shares", 0.35)

    with another_user(daemon):
        pass
    prepare_share(state / "shares", 0.4)  # root again, in the daemon's folders
    prepare_share(state / "shares", 0.35)
    with another_user(lambda: prepare_share(state / "shares", 0.45)):
        pass


@as_root
def test_root_does_not_use_what_anybody_may_have_put_there(shared: Path) -> None:
    """A state in a folder where everybody makes folders is not the daemon's for being
    somebody's."""
    shared.chmod(0o1777)

    def plant() -> Path:
        return prepare_share(shared / "state" / "shares", 0.3)

    with another_user(plant), pytest.raises(Refused, match="belongs to user nobody"):
        prepare_share(shared / "state" / "shares", 0.3)


def test_a_look_tells_what_an_environment_is(tmp_path: Path) -> None:
    (tmp_path / "pack").write_bytes(b"\x1f\x8b")
    assert look_at(str(tmp_path / "pack")) is Own.ARCHIVE, "whatever its name"
    assert look_at(str(own_environment(tmp_path / "env.zip"))) is Own.FOLDER, "whatever its name"
    assert look_at(str(prepare_share(tmp_path / "other", 0.3))) is Own.SHARE
    assert look_at(str(tmp_path / "nowhere")) is Own.UNSEEN
    assert look_at(None) is look_at("a\0b") is Own.UNSEEN


def a_config(environment: str) -> dict[str, object]:
    return {
        "name": "m",
        "backend": "python",
        "max_batch_size": 8,
        "parameters": {ENV_PATH: {"string_value": environment}},
    }


def test_what_is_not_a_folder_is_found_out_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "pack").write_bytes(b"\x1f\x8b")
    with pytest.raises(Refused, match=r"m: its environment .*/pack is an archive"):
        prepare_config(a_config(str(tmp_path / "pack")), Allocation(0.3, 1), tmp_path / "shares")
    with pytest.raises(Refused, match="is an archive"):
        prepare_share(tmp_path / "shares", 0.3, str(tmp_path / "pack"))
    old = own_environment(
        tmp_path / "old" / "shares" / "30",
        "# Written by igniterd: Triton sources this\nexport X=1\n",
    )
    with pytest.raises(
        Refused, match="is a share that igniterd made in another directory; name that one with"
    ):
        prepare_config(a_config(str(old)), Allocation(0.4, 1), tmp_path / "shares")
    assert not (tmp_path / "shares").exists()


def test_a_configuration_gets_its_folder_made_but_for_the_shim(tmp_path: Path) -> None:
    shares = tmp_path / "shares"
    given = prepare_config({"name": "m", "backend": "python"}, Allocation(0.3, 1), shares)
    assert Path(given["parameters"][ENV_PATH]["string_value"], "bin", "activate").is_file()
    shutil.rmtree(shares)
    shimmed = prepare_config(
        a_config("$$TRITON_MODEL_DIRECTORY/env"),
        Allocation(0.3, 1),
        shares,
        Reach(shim_backend="igniterd_python"),
    )
    assert (shimmed["backend"], share_of(shimmed), shares.exists()) == (
        "igniterd_python",
        0.3,
        False,
    )
    assert shimmed["parameters"][f"IGNITERD_ENV_{VARIABLE}"] == {"string_value": "30"}


def test_other_variables_go_with_the_share(tmp_path: Path) -> None:
    reach = Reach(variables={"CUDA_MPS_PIPE_DIRECTORY": "/tmp/mps/a b"})
    given = prepare_config({"name": "m", "backend": "python"}, Allocation(0.3, 1), tmp_path, reach)
    folder = Path(given["parameters"][ENV_PATH]["string_value"])
    code = (
        "import os; print(os.environ['CUDA_MPS_PIPE_DIRECTORY'], "
        "os.environ['CUDA_MPS_ACTIVE_THREAD_PERCENTAGE'])"
    )
    assert (
        sourced(folder, f"{PYTHON} -c {_quoted(code)}")
        == started(folder, code)
        == "/tmp/mps/a b 30"
    )
    both = Reach(shim_backend="igniterd_python", variables=reach.variables)
    shimmed = prepare_config(
        a_config("$$TRITON_MODEL_DIRECTORY/env"), Allocation(0.3, 1), tmp_path, both
    )
    assert shimmed["parameters"]["IGNITERD_ENV_CUDA_MPS_PIPE_DIRECTORY"] == {
        "string_value": "/tmp/mps/a b"
    }
