"""Engines on a real GPU: with CUDA's and TensorRT's own code, and tensors that stay on the device.

Run in a Python that has torch (CUDA), onnx with onnxruntime-gpu, and tensorrt. A test fails without
what it needs; ``-k pytorch`` and the like choose an engine.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.fakes import Request, Tensor, arguments, stub_module

pytestmark = pytest.mark.gpu

CONFIG: dict[str, Any] = {
    "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32"}],
    "output": [{"name": "y", "data_type": "TYPE_FP32"}],
}


def hosted(
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    filename: str,
    folder: Path,
    config: dict[str, Any] | None = None,
) -> Any:
    """The sent files with an engine, on GPU 0."""
    module, beside = stub_module("model", monkeypatch), stub_module(f"{engine}_engine", monkeypatch)
    monkeypatch.setattr(module, "_engine_module", lambda: beside)
    model = module.TritonPythonModel()
    told = {
        "engine": engine,
        "filename": filename,
        "folder": str(folder),
        "owner": {},
        "options": {},
    }
    model.initialize(arguments(config or CONFIG, told, "GPU"))
    return model


def doubled(model: Any) -> None:
    """Alone and together, from the host's memory."""
    given = [np.arange(4 * n, dtype=np.float32).reshape(n, 4) for n in (2, 1, 3)]
    for requests in (given[:1], given):
        answers = model.execute([Request(["y"], x=x) for x in requests])
        for x, answer in zip(requests, answers, strict=True):
            assert answer.error is None, answer.error
            np.testing.assert_allclose(answer.tensors["y"], 2 * x, rtol=1e-5)


def stays_on_the_device(model: Any, torch: Any) -> None:
    x = torch.arange(8, dtype=torch.float32, device="cuda:0").reshape(2, 4)

    class OnDevice(Tensor):
        def to_dlpack(self) -> Any:
            return torch.utils.dlpack.to_dlpack(self.values)

    (answer,) = model.execute([Request(["y"], x=OnDevice("x", x, device="cuda:0"))])
    assert answer.error is None, answer.error
    found = torch.utils.dlpack.from_dlpack(answer.tensors["y"])
    assert found.is_cuda
    assert torch.equal(found, 2 * x)


@pytest.fixture
def torch_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    torch = import_module("torch")
    assert torch.cuda.is_available(), "torch sees no GPU"

    class Double(torch.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any) -> Any:
            return x * 2

    (tmp_path / "1").mkdir()
    torch.jit.trace(Double(), torch.ones(1, 4)).save(str(tmp_path / "1" / "model.pt"))
    return hosted(monkeypatch, "pytorch", "model.pt", tmp_path)


def test_pytorch(torch_model: Any) -> None:
    doubled(torch_model)


def test_pytorch_on_the_device(torch_model: Any) -> None:
    stays_on_the_device(torch_model, import_module("torch"))


@pytest.fixture
def onnx_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    onnx, onnxruntime = import_module("onnx"), import_module("onnxruntime")
    there = onnxruntime.get_available_providers()
    assert "CUDAExecutionProvider" in there, "onnxruntime is not onnxruntime-gpu"
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (make.make_tensor_value_info(name, kind, ["n", 4]) for name in "xy")
    graph = make.make_graph([make.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)])
    model.ir_version = 8
    (tmp_path / "1").mkdir()
    onnx.save(model, tmp_path / "1" / "model.onnx")
    return hosted(monkeypatch, "onnxruntime", "model.onnx", tmp_path)


def test_onnx_runtime(onnx_model: Any) -> None:
    assert "CUDAExecutionProvider" in onnx_model._engine._session.get_providers()
    doubled(onnx_model)


def test_onnx_runtime_on_the_device(onnx_model: Any) -> None:
    torch = import_module("torch")
    stays_on_the_device(onnx_model, torch)


@pytest.fixture
def plan_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    trt = import_module("tensorrt")
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    x = network.add_input("x", trt.float32, (-1, 4))
    layer = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM)
    layer.get_output(0).name = "y"
    network.mark_output(layer.get_output(0))
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (4, 4), (8, 4))
    settings = builder.create_builder_config()
    settings.add_optimization_profile(profile)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan").write_bytes(
        bytes(builder.build_serialized_network(network, settings))
    )
    return hosted(monkeypatch, "tensorrt", "model.plan", tmp_path)


def test_tensorrt(plan_model: Any) -> None:
    doubled(plan_model)


def test_tensorrt_on_the_device(plan_model: Any) -> None:
    stays_on_the_device(plan_model, import_module("torch"))
