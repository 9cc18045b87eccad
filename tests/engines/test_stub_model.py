"""The file that is sent: how requests are put together, split, and answered with errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.fakes import Request, arguments, stub_module

CONFIG: dict[str, Any] = {
    "max_batch_size": 8,
    "input": [{"name": n, "data_type": "TYPE_FP32"} for n in ("x", "w")],
    "output": [{"name": n, "data_type": "TYPE_FP32"} for n in ("y", "z")],
}
HOSTED = {
    "engine": "onnxruntime",
    "options": {},
    "folder": "/models/net",
    "owner": {},
    "filename": "model.onnx",
}


class Doubling:
    """y = 2 x, z = x; a length of 3 fails. Keeps what it was given and gave."""

    def __init__(self, setting: Any) -> None:
        self.given: list[Any] = []
        self.gave: list[Any] = []
        self.asked: list[list[str]] = []

    def run(self, inputs: Any, wanted: list[str]) -> dict[str, Any]:
        self.given.append(inputs)
        self.asked.append(wanted)
        if inputs["x"].shape[-1] == 3:
            raise ValueError("three")
        self.gave.append(inputs["x"] * 2)
        return {"y": self.gave[-1], "z": inputs["x"]}


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = stub_module("model", monkeypatch)
    monkeypatch.setattr(module, "_engine_module", lambda: SimpleNamespace(Engine=Doubling))
    model = module.TritonPythonModel()
    model.initialize(arguments(CONFIG, HOSTED))
    return model


def rows(count: int, length: int = 2, first: float = 0.0) -> Any:
    return np.arange(count * length, dtype=np.float32).reshape(count, length) + first


def test_one_request_is_handed_on_as_it_is(hosted: Any) -> None:
    x = rows(3)
    (answer,) = hosted.execute([Request(["y"], x=x)])
    assert hosted._engine.given[0]["x"] is x
    assert answer.tensors["y"] is hosted._engine.gave[0]
    assert hosted._engine.asked == [["y"]]


def test_several_are_one_batch_and_get_views_of_its_answer(hosted: Any) -> None:
    given = [rows(1), rows(3, first=10), rows(2, first=20)]
    answers = hosted.execute([Request(["y", "z"], x=x) for x in given])
    assert [len(inputs["x"]) for inputs in hosted._engine.given] == [6]
    for x, answer in zip(given, answers, strict=True):
        np.testing.assert_array_equal(answer.tensors["y"], 2 * x)
        assert np.shares_memory(answer.tensors["y"], hosted._engine.gave[0])


def test_other_shapes_and_other_inputs_are_other_batches(hosted: Any) -> None:
    requests = [
        Request(["y"], x=rows(1)),
        Request(["y"], x=rows(1, 4)),
        Request(["y"], x=rows(1), w=rows(1)),
        Request(["y"], x=rows(2)),
    ]
    answers = hosted.execute(requests)
    assert [inputs["x"].shape for inputs in hosted._engine.given] == [(3, 2), (1, 4), (1, 2)]
    assert [answer.tensors["y"].shape for answer in answers] == [(1, 2), (1, 4), (1, 2), (2, 2)]


def test_an_error_answers_its_own_batch_only(hosted: Any) -> None:
    answers = hosted.execute(
        [Request(["y"], x=rows(1)), Request(["y"], x=rows(1, 3)), Request(["y"], x=rows(2, 3))]
    )
    assert [answer.error for answer in answers] == [None, "ValueError: three", "ValueError: three"]


def test_each_gets_the_outputs_it_asked_for(hosted: Any) -> None:
    answers = hosted.execute([Request(["z"], x=rows(1)), Request(["y"], x=rows(1))])
    assert [set(answer.tensors) for answer in answers] == [{"z"}, {"y"}]
    assert hosted._engine.asked == [["y", "z"]]


def test_an_output_without_the_batch_cannot_be_split(
    hosted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted._engine, "run", lambda inputs, wanted: {"y": np.float32([1.0])})
    (alone,) = hosted.execute([Request(["y"], x=rows(1))])
    assert alone.error is None
    answers = hosted.execute([Request(["y"], x=rows(1)), Request(["y"], x=rows(1))])
    assert all("output y has shape [1] for a batch of 2" in answer.error for answer in answers)


def test_without_a_batch_dimension_each_is_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stub_module("model", monkeypatch)
    monkeypatch.setattr(module, "_engine_module", lambda: SimpleNamespace(Engine=Doubling))
    model = module.TritonPythonModel()
    model.initialize(arguments(CONFIG | {"max_batch_size": 0}, HOSTED))
    model.execute([Request(["y"], x=rows(1)), Request(["y"], x=rows(1))])
    assert len(model._engine.given) == 2


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stub_module("model", monkeypatch)

    def engine(setting: Any) -> None:
        raise ImportError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(module, "_engine_module", lambda: SimpleNamespace(Engine=engine))
    with pytest.raises(
        module.pb_utils.TritonModelException, match=r"lacks onnxruntime .*\[engines\] environment"
    ):
        module.TritonPythonModel().initialize(arguments(CONFIG, HOSTED))


def test_the_file_for_this_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    module = stub_module("model", monkeypatch)
    (tmp_path / "1" / "dir.onnx").mkdir(parents=True)
    for name in ("a.plan", "b.plan", "dir.onnx/model.onnx"):
        (tmp_path / "1" / name).write_bytes(b"")
    told = {"folder": str(tmp_path), "filename": "model.onnx"}
    owner = {"default_model_filename": "a.plan", "cc_model_filenames": {"8.6": "b.plan"}}
    assert module.file_of({**told, "owner": owner}, "1", "8.6").endswith("1/b.plan")
    assert module.file_of({**told, "owner": owner}, "1", "7.0").endswith("1/a.plan")
    assert module.file_of({**told, "owner": {"default_model_filename": "dir.onnx"}}, "1").endswith(
        "dir.onnx/model.onnx"
    )
    with pytest.raises(
        FileNotFoundError, match=r"1/model\.onnx is not there as Triton sees the disk"
    ):
        module.file_of({**told, "owner": {}}, "1")


def test_memory_of_batches_is_used_again_but_not_within_one_call(hosted: Any) -> None:
    def a_call() -> list[Any]:
        requests = [Request(["z"], x=rows(1, length)) for length in (2, 2, 4, 4)]
        return [answer.tensors["z"] for answer in hosted.execute(requests)]

    first = a_call()
    assert not np.shares_memory(first[0], first[2])
    assert np.shares_memory(first[0], a_call()[0])
    np.testing.assert_array_equal(a_call()[3], rows(1, 4))


A_REQUEST = st.tuples(
    st.integers(1, 4),  # items
    st.integers(1, 4),  # length: 3 fails
    st.booleans(),  # with the input w
    st.sampled_from([["y"], ["z"], ["y", "z"]]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(A_REQUEST, min_size=1, max_size=8))
def test_together_each_is_answered_as_it_would_be_alone(hosted: Any, asked: list[Any]) -> None:
    def request(number: int, count: int, length: int, with_w: bool, names: list[str]) -> Request:
        more = {"w": rows(count)} if with_w else {}
        return Request(names, x=rows(count, length, 100 * number), **more)

    requests = [request(number, *each) for number, each in enumerate(asked)]
    together = hosted.execute(requests)
    for each, answer in zip(requests, together, strict=True):
        (alone,) = hosted.execute([each])
        assert answer.error == alone.error
        assert answer.tensors.keys() == alone.tensors.keys()
        for name, values in alone.tensors.items():
            np.testing.assert_array_equal(answer.tensors[name], values)
