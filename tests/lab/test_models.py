"""The configuration of an emulated model."""

from __future__ import annotations

import pytest

from igniterd.lab.models import EmulatedModel, pbtxt


def test_without_boards_a_model_runs_on_the_cpu() -> None:
    assert EmulatedModel("m", instances=2).config()["instance_group"] == [
        {"kind": "KIND_CPU", "count": 2}
    ]


def test_on_boards_devices_are_left_to_triton_or_named() -> None:
    assert "instance_group" not in EmulatedModel("m").config_on_boards()
    assert EmulatedModel("m", instances=2).config_on_boards()["instance_group"] == [{"count": 2}]
    assert EmulatedModel("m", gpus=(0, 2)).config_on_boards()["instance_group"] == [
        {"kind": "KIND_GPU", "count": 1, "gpus": [0, 2]}
    ]


def test_no_device_is_not_a_choice() -> None:
    with pytest.raises(ValueError, match="model m: gpus names no device"):
        EmulatedModel("m", gpus=()).config()


def test_a_list_of_numbers_is_written_as_several_fields() -> None:
    text = pbtxt({"instance_group": [{"kind": "KIND_GPU", "gpus": [0, 2]}]})
    assert text == "instance_group {\n  kind: KIND_GPU\n  gpus: 0\n  gpus: 2\n}\n"
