"""The mark by which a daemon tells a rebalance's load from one by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from igniterd.clients.environments import ModelConfig
from igniterd.clients.owned import as_owned
from igniterd.clients.triton.config import allocation_of, same_allocation
from igniterd.clients.triton.config_change import marked, with_allocation
from igniterd.clients.triton.json_config import config_to_dict
from igniterd.clients.triton.marks import rebalance_mark, rebalanced_s
from igniterd.clients.triton.reading import known_of
from igniterd.records import Allocation

SHARES = "/shares"
AT_S = 1_764_473_801.25
CONFIG: ModelConfig = {
    "name": "m",
    "backend": "python",
    "max_batch_size": 8,
    "instance_group": [{"name": "m_0", "count": 1, "kind": "KIND_GPU", "gpus": [0]}],
    "dynamic_batching": {"preferred_batch_size": [8]},
    "parameters": {},
}
HERE = Allocation(0.3, 8, 0, 1, (0,))


def loaded(allocation: Allocation, by: str | None = None) -> ModelConfig:
    """The model with ``allocation``; its mark says ``by``, by default a rebalance of that."""
    changed = with_allocation(CONFIG, allocation, SHARES)
    return marked(changed, rebalance_mark(allocation, AT_S) if by is None else by)


def seen(config: ModelConfig) -> float | None:
    return rebalanced_s(config, allocation_of(config, SHARES))


def test_a_mark_worked_by_hand() -> None:
    said = "fleet 1764473801.250000 share 30, batch 8, delay_us 0, instances 1, devices 0"
    assert rebalance_mark(HERE, AT_S) == said
    assert seen(loaded(HERE)) == AT_S


allocations = st.builds(
    Allocation,
    st.none() | st.integers(1, 100_000).map(lambda each: each / 100_000),
    st.integers(1, 8),
    st.just(0),
    st.integers(1, 3),
).map(lambda each: replace(each, devices=(0,) * each.instances))


@given(set_to=allocations, there=allocations)
def test_it_holds_for_what_it_was_written_with_and_for_nothing_else(
    set_to: Allocation, there: Allocation
) -> None:
    """Somebody reads the configuration back, changes it and loads it with the mark in it."""
    by_hand = with_allocation(loaded(set_to), there, SHARES)
    assert seen(loaded(set_to)) == AT_S
    assert (seen(by_hand) == AT_S) == same_allocation(set_to, there)


@given(allocations)
def test_triton_says_what_was_written(set_to: Allocation) -> None:
    message = json_format.ParseDict(loaded(set_to), model_config_pb2.ModelConfig())
    assert known_of(message, 0.0, shares_dir=SHARES).rebalanced_s == AT_S
    assert seen(config_to_dict(message)) == AT_S


@pytest.mark.parametrize(
    "by",
    [
        "",
        "3f2a9c1e",
        "fleet",
        "fleet 1764473801.250000",
        "fleet soon share 30, batch 8, delay_us 0, instances 1, devices 0",
        "fleet inf share 30, batch 8, delay_us 0, instances 1, devices 0",
        "fleet -1.000000 share 30, batch 8, delay_us 0, instances 1, devices 0",
        "fleet 1764473801.250000 share 30, batch 8, delay_us 0, instances 1, devices 0 ",
        "fleet 1764473801.250000 share 30, batch 8, delay_us 0, instances 1, devices 1",
    ],
)
def test_any_other_mark_is_nobodys(by: str) -> None:
    assert seen(loaded(HERE, by)) is None
    assert rebalanced_s(CONFIG, HERE) is None


def test_where_no_gpu_was_named_triton_has_chosen_one() -> None:
    by = rebalance_mark(replace(HERE, devices=()), AT_S)
    assert by.endswith("devices any")
    assert seen(loaded(HERE, by)) == AT_S


def test_what_is_given_back_has_no_mark() -> None:
    assert seen(as_owned(loaded(HERE), SHARES)) is None
    assert "IGNITERD_LOAD" not in as_owned(loaded(HERE), SHARES).get("parameters", {})
