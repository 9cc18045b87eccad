import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from igniterd.clients.triton_config import (
    allocation_of,
    base_env_of,
    batching_obstacle,
    config_to_dict,
    gpu_index_of,
    percent_name,
    same_allocation,
    share_obstacle,
    share_of,
    share_path,
    with_allocation,
    without_share,
)
from igniterd.errors import Refused
from igniterd.records import Allocation

SHARES = "/var/lib/igniterd/shares"


def a_config(**more: Any) -> dict[str, Any]:
    return {
        "name": "resnet50",
        "backend": "python",
        "max_batch_size": 8,
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [4]}],
        "dynamic_batching": {"preferred_batch_size": [8], "max_queue_delay_microseconds": 0, "preserve_ordering": True},
        "instance_group": [{"name": "resnet50_0", "kind": "KIND_GPU", "count": 1, "gpus": [2]}],
        "parameters": {"weights": {"string_value": "v7"}},
    } | more


allocations = st.builds(
    Allocation,
    share=st.one_of(st.none(), st.integers(1, 40).map(lambda units: units * 0.025)),
    max_batch_size=st.integers(1, 64),
    max_queue_delay_us=st.integers(0, 100_000),
    instances=st.integers(1, 4),
)


@given(allocations, st.sampled_from([None, "/opt/envs/torch", "/a b/env's"]))
def test_what_is_written_is_read_back(target: Allocation, base_env: str | None) -> None:
    config = a_config()
    if base_env:
        config["parameters"]["EXECUTION_ENV_PATH"] = {"string_value": base_env}
    changed = with_allocation(config, target, SHARES)
    assert same_allocation(allocation_of(changed), target)
    assert base_env_of(changed) == base_env


@given(allocations, allocations)
def test_nothing_but_the_knobs_changes(first: Allocation, second: Allocation) -> None:
    config = a_config()
    untouched = copy.deepcopy(config)
    changed = with_allocation(with_allocation(config, first, SHARES), second, SHARES)
    assert config == untouched, "the input is left alone"
    for key in config.keys() - {"max_batch_size", "dynamic_batching", "instance_group", "parameters"}:
        assert changed[key] == config[key]
    assert changed["parameters"]["weights"] == {"string_value": "v7"}
    assert changed["dynamic_batching"]["preserve_ordering"] is True
    assert changed["instance_group"][0]["gpus"] == [2]


@given(allocations)
def test_applying_what_is_applied_changes_nothing(target: Allocation) -> None:
    once = with_allocation(a_config(), target, SHARES)
    assert with_allocation(once, target, SHARES) == once
    assert with_allocation(a_config(), allocation_of(a_config()), SHARES) == a_config()


def test_a_share_is_a_folder_named_by_its_percentage() -> None:
    config = with_allocation(a_config(), Allocation(share=0.125, max_batch_size=8), SHARES)
    assert config["parameters"]["EXECUTION_ENV_PATH"] == {"string_value": "/var/lib/igniterd/shares/12.5"}
    assert share_of(config) == 0.125
    assert [percent_name(share) for share in (0.025, 0.3, 1.0, 1 / 3)] == ["2.5", "30", "100", "33.333"]


def test_a_models_own_environment_is_remembered_and_given_back() -> None:
    own = {"EXECUTION_ENV_PATH": {"string_value": "/opt/envs/torch"}, "weights": {"string_value": "v7"}}
    config = a_config(parameters=own)
    first = with_allocation(config, Allocation(share=0.3, max_batch_size=8), SHARES)
    path = first["parameters"]["EXECUTION_ENV_PATH"]["string_value"]
    assert path == share_path(SHARES, 0.3, "/opt/envs/torch")
    assert path.startswith(SHARES + "/env-")
    second = with_allocation(first, Allocation(share=0.4, max_batch_size=8), SHARES)
    assert (share_of(second), base_env_of(second)) == (0.4, "/opt/envs/torch")
    assert without_share(second)["parameters"] == own


@pytest.mark.parametrize("base", ["/opt/env.tar.gz", "$$TRITON_MODEL_DIRECTORY/env"])
def test_an_environment_that_cannot_be_chained_is_refused(base: str) -> None:
    config = a_config(parameters={"EXECUTION_ENV_PATH": {"string_value": base}})
    with pytest.raises(Refused, match="resnet50: its environment"):
        with_allocation(config, Allocation(share=0.3, max_batch_size=8), SHARES)


def test_an_in_process_backend_gets_no_share_but_its_batching() -> None:
    config = a_config(backend="onnxruntime")
    with pytest.raises(Refused, match="'onnxruntime' runs inside tritonserver"):
        with_allocation(config, Allocation(share=0.3, max_batch_size=8), SHARES)
    changed = with_allocation(config, Allocation(share=None, max_batch_size=4, max_queue_delay_us=700), SHARES)
    assert changed["max_batch_size"] == 4
    assert changed["dynamic_batching"] == {"max_queue_delay_microseconds": 700, "preserve_ordering": True}


def test_a_model_without_dynamic_batching_forms_batches_of_one() -> None:
    config = a_config()
    del config["dynamic_batching"]
    assert allocation_of(config).max_batch_size == 1
    shared = with_allocation(config, Allocation(share=0.5, max_batch_size=1), SHARES)
    assert "dynamic_batching" not in shared
    assert shared["max_batch_size"] == 8, "requests that bring a batch of their own still fit"
    assert with_allocation(config, Allocation(share=None, max_batch_size=8), SHARES)["dynamic_batching"] == {
        "max_queue_delay_microseconds": 0
    }


@pytest.mark.parametrize(
    ("config", "target", "words"),
    [
        (a_config(max_batch_size=0), Allocation(None, 4), "no batch dimension"),
        (a_config(sequence_batching={}), Allocation(None, 4), "sequence_batching forms its batches"),
        (a_config(), Allocation(1.5, 8), r"share 1.5 is not in \(0, 1\]"),
        (a_config(), Allocation(None, 0), "a batch is at least 1"),
        (a_config(instance_group=[{"count": 1}, {"count": 1}]), Allocation(None, 8, instances=3), "2 instance groups"),
    ],
)
def test_what_cannot_be_applied_is_refused_with_a_reason(config: dict[str, Any], target: Allocation, words: str) -> None:
    with pytest.raises(Refused, match=words):
        with_allocation(config, target, SHARES)


def test_a_shares_folder_by_another_name_could_not_be_read_back() -> None:
    with pytest.raises(ValueError, match="must end in /shares"):
        with_allocation(a_config(), Allocation(0.5, 8), "/tmp/elsewhere")


def test_the_gpu_is_the_first_one_named() -> None:
    assert gpu_index_of(a_config()) == 2
    assert gpu_index_of({"instance_group": [{"kind": "KIND_CPU"}]}) == 0


def test_a_message_becomes_tritons_own_json() -> None:
    message = model_config_pb2.ModelConfig(name="m", max_batch_size=4)
    message.input.add(name="42", dims=[3, -1])
    message.dynamic_batching.max_queue_delay_microseconds = 1500
    message.dynamic_batching.priority_queue_policy[7].default_timeout_microseconds = 9
    message.parameters["limit"].string_value = "10"
    config = config_to_dict(message)
    assert config["input"][0]["dims"] == [3, -1]
    assert config["input"][0]["name"] == "42", "text that looks like a number stays text"
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 1500
    assert config["dynamic_batching"]["priority_queue_policy"]["7"]["default_timeout_microseconds"] == 9
    assert config["parameters"] == {"limit": {"string_value": "10"}}
    assert "sequence_batching" not in config


@pytest.mark.parametrize(
    ("change", "share", "batching"),
    [
        ({}, "", ""),
        ({"max_batch_size": 0}, "", "max_batch_size is 0"),
        ({"sequence_batching": {}}, "", "sequence_batching forms its batches"),
        ({"backend": "onnxruntime"}, "backend 'onnxruntime' runs inside tritonserver", ""),
        ({"parameters": {"EXECUTION_ENV_PATH": {"string_value": "/envs/torch.tar.gz"}}}, "torch.tar.gz is an archive", ""),
        ({"parameters": {"EXECUTION_ENV_PATH": {"string_value": "$$TRITON_MODEL_DIRECTORY/env"}}}, "is relative to the repository", ""),
    ],
)
def test_what_cannot_be_steered_is_known_before_it_is_tried(change: dict[str, Any], share: str, batching: str) -> None:
    config = {"name": "m", "backend": "python", "max_batch_size": 8, "dynamic_batching": {}} | change
    for said, wanted in ((share_obstacle(config), share), (batching_obstacle(config), batching)):
        assert bool(said) == bool(wanted)
        assert wanted in said
