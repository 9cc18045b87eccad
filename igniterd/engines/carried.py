"""What of an owner's settings a hosted model keeps, and what it cannot keep. Pure.

The parameters are those that Triton's ONNX Runtime, PyTorch and TensorRT backends read (24.01 to
26.07). What they mean is written down for the engine in words of its own, so that the files sent
to Triton need no knowledge of Triton's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]
_TRUE, _FALSE = ("1", "true", "True", "TRUE"), ("0", "false", "False", "FALSE", "")


@dataclass(slots=True)
class Carried:
    """``options``: for the engine, JSON. ``notes``: what is not carried over, one line each."""

    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def parameters_of(config: Config) -> dict[str, str]:
    """``parameters`` as plain text."""
    given = config.get("parameters", {}).items()
    return {key: str(value.get("string_value", "")) for key, value in given}


def carry_settings(engine: str, config: Config) -> Carried:
    """What an engine (``onnxruntime``, ``pytorch``, ``tensorrt``) is told of ``config``."""
    found = Carried()
    _READ[engine](config, parameters_of(config), found)
    _optimization(engine, config.get("optimization", {}), found)
    libraries = config.get("model_operations", {}).get("op_library_filename", [])
    if libraries and engine == "pytorch":
        found.notes.append("model_operations: libraries of operators are not loaded for PyTorch")
    elif libraries:
        found.options["libraries"] = list(libraries)
    return found


def _flag(text: str) -> bool | None:
    return True if text in _TRUE else False if text in _FALSE else None


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _take(
    found: Carried,
    parameters: Mapping[str, str],
    names: Mapping[str, str],
    read: Callable[[str], Any],
    wanted: str,
) -> None:
    """Parameters by name into options by name; one that cannot be read is a note."""
    for name, option in names.items():
        if name not in parameters:
            continue
        value = read(parameters[name])
        if value is None:
            found.notes.append(
                f"parameter {name}: {parameters[name]!r} should be {wanted}; left out"
            )
        else:
            found.options[option] = value


# ---------------------------------------------------------------- ONNX Runtime

_GRAPH = {-1: "basic", 0: "all", 1: "extended", 2: "none"}
_CUDA_PARAMETERS = {  # older way of giving options of the CUDA provider
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": {},
    "gpu_mem_limit": {},
}
_TENSORRT_KEYS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_PRECISIONS = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "True"},
    "BF16": {"trt_bf16_enable": "True"},
    "INT8": {"trt_int8_enable": "True"},
}


def _onnxruntime(config: Config, parameters: Mapping[str, str], found: Carried) -> None:
    optimization = config.get("optimization", {})
    level = int(optimization.get("graph", {}).get("level", 0))
    found.options["graph"] = _GRAPH.get(level, "all")
    threads = {
        "intra_op_thread_count": "intra_op_threads",
        "inter_op_thread_count": "inter_op_threads",
    }
    _take(found, parameters, threads, _number, "a whole number")
    memory = {"enable_mem_arena": "mem_arena", "enable_mem_pattern": "mem_pattern"}
    _take(found, parameters, memory | {"execution_mode": "parallel"}, _flag, "0 or 1")
    if key := parameters.get("memory.enable_memory_arena_shrinkage"):
        found.options["arena_shrinkage"] = key
    if value := parameters.get("session.use_device_allocator_for_initializers"):
        found.options["session"] = {"session.use_device_allocator_for_initializers": value}
    if _flag(parameters.get("share_session_between_instances", "0")):
        found.notes.append(
            "parameter share_session_between_instances: every instance has a process of its own, "
            "so each has a session of its own and its memory"
        )
    _accelerators(optimization.get("execution_accelerators", {}), parameters, found)


def _accelerators(given: Mapping[str, Any], parameters: Mapping[str, str], found: Carried) -> None:
    cuda = {
        name: values.get(parameters[name], parameters[name])
        for name, values in _CUDA_PARAMETERS.items()
        if name in parameters
    }
    providers: list[list[Any]] = []
    for each in given.get("gpu_execution_accelerator", []):
        name, options = str(each.get("name", "")), dict(each.get("parameters", {}))
        if name == "tensorrt":
            providers.append(["TensorrtExecutionProvider", _tensorrt_provider(options, found)])
        elif name == "cuda":
            cuda |= options
        else:
            found.notes.append(f"execution accelerator {name}: not one that is known for a GPU")
    found.options["gpu_providers"] = [*providers, ["CUDAExecutionProvider", cuda]]
    for each in given.get("cpu_execution_accelerator", []):
        name = str(each.get("name", ""))
        if name == "openvino":
            mine = ["OpenVINOExecutionProvider", dict(each.get("parameters", {}))]
            found.options.setdefault("cpu_providers", []).append(mine)
        else:
            found.notes.append(f"execution accelerator {name}: not one that is known for a CPU")


def _tensorrt_provider(given: dict[str, str], found: Carried) -> dict[str, str]:
    precision = given.pop("precision_mode", "FP32")
    if precision not in _PRECISIONS:
        known = ", ".join(_PRECISIONS)
        found.notes.append(f"precision_mode {precision!r} should be one of {known}; left out")
    options = dict(_PRECISIONS.get(precision, {}))
    for key, value in given.items():
        name, flag = _TENSORRT_KEYS.get(key, key), _flag(value)
        truth = name.endswith(
            ("_enable", "_table", "_dump", "_build", "_cache", "_log", "_fallback")
        )
        options[name] = str(flag) if truth and flag is not None else value
    return options


# ---------------------------------------------------------------- PyTorch


def _pytorch(config: Config, parameters: Mapping[str, str], found: Carried) -> None:
    threads = {
        "INTRA_OP_THREAD_COUNT": "intra_op_threads",
        "INTER_OP_THREAD_COUNT": "inter_op_threads",
    }
    _take(found, parameters, threads, _number, "a whole number")
    flags = {
        "INFERENCE_MODE": "inference_mode",
        "ENABLE_CACHE_CLEANING": "cache_cleaning",
        "ENABLE_JIT_PROFILING": "jit_profiling",
        "ENABLE_JIT_EXECUTOR": "jit_executor",
        "ENABLE_TENSOR_FUSER": "tensor_fuser",
    }
    _take(found, parameters, flags, _flag, "true or false")
    for name, option in (
        ("DISABLE_OPTIMIZED_EXECUTION", "optimized_execution"),
        ("DISABLE_CUDNN", "cudnn"),
    ):
        if (value := _flag(parameters.get(name, ""))) is not None and name in parameters:
            found.options[option] = not value
    if _flag(parameters.get("ENABLE_WEIGHT_SHARING", "0")):
        found.notes.append(
            "parameter ENABLE_WEIGHT_SHARING: every instance has a process of its own, so each "
            "has the weights in memory"
        )
    if "ENABLE_NVFUSER" in parameters:
        found.notes.append("parameter ENABLE_NVFUSER: PyTorch has no nvFuser any more; left out")


# ---------------------------------------------------------------- TensorRT


def _tensorrt(config: Config, parameters: Mapping[str, str], found: Carried) -> None:
    name, profiles = str(config.get("name", "")), dict[str, str]()
    for number, group in enumerate(config.get("instance_group", [])):
        asked = list(group.get("profile", []))
        if asked:
            profiles[str(group.get("name") or f"{name}_{number}")] = str(asked[0])
        if len(asked) > 1:
            found.notes.append(
                f"instance_group profile {', '.join(asked)}: one profile a process; {asked[0]} "
                "is used"
            )
    found.options["profiles"] = profiles
    if config.get("optimization", {}).get("cuda", {}).get("graphs"):
        found.notes.append("optimization cuda graphs: the plan is executed without CUDA graphs")
    if "execution_context_allocation_strategy" in parameters:
        found.notes.append(
            "parameter execution_context_allocation_strategy: TensorRT's own is used"
        )


_READ: dict[str, Callable[[Config, Mapping[str, str], Carried], None]] = {
    "onnxruntime": _onnxruntime,
    "pytorch": _pytorch,
    "tensorrt": _tensorrt,
}


def _optimization(engine: str, given: Mapping[str, Any], found: Carried) -> None:
    """What no engine keeps."""
    for name in ("input_pinned_memory", "output_pinned_memory"):
        if given.get(name, {}).get("enable") is False:
            found.notes.append(f"optimization {name}: the Python backend decides on its own")
    if engine == "onnxruntime" and given.get("cuda", {}).get("graphs"):
        found.notes.append("optimization cuda graphs: only through the CUDA provider's own options")
    if engine != "onnxruntime" and given.get("execution_accelerators"):
        found.notes.append(f"optimization execution_accelerators: mean nothing to {engine}")
