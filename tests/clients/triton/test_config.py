import copy
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from igniterd.clients.environments import base_env_of, share_path
from igniterd.clients.triton.config import (
    allocation_of,
    devices_of_instances,
    own_limit_of,
    preferred_sizes_of,
    same_allocation,
)
from igniterd.clients.triton.config_change import marked, same_but_instances, with_allocation
from igniterd.clients.triton.json_config import config_to_dict
from igniterd.clients.triton.obstacles import (
    batching_obstacle,
    chooses_gpu,
    left_alone,
    share_obstacle,
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
        "dynamic_batching": {
            "preferred_batch_size": [8],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": True,
        },
        "instance_group": [{"name": "resnet50_0", "kind": "KIND_GPU", "count": 1, "gpus": [2]}],
        "parameters": {"weights": {"string_value": "v7"}},
    } | more


# the largest batch of ``allocations``: with a delay nothing below a limit of that can be formed
DELAYED = 64


def allocations_of(
    batches: st.SearchStrategy[int], delays: st.SearchStrategy[int]
) -> st.SearchStrategy[Allocation]:
    shares = st.one_of(st.none(), st.integers(1, 40).map(lambda units: units * 0.025))
    return st.builds(
        Allocation,
        share=shares,
        max_batch_size=batches,
        max_queue_delay_us=delays,
        instances=st.integers(1, 4),
    )


allocations = allocations_of(st.integers(1, DELAYED), st.just(0)) | allocations_of(
    st.just(DELAYED), st.integers(0, 100_000)
)
owners = st.builds(
    lambda limit, sizes, delay: {
        "max_batch_size": limit,
        "dynamic_batching": {"preferred_batch_size": sorted({min(size, limit) for size in sizes})}
        if sizes
        else {} | ({"max_queue_delay_microseconds": delay} if delay else {}),
    },
    st.integers(1, 128),
    st.lists(st.integers(1, 128), max_size=3),
    st.sampled_from([0, 0, 300]),
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
    for key in config.keys() - {
        "max_batch_size",
        "dynamic_batching",
        "instance_group",
        "parameters",
    }:
        assert changed[key] == config[key]
    assert changed["parameters"]["weights"] == {"string_value": "v7"}
    assert changed["dynamic_batching"]["preserve_ordering"] is True
    assert changed["instance_group"][0]["gpus"] == [2]


@given(allocations)
def test_applying_what_is_applied_changes_nothing(target: Allocation) -> None:
    once = with_allocation(a_config(), target, SHARES)
    assert with_allocation(once, target, SHARES) == once
    assert with_allocation(a_config(), allocation_of(a_config()), SHARES) == a_config()


@given(owners, st.lists(allocations, min_size=1, max_size=4))
def test_what_the_owner_admits_is_admitted_whatever_is_applied(
    owned: dict[str, Any], targets: list[Allocation]
) -> None:
    config = a_config(**owned)
    for target in targets:
        if target.max_queue_delay_us and target.max_batch_size < owned["max_batch_size"]:
            continue
        config = with_allocation(config, target, SHARES)
        assert config["max_batch_size"] >= owned["max_batch_size"]
        assert same_allocation(allocation_of(config), target)
        assert own_limit_of(config) == owned["max_batch_size"], (
            "a restart or another daemon knows it too"
        )
    theirs = allocation_of(a_config(**owned))
    back = with_allocation(config, theirs, SHARES)
    assert back["max_batch_size"] == owned["max_batch_size"]
    assert not [name for name in back["parameters"] if name.startswith("IGNITERD")]
    assert preferred_sizes_of(back) == preferred_sizes_of(a_config(**owned))


def test_a_smaller_batch_is_a_preferred_size_and_refuses_nobody() -> None:
    config = a_config(max_batch_size=32, model_warmup=[{"batch_size": 16}])
    changed = with_allocation(config, Allocation(0.5, 5), SHARES)
    assert changed["max_batch_size"] == 32
    assert changed["dynamic_batching"]["preferred_batch_size"] == [5]
    assert allocation_of(changed).max_batch_size == 5
    larger = with_allocation(changed, Allocation(0.5, 48), SHARES)
    assert (larger["max_batch_size"], own_limit_of(larger)) == (48, 32)
    assert larger["parameters"]["IGNITERD_OWNER_BATCH"] == {"string_value": "32"}
    assert with_allocation(larger, Allocation(0.5, 8), SHARES)["max_batch_size"] == 32


def test_with_a_delay_preferred_sizes_are_no_limit() -> None:
    delayed = {"preferred_batch_size": [2, 4], "max_queue_delay_microseconds": 200}
    assert allocation_of(a_config(dynamic_batching=delayed)) == Allocation(
        None, 8, 200, devices=(2,)
    )
    assert allocation_of(a_config(dynamic_batching={"preferred_batch_size": [2, 4]})) == Allocation(
        None, 4, 0, devices=(2,)
    )
    with pytest.raises(
        Refused, match="with a delay Triton forms batches up to max_batch_size, which is 8"
    ):
        with_allocation(a_config(), Allocation(None, 4, 200), SHARES)


def test_an_in_process_backend_gets_no_share_but_its_batching() -> None:
    config = a_config(backend="onnxruntime")
    with pytest.raises(Refused, match="'onnxruntime' runs inside tritonserver"):
        with_allocation(config, Allocation(share=0.3, max_batch_size=8), SHARES)
    changed = with_allocation(
        config, Allocation(share=None, max_batch_size=8, max_queue_delay_us=700), SHARES
    )
    assert changed["dynamic_batching"] == {
        "max_queue_delay_microseconds": 700,
        "preserve_ordering": True,
    }
    changed = with_allocation(config, Allocation(share=None, max_batch_size=4), SHARES)
    assert changed["dynamic_batching"]["preferred_batch_size"] == [4]


def test_a_model_without_dynamic_batching_forms_batches_of_one() -> None:
    config = a_config()
    del config["dynamic_batching"]
    assert allocation_of(config).max_batch_size == 1
    shared = with_allocation(config, Allocation(share=0.5, max_batch_size=1), SHARES)
    assert "dynamic_batching" not in shared
    assert shared["max_batch_size"] == 8, "requests that bring a batch of their own still fit"
    with pytest.raises(
        Refused, match="it has no dynamic_batching, so it gets one request at a time"
    ):
        with_allocation(config, Allocation(share=None, max_batch_size=8), SHARES)


def test_a_delay_without_a_batch_dimension_is_none() -> None:
    config = a_config(max_batch_size=0)
    config["dynamic_batching"]["max_queue_delay_microseconds"] = 500
    assert allocation_of(config) == Allocation(None, 1, 0, devices=(2,))


def test_preferred_sizes_that_give_way_are_remembered_and_come_back() -> None:
    config = a_config(max_batch_size=16)
    assert preferred_sizes_of(config) == (8,)
    assert preferred_sizes_of(a_config()) == (), "Triton fills in the largest"
    shared = with_allocation(config, Allocation(0.5, 8), SHARES)
    assert shared["dynamic_batching"]["preferred_batch_size"] == [8], "a share leaves them alone"
    smaller = with_allocation(shared, Allocation(0.5, 4), SHARES)
    assert smaller["parameters"]["IGNITERD_PREFERRED_BATCH_SIZE"] == {"string_value": "8"}
    assert preferred_sizes_of(smaller) == (8,)
    again = with_allocation(smaller, Allocation(0.5, 8), SHARES)
    assert again["dynamic_batching"]["preferred_batch_size"] == [8]
    assert "IGNITERD_PREFERRED_BATCH_SIZE" not in again["parameters"]
    none = with_allocation(a_config(), Allocation(0.5, 4), SHARES)
    assert none["parameters"]["IGNITERD_PREFERRED_BATCH_SIZE"] == {"string_value": "none"}
    assert preferred_sizes_of(none) == ()


def filled(message: Any, choice: int = 0, depth: int = 0) -> Any:
    """``message`` with every field set; of the alternatives of a ``oneof`` the one numbered
    ``choice`` (modulo their number)."""
    for field in message.DESCRIPTOR.fields:
        alternatives = field.containing_oneof.fields if field.containing_oneof else (field,)
        if depth > 8 or alternatives[choice % len(alternatives)] is not field:
            continue
        here = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (
                field.message_type.fields_by_name["key"],
                field.message_type.fields_by_name["value"],
            )
            entry = "7" if key.cpp_type == key.CPPTYPE_STRING else 7
            if value.message_type is not None:
                filled(here[entry], choice, depth + 1)
            else:
                here[entry] = plain_value(value)
        elif field.is_repeated:
            if field.message_type is not None:
                filled(here.add(), choice, depth + 1)
            else:
                here.append(plain_value(field))
        elif field.message_type is not None:
            here.SetInParent()
            filled(here, choice, depth + 1)
        else:
            setattr(message, field.name, plain_value(field))
    return message


def plain_value(field: Any) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    kinds = {
        field.CPPTYPE_STRING: "12",
        field.CPPTYPE_BOOL: True,
        field.CPPTYPE_FLOAT: 0.1,
        field.CPPTYPE_DOUBLE: 0.1,
    }
    return b"12" if field.type == field.TYPE_BYTES else kinds.get(field.cpp_type, 12)


@pytest.mark.parametrize("choice", range(4))
def test_no_field_of_a_configuration_is_lost_in_an_override(choice: int) -> None:
    """Whatever this tritonclient knows of a ModelConfig comes back from the JSON of an override,
    but for what is turned."""
    message = filled(model_config_pb2.ModelConfig(), choice)
    message.max_batch_size, message.backend = 8, "python"
    message.ClearField("ensemble_scheduling")
    message.ClearField("sequence_batching")
    if not message.HasField("dynamic_batching"):
        filled(message.dynamic_batching, choice)
    message.model_transaction_policy.decoupled = False
    message.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.KIND_GPU
    for sample in message.model_warmup:
        sample.batch_size = 4
    message.parameters.clear()
    message.parameters["limit"].string_value = "10"
    written = with_allocation(
        config_to_dict(message),
        Allocation(0.5, 4, 0, allocation_of(config_to_dict(message)).instances),
        SHARES,
    )
    read = json_format.ParseDict(written, model_config_pb2.ModelConfig())
    message.dynamic_batching.max_queue_delay_microseconds = 0
    del message.dynamic_batching.preferred_batch_size[:]
    message.dynamic_batching.preferred_batch_size.append(4)
    message.parameters["IGNITERD_QUEUE_DELAY_US"].string_value = "12"
    message.parameters["EXECUTION_ENV_PATH"].string_value = share_path(SHARES, 0.5)
    message.parameters["IGNITERD_PREFERRED_BATCH_SIZE"].string_value = "12"
    assert read == message


@pytest.mark.parametrize(
    ("config", "target", "words"),
    [
        (
            a_config(model_transaction_policy={"decoupled": True}),
            Allocation(0.5, 8),
            "it is decoupled",
        ),
        (
            a_config(sequence_batching={}),
            Allocation(0.5, 8),
            "a reload would end the sequences under way",
        ),
        (a_config(name="a b"), Allocation(0.5, 8), "characters that mean something to a shell"),
        (
            a_config(instance_group=[{"count": 1, "gpus": [0, 1]}]),
            Allocation(None, 8, instances=1),
            "1 instances on 2 GPUs",
        ),
        (
            a_config(instance_group=[{"count": 2, "gpus": [0, 1]}]),
            Allocation(None, 8, instances=3, devices=(0, 0, 1)),
            "cannot be put on GPUs 0, 0, 1",
        ),
        (a_config(max_batch_size=0), Allocation(None, 4), "no batch dimension"),
        (a_config(sequence_batching={}), Allocation(None, 4), "it has sequence_batching"),
        (a_config(), Allocation(1.5, 8), r"share 1.5 is not in \(0, 1\]"),
        (a_config(), Allocation(None, 0), "a batch is at least 1"),
        (
            a_config(instance_group=[{"count": 1}, {"count": 1}]),
            Allocation(None, 8, instances=3),
            "2 instance groups",
        ),
    ],
)
def test_what_cannot_be_applied_is_refused_with_a_reason(
    config: dict[str, Any], target: Allocation, words: str
) -> None:
    with pytest.raises(Refused, match=words):
        with_allocation(config, target, SHARES)


def test_a_group_has_its_count_of_instances_on_each_of_its_gpus() -> None:
    assert devices_of_instances(a_config()) == (2,)
    assert devices_of_instances({"instance_group": [{"kind": "KIND_CPU", "count": 2}]}) == ()
    both = a_config(instance_group=[{"count": 2, "gpus": [3, 1]}])
    assert devices_of_instances(both) == (1, 1, 3, 3)
    assert allocation_of(both).most_instances == 2


def test_a_move_changes_the_gpus_of_the_group_and_nothing_else() -> None:
    config = a_config(instance_group=[{"name": "g", "count": 2, "gpus": [0], "kind": "KIND_GPU"}])
    here = allocation_of(config, SHARES)
    moved = with_allocation(config, replace(here, devices=(1, 1)), SHARES)
    assert moved["instance_group"] == [{"name": "g", "count": 2, "gpus": [1], "kind": "KIND_GPU"}]
    spread = with_allocation(config, replace(here, devices=(0, 1)), SHARES)
    assert spread["instance_group"] == [
        {"name": "g", "count": 1, "gpus": [0, 1], "kind": "KIND_GPU"}
    ]
    assert same_but_instances(config, moved)
    assert allocation_of(moved, SHARES) == replace(here, devices=(1, 1))


def test_instances_are_counted_on_every_gpu_they_are_on() -> None:
    config = a_config(
        instance_group=[
            {"count": 2, "gpus": [1, 3]},
            {"count": 1, "gpus": [0]},
            {"count": 4, "passive": True},
        ]
    )
    assert allocation_of(config).instances == 5
    assert allocation_of(config).devices == (0, 1, 1, 3, 3)
    assert chooses_gpu(a_config()) == ""
    assert "KIND_MODEL" in chooses_gpu(a_config(instance_group=[{"kind": "KIND_MODEL"}]))


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
    assert (
        config["dynamic_batching"]["priority_queue_policy"]["7"]["default_timeout_microseconds"]
        == 9
    )
    assert config["parameters"] == {"limit": {"string_value": "10"}}
    assert "sequence_batching" not in config


@pytest.mark.parametrize(
    ("change", "share", "batching"),
    [
        ({}, "", ""),
        ({"name": "modèle-2.1@eu"}, "", ""),
        ({"name": "rm -rf $HOME"}, "characters that mean something to a shell", ""),
        ({"instance_group": [{"kind": "KIND_CPU", "count": 2}]}, "", ""),
        (
            {"instance_group": [{"kind": "KIND_GPU", "gpus": [0]}, {"kind": "KIND_CPU"}]},
            "and on the CPU",
            "and on the CPU",
        ),
        ({"model_transaction_policy": {"decoupled": True}}, "it is decoupled", "it is decoupled"),
        ({"ensemble_scheduling": {}}, "it is an ensemble", "it is an ensemble"),
        ({"max_batch_size": 0}, "", "max_batch_size is 0"),
        ({"sequence_batching": {}}, "it has sequence_batching", "it has sequence_batching"),
        ({"backend": "onnxruntime"}, "backend 'onnxruntime' runs inside tritonserver", ""),
        (
            {"parameters": {"EXECUTION_ENV_PATH": {"string_value": "/envs/torch.tar.gz"}}},
            "torch.tar.gz is an archive",
            "",
        ),
        (
            {
                "parameters": {
                    "EXECUTION_ENV_PATH": {"string_value": "$$TRITON_MODEL_DIRECTORY/env"}
                }
            },
            "is relative to the repository",
            "",
        ),
    ],
)
def test_what_cannot_be_steered_is_known_before_it_is_tried(
    change: dict[str, Any], share: str, batching: str
) -> None:
    config = {
        "name": "m",
        "backend": "python",
        "max_batch_size": 8,
        "dynamic_batching": {},
    } | change
    assert left_alone(config) in ("", share_obstacle(config))
    for said, wanted in ((share_obstacle(config), share), (batching_obstacle(config), batching)):
        assert bool(said) == bool(wanted)
        assert wanted in said


def test_no_limit_is_below_a_warm_up_sample() -> None:
    config = a_config(model_warmup=[{"batch_size": 2}, {"batch_size": 6}, {}])
    assert with_allocation(config, Allocation(None, 2), SHARES)["max_batch_size"] == 8
    assert (
        with_allocation(config, Allocation(0.5, 8), SHARES)["model_warmup"]
        == config["model_warmup"]
    )


def test_a_mark_changes_nothing_else() -> None:
    config = a_config()
    once = marked(config, "1")
    assert config == a_config()
    assert once["parameters"].pop("IGNITERD_LOAD") == {"string_value": "1"}
    assert once == config
    assert marked({"name": "m"}, "2")["parameters"] == {"IGNITERD_LOAD": {"string_value": "2"}}


def test_a_change_of_instances_alone_is_told_from_others() -> None:
    config = a_config()
    assert same_but_instances(config, with_allocation(config, Allocation(None, 8, 0, 3), SHARES))
    assert same_but_instances({"name": "m"}, {"name": "m", "instance_group": [{"count": 2}]})
    assert not same_but_instances(config, with_allocation(config, Allocation(0.5, 8, 0, 3), SHARES))
