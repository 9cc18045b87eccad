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


def test_a_host_floor_is_two_parameters_and_no_floor_is_none() -> None:
    texts = EmulatedModel("m", like="alexnet", host_ms=6.0, host_rise=0.4).config()["parameters"]
    assert texts == {
        "emulated_model": {"string_value": "alexnet"},
        "emulated_host_ms": {"string_value": "6.0"},
        "emulated_host_rise": {"string_value": "0.4"},
    }
    assert EmulatedModel("m", like="alexnet").config()["parameters"] == {
        "emulated_model": {"string_value": "alexnet"}
    }


def test_a_floor_that_is_none_is_refused_with_its_model() -> None:
    with pytest.raises(
        ValueError, match=r"model m: host_ms, host_rise: .*ms is -1\.0: give a time"
    ):
        EmulatedModel("m", host_ms=-1.0).config()
    with pytest.raises(ValueError, match=r"model m: .*rise is 0\.4 and ms is 0.*give ms above 0"):
        EmulatedModel("m", host_rise=0.4).config()


def test_a_list_of_numbers_is_written_as_several_fields() -> None:
    text = pbtxt({"instance_group": [{"kind": "KIND_GPU", "gpus": [0, 2]}]})
    assert text == "instance_group {\n  kind: KIND_GPU\n  gpus: 0\n  gpus: 2\n}\n"
