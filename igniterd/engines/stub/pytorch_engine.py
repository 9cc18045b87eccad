"""TorchScript, hosted. Sent beside ``model.py`` as ``engine.py``; imports nothing of igniterd."""

import contextlib
import re
from typing import Any

import torch

_INDEXED = re.compile(r"(.+)__(\d+)")
_TORCH = {"TYPE_BOOL": "bool", "TYPE_BF16": "bfloat16"}


class Engine:
    """One TorchScript module; ``run`` takes and gives numpy arrays, or tensors on the device."""

    def __init__(self, setting: Any) -> None:
        self._set, self._np = setting, setting.np
        options = setting.options
        _set_up(options)
        self._device = None
        if setting.kind != "MODEL":  # a model that places itself keeps its devices
            self._device = torch.device(
                f"cuda:{setting.device}" if setting.kind == "GPU" else "cpu"
            )
        self._inference = options.get("inference_mode", True)
        self._clean = options.get("cache_cleaning", False) and setting.kind == "GPU"
        with self._mode():
            self._module = torch.jit.load(setting.file(), map_location=self._device).eval()
        if self._device is None:
            first = next(iter(self._module.parameters()), None)
            self._device = torch.device("cpu") if first is None else first.device
        self._inputs = self._ordered_inputs()
        self._outputs = _ordered(list(setting.outputs), "output")

    def _mode(self) -> Any:
        return torch.inference_mode() if self._inference else torch.no_grad()

    def _ordered_inputs(self) -> Any:
        """The inputs as the module takes them: NAME__0, or the arguments of forward, or as the
        configuration lists them."""
        names = list(self._set.inputs)
        if all(_INDEXED.fullmatch(name) for name in names):
            return _ordered(names, "input")
        arguments = [a.name for a in self._module.forward.schema.arguments][1:]
        if set(names) <= set(arguments):
            return [name for name in arguments if name in names]
        return names

    def run(self, inputs: Any, wanted: Any) -> Any:
        """One batch: {input: value} -> {output: value}."""
        names = [name for name in self._inputs if name in inputs]
        if names != self._inputs[: len(names)]:  # they are given by position
            missing = next(name for name in self._inputs if name not in inputs)
            raise ValueError(f"input {missing} is left out, and inputs behind it are not")
        given = [self._tensor(name, inputs[name]) for name in names]
        optimized = self._set.options.get("optimized_execution", True)
        with self._mode(), torch.jit.optimized_execution(optimized), self._cudnn():
            found = self._module(*given)
        if isinstance(found, (torch.Tensor, str)) or (
            isinstance(found, list) and found and isinstance(found[0], str)
        ):
            found = [found]
        if isinstance(found, dict):
            raise TypeError("the model answers with a dict, and Triton's outputs have an order")
        if len(found) < len(self._outputs):
            raise ValueError(f"the model gives {len(found)} outputs of {len(self._outputs)}")
        on_device = any(isinstance(v, self._set.device_tensor) for v in inputs.values())
        named = zip(self._outputs, found, strict=False)
        result = {n: self._value(n, v, on_device) for n, v in named if n in wanted}
        if self._clean:
            torch.cuda.empty_cache()
        return result

    def _cudnn(self) -> Any:
        if self._set.options.get("cudnn", True):
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(enabled=False)

    def _tensor(self, name: Any, value: Any) -> Any:
        kind = self._set.inputs[name]
        if isinstance(value, self._set.device_tensor):
            capsule = value.keeps[1]
            return torch.utils.dlpack.from_dlpack(capsule).to(self._device)
        if kind == "TYPE_STRING":
            if value.ndim != 1 + self._set.batched or (self._set.batched and value.shape[1] != 1):
                raise ValueError(f"input {name}: PyTorch takes text of one dimension only")
            return [v.decode() for v in value.ravel()]
        if kind == "TYPE_BF16":
            made = torch.from_numpy(self._np.array(value.view(self._np.int16)))
            return made.view(torch.bfloat16).to(self._device)
        if not value.flags.writeable:
            value = value.copy()
        return torch.from_numpy(value).to(self._device)

    def _value(self, name: Any, value: Any, on_device: Any) -> Any:
        kind = self._set.outputs[name]
        if kind == "TYPE_STRING":
            texts = [value] if isinstance(value, str) else value
            return self._np.array([v.encode() for v in texts], dtype=object)
        value = value.detach().contiguous()
        told = str(value.dtype).removeprefix("torch.")
        if told != (_TORCH.get(kind) or self._set.dtypes[kind].name):
            raise TypeError(f"output {name}: the model gives {told}, its configuration {kind}")
        if on_device and value.is_cuda:
            torch.cuda.current_stream(value.device).synchronize()
            return self._set.device_tensor(
                value.data_ptr(), value.shape, kind, value.device.index, value
            )
        value = value.cpu()
        if kind == "TYPE_BF16":
            return value.view(torch.int16).numpy().view(self._np.uint16)
        return value.numpy()


def _ordered(names: Any, what: Any) -> Any:
    """By the number behind ``__`` where all have one, else as the configuration lists them."""
    found = [match for name in names if (match := _INDEXED.fullmatch(name))]
    if len(found) < len(names):
        return names
    by_index = {int(match.group(2)): match.string for match in found}
    if sorted(by_index) != list(range(len(names))):
        raise ValueError(f"its {what}s {', '.join(names)} should be numbered from 0 without a gap")
    return [by_index[number] for number in range(len(names))]


def _set_up(options: Any) -> None:
    if options.get("intra_op_threads"):
        torch.set_num_threads(options["intra_op_threads"])
    if options.get("inter_op_threads"):
        torch.set_num_interop_threads(options["inter_op_threads"])
    if "jit_profiling" in options:
        torch._C._jit_set_profiling_mode(options["jit_profiling"])
    if "jit_executor" in options:
        torch._C._jit_set_profiling_executor(options["jit_executor"])
    if "tensor_fuser" in options:
        torch._C._jit_set_texpr_fuser_enabled(options["tensor_fuser"])
