"""Writes the ONNX models of the tests: ``<engines>/bin/python onnx_files.py FOLDER TYPE…``.

Run in the engines' environment, which has the package ``onnx``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper


def info(name: str, kind: int, dims: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def node(operator: str, inputs: str, output: str, **more: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], **more)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> bytes:
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=kept)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return bytes(made.SerializeToString())


def scaled(factor: float) -> bytes:
    """y = factor x, z = x + factor."""
    dims = ["n", 4]
    return model(
        [node("Mul", "x f", "y"), node("Add", "x f", "z")],
        [info("x", T.FLOAT, dims)],
        [info("y", T.FLOAT, dims), info("z", T.FLOAT, dims)],
        f=np.array([factor], np.float32),
    )


def slow() -> bytes:
    """As scaled(2), after some milliseconds that change nothing."""
    big = np.zeros((700, 700), np.float32)
    dims = ["n", 4]
    first = [node("Mul", "x f", "y"), node("Add", "x f", "z0")]
    chain = [node("ReduceMax", "x", "m", keepdims=0), node("Add", "m big", "b0")]
    chain += [node("MatMul", f"b{n} big", f"b{n + 1}") for n in range(3)]
    end = [
        node("ReduceMax", "b3", "s", keepdims=0),
        node("Mul", "s nought", "s0"),
        node("Add", "z0 s0", "z"),
    ]
    return model(
        [*first, *chain, *end],
        [info("x", T.FLOAT, dims)],
        [info("y", T.FLOAT, dims), info("z", T.FLOAT, dims)],
        f=np.array([2.0], np.float32),
        big=big,
        nought=np.array(0.0, np.float32),
    )


def write(folder: Path, types: list[str]) -> None:
    made = {
        "two": scaled(2.0),
        "three": scaled(3.0),
        "slow": slow(),
        "words": model(
            [node("Identity", "in", "out")],
            [info("in", T.STRING, ["a"])],
            [info("out", T.STRING, ["a"])],
        ),
        "half": model(
            [node("Identity", "in", "out")],
            [info("in", T.BFLOAT16, ["a", "b"])],
            [info("out", T.BFLOAT16, ["a", "b"])],
        ),
        "optional": model(
            [node("Add", "x w", "y")],
            [info("x", T.FLOAT, ["n", 2]), info("w", T.FLOAT, ["m", 2])],
            [info("y", T.FLOAT, ["n", 2])],
            w=np.array([[10.0, 20.0]], np.float32),
        ),
        "square": model(
            [node("MatMul", "x x", "y")],
            [info("x", T.FLOAT, ["n", 2, 2])],
            [info("y", T.FLOAT, ["n", 2, 2])],
        ),
        "rows": model(  # any even length; an odd one fails
            [node("Reshape", "x s", "r"), node("ReduceSum", "r a", "y", keepdims=0)],
            [info("x", T.FLOAT, ["n", "k"])],
            [info("y", T.FLOAT, ["n"])],
            s=np.array([0, 2, -1], np.int64),
            a=np.array([1, 2], np.int64),
        ),
        "random": model(
            [node("RandomUniformLike", "x", "y")],
            [info("x", T.FLOAT, ["n", 4])],
            [info("y", T.FLOAT, ["n", 4])],
        ),
    }
    for without in ("BFLOAT16", "STRING"):
        some = [t for t in types if t != without]
        made[f"without-{without}"] = model(
            [node("Identity", f"in_{t}", f"out_{t}") for t in some],
            [info(f"in_{t}", getattr(T, t), ["a", "b"]) for t in some],
            [info(f"out_{t}", getattr(T, t), ["a", "b"]) for t in some],
        )
    for name, content in made.items():
        onnx.load_from_string(content)
        (folder / f"{name}.onnx").write_bytes(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2:])
