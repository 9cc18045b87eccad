"""The environment of a share on a real tritonserver, started as Triton starts stubs up to 25.07 and
as it does since 25.08."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from igniterd.clients.environments import VARIABLE, Reach, base_env_of, share_of
from igniterd.clients.installed import BACKEND, install_backend
from igniterd.clients.receipt import share_of_receipt
from igniterd.clients.shares import prepare_config, prepare_share
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config_change import with_allocation
from igniterd.errors import Refused
from igniterd.lab.host import HostSpec, Servable
from igniterd.lab.programs import programs
from igniterd.lab.programs.launcher import Launcher
from igniterd.lab.programs.process import free_ports
from igniterd.records import Allocation, ModelReading
from tests.integration.odd import ECHO, FLOATS, OddHost, OddModel

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

OWN = ("none", "plain", "system", "moved")
SAYS = """
import ctypes, json, multiprocessing, os, site, subprocess, sys, sysconfig

ASKED = "import os, sys; print([sys.path[1:], sys.prefix, os.environ.get('CUDA_MPS_ACTIVE_THREAD_PERCENTAGE')])"

def child(python):
    return subprocess.run([python, "-c", ASKED], capture_output=True, text=True, timeout=20).stdout

def spawned():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(os.getenv, ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",))

getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
SEEN = {
    "share": {
        "getenv": (getenv(b"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE") or b"").decode(),
        "environ": os.environ.pop("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", ""),
    },
    "environment": {k: v for k, v in os.environ.items() if k not in ("_", "SHLVL", "PWD", "OLDPWD")},
    "python": {
        name: getattr(sys, name)
        for name in ("path", "prefix", "exec_prefix", "base_prefix", "base_exec_prefix", "executable", "_base_executable")
    },
    "packages": [site.getsitepackages(), sysconfig.get_path("purelib")],
    "pid": os.getpid(),
}
if SEEN["share"]["environ"]:
    os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = SEEN["share"]["environ"]

class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        if "children" in parameters:
            SEEN["children"] = [child("python3"), child(sys.executable), spawned()]
        with open(parameters["says"]["string_value"], "w") as file:
            json.dump(SEEN, file)
    def execute(self, requests):
        return [echo(request) for request in requests]
"""  # noqa: E501


def echoing(name: str, folder: Path, environment: str | None = None, **more: Any) -> OddModel:
    """A model that says in a file of its name what it sees, and echoes."""
    texts = {"says": str(folder / f"{name}.json")} | (
        {"EXECUTION_ENV_PATH": environment} if environment else {}
    )
    texts |= {"children": "yes"} if name in OWN else {}
    return OddModel(
        name,
        {"parameters": {key: {"string_value": text} for key, text in texts.items()}} | more,
        SAYS,
    )


def make_environments(folder: Path) -> dict[str, str]:
    """Environments that a model may come with, by name."""
    for name, more in (("plain", []), ("system", ["--system-site-packages"])):
        base = f"{sys.base_prefix}/bin/python3"
        subprocess.run(
            [base, "-m", "venv", "--without-pip", *more, str(folder / name)], check=True, timeout=60
        )
        (
            folder / name / "lib" / f"python{programs.PYTHON}" / "site-packages" / "only_here.py"
        ).touch()
    # As conda-pack's: a whole Python that was moved, found by where its program is.
    moved, library = folder / "moved", programs.libpython()
    assert library is not None
    (moved / "bin").mkdir(parents=True)
    (moved / "lib").mkdir()
    shutil.copy(
        Path(sys.base_prefix, "bin", f"python{programs.PYTHON}").resolve(),
        moved / "bin" / "python3",
    )
    (moved / "lib" / f"python{programs.PYTHON}").symlink_to(sysconfig.get_path("stdlib"))
    (moved / "lib" / f"libpython{programs.PYTHON}.so.1.0").symlink_to(
        library / f"libpython{programs.PYTHON}.so.1.0"
    )
    (moved / "bin" / "activate").write_text(
        f'export CONDA_PREFIX={moved} PATH="{moved}/bin:$PATH"\n'
    )
    return {name: str(folder / name) for name in ("plain", "system", "moved")}


@dataclass
class There:
    """A server that starts stubs as one version of Triton does."""

    triton: OddHost
    client: TritonClient
    folder: Path

    @property
    def shares(self) -> Path:
        return self.folder / "shares"

    def said(self, model: str) -> dict[str, Any]:
        """What the copy that was loaded last sees."""
        return dict(json.loads((self.folder / f"{model}.json").read_text()))

    async def give(self, model: str, share: float | None, reach: Reach = Reach()) -> None:  # noqa: B008  frozen
        config = await self.client.config(model)
        await self.client.load(
            model, prepare_config(config, Allocation(share, 8), self.shares, reach)
        )

    async def asks(self, model: str) -> bool:
        """Whether a request to it is answered."""
        async with InferenceServerClient(self.triton.url) as client:
            tensor = InferInput("INPUT", [1, FLOATS], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, FLOATS), np.float32))
            return (await client.infer(model, [tensor], client_timeout=20.0)).as_numpy(
                "OUTPUT"
            ) is not None


class EnvironmentHost(OddHost):
    """With backends of its own beside the server's."""

    def _command(self) -> list[str]:
        return [c for c in super()._command() if not c.startswith("--backend-directory")] + [
            f"--backend-directory={self.folder / 'backends'}"
        ]

    def prepare(self) -> None:
        super().prepare()
        backends = self.folder / "backends"
        backends.mkdir()
        for each in programs.backends().iterdir():
            (backends / each.name).symlink_to(each)
        install_backend(backends)
        own = backends / "own_python"  # a backend that is a model.py, for models that are data only
        own.mkdir()
        (own / "model.py").write_text(ECHO + SAYS)
        (own / programs.python_stub().name).symlink_to(programs.python_stub())

    def _place(self, model: Servable, code: Path) -> None:
        super()._place(model, code)
        if model.name == "beside":
            shutil.copytree(
                self.folder.parent / "system", self.repository / model.name / "env", symlinks=True
            )


SHIM = Reach(shim_backend=BACKEND)


@pytest.fixture(scope="module", params=["24.10", "25.08"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    found: Launcher = request.param
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def there(
    launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[There]:
    folder = tmp_path_factory.mktemp("environment")
    paths = make_environments(folder)
    shutil.make_archive(str(folder / "pack"), "gztar", folder / "system")
    paths["packed"] = str((folder / "pack.tar.gz").rename(folder / "an_env"))  # whatever its name
    paths["beside"] = "$$TRITON_MODEL_DIRECTORY/env"
    names = (*OWN, "broken", "bare", "packed", "beside")
    models = tuple(echoing(name, folder, paths.get(name)) for name in names)
    models += (echoing("pythonic", folder, backend="own_python"),)
    triton = EnvironmentHost(HostSpec(models, launcher=launcher), folder / "triton", free_ports(3))
    triton.folder.mkdir()
    triton.prepare()
    try:
        await triton.start()
        client = TritonClient("main", triton.url, timeout_s=5.0, shares_dir=str(folder / "shares"))
        yield There(triton, client, folder)
        await client.close()
    finally:
        await triton.stop()


def comm(pid: int) -> str:
    """The name of a process, which must be there."""
    return Path(f"/proc/{pid}/comm").read_text()


@pytest.mark.parametrize("own", OWN)
async def test_a_model_has_its_share_and_is_otherwise_as_without(there: There, own: str) -> None:
    before = there.said(own)
    await there.give(own, 0.125)
    after = there.said(own)
    assert before.pop("share") == {"getenv": "", "environ": ""}
    assert after.pop("share") == {"getenv": "12.5", "environ": "12.5"}
    assert share_of_receipt(comm(after["pid"])) == 0.125
    assert before.pop("pid") != after.pop("pid")
    *children, spawned = after.pop("children")
    assert [child.replace("'12.5'", "None") for child in children] == before.pop("children")[:2]
    assert all("'12.5'" in child for child in children)
    assert spawned == "12.5"
    assert after == before
    assert await there.asks(own)


async def test_an_error_in_the_share_is_refused_and_the_old_copy_goes_on(there: There) -> None:
    folder = prepare_share(there.shares, 0.4)
    serving = there.said("broken")["pid"]
    (folder / "lib" / "share.py").write_text("1 / 0\n")
    config = await there.client.config("broken")
    with pytest.raises(
        Refused,
        match="the share of this model cannot be set up, so it is not served: ZeroDivisionError",
    ):
        await there.client.load(
            "broken", with_allocation(config, Allocation(0.4, 8), str(there.shares))
        )
    assert "igniterd: the share of this model cannot be set up" in there.triton.log.read_text()
    assert comm(serving) == "triton_python_b\n"
    assert await there.asks("broken")
    assert await there.client.config("broken") == config
    await there.give("broken", 0.4)  # made right again on the way
    assert share_of_receipt(comm(there.said("broken")["pid"])) == 0.4


async def test_a_folder_with_nothing_but_activate_is_a_share_only_where_it_is_sourced(
    there: There, launcher: Launcher
) -> None:
    """What igniterd wrote before: the configuration says 50 % on every server."""
    old = there.folder / "shares" / "50"
    (old / "bin").mkdir(parents=True)
    (old / "lib").mkdir()
    (old / "bin" / "activate").write_text(f"export {VARIABLE}=50\n")
    config = await there.client.config("bare")
    config["parameters"]["EXECUTION_ENV_PATH"] = {"string_value": str(old)}
    await there.client.load("bare", config)
    said = there.said("bare")
    assert share_of(await there.client.config("bare"), str(there.shares)) == 0.5
    assert said["share"]["getenv"] == ("50" if launcher == "24.10" else "")
    assert share_of_receipt(comm(said["pid"])) is None
    # the same share: another path all the same, so Triton starts it anew
    await there.give("bare", 0.5)
    assert there.said("bare")["share"]["getenv"] == "50"
    assert share_of_receipt(comm(there.said("bare")["pid"])) == 0.5


def python_of(said: dict[str, Any]) -> dict[str, str]:
    """Its Python but for sys.path, on which the backend's folder is too; wherever Triton has
    unpacked it this time."""
    return {
        k: re.sub(r"/tmp/python_env_\w+/\d+", "/unpacked", v)
        for k, v in said["python"].items()
        if k != "path"
    }


@pytest.mark.parametrize("model", ["packed", "beside"])
async def test_the_shim_gives_a_share_where_nothing_can_be_put_in_front(
    there: There, model: str
) -> None:
    reading = (await there.client.read_models([model]))[model]
    assert isinstance(reading, ModelReading)
    assert "environment" in reading.share_fixed
    config, before = await there.client.config(model), there.said(model)
    await there.give(model, 0.3, SHIM)
    after = there.said(model)
    assert after["share"] == {"getenv": "30", "environ": "30"}
    assert share_of_receipt(comm(after["pid"])) == 0.3
    assert python_of(after) == python_of(before)
    assert await there.asks(model)
    shared = await there.client.config(model)
    assert (share_of(shared), base_env_of(shared)) == (0.3, base_env_of(config))
    await there.give(model, None, SHIM)
    assert there.said(model)["share"] == {"getenv": "", "environ": ""}
    back = await there.client.config(model)
    assert back["parameters"].pop("IGNITERD_LOAD")
    assert back == config


async def test_a_model_of_a_backend_written_in_python_is_told_and_given_its_share(
    there: There,
) -> None:
    config = await there.client.config("pythonic")
    reading = (await there.client.read_models(["pythonic"]))["pythonic"]
    assert isinstance(reading, ModelReading)
    assert (reading.owns_process, reading.share_fixed, config["runtime"]) == (True, "", "model.py")
    await there.give("pythonic", 0.2)
    assert there.said("pythonic")["share"]["getenv"] == "20"
