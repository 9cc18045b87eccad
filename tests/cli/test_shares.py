import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.clients.environments import share_path
from igniterd.clients.shares import making_obstacle
from igniterd.perf import builtin_profile
from tests.users import as_root


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["shares", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_every_share_of_a_unit_is_made(tmp_path: Path) -> None:
    code, out, _ = run(
        "--install",
        tmp_path / "shares",
        "--unit",
        25,
        "--unit",
        40,
        "--environment",
        "/opt/env",
        "--format",
        "json",
    )
    assert code == 0
    shares = (0.25, 0.4, 0.5, 0.75, 0.8, 1.0)
    wanted = {
        share_path(str(tmp_path / "shares"), share, base)
        for base in (None, "/opt/env")
        for share in shares
    }
    made = json.loads(out)["shares"]
    assert set(made) == wanted
    before = [Path(path).stat().st_ino for path in made]
    code, out, _ = run(
        "--install", tmp_path / "shares", "--unit", 25, "--unit", 40, "--environment", "/opt/env"
    )
    assert (code, out.split(":")[0]) == (0, "shares")
    assert [Path(path).stat().st_ino for path in made] == before, "what is right is left alone"


def test_the_units_and_pythons_are_those_of_the_configuration(tmp_path: Path) -> None:
    profile = builtin_profile("v100")
    profile.save(tmp_path / "v100.json")
    config = tmp_path / "igniterd.toml"
    config.write_text(
        '[[triton]]\npython = "/opt/python/bin/python3"\n[state]\nshares = "installed"\n'
        '[[model]]\nname = "alexnet"\nslo_p99_ms = 20.0\nprofile = "v100.json"\n'
    )
    code, out, err = run(
        "--install", tmp_path / "installed", "--config", config, "--format", "json"
    )
    assert (code, err) == (0, "")
    made = [Path(path) for path in json.loads(out)["shares"]]
    assert len(made) == round(1 / profile.board.share_unit)
    assert {str((path / "bin" / "python3").readlink()) for path in made} == {
        "/opt/python/bin/python3"
    }
    code, _, err = run("--install", tmp_path / "elsewhere", "--config", config)
    assert code == 0
    assert f'set [state] shares = "{tmp_path}/elsewhere"' in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a folder to fill"),
        (("--install", "x"), "give --config FILE with profiles, or --unit PERCENT"),
        (("--install", "a b", "--unit", "10"), "should have only letters, digits and . _ / + -"),
        (("--install", "x", "--unit", "0"), "0.1"),
    ],
)
def test_what_is_missing_is_said(arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())


def test_the_shim_backend_goes_into_the_backend_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    code, out, _ = run("--install-backend", tmp_path)
    file = tmp_path / "igniterd_python" / "model.py"
    assert (code, out) == (0, f"backend: {file}\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750, "the directory is Triton's"
    code, _, err = run("--install-backend", tmp_path / "none")
    assert code == 1
    assert "not there: name Triton's backend directory" in err


@as_root
def test_a_place_that_somebody_else_rules_is_said(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    code, _, err = run("--install", tmp_path / "theirs" / "shares", "--unit", 50)
    assert code == 0
    assert "belongs to user nobody, who can put another folder in the place of" in err


@as_root
def test_check_says_whether_shares_can_be_made_or_are_there(tmp_path: Path) -> None:
    for above in (tmp_path, *(p for p in tmp_path.parents if "pytest-of-" in str(p))):
        above.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from igniterd.clients.shares import "
        "making_obstacle as said\n"
        "said(Path('/nowhere')); os.setgid(65534); os.setuid(65534); print(said(Path(sys.argv[1])))"
    )

    def said() -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "shares")]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()

    assert said() == f"{tmp_path} cannot be written by this user: {MEND} {tmp_path}/shares"
    assert run("--install", tmp_path / "shares", "--unit", 50)[0] == 0
    assert said() == ""
    os.chown(tmp_path / "shares", 65534, 65534)
    assert "belongs to user nobody, and this runs as root" in making_obstacle(tmp_path / "shares")


MEND = "let root make the shares once with igniterd shares --install"
SHIMMED = """
import json, os, sys
SEEN = dict(os.environ)
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return "completed"
    def initialize(self, args):
        self.args = args
    async def execute(self, requests):
        return SEEN
    def finalize(self):
        print("over")
"""
BACKEND = """
import asyncio, json, sys
sys.path.insert(0, {folder!r})
import shim_backend as shim
class Config:
    def as_dict(self):
        return {{"parameters": {parameters!r}}}
shim._own_file = lambda: {own!r}
print(shim.TritonPythonModel.auto_complete_config(Config()))
model = shim.TritonPythonModel()
model.initialize({{"model_config": json.dumps(Config().as_dict())}})
print(asyncio.run(model.execute([]))["A"], model.args["model_config"] != "", sys.modules["model"].__file__ == {own!r})
print(open("/proc/self/comm").read().strip())
model.finalize()
"""  # noqa: E501


def test_the_shim_hands_everything_on_once_the_variables_are_set(tmp_path: Path) -> None:
    own = tmp_path / "1" / "model.py"
    own.parent.mkdir()
    own.write_text(SHIMMED)
    folder = Path(sys.modules["igniterd"].__file__ or "").parent / "data"
    share = "IGNITERD_ENV_CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
    parameters = {
        "IGNITERD_ENV_A": {"string_value": "ü b"},
        share: {"string_value": "12.125"},
        "x": {"string_value": "y"},
    }
    code = BACKEND.format(folder=str(folder), parameters=parameters, own=str(own))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines() == ["completed", "ü b True True", "tritonpy@12.125", "over"]
    code = BACKEND.format(folder=str(folder), parameters={}, own=str(own))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (
        "this backend is for models that igniterd gives a share: name backend python" in done.stderr
    )


def test_what_is_in_the_way_is_said_with_its_whole_path_and_root_is_not_sent_to_itself(
    tmp_path: Path,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shares" / "igniterd-v2").mkdir(parents=True)
    (tmp_path / "shares" / "igniterd-v2" / "50").symlink_to(tmp_path / "elsewhere")
    code, _, said = run("--install", tmp_path / "shares", "--unit", 50)
    assert (code, said) == (
        1,
        f"igniterd: {tmp_path}/shares/igniterd-v2/50 is a link: name the folder it leads to, or "
        "remove it\n",
    )
    (tmp_path / "file").touch()
    code, _, said = run("--install", tmp_path / "file", "--unit", 50)
    assert (code, said.rpartition(": ")[2]) == (1, "Not a directory\n")
    code, _, said = run("--install", tmp_path / "new", "--unit", 50, "--python", "bin/python3")
    assert code == 2
    assert "'bin/python3' should be the whole path" in said
    assert not (tmp_path / "new").exists()
