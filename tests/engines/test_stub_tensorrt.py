"""A TensorRT plan, hosted: what is said to TensorRT and CUDA. Both are stood in for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.fakes import Cudart, arguments, stub_module, tensorrt_module

CONFIG: dict[str, Any] = {
    "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32"}],
    "output": [{"name": "y", "data_type": "TYPE_FP32"}],
}


class Hosted:
    """An engine made as ``model.py`` makes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        (folder / "1").mkdir()
        (folder / "1" / "model.plan").write_bytes(b"a plan")
        self._module = stub_module("tensorrt_engine", monkeypatch, tensorrt=tensorrt_module())
        self.model = stub_module("model", monkeypatch)
        self.cuda = Cudart()
        self._told = {
            "engine": "tensorrt",
            "filename": "model.plan",
            "folder": str(folder),
            "owner": {},
            "options": {},
        }

    def engine(self, config: dict[str, Any] | None = None, kind: str = "GPU", **told: Any) -> Any:
        config, told = config or CONFIG, self._told | told
        args = arguments(config, told, kind)
        return self._module.Engine(self.model.Setting(args, config, told), self.cuda)


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hosted:
    return Hosted(monkeypatch, tmp_path)


def test_values_go_there_and_back_and_memory_is_used_again(hosted: Hosted) -> None:
    engine = hosted.engine()
    for count in (4, 2, 3):
        x = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
        np.testing.assert_array_equal(engine.run({"x": x}, ["y"])["y"], 2 * x)
    assert len(hosted.cuda.kept) == 2
    del engine
    assert hosted.cuda.kept == {}


def test_tensors_on_the_device_stay_there(hosted: Hosted) -> None:
    engine, x = hosted.engine(), np.ones((2, 2), np.float32)
    given = hosted.model.DeviceTensor(x.ctypes.data, x.shape, "TYPE_FP32", 0, x)
    found = engine.run({"x": given}, ["y"])["y"]
    assert isinstance(found, hosted.model.DeviceTensor)
    assert (found.shape, found.keeps.address) == ((2, 2), found.address)
    assert hosted.cuda.copies == []


def test_the_profile_of_the_instance_s_group(hosted: Hosted) -> None:
    assert hosted.engine(options={"profiles": {"net_0": "2", "other": "1"}})._context.profile == 2
    with pytest.raises(
        ValueError, match="optimization profile 3 of instance_group: the plan has 3"
    ):
        hosted.engine(options={"profiles": {"net_0": "3"}})


def test_the_plan_of_this_gpu_is_taken(hosted: Hosted) -> None:
    with pytest.raises(FileNotFoundError, match=r"1/for86\.plan"):
        hosted.engine(owner={"cc_model_filenames": {"8.6": "for86.plan"}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": [{"name": "q", "data_type": "TYPE_FP32"}]}, "the plan has no input q, it has x"),
        (
            {"output": [{"name": "y", "data_type": "TYPE_FP16"}]},
            "output y: the plan says FLOAT, its configuration TYPE_FP16",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    hosted: Hosted, change: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        hosted.engine(CONFIG | change)


def test_what_a_plan_cannot_do_is_said(hosted: Hosted, tmp_path: Path) -> None:
    engine = hosted.engine()
    with pytest.raises(ValueError, match=r"input x: shape \[5, 2\] is outside the plan's profile"):
        engine.run({"x": np.zeros((5, 2), np.float32)}, ["y"])
    with pytest.raises(ValueError, match="runs on a GPU, and the instance is KIND_CPU"):
        hosted.engine(kind="CPU")
    (tmp_path / "1" / "model.plan").write_bytes(b"of another version")
    with pytest.raises(
        ValueError, match=r"TensorRT 10\.0 does not take .* a plan is for the version"
    ):
        hosted.engine()
