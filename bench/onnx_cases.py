"""The ``onnx`` package's own backend node tests as files: ``<engines>/bin/python onnx_cases.py
FOLDER``.

Run in the engines' environment. For each test that ONNX Runtime's CPU provider runs on its own:
``FOLDER/<test>/1/model.onnx`` and ``FOLDER/<test>/case.json`` with Triton's types, dimensions, and
inputs and outputs in base64. ``FOLDER/left_out.json`` says why the others are left out.
"""

from __future__ import annotations

import base64
import ctypes
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

KINDS = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.STRING: "BYTES",
}


class LeftOut(Exception):
    """Why a test is none of ours."""


def kind_of(value: Any) -> str:
    if value.type.WhichOneof("value") != "tensor_type":
        raise LeftOut("a sequence, a map or an optional is no tensor of Triton's")
    kind = value.type.tensor_type.elem_type
    if kind not in KINDS:
        raise LeftOut(f"Triton has no {TensorProto.DataType.Name(kind)}")
    return KINDS[kind]


def dims_of(value: Any, shape: Sequence[int]) -> list[int]:
    """As the graph says where it does; a dimension of 0 is one that varies."""
    told = value.type.tensor_type
    if told.HasField("shape") and len(told.shape.dim) == len(shape):
        return [d.dim_value if d.dim_value > 0 else -1 for d in told.shape.dim]
    return [d if d > 0 else -1 for d in shape]


def plain(kind: str, tensor: Any) -> Any:
    """A TensorProto as ONNX Runtime takes it: BF16 as its bits."""
    if kind == "BF16":
        raw = tensor.raw_data or np.array(tensor.int32_data, np.uint16).tobytes()
        return np.frombuffer(raw, np.uint16).reshape(tuple(tensor.dims)).copy()
    values = numpy_helper.to_array(tensor)
    if kind != "BYTES":
        return values
    texts = np.empty(values.size, dtype=object)
    texts[:] = [v.decode() if isinstance(v, bytes) else str(v) for v in values.ravel()]
    return texts.reshape(values.shape)


def raw_of(kind: str, values: Any) -> bytes:
    if kind == "BYTES":
        texts = [v.encode() if isinstance(v, str) else v for v in values.ravel()]
        return b"".join(len(t).to_bytes(4, "little") + t for t in texts)
    return bytes(np.ascontiguousarray(values).tobytes())


def bits(value: Any) -> Any:
    """A BF16 output as its bits."""
    shape = tuple(value.shape())
    size = 2 * int(np.prod(shape, dtype=np.int64))
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(raw, np.uint16).reshape(shape)


def directly(
    session: Any, inputs: dict[str, Any], kinds: dict[str, str], names: list[str]
) -> list[Any]:
    """What ONNX Runtime answers when it is called directly."""
    if "BF16" not in kinds.values():
        return list(session.run(names, inputs))
    make = onnxruntime.OrtValue
    feed = {
        n: make.ortvalue_from_numpy_with_onnx_type(v, 16)
        if kinds[n] == "BF16"
        else make.ortvalue_from_numpy(v)
        for n, v in inputs.items()
    }
    found = session.run_with_ort_values(names, feed)
    return [bits(v) if kinds[n] == "BF16" else v.numpy() for n, v in zip(names, found, strict=True)]


def tensor(name: str, kind: str, dims: list[int], values: Any) -> dict[str, Any]:
    raw = base64.b64encode(raw_of(kind, values)).decode()
    return {"name": name, "datatype": kind, "dims": dims, "shape": list(values.shape), "raw": raw}


def case(folder: Path) -> dict[str, Any]:
    """The test in ``folder``. Raises :class:`LeftOut`."""
    model = onnx.load(folder / "model.onnx")
    given = sorted(
        (folder / "test_data_set_0").glob("input_*.pb"), key=lambda p: int(p.stem.split("_")[1])
    )
    graph, there = model.graph, {i.name for i in model.graph.initializer}
    wanted = [i for i in graph.input if i.name not in there]
    if not wanted:
        raise LeftOut("it has no input, and Triton wants one")
    if len(given) != len(wanted):
        raise LeftOut("it has not one file for each input")
    kinds = {v.name: kind_of(v) for v in (*wanted, *graph.output)}
    inputs = {
        v.name: plain(kinds[v.name], onnx.load_tensor(str(p)))
        for v, p in zip(wanted, given, strict=True)
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        names = [o.name for o in graph.output]
        found, again = (directly(session, inputs, kinds, names) for _ in range(2))
    except Exception as problem:
        raise LeftOut(f"ONNX Runtime alone does not run it ({type(problem).__name__})") from None
    if any(v is None for v in found):
        raise LeftOut("an optional output is not there")
    if any(
        raw_of(kinds[n], a) != raw_of(kinds[n], b)
        for n, a, b in zip(names, found, again, strict=True)
    ):
        raise LeftOut("ONNX Runtime alone answers something else each time")
    return {
        "inputs": [
            tensor(v.name, kinds[v.name], dims_of(v, inputs[v.name].shape), inputs[v.name])
            for v in wanted
        ],
        "outputs": [
            tensor(v.name, kinds[v.name], dims_of(v, a.shape), a)
            for v, a in zip(graph.output, found, strict=True)
        ],
        "as_expected": as_expected(folder, kinds, names, found),
    }


def as_expected(folder: Path, kinds: dict[str, str], names: list[str], found: list[Any]) -> bool:
    """Whether ONNX Runtime answers what the test expects, within the test's own tolerance."""
    for number, (name, value) in enumerate(zip(names, found, strict=True)):
        expected = plain(
            kinds[name], onnx.load_tensor(str(folder / "test_data_set_0" / f"output_{number}.pb"))
        )
        if expected.shape != value.shape:
            return False
        if kinds[name] in ("FP16", "FP32", "FP64"):
            if not np.allclose(expected, value, rtol=1e-3, atol=1e-5, equal_nan=True):
                return False
        elif not np.array_equal(expected, value):
            return False
    return True


def main(folder: Path) -> None:
    left_out: dict[str, str] = {}
    tests = {test.name: Path(test.model_dir) for test in load_model_tests(kind="node")}
    only = set(sys.argv[2:])
    for name, place in sorted(tests.items()):
        if only and name not in only:
            continue
        try:
            found = case(place)
        except LeftOut as why:
            left_out[name] = str(why)
            continue
        (folder / name / "1").mkdir(parents=True)
        shutil.copy(place / "model.onnx", folder / name / "1" / "model.onnx")
        (folder / name / "case.json").write_text(json.dumps(found))
    (folder / "left_out.json").write_text(json.dumps(left_out))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
