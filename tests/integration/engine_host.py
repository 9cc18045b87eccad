"""A tritonserver with models of backends that run inside it, as far as igniterd can tell.

The wheel has no ONNX Runtime or PyTorch backend. A Python-based backend stands for each: a folder
``onnxruntime/model.py`` in the backend directory. The configurations say ``backend:
"onnxruntime"`` and no more, as with the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from igniterd.clients.triton.client import TritonClient
from igniterd.lab.host import HostSpec
from igniterd.lab.hosting import HostingTriton
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import free_ports

ONNX_BACKEND = """
import json, os
import numpy as np, onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or "model.onnx"
        path = os.path.join(args["model_repository"], args["model_version"], name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.names = [output.name for output in self.session.get_outputs()]

    def execute(self, requests):
        answers = []
        for request in requests:
            feed = {t.name(): t.as_numpy() for t in request.inputs()}
            for name, value in feed.items():
                if value.dtype == object:
                    feed[name] = np.vectorize(lambda v: v.decode(), otypes=[object])(value)
            found = dict(zip(self.names, self.session.run(None, feed)))
            for name, value in found.items():
                if value.dtype == object:
                    found[name] = np.vectorize(lambda v: v.encode(), otypes=[object])(value)
            wanted = request.requested_output_names()
            tensors = [pb_utils.Tensor(n, found[n]) for n in found if n in wanted]
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers
"""
TORCH_BACKEND = """
import json, os
import torch
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        if "refuse" in config["parameters"] and "IGNITERD_HOSTED" in config["parameters"]:
            raise pb_utils.TritonModelException("not in a process of its own")
        name = config.get("default_model_filename") or "model.pt"
        path = os.path.join(args["model_repository"], args["model_version"], name)
        self.module = torch.jit.load(path)

    def execute(self, requests):
        answers = []
        for request in requests:
            given = {t.name(): torch.from_numpy(t.as_numpy()) for t in request.inputs()}
            found = self.module(*(given[f"INPUT__{n}"] for n in range(len(given))))
            found = found if isinstance(found, tuple) else (found,)
            tensors = [pb_utils.Tensor(f"OUTPUT__{n}", v.numpy()) for n, v in enumerate(found)]
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers
"""

INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
TYPES = ("BOOL", *INTEGERS, "FLOAT16", "FLOAT", "DOUBLE", "BFLOAT16", "STRING")
"""ONNX's names of the types that Triton has too."""


@dataclass(frozen=True)
class FileModel:
    """A model of the repository: its configuration, and its files by path in its folder."""

    name: str
    settings: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    max_batch_size: int = 0

    def config(self) -> dict[str, object]:
        return {
            "name": self.name,
            "backend": "onnxruntime",
            "max_batch_size": self.max_batch_size,
            "instance_group": [{"kind": "KIND_CPU", "count": 1}],
            **self.settings,
        }


class EngineHost(HostingTriton):
    """Serves :class:`FileModel` s; the server's own Python has the engines."""

    cache_bytes = 1 << 20

    def __init__(
        self,
        models: Sequence[FileModel],
        folder: Path,
        ports: Sequence[int],
        *,
        started: bool = True,
    ) -> None:
        super().__init__(folder, ports, HostSpec(tuple(models) if started else ()), complete=False)
        self._files = tuple(models)

    def processes(self) -> Iterator[tuple[Path, list[str]]]:
        """What this server has started, and its command line; other tests run servers meanwhile."""
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # the name before it, in brackets, may hold anything
                parents[entry.name] = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        for number in parents:
            above: str | None = number
            while above is not None and above != str(self.pid):
                above = parents.get(above)
            if above is not None and above != number:
                with contextlib.suppress(OSError):
                    line = Path("/proc", number, "cmdline").read_text(errors="replace")
                    yield Path("/proc", number), line.split("\0")

    def prepare(self) -> None:
        self.repository.mkdir(parents=True)
        for model in self._files:
            self.place(model)
        backends = self.folder / "backends"
        for name, code in (("onnxruntime", ONNX_BACKEND), ("pytorch", TORCH_BACKEND)):
            (backends / name).mkdir(parents=True)
            (backends / name / "model.py").write_text(code)
        (backends / "python").symlink_to(programs.backends() / "python")

    def in_server(self, backend: str) -> None:
        """Let Triton take a stand-in for a backend that is a library, which runs inside it: it then
        names no ``model.py`` as runtime."""
        place = self.folder / "backends" / backend
        for file in (programs.backends() / "python").iterdir():
            if file.name == "libtriton_python.so":
                # by another link the loader would take it for the same one
                shutil.copy(file, place / f"libtriton_{backend}.so")
            else:
                (place / file.name).symlink_to(file)

    def place(self, model: FileModel) -> None:
        """Write a model's folder."""
        folder = self.repository / model.name
        (folder / "1").mkdir(parents=True)
        for path, content in model.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        message = json_format.ParseDict(model.config(), model_config_pb2.ModelConfig())
        (folder / "config.pbtxt").write_text(text_format.MessageToString(message, as_utf8=True))

    def _command(self) -> list[str]:
        caches = programs.backends().with_name("caches")
        mine = [f"--cache-directory={caches}", f"--cache-config=local,size={self.cache_bytes}"]
        usual = super()._command()
        place = usual.index(f"--backend-directory={programs.backends()}")
        usual[place] = f"--backend-directory={self.folder / 'backends'}"
        return [*usual, *mine]


def floats(*named: tuple[str, list[int]], kind: str = "TYPE_FP32") -> list[dict[str, object]]:
    """Inputs or outputs of one type."""
    return [{"name": name, "data_type": kind, "dims": dims} for name, dims in named]


def onnx_files(folder: Path) -> dict[str, bytes]:
    """The models of ``onnx_files.py`` by name."""
    python, code = (
        programs.engines_root() / "bin" / "python",
        Path(__file__).with_name("onnx_files.py"),
    )
    subprocess.run([str(python), str(code), str(folder), *TYPES], check=True, timeout=60)
    return {file.stem: file.read_bytes() for file in folder.glob("*.onnx")}


XYZ: dict[str, object] = {
    "input": floats(("x", [4])),
    "output": floats(("y", [4]), ("z", [4])),
    "dynamic_batching": {},
}


def models(onnx: Mapping[str, bytes]) -> list[FileModel]:
    """What the server starts with: ``backend: "onnxruntime"``, as their owners wrote it."""
    two = {"1/model.onnx": onnx["two"]}
    cached = {**XYZ, "response_cache": {"enable": True}}
    return [
        FileModel("net", XYZ, two, 8),
        FileModel("moving", XYZ, two, 8),
        FileModel("told", XYZ, two, 8),
        FileModel("cached", cached, two, 8),
        FileModel(
            "random",
            {"input": floats(("x", [4])), "output": floats(("y", [4]))},
            {"1/model.onnx": onnx["random"]},
            8,
        ),
        FileModel(
            "many",
            {**XYZ, "version_policy": {"all": {}}},
            {"1/model.onnx": onnx["two"], "2/model.onnx": onnx["three"]},
            8,
        ),
    ]


class Engines:
    """The running server, a client of it, and the files of the tests."""

    def __init__(self, triton: EngineHost, onnx: Mapping[str, bytes]) -> None:
        self.triton, self.onnx = triton, onnx
        self.client = TritonClient("main", triton.url, timeout_s=10.0)
        self.shares = triton.folder / "shares"
        self.environment = str(programs.engines_root())

    def other(self, model: str, file: str) -> str:
        """A repository in which ``model`` has another file."""
        repository = self.triton.folder / f"other-{file}"
        (repository / model / "1").mkdir(parents=True, exist_ok=True)
        (repository / model / "1" / "model.onnx").write_bytes(self.onnx[file])
        return str(repository)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engines(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engines]:
    folder = tmp_path_factory.mktemp("engines")
    onnx = onnx_files(folder)
    triton = EngineHost(models(onnx), folder / "triton", free_ports(3))
    triton.folder.mkdir()
    triton.prepare()
    try:
        await triton.start()
        running = Engines(triton, onnx)
        yield running
        await running.client.close()
    finally:
        await asyncio.shield(triton.stop())
