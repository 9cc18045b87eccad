"""ONNX Runtime, hosted. Sent beside ``model.py`` as ``engine.py``; imports nothing of igniterd."""

import ctypes
from typing import Any

import onnxruntime

BFLOAT16, STRING = 16, 8  # onnx.TensorProto.DataType
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}


class Engine:
    """One session; ``run`` takes and gives numpy arrays, or tensors on the device."""

    def __init__(self, setting: Any) -> None:
        self._set, self._np = setting, setting.np
        options = setting.options
        self._session = onnxruntime.InferenceSession(
            setting.file(),
            sess_options=_session_options(options),
            providers=_providers(setting),
        )
        self._check_names()
        # Triton has no scalars without a batch: one value there is a scalar here. ONNX Runtime says
        # the same of an input of any rank, which nobody gives one value.
        ranked = () if setting.batched else self._session.get_inputs()
        self._scalars = {i.name for i in ranked if i.shape == []}
        self._texts = {n for n, k in setting.inputs.items() if k == "TYPE_STRING"}
        self._halves = "TYPE_BF16" in {*setting.inputs.values(), *setting.outputs.values()}
        if self._texts and self._halves:
            raise ValueError("ONNX Runtime in Python takes text and BF16 in one model only apart")
        if self._halves and not hasattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
            raise ValueError(
                f"onnxruntime {onnxruntime.__version__} takes no BF16 from Python, 1.20 and "
                "later do"
            )
        self._run_options = None
        if options.get("arena_shrinkage"):
            self._run_options = onnxruntime.RunOptions()
            key = "memory.enable_memory_arena_shrinkage"
            self._run_options.add_run_config_entry(key, options["arena_shrinkage"])

    def _check_names(self) -> None:
        asked = [i.name for i in self._session.get_inputs()]
        asked += [i.name for i in self._session.get_overridable_initializers()]
        for what, wanted, there in (
            ("input", self._set.inputs, asked),
            ("output", self._set.outputs, [o.name for o in self._session.get_outputs()]),
        ):
            if strange := sorted(wanted.keys() - set(there)):
                raise ValueError(f"the model has no {what} {strange[0]}, it has {', '.join(there)}")

    def run(self, inputs: Any, wanted: Any) -> Any:
        """One batch: {input: value} -> {output: value}."""
        for name in self._texts & inputs.keys():
            inputs[name] = self._text(name, inputs[name])
        for name in self._scalars & inputs.keys():
            if isinstance(inputs[name], self._np.ndarray):
                inputs[name] = inputs[name].reshape(())
        if any(isinstance(v, self._set.device_tensor) for v in inputs.values()):
            return self._run_on_device(inputs, wanted)
        if self._halves:
            return self._run_values(inputs, wanted)
        found = self._session.run(wanted, inputs, self._run_options)
        return {name: self._plain(name, v) for name, v in zip(wanted, found, strict=True)}

    def _text(self, name: Any, value: Any) -> Any:
        """Triton's text is bytes, ONNX Runtime's str."""
        try:
            decoded = [v.decode() if isinstance(v, bytes) else str(v) for v in value.ravel()]
        except UnicodeDecodeError as problem:
            raise ValueError(f"input {name}: text that is not UTF-8: {problem}") from None
        text = self._np.empty(len(decoded), dtype=object)
        text[:] = decoded
        return text.reshape(value.shape)

    def _plain(self, name: Any, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, self._np.ndarray) and value.ndim == 0 and not self._set.batched:
            value = value.reshape(1)
        if self._set.outputs[name] == "TYPE_STRING":
            encoded = self._np.empty(value.size, dtype=object)
            encoded[:] = [v.encode() for v in value.ravel()]
            return encoded.reshape(value.shape)
        if not isinstance(value, self._np.ndarray):
            raise TypeError(f"output {name} is a {type(value).__name__}, not a tensor")
        return value

    # ------------------------------------------------------------ types that numpy has not

    def _run_values(self, inputs: Any, wanted: Any) -> Any:
        """As ``run``, for a model with BF16: the bits go in and come out as they are."""
        make = onnxruntime.OrtValue
        feed = {}
        for name, value in inputs.items():
            if self._set.inputs[name] == "TYPE_BF16":
                bits = self._np.ascontiguousarray(value)
                feed[name] = make.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16)
            else:
                feed[name] = make.ortvalue_from_numpy(value)
        found = self._session.run_with_ort_values(wanted, feed, self._run_options)
        return {name: self._bits(name, v) for name, v in zip(wanted, found, strict=True)}

    def _bits(self, name: Any, value: Any) -> Any:
        if self._set.outputs[name] != "TYPE_BF16":
            return self._plain(name, value.numpy())
        shape = tuple(value.shape())
        size = 2 * int(self._np.prod(shape, dtype=self._np.int64))
        if size == 0:
            return self._np.empty(shape, self._np.uint16)
        memory: Any = (ctypes.c_char * size).from_address(value.data_ptr())
        memory.keeps = value
        return self._np.frombuffer(memory, self._np.uint16).reshape(shape or (1,))

    # ------------------------------------------------------------ on the GPU

    def _run_on_device(self, inputs: Any, wanted: Any) -> Any:
        """One request whose tensors are on the GPU already: nothing goes through the host."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, self._set.device_tensor):
                half = value.kind == "TYPE_BF16"
                element = BFLOAT16 if half else self._set.dtypes[value.kind].type
                binding.bind_input(name, "cuda", value.device, element, value.shape, value.address)
            else:
                binding.bind_cpu_input(name, value)
        for name in wanted:
            if self._set.outputs[name] == "TYPE_STRING":
                binding.bind_output(name)  # text is never on a device
            else:
                binding.bind_output(name, "cuda", self._set.device)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding, self._run_options)
        binding.synchronize_outputs()
        found = zip(wanted, binding.get_outputs(), strict=True)
        return {name: self._device_output(name, value) for name, value in found}

    def _device_output(self, name: Any, value: Any) -> Any:
        kind = self._set.outputs[name]
        if value.device_name().lower() != "cuda":
            return self._bits(name, value)
        return self._set.device_tensor(
            value.data_ptr(), value.shape(), kind, self._set.device, value
        )


def _session_options(options: Any) -> Any:
    made = onnxruntime.SessionOptions()
    level = _LEVELS[options.get("graph", "all")]
    made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if options.get("parallel"):
        made.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    if options.get("intra_op_threads"):
        made.intra_op_num_threads = options["intra_op_threads"]
    if options.get("inter_op_threads"):
        made.inter_op_num_threads = options["inter_op_threads"]
    if "mem_arena" in options:
        made.enable_cpu_mem_arena = options["mem_arena"]
    if "mem_pattern" in options:
        made.enable_mem_pattern = options["mem_pattern"]
    for key, value in options.get("session", {}).items():
        made.add_session_config_entry(key, value)
    for library in options.get("libraries", ()):
        made.register_custom_ops_library(library)
    return made


def _providers(setting: Any) -> Any:
    """Those of the owner's accelerators and the GPU, in order; what is not built in is said."""
    options, wanted = setting.options, []
    if setting.kind == "GPU":
        for name, given in options.get("gpu_providers", [["CUDAExecutionProvider", {}]]):
            wanted.append((name, given | {"device_id": str(setting.device)}))
    else:
        wanted += [tuple(provider) for provider in options.get("cpu_providers", ())]
    there = onnxruntime.get_available_providers()
    for name, _ in wanted:
        if name not in there:
            raise ImportError(
                f"onnxruntime {onnxruntime.__version__} has no {name}, it has {', '.join(there)}",
                name=f"onnxruntime with {name}",
            )
    return [*wanted, "CPUExecutionProvider"]
