"""What stands in for Triton's module, TensorRT and CUDA's runtime where the sent files are
tested."""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Tensor:
    """A tensor of the Python backend; ``device`` for one that is not in the host's memory."""

    def __init__(self, name: str, values: Any, device: Any = None) -> None:
        self._name, self.values, self._device = name, values, device

    def name(self) -> str:
        return self._name

    def is_cpu(self) -> bool:
        return self._device is None

    def as_numpy(self) -> Any:
        return self.values

    def to_dlpack(self) -> Any:
        return self.values.__dlpack__()

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Tensor:
        return cls(name, capsule, device="capsule")


class Request:
    def __init__(self, outputs: list[str], **inputs: Any) -> None:
        self._tensors = [v if isinstance(v, Tensor) else Tensor(n, v) for n, v in inputs.items()]
        self._outputs = outputs

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def requested_output_names(self) -> list[str]:
        return self._outputs


class Response:
    def __init__(self, output_tensors: Any = (), error: Any = None) -> None:
        self.tensors = {t.name(): t.values for t in output_tensors}
        self.error = error


def triton_module() -> ModuleType:
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse = Tensor, Response
    module.TritonError = str
    module.TritonModelException = type("TritonModelException", (Exception,), {})
    return module


def stub_module(name: str, monkeypatch: Any, **modules: ModuleType) -> Any:
    """A file of :mod:`igniterd.engines.stub`, imported anew with ``modules`` in place."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_module())
    for each, module in modules.items():
        monkeypatch.setitem(sys.modules, each, module)
    monkeypatch.delitem(sys.modules, f"igniterd.engines.stub.{name}", raising=False)
    return importlib.import_module(f"igniterd.engines.stub.{name}")


def arguments(config: dict[str, Any], hosted: dict[str, Any], kind: str = "CPU") -> dict[str, str]:
    """What Triton gives ``initialize``."""
    config = {**config, "parameters": {"IGNITERD_HOSTED": {"string_value": json.dumps(hosted)}}}
    return {
        "model_config": json.dumps(config),
        "model_instance_kind": kind,
        "model_instance_device_id": "0",
        "model_instance_name": "net_0_0",
        "model_version": "1",
    }


class Cudart:
    """CUDA's runtime, its device memory being the host's."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}
        self.copies: list[int] = []

    def cudaSetDevice(self, device: int) -> int:  # noqa: N802  CUDA's own names
        return 0 if device == 0 else 101

    def cudaStreamCreate(self, stream: Any) -> int:  # noqa: N802
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        return 0

    def cudaDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 6}[attribute]
        return 0

    def cudaMalloc(self, address: Any, size: Any) -> int:  # noqa: N802
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.kept[ctypes.addressof(memory)] = memory
        return 0

    def cudaFree(self, address: Any) -> int:  # noqa: N802
        del self.kept[address.value]
        return 0

    def cudaMemcpyAsync(self, to: Any, source: Any, size: Any, way: int, stream: Any) -> int:  # noqa: N802
        self.copies.append(way)
        ctypes.memmove(to.value, source.value, size.value)
        return 0


class Context:
    """Executes y = 2 x for batches of 1 to 4."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.profile = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return 1 <= shape[0] <= 4

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shape))
        x, y = (
            np.frombuffer((ctypes.c_float * count).from_address(self.addresses[n]), np.float32)
            for n in "xy"
        )
        np.multiply(x, 2.0, out=y)
        return True


class Plan:
    """A deserialised plan with one input x and one output y."""

    num_io_tensors, num_optimization_profiles = 2, 3

    def get_tensor_name(self, number: int) -> str:
        return "xy"[number]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "in", "y": "out"}[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def create_execution_context(self) -> Context:
        return Context()


def tensorrt_module() -> ModuleType:
    module: Any = ModuleType("tensorrt")

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None:
            pass

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            pass

        def deserialize_cuda_engine(self, content: bytes) -> Plan | None:
            return Plan() if content == b"a plan" else None

    module.Logger, module.Runtime = Logger, Runtime
    module.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    module.init_libnvinfer_plugins = lambda logger, namespace: True
    module.__version__ = "10.0"
    return module
