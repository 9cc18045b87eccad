"""A TensorRT plan, hosted. Sent beside ``model.py`` as ``engine.py``; imports nothing of igniterd.

The API with tensor names is used, which TensorRT has since 8.5. CUDA's own library copies: no
further package is needed.
"""

import ctypes
import ctypes.util
from pathlib import Path
from typing import Any

import tensorrt

_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapability…
_NAMES = {"TYPE_BF16": "BF16", "TYPE_FP16": "HALF", "TYPE_FP32": "FLOAT", "TYPE_BOOL": "BOOL"}
_NAMES |= {"TYPE_INT8": "INT8", "TYPE_UINT8": "UINT8", "TYPE_INT32": "INT32", "TYPE_INT64": "INT64"}


class Cuda:
    """The few calls of CUDA's runtime that are needed, on one device."""

    def __init__(self, device: Any, library: Any = None) -> None:
        self._library = library or _runtime()
        self._check("cudaSetDevice", device)
        stream = ctypes.c_void_p()
        self._check("cudaStreamCreate", ctypes.byref(stream))
        self.stream, self._device = stream, device

    def _check(self, call: Any, *arguments: Any) -> None:
        code = getattr(self._library, call)(*arguments)
        if code != 0:
            raise RuntimeError(f"{call} gives CUDA error {code}")

    def capability(self) -> Any:
        """Such as "8.0"."""
        found = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._check("cudaDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
            found.append(value.value)
        return f"{found[0]}.{found[1]}"

    def copy(self, to: Any, source: Any, size: Any, way: Any) -> None:
        args = (ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size))
        self._check("cudaMemcpyAsync", *args, way, self.stream)

    def wait(self) -> None:
        self._check("cudaStreamSynchronize", self.stream)

    def memory(self, size: Any) -> Any:
        return Memory(self, self._library, size)


class Memory:
    """Device memory, given back with the last reference to it."""

    def __init__(self, cuda: Any, library: Any, size: Any) -> None:
        address = ctypes.c_void_p()
        cuda._check("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        self.address, self.size, self._free = address.value, size, library.cudaFree

    def __del__(self) -> None:
        if getattr(self, "address", None):
            self._free(ctypes.c_void_p(self.address))


class Engine:
    """One execution context; ``run`` takes and gives numpy arrays, or tensors on the device."""

    def __init__(self, setting: Any, library: Any = None) -> None:
        if setting.kind == "CPU":
            raise ValueError("a TensorRT plan runs on a GPU, and the instance is KIND_CPU")
        self._set, self._np = setting, setting.np
        self._cuda = Cuda(setting.device, library)
        for plugin in setting.options.get("libraries", ()):
            ctypes.CDLL(plugin, mode=ctypes.RTLD_GLOBAL)
        logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        tensorrt.init_libnvinfer_plugins(logger, "")
        path = setting.file(self._cuda.capability())
        self._runtime = tensorrt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self._engine is None:
            raise ValueError(
                f"TensorRT {tensorrt.__version__} does not take {path}: a plan is for the "
                "version and the GPU it was built with"
            )
        self._context = self._engine.create_execution_context()
        self._check_names()
        self._profile()
        # device memory by tensor, used again as long as it is large enough
        self._kept: dict[str, Memory] = {}

    def _check_names(self) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        self._all = {n: engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT for n in names}
        for what, wanted, is_input in (
            ("input", self._set.inputs, True),
            ("output", self._set.outputs, False),
        ):
            there = [n for n, i in self._all.items() if i is is_input]
            if strange := sorted(wanted.keys() - set(there)):
                raise ValueError(f"the plan has no {what} {strange[0]}, it has {', '.join(there)}")
            for name, kind in wanted.items():
                if (told := engine.get_tensor_dtype(name).name) != _NAMES.get(kind):
                    raise TypeError(
                        f"{what} {name}: the plan says {told}, its configuration {kind}"
                    )

    def _profile(self) -> None:
        """The optimization profile of this instance's group."""
        index = int(self._profile_asked())
        if index >= self._engine.num_optimization_profiles:
            there = self._engine.num_optimization_profiles
            raise ValueError(
                f"optimization profile {index} of instance_group: the plan has {there}"
            )
        if index and not self._context.set_optimization_profile_async(
            index, self._cuda.stream.value or 0
        ):
            raise ValueError(f"optimization profile {index} is in use by another context")
        self._cuda.wait()

    def _profile_asked(self) -> Any:
        """By the name of the group, which is the instance's without its number."""
        asked = self._set.options.get("profiles", {})
        alone = next(iter(asked.values())) if len(asked) == 1 else 0
        return asked.get(self._set.instance.rpartition("_")[0], alone)

    def run(self, inputs: Any, wanted: Any) -> Any:
        """One batch: {input: value} -> {output: value}."""
        on_device = any(isinstance(v, self._set.device_tensor) for v in inputs.values())
        keeps = [self._put(name, value) for name, value in inputs.items()]
        if missing := [n for n, i in self._all.items() if i and n not in inputs]:
            raise ValueError(f"input {missing[0]} is not in the request, and a plan needs it")
        places = {n: self._place(n, fresh=on_device) for n, i in self._all.items() if not i}
        if not self._context.execute_async_v3(self._cuda.stream.value or 0):
            raise RuntimeError("TensorRT did not execute: its log, in Triton's, says why")
        found = {name: self._fetched(name, places[name], on_device) for name in wanted}
        self._cuda.wait()
        del keeps
        return found

    def _put(self, name: Any, value: Any) -> Any:
        shape = tuple(value.shape)
        if not self._context.set_input_shape(name, shape):
            raise ValueError(f"input {name}: shape {list(shape)} is outside the plan's profile")
        if isinstance(value, self._set.device_tensor):
            self._context.set_tensor_address(name, value.address)
            return value
        value = self._np.ascontiguousarray(value)
        memory = self._room(name, value.nbytes)
        self._cuda.copy(memory.address, value.ctypes.data, value.nbytes, _TO_DEVICE)
        self._context.set_tensor_address(name, memory.address)
        return value

    def _room(self, name: Any, size: Any) -> Any:
        if name not in self._kept or self._kept[name].size < size:
            self._kept.pop(name, None)
            self._kept[name] = self._cuda.memory(size)
        return self._kept[name]

    def _place(self, name: Any, *, fresh: Any) -> Any:
        """Memory and shape of an output. ``fresh``: it goes to the client as it is."""
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise ValueError(f"output {name}: its shape {list(shape)} depends on the data")
        kind = self._set.outputs.get(name)
        each = 8 if kind is None else self._set.dtypes[kind].itemsize
        size = each * int(self._np.prod(shape, dtype=self._np.int64))
        memory = self._cuda.memory(size) if fresh else self._room(name, size)
        self._context.set_tensor_address(name, memory.address)
        return memory, shape

    def _fetched(self, name: Any, place: Any, on_device: Any) -> Any:
        (memory, shape), kind = place, self._set.outputs[name]
        if on_device:
            return self._set.device_tensor(memory.address, shape, kind, self._set.device, memory)
        found = self._np.empty(shape, self._set.dtypes[kind])
        if found.nbytes:
            self._cuda.copy(found.ctypes.data, memory.address, found.nbytes, _TO_HOST)
        return found


def _runtime() -> Any:
    names = [f"libcudart.so.{major}" for major in ("13", "12", "11.0")]
    for name in (*names, ctypes.util.find_library("cudart") or "libcudart.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ImportError(
        f"none of {', '.join(names)} can be loaded", name="libcudart (CUDA's runtime)"
    )
