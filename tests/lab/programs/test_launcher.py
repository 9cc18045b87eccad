"""What stands for ``bash`` in front of a server that is to start its stubs as a newer one does."""

import subprocess
from pathlib import Path

from igniterd.lab.programs.launcher import launcher_environment

# as 24.10 writes it
COMMAND = (
    "source {env}/bin/activate && exec env LD_LIBRARY_PATH=/its/libpython:$LD_LIBRARY_PATH  env"
)
BEFORE = {"PATH": "/usr/bin:/bin", "PYTHONHOME": "/home/of/python", "LD_LIBRARY_PATH": "/cuda"}


def ran(folder: Path, command: str) -> dict[str, str]:
    environment = BEFORE | launcher_environment("25.08", folder / "launcher", BEFORE["PATH"])
    done = subprocess.run(
        ["bash", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_an_environment_is_entered_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    env = tmp_path / "env"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "activate").write_text("export WAS_RUN=yes\n")
    found = ran(tmp_path, COMMAND.format(env=env))
    wanted = {
        "PATH": f"{env}/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": f"/its/libpython:{env}/lib:/cuda",
        "VIRTUAL_ENV": str(env),
        "VIRTUAL_ENV_PROMPT": f"({env})",
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert found.keys().isdisjoint({"WAS_RUN", "PYTHONHOME", "IGNITERD_LAUNCHER"})


def test_anything_else_is_the_real_shells(tmp_path: Path) -> None:
    found = ran(tmp_path, "export X=${BASH_VERSION:+bash}; exec env")
    assert found["X"] == "bash"
    assert {key: found.get(key) for key in BEFORE} == BEFORE
    assert "IGNITERD_LAUNCHER" not in found


def test_the_older_way_needs_nothing(tmp_path: Path) -> None:
    assert launcher_environment("24.10", tmp_path / "launcher", "/usr/bin") == {}
    assert not (tmp_path / "launcher").exists()
