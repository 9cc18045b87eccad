"""Requests made from a configuration: what Triton would accept, nothing guessed that was not
told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from igniterd.errors import CannotRun
from igniterd.profiler.inputs import feed_of, output_bytes_of, read_items

NUMPY = {
    "FP32": np.float32,
    "FP16": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


def config(*inputs: dict[str, Any], max_batch: int = 8, **more: Any) -> dict[str, Any]:
    return {"name": "m", "max_batch_size": max_batch, "input": list(inputs), **more}


def tensor(
    name: str = "X", kind: str = "FP32", dims: tuple[int, ...] = (3, 2), **more: Any
) -> dict[str, Any]:
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": list(dims), **more}


@given(st.sampled_from(sorted(NUMPY)), st.lists(st.integers(1, 5), max_size=3), st.integers(1, 8))
def test_a_request_holds_the_batch_in_its_shape_and_bytes(
    kind: str, dims: list[int], batch: int
) -> None:
    feed = feed_of(config(tensor("A", kind, tuple(dims)), tensor("B")), 8)
    message = service_pb2.ModelInferRequest.FromString(feed.request(batch))
    assert message.model_name == "m"
    assert [(i.name, i.datatype, list(i.shape)) for i in message.inputs] == [
        ("A", kind, [batch, *dims]),
        ("B", "FP32", [batch, 3, 2]),
    ]
    assert (
        len(message.raw_input_contents[0])
        == batch * int(np.prod(dims)) * np.dtype(NUMPY[kind]).itemsize
    )
    assert feed.item_bytes == int(np.prod(dims)) * np.dtype(NUMPY[kind]).itemsize + 24


def test_in_shared_memory_a_request_says_where_each_input_lies() -> None:
    feed = feed_of(config(tensor("A"), tensor("B", "INT64", (2,))), 8)
    message = service_pb2.ModelInferRequest.FromString(feed.request(3, "region"))
    assert not message.raw_input_contents
    told = [
        (
            i.parameters["shared_memory_region"].string_param,
            i.parameters["shared_memory_offset"].int64_param,
            i.parameters["shared_memory_byte_size"].int64_param,
        )
        for i in message.inputs
    ]
    assert told == [("region", 0, 72), ("region", 8 * 24, 48)]
    assert feed.size == 8 * 24 + 8 * 16


def test_a_model_without_a_batch_dimension_gets_none() -> None:
    feed = feed_of(config(tensor(), max_batch=0), 1)
    message = service_pb2.ModelInferRequest.FromString(feed.request(1))
    assert list(message.inputs[0].shape) == [3, 2]


def test_text_has_its_length_in_front() -> None:
    feed = feed_of(config(tensor("T", "STRING", (2,))), 4, items={"T": np.array(["ab", "xyz"])})
    message = service_pb2.ModelInferRequest.FromString(feed.request(2))
    assert message.inputs[0].datatype == "BYTES"
    assert message.raw_input_contents[0] == b"\x02\0\0\0ab\x03\0\0\0xyz" * 2


def test_half_floats_of_the_brain_kind_are_the_upper_half() -> None:
    feed = feed_of(
        config(tensor("X", "BF16", (2,))), 4, items={"X": np.array([1.0, -2.0], np.float32)}
    )
    assert feed.tensors[0].blob[:4] == bytes.fromhex("803f00c0")


def test_items_are_sent_in_turn() -> None:
    feed = feed_of(config(tensor("X", "INT32", (1,))), 8, items={"X": np.array([[7], [8], [9]])})
    message = service_pb2.ModelInferRequest.FromString(feed.request(5))
    assert np.frombuffer(message.raw_input_contents[0], np.int32).tolist() == [7, 8, 9, 7, 8]


def test_optional_inputs_are_sent_only_when_given() -> None:
    told = config(tensor("A"), tensor("B", optional=True))
    assert [t.name for t in feed_of(told, 2).tensors] == ["A"]
    assert [t.name for t in feed_of(told, 2, items={"B": np.zeros((3, 2))}).tensors] == ["A", "B"]


def test_variable_dimensions_come_from_the_option_or_the_items() -> None:
    told = config(tensor("X", "INT64", (-1, 4)))
    assert feed_of(told, 2, shapes={"X": [9, 4]}).tensors[0].dims == (9, 4)
    assert feed_of(told, 2, items={"X": np.ones((5, 7, 4))}).tensors[0].dims == (7, 4)


@pytest.mark.parametrize(
    ("told", "more", "said"),
    [
        (
            config(tensor(dims=(-1,))),
            {},
            r"dimensions \[-1\] are variable: give them with --shape X=d1,d2",
        ),
        (
            config(tensor(dims=(-1, 3))),
            {"shapes": {"X": [2, 4]}},
            r"dimensions \[2, 4\] do not fit \[-1, 3\]",
        ),
        (config(tensor(dims=(-1,))), {"shapes": {"X": [2, 4]}}, "do not fit"),
        (config(tensor()), {"shapes": {"Y": [2]}}, "has no input Y; its inputs are X"),
        (config(tensor(is_shape_tensor=True)), {}, "shape tensor"),
        (config(tensor(kind="INVALID")), {}, "type TYPE_INVALID"),
        (config(), {}, "names no inputs"),
        (config(tensor()), {"items": {"X": np.zeros((4, 4, 3, 2))}}, "one item is"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    told: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(CannotRun, match=said):
        feed_of(told, 2, **more)


def test_items_are_read_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "items.npz", X=np.arange(6).reshape(3, 2))
    assert read_items(tmp_path / "items.npz")["X"].shape == (3, 2)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04 cut off")
    for name in ("one.npy", "empty.npz", "half.npz"):
        with pytest.raises(CannotRun, match=r"not an \.npz file"):
            read_items(tmp_path / name)
    (tmp_path / "no.npz").write_text("no")
    with pytest.raises(CannotRun, match="with one array for each input"):
        read_items(tmp_path / "no.npz")


def test_output_bytes_count_what_has_a_size() -> None:
    told = {
        "output": [
            tensor("A", "FP16", (4, 2)),
            tensor("B", "FP32", (-1,)),
            tensor("C", "STRING", (3,)),
        ]
    }
    assert output_bytes_of(told) == 16
