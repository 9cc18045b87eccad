"""The override and files of a hosted model: what is kept, what is remembered, what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from igniterd.clients.environments import Reach, base_env_of
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import marked, with_allocation
from igniterd.clients.triton.obstacles import share_obstacle
from igniterd.engines.hosting import (
    PARAMETER,
    can_host,
    files_of,
    host_by_server,
    host_model,
    hosting_of,
    owner_of,
    unhosted_settings,
)
from igniterd.errors import Refused
from igniterd.records import Allocation

OWNER: dict[str, Any] = {
    "name": "net",
    "platform": "onnxruntime_onnx",
    "backend": "onnxruntime",
    "default_model_filename": "net.onnx",
    "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
    "output": [
        {"name": "y", "data_type": "TYPE_FP32", "dims": [4], "label_filename": "labels.txt"}
    ],
    "instance_group": [{"name": "net_0", "count": 2, "kind": "KIND_GPU", "gpus": [0]}],
    "version_policy": {"latest": {"num_versions": 2}},
    "dynamic_batching": {"max_queue_delay_microseconds": 100},
    "optimization": {"graph": {"level": 1}},
    "response_cache": {"enable": True},
    "model_warmup": [
        {"name": "w", "batch_size": 1, "inputs": {"x": {"dims": [4], "input_data_file": "x.bin"}}}
    ],
    "parameters": {"weights": {"string_value": "v7"}},
}
KEPT = (
    "name",
    "max_batch_size",
    "input",
    "instance_group",
    "version_policy",
    "dynamic_batching",
    "optimization",
    "response_cache",
)


def changed(**more: Any) -> dict[str, Any]:
    return copy.deepcopy(OWNER) | more


def test_all_but_the_backend_is_the_owner_s() -> None:
    override, _ = host_model(OWNER, ["2", "1"], "/models/net/")
    assert override["backend"] == "python"
    assert (
        not {"platform", "default_model_filename", "cc_model_filenames", "runtime"}
        & override.keys()
    )
    assert {key: override[key] for key in KEPT} == {key: OWNER[key] for key in KEPT}
    assert override["parameters"]["weights"] == {"string_value": "v7"}
    assert override["parameters"]["FORCE_CPU_ONLY_INPUT_TENSORS"] == {"string_value": "no"}


def test_files_beside_the_versions_are_reached_by_their_place() -> None:
    override, files = host_model(OWNER, ["1"], "/models/net")
    assert override["output"][0]["label_filename"].endswith("../models/net/labels.txt")
    assert override["model_warmup"][0]["inputs"]["x"]["input_data_file"].endswith(
        "../models/net/warmup/x.bin"
    )
    assert "warmup/igniterd" in files


def test_the_configuration_alone_tells_everything() -> None:
    override, files = host_model(OWNER, ["10", "9"], "/models/net")
    read_back = json.loads(json.dumps(override))
    found = hosting_of(read_back)
    assert found is not None
    assert (found.engine, found.folder, found.versions, found.backend) == (
        "onnxruntime",
        "/models/net",
        ("9", "10"),
        "onnxruntime",
    )
    assert files_of(read_back) == files
    assert {"9/model.py", "9/engine.py", "10/model.py", "10/engine.py"} <= files.keys()
    assert owner_of(read_back) == OWNER


def test_nothing_is_changed_in_place() -> None:
    before = copy.deepcopy(OWNER)
    host_model(OWNER, ["1"], "/models/net", environment="/env")
    assert before == OWNER


def test_a_share_goes_in_front_of_the_engine_s_environment_and_keeps_the_files() -> None:
    override, files = host_model(OWNER, ["1"], "/models/net", environment="/opt/engines")
    assert share_obstacle(override) == ""
    shared = with_allocation(override, Allocation(0.25, 8, 100, 2), "/var/lib/igniterd/shares")
    assert allocation_of(shared).share == 0.25
    assert base_env_of(shared) == "/opt/engines"
    assert files_of(shared) == files
    assert owner_of(shared) == OWNER


def test_a_share_by_the_shim_backend_keeps_the_files_too() -> None:
    override, files = host_model(OWNER, ["1"], "/models/net", environment="/opt/engines.tar.gz")
    reach = Reach(shim_backend="igniterd_python")
    shared = with_allocation(
        override, Allocation(0.25, 8, 100, 2), "/var/lib/igniterd/shares", reach=reach
    )
    assert shared["backend"] == "igniterd_python"
    assert hosting_of(shared) == hosting_of(override)
    assert files_of(shared) == files
    assert can_host(shared) == "it runs in a process of its own already"
    assert owner_of(shared) == OWNER


def test_the_mark_of_a_load_does_not_stay_with_the_owner() -> None:
    override, _ = host_model(OWNER, ["1"], "/models/net")
    assert owner_of(marked(override, "1234")) == OWNER


def test_a_plain_model_has_no_files_and_is_its_owner_s() -> None:
    assert hosting_of(OWNER) is None
    assert files_of(OWNER) == {}
    assert owner_of(OWNER) == OWNER
    strange = changed(backend="python", parameters={PARAMETER: {"string_value": "not ours"}})
    assert hosting_of(strange) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "python"}, "process of its own already"),
        (
            {"backend": "vllm"},
            "its backend is 'vllm'; onnxruntime, pytorch, tensorrt can be hosted",
        ),
        ({"backend": "pytorch", "runtime": "model.py"}, "process of its own already"),
        ({"platform": "ensemble", "backend": ""}, "it is an ensemble"),
        ({"ensemble_scheduling": {}}, "it is an ensemble"),
        ({"sequence_batching": {}}, "sequence_batching"),
        ({"model_transaction_policy": {"decoupled": True}}, "decoupled"),
        ({"batch_input": [{"kind": "BATCH_ELEMENT_COUNT"}]}, "batch_input"),
        ({"batch_output": [{"kind": "BATCH_SCATTER_WITH_INPUT_SHAPE"}]}, "batch_output"),
        (
            {"input": [{"name": "q", "allow_ragged_batch": True}]},
            "its input q has allow_ragged_batch",
        ),
        ({"input": [{"name": "q", "is_shape_tensor": True}]}, "its input q is a shape tensor"),
        ({"output": [{"name": "q", "is_non_linear_format_io": True}]}, "its output q has a format"),
        ({"input": []}, "no inputs"),
        (
            {"instance_group": [{"secondary_devices": [{"kind": "KIND_NVDLA"}]}]},
            "secondary_devices",
        ),
    ],
)
def test_what_cannot_be_hosted_is_refused_with_words(change: dict[str, Any], words: str) -> None:
    assert words in can_host(changed(**change))
    with pytest.raises(Refused, match="net: "):
        host_model(changed(**change), ["1"], "/models/net")


@pytest.mark.parametrize(
    ("versions", "folder", "words"),
    [([], "/models/net", "no version"), (["1"], "models/net", "from the root")],
)
def test_what_is_needed_is_asked_for(versions: list[str], folder: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        host_model(OWNER, versions, folder)


TORCH = changed(
    backend="pytorch",
    platform="pytorch_libtorch",
    default_model_filename="model.pt",
    parameters={"INTRA_OP_THREAD_COUNT": {"string_value": "3"}},
)


def test_the_server_s_own_file_goes_without_files_of_ours() -> None:
    override = host_by_server(TORCH, ["1"], "/models/net", environment="/env")
    assert (override["backend"], override["runtime"], override["default_model_filename"]) == (
        "pytorch",
        "model.py",
        "model.pt",
    )
    assert override["parameters"]["NUM_THREADS"] == {"string_value": "3"}
    assert hosting_of(override) is not None
    assert files_of(override) == {}
    assert owner_of(override) == TORCH


@pytest.mark.parametrize("change", [{"data_type": "TYPE_STRING"}, {"optional": True}])
def test_what_the_server_s_own_file_cannot_do_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="its input x is text or optional"):
        host_by_server(TORCH | {"input": [OWNER["input"][0] | change]}, ["1"], "/models/net")
    with pytest.raises(Refused, match="only PyTorch's backend"):
        host_by_server(OWNER, ["1"], "/models/net")


def test_what_has_no_meaning_any_more_is_named() -> None:
    config = changed(parameters={"share_session_between_instances": {"string_value": "true"}})
    (note,) = unhosted_settings(config)
    assert "share_session_between_instances" in note
