"""A configuration as JSON: exact, with nothing in it that an older server does not know. Replayed
against the protocol of each release."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from igniterd.cli.plan_emit import _override
from igniterd.clients.environments import share_path
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import marked, with_allocation
from igniterd.clients.triton.json_config import config_to_dict, unknown_fields
from igniterd.clients.triton.obstacles import batching_obstacle, left_alone
from igniterd.clients.triton.version import CONTAINERS, OLDEST, named, too_old, version_of
from igniterd.planner.plan import PlannedTenant
from tests.clients.protocol import facts, model_config, order

SHARES = "/var/lib/igniterd/shares"
RELEASES = facts()["releases"]
STEERED = [release for release in RELEASES if order(release) >= OLDEST]

_NUMBERS = {
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "UINT32": st.integers(0, 2**32 - 1),
    "UINT64": st.integers(0, 2**64 - 1),
    "FLOAT": st.floats(width=32, allow_nan=False),
    "DOUBLE": st.floats(allow_nan=False),
    "BOOL": st.booleans(),
    "ENUM": st.integers(-3, 99),
}


def scalar(draw: Any, field: Any) -> Any:
    if field.type == field.TYPE_BYTES:
        return draw(st.binary(max_size=4))
    if field.cpp_type == field.CPPTYPE_STRING:
        return draw(st.text(st.characters(codec="utf-8"), max_size=4))
    return draw(
        next(
            kind
            for name, kind in _NUMBERS.items()
            if field.cpp_type == getattr(field, f"CPPTYPE_{name}")
        )
    )


def fill(draw: Any, message: Any, depth: int = 0) -> Any:
    """Some of its fields, each with any value: defaults, empty sections and enum values that nobody
    knows among them."""
    for field in message.DESCRIPTOR.fields:
        if depth > 4 or draw(st.integers(0, 2)):
            continue
        here = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for entry in [scalar(draw, key) for _ in range(draw(st.integers(1, 2)))]:
                if value.message_type is None:
                    here[entry] = scalar(draw, value)
                else:
                    fill(draw, here[entry], depth + 1)
        elif field.is_repeated:
            for _ in range(draw(st.integers(1, 2))):
                if field.message_type is None:
                    here.append(scalar(draw, field))
                else:
                    fill(draw, here.add(), depth + 1)
        elif field.message_type is None:
            setattr(message, field.name, scalar(draw, field))
        else:
            here.SetInParent()
            fill(draw, here, depth + 1)
    return message


@st.composite
def configurations(draw: Any) -> Any:
    return fill(draw, model_config_pb2.ModelConfig())


@given(configurations())
@settings(max_examples=150, deadline=None)
def test_a_configuration_comes_back_from_its_json_as_it_was(message: Any) -> None:
    text = json.dumps(config_to_dict(message))
    assert json_format.Parse(text, model_config_pb2.ModelConfig()) == message


@given(configurations())
@settings(max_examples=50, deadline=None)
def test_every_reader_copes_with_what_is_not_there(message: Any) -> None:
    config = config_to_dict(message)
    allocation_of(config), left_alone(config), batching_obstacle(config)
    assert with_allocation(config, allocation_of(config), SHARES) == config


def test_a_section_that_is_there_and_empty_stays_and_no_default_is_written() -> None:
    message = model_config_pb2.ModelConfig(name="m", backend="python", max_batch_size=0)
    message.dynamic_batching.SetInParent()
    message.version_policy.all.SetInParent()
    message.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO)
    message.model_warmup.add(name="w").inputs["X"].zero_data = False
    assert config_to_dict(message) == {
        "name": "m",
        "backend": "python",
        "dynamic_batching": {},
        "version_policy": {"all": {}},
        "instance_group": [{}],
        "model_warmup": [{"name": "w", "inputs": {"X": {"zero_data": False}}}],
    }


def test_a_value_that_the_client_does_not_know_goes_back_as_its_number() -> None:
    message = model_config_pb2.ModelConfig.FromString(
        model_config_pb2.ModelConfig(name="m").SerializeToString()
    )
    message.instance_group.add().kind = 77
    assert config_to_dict(message)["instance_group"] == [{"kind": 77}]


def test_fields_that_the_client_does_not_know_are_named_by_their_place() -> None:
    newer = model_config(None, newer=999)(name="m", newest=1)
    newer.instance_group.add(count=1)
    newer.instance_group.add(newest=5)
    here = model_config_pb2.ModelConfig.FromString(newer.SerializeToString())
    assert unknown_fields(here) == ("999", "instance_group[1].999")
    assert unknown_fields(model_config_pb2.ModelConfig(name="m")) == ()


REALISTIC = [
    {
        "name": "resnet50",
        "backend": "python",
        "max_batch_size": 8,
        "input": [
            {
                "name": "X",
                "data_type": "TYPE_FP32",
                "format": "FORMAT_NCHW",
                "dims": [3, 224, 224],
                "optional": True,
            }
        ],
        "output": [
            {"name": "Y", "data_type": "TYPE_FP32", "dims": [1000], "label_filename": "labels.txt"}
        ],
        "instance_group": [{"name": "resnet50_0", "kind": "KIND_GPU", "count": 1, "gpus": [0]}],
        "version_policy": {"latest": {"num_versions": 1}},
        "dynamic_batching": {
            "preferred_batch_size": [8],
            "max_queue_delay_microseconds": 100,
            "preserve_ordering": True,
        },
        "optimization": {"input_pinned_memory": {"enable": True}, "cuda": {"graphs": True}},
        "parameters": {"weights": {"string_value": "v7"}},
    },
    {
        "name": "bert",
        "backend": "python",
        "max_batch_size": 16,
        "input": [
            {"name": "IDS", "data_type": "TYPE_INT64", "dims": [-1], "reshape": {"shape": [-1, 1]}}
        ],
        "output": [{"name": "Y", "data_type": "TYPE_FP16", "dims": [-1]}],
        "instance_group": [
            {
                "kind": "KIND_GPU",
                "count": 2,
                "rate_limiter": {"resources": [{"name": "R", "count": 1}]},
            }
        ],
        "dynamic_batching": {
            "priority_levels": 2,
            "priority_queue_policy": {"1": {"timeout_action": "DELAY", "max_queue_size": 9}},
        },
        "response_cache": {"enable": True},
        "metric_tags": {"team": "a"},
        "model_warmup": [
            {
                "name": "w",
                "batch_size": 1,
                "inputs": {"IDS": {"data_type": "TYPE_INT64", "dims": [9], "zero_data": True}},
                "count": 2,
            }
        ],
        "model_repository_agents": {"agents": [{"name": "checksum", "parameters": {"a": "b"}}]},
    },
]


@pytest.mark.parametrize("release", STEERED)
@pytest.mark.parametrize("model", REALISTIC, ids=lambda model: model["name"])
def test_an_override_has_only_fields_that_the_server_knows(
    release: str, model: dict[str, Any]
) -> None:
    """The server says its configuration, this tritonclient reads it, the server parses the
    override: fields it does not know fail."""
    there = model_config(release)
    said = json_format.ParseDict(model, there())
    read = model_config_pb2.ModelConfig.FromString(said.SerializeToString())
    present = config_to_dict(read)
    override = marked(
        with_allocation(
            present,
            replace(allocation_of(present), share=0.3, max_batch_size=4, max_queue_delay_us=0),
            SHARES,
        ),
        "1234",
    )
    taken = json_format.Parse(json.dumps(override), there())
    assert (taken.max_batch_size, list(taken.dynamic_batching.preferred_batch_size)) == (
        read.max_batch_size,
        [4],
    )
    assert taken.parameters["EXECUTION_ENV_PATH"].string_value == share_path(SHARES, 0.3)
    back = config_to_dict(model_config_pb2.ModelConfig.FromString(taken.SerializeToString()))
    turned = {"max_batch_size", "dynamic_batching", "parameters"}
    assert {key: back[key] for key in back.keys() - turned} == {
        key: present[key] for key in present.keys() - turned
    }


def test_an_override_of_a_plan_has_only_fields_that_the_oldest_server_knows() -> None:
    seat = PlannedTenant("w", "alexnet", 10.0, 50.0, 0.3, 4, 200)
    read = json_format.ParseDict(_override(seat, "w"), model_config(STEERED[0])())
    assert (read.max_batch_size, read.dynamic_batching.max_queue_delay_microseconds) == (4, 200)


def test_with_defaults_written_out_older_servers_would_refuse_it() -> None:
    """What the replay is for: it fails as a real 23.12 does."""
    full = json_format.MessageToDict(
        model_config_pb2.ModelConfig(name="m"),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    with pytest.raises(json_format.ParseError, match="runtime"):
        json_format.ParseDict(full, model_config("2.41")())


def test_the_facts_begin_before_the_oldest_server_that_is_steered() -> None:
    assert order(RELEASES[0]) < OLDEST <= order(STEERED[0])
    known = facts()["fields"]
    assert (known["ModelConfig"]["runtime"], known["ModelInput"]["is_non_linear_format_io"]) == (
        "2.42",
        "2.49",
    )


def test_versions_are_told_with_their_container_where_it_is_known() -> None:
    assert named("2.41.0") == "2.41.0 (23.12)"
    assert named("2.51.0") == "2.51.0 (24.10)"
    assert named("2.70.0") == "2.70.0 (26.06)"
    assert CONTAINERS[2, 60] == "25.08"
    for unknown in ("2.99.0", "1.2", "dev", "", "2.x"):
        assert named(unknown) == unknown
    assert version_of("24.10-custom") == (24, 10)
    assert (too_old("2.100.0"), too_old("dev"), too_old("2.41")) == ("", "", "")
    assert too_old("2.5.0").startswith("tritonserver 2.5.0 is older than 2.41 (23.12)")
