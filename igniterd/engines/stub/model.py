"""What Triton's Python backend runs for a model that igniterd gave a process of its own.

Sent as ``file:<version>/model.py``, with the engine of the model's own format beside it as
``engine.py``. Nothing of igniterd is imported here: both files run in whatever Python the server
or the engine's environment has. The parameter ``IGNITERD_HOSTED`` says what to host.

The requests of one call are grouped by their inputs and shapes. Each group is one batch, so one
run of the engine. A group that fails answers its own requests with the error.
"""

import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

PARAMETER = "IGNITERD_HOSTED"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
CPU, CUDA = 1, 2  # DLPack's device types
# Backends up to 24.10 read and write numpy's arrays in the layout of numpy 1. Their stubs are
# isolated
MISREAD = int(np.__version__.split(".", 1)[0]) >= 2 and bool(sys.flags.isolated)
# DLPack's (code, bits) of each of Triton's types, and numpy's type of the same bits
TYPES = {
    "TYPE_BOOL": (6, 8, np.bool_),
    "TYPE_UINT8": (1, 8, np.uint8),
    "TYPE_UINT16": (1, 16, np.uint16),
    "TYPE_UINT32": (1, 32, np.uint32),
    "TYPE_UINT64": (1, 64, np.uint64),
    "TYPE_INT8": (0, 8, np.int8),
    "TYPE_INT16": (0, 16, np.int16),
    "TYPE_INT32": (0, 32, np.int32),
    "TYPE_INT64": (0, 64, np.int64),
    "TYPE_FP16": (2, 16, np.float16),
    "TYPE_FP32": (2, 32, np.float32),
    "TYPE_FP64": (2, 64, np.float64),
    "TYPE_BF16": (4, 16, np.uint16),
}


class _Header(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLPack's DLManagedTensor."""


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (
    ("tensor", _Header),
    ("context", ctypes.c_void_p),
    ("deleter", _DELETER),
)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = (ctypes.py_object, ctypes.c_char_p)
_NAME = b"dltensor"
# address of a tensor -> what its memory belongs to, until Triton has taken it
_given_away: dict[int, Any] = {}


def _forget(managed: Any) -> None:
    _given_away.pop(ctypes.addressof(managed.contents), None)


_taken = _DELETER(_forget)


class DeviceTensor:
    """Memory on a GPU: address, shape, Triton's type. ``keeps`` is what the memory belongs to."""

    def __init__(self, address: Any, shape: Any, kind: Any, device: Any, keeps: Any) -> None:
        self.address, self.shape, self.kind = address, tuple(shape), kind
        self.device, self.keeps = device, keeps


def capsule_of(
    address: Any, shape: Any, kind: Any, device_type: Any, device: Any, keeps: Any
) -> Any:
    """A DLPack capsule of memory that stays as long as Triton has the tensor."""
    code, bits, _ = TYPES[kind]
    dims = (ctypes.c_int64 * max(1, len(shape)))(*shape)
    managed = _Managed()
    managed.tensor = _Header(address, device_type, device, len(shape), code, bits, 1, dims, None, 0)
    managed.deleter = _taken
    _given_away[ctypes.addressof(managed)] = (managed, dims, keeps)
    return _new_capsule(ctypes.addressof(managed), _NAME, None)


def _look_into(tensor: Any) -> Any:
    """Address, shape and device of a tensor of the backend, and the capsule that holds it."""
    capsule = tensor.to_dlpack()
    managed = _Managed.from_address(_pointer_of(capsule, _NAME))
    header = managed.tensor
    shape = tuple(header.shape[i] for i in range(header.ndim))
    return (header.data or 0) + header.byte_offset, shape, header.device_id, capsule


def received(tensor: Any, kind: Any) -> Any:
    """An input as a numpy array (BF16 as its bits in uint16) or a :class:`DeviceTensor`."""
    if not tensor.is_cpu():
        address, shape, device, capsule = _look_into(tensor)
        return DeviceTensor(address, shape, kind, device, (tensor, capsule))
    if kind != "TYPE_BF16" and (kind == "TYPE_STRING" or not MISREAD):
        return tensor.as_numpy()
    dtype = np.dtype(TYPES[kind][2])
    address, shape, _, capsule = _look_into(tensor)
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if size == 0:
        return np.empty(shape, dtype)
    memory: Any = (ctypes.c_char * size).from_address(address)
    memory.keeps = (tensor, capsule)
    return np.frombuffer(memory, dtype).reshape(shape)


def answered(name: Any, value: Any, kind: Any) -> Any:
    """An output of an engine as a tensor of the backend."""
    if isinstance(value, DeviceTensor):
        capsule = capsule_of(
            value.address, value.shape, value.kind, CUDA, value.device, value.keeps
        )
        return pb_utils.Tensor.from_dlpack(name, capsule)
    if kind == "TYPE_STRING":
        return pb_utils.Tensor(name, value)
    wanted = np.dtype(TYPES[kind][2])
    if value.dtype != wanted:
        raise TypeError(f"output {name}: the model gives {value.dtype}, its configuration {kind}")
    if kind != "TYPE_BF16" and not MISREAD:
        return pb_utils.Tensor(name, value)
    # A capsule is right with every numpy and backend
    value = np.ascontiguousarray(value).reshape(value.shape)
    capsule = capsule_of(value.ctypes.data, value.shape, kind, CPU, 0, value)
    return pb_utils.Tensor.from_dlpack(name, capsule)


def _keep_pages() -> None:
    """Let the C library keep memory that is freed: the backend copies every tensor of every request
    into fresh memory, and new pages cost more than the copy (of 8 requests of 0.6 MB half of
    it)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; others have none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_TRIM_THRESHOLD, 64 << 20)


def _engine_module() -> Any:
    place = Path(__file__).with_name("engine.py")
    spec: Any = importlib.util.spec_from_file_location("igniterd_engine", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def file_of(hosted: Any, version: Any, capability: Any = "") -> Any:
    """The model's own file: the one for this GPU's compute capability where there is one."""
    owner = hosted["owner"]
    special = owner.get("cc_model_filenames", {}).get(capability)
    name = special or owner.get("default_model_filename") or hosted["filename"]
    path = Path(hosted["folder"], version, name)
    # As bytes: an isolated interpreter in a plain locale cannot name a file with other letters than
    # ASCII.
    if os.path.isdir(str(path).encode()):  # ONNX Runtime's backend looks into a folder of that name
        path /= hosted["filename"]
    if not os.path.isfile(str(path).encode()):
        raise FileNotFoundError(
            f"its file {path} is not there as Triton sees the disk: give [[triton]] repository, "
            "the folder of models as the server sees it"
        )
    return str(path)


class Setting:
    """What an engine is told: ``kind`` is CPU, GPU or MODEL; ``named`` finds a file."""

    def __init__(self, args: Any, config: Any, hosted: Any) -> None:
        self.config, self.hosted = config, hosted
        self.options = hosted["options"]
        self.kind = args["model_instance_kind"]
        self.device = int(args["model_instance_device_id"] or 0)
        self.instance = args["model_instance_name"]
        self.version = args["model_version"]
        self.inputs = {i["name"]: i["data_type"] for i in config["input"]}
        self.outputs = {o["name"]: o["data_type"] for o in config["output"]}
        self.batched = int(config["max_batch_size"]) > 0
        self.np, self.device_tensor = np, DeviceTensor
        self.dtypes = {kind: np.dtype(numpy) for kind, (_, _, numpy) in TYPES.items()}

    def file(self, capability: Any = "") -> Any:
        return file_of(self.hosted, self.version, capability)


class TritonPythonModel:
    """Triton's Python backend calls these three methods."""

    def initialize(self, args: Any) -> None:
        """Load the model's own file; whatever is missing is said in the load's error."""
        if sys.version_info < (3, 10):  # noqa: UP036  this runs in the server's Python, not in igniterd's
            raise pb_utils.TritonModelException(
                f"hosting needs Python 3.10 or later, this is {sys.version.split()[0]}"
            )
        _keep_pages()
        config = json.loads(args["model_config"])
        hosted = json.loads(config["parameters"][PARAMETER]["string_value"])
        self._set = Setting(args, config, hosted)
        kinds = {**self._set.inputs, **self._set.outputs}
        texts = [name for name, kind in kinds.items() if kind == "TYPE_STRING"]
        if texts and MISREAD:
            raise pb_utils.TritonModelException(
                f"{texts[0]} is text, which Triton's Python backend up to 24.10 misreads with "
                "numpy "
                f"{np.__version__}: install numpy 1.26 in the engine's environment"
            )
        self._memory: dict[Any, Any] = {}
        try:
            self._engine = _engine_module().Engine(self._set)
        except ImportError as problem:
            raise pb_utils.TritonModelException(
                f"{hosted['engine']}: the Python {sys.version.split()[0]} at {sys.prefix} lacks "
                f"{problem.name or 'a part of it'} ({problem}): install it there, or name an "
                "environment that has it: [engines] environment"
            ) from None
        except Exception as problem:
            raise pb_utils.TritonModelException(f"{hosted['engine']}: {problem}") from None

    def execute(self, requests: Any) -> Any:
        """Answer every request; an error of one batch is an answer to its requests only."""
        answers = [None] * len(requests)
        for number, members in enumerate(self._groups(requests, answers)):
            try:
                self._run(number, members, answers)
            except Exception as problem:
                for place, *_ in members:
                    answers[place] = _refusal(problem)
        return answers

    def _groups(self, requests: Any, answers: Any) -> Any:
        """Requests that can be one batch: lists of (place, inputs, names of outputs wanted)."""
        groups: dict[Any, list[Any]] = {}
        for place, request in enumerate(requests):
            try:
                kinds = self._set.inputs
                values = {t.name(): received(t, kinds[t.name()]) for t in request.inputs()}
            except Exception as problem:
                answers[place] = _refusal(problem)
                continue
            member = (place, values, request.requested_output_names())
            groups.setdefault(self._key(place, values), []).append(member)
        return groups.values()

    def _key(self, place: Any, values: Any) -> Any:
        if not self._set.batched or any(isinstance(v, DeviceTensor) for v in values.values()):
            return place  # nothing to put together by, or memory that numpy cannot put together
        return tuple(sorted((name, value.shape[1:]) for name, value in values.items()))

    def _joined(self, number: Any, name: Any, parts: Any) -> Any:
        """One array of several, in memory that is used again: fresh pages cost more than the copy.

        Groups of one call do not share it: an engine may answer with what it was given.
        """
        if parts[0].dtype.hasobject:
            return np.concatenate(parts)
        size = sum(part.nbytes for part in parts)
        kept = self._memory.get((number, name))
        if kept is None or kept.nbytes < size:
            kept = self._memory[number, name] = np.empty(size, np.uint8)
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return np.concatenate(parts, out=kept[:size].view(parts[0].dtype).reshape(shape))

    def _run(self, number: Any, members: Any, answers: Any) -> None:
        wanted = [n for n in self._set.outputs if any(n in names for _, _, names in members)]
        if len(members) == 1:
            inputs, sizes = members[0][1], None
        else:
            first = next(iter(members[0][1]))
            sizes = [values[first].shape[0] for _, values, _ in members]
            inputs = {
                name: self._joined(number, name, [values[name] for _, values, _ in members])
                for name in members[0][1]
            }
        outputs = self._engine.run(inputs, wanted)
        begin: Any = 0
        for each, (place, _, names) in enumerate(members):
            end = None if sizes is None else begin + sizes[each]
            tensors = []
            for name in wanted:
                value = outputs.get(name)
                if name not in names or value is None:
                    continue
                if sizes is not None:
                    value = self._part(name, value, begin, end, sum(sizes))
                tensors.append(answered(name, value, self._set.outputs[name]))
            answers[place] = pb_utils.InferenceResponse(tensors)
            begin = end

    @staticmethod
    def _part(name: Any, value: Any, begin: Any, end: Any, total: Any) -> Any:
        """The items of one request: a view."""
        if not value.shape or value.shape[0] != total:
            raise ValueError(
                f"output {name} has shape {list(value.shape)} for a batch of {total}: its first "
                "dimension is not the batch"
            )
        return value[begin:end]

    def finalize(self) -> None:
        """Let go of the engine."""
        self._engine = None


def _refusal(problem: Any) -> Any:
    said = f"{type(problem).__name__}: {problem}" if str(problem) else repr(problem)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(said))
