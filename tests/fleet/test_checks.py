"""What a state may not say of its own host, and what it may."""

from __future__ import annotations

from typing import Any

import pytest

from igniterd.fleet.checks import contradictions
from igniterd.messages.state import HostState
from tests.fleet.said import applied, changed, model, state


def found(said: dict[str, Any]) -> str:
    return contradictions(HostState.model_validate(said, strict=False))


def two_gpus(*models: dict[str, Any]) -> dict[str, Any]:
    """A host of ``GPU-a`` and ``GPU-b``."""
    boards = [{"uuid": "GPU-a"}, {"uuid": "GPU-b"}]
    tritons = [{"name": "main", "gpus": ["GPU-a", "GPU-b"]}]
    return {**state("a"), "boards": boards, "tritons": tritons, "models": list(models)}


BOARD = state("a")["boards"][0]
TRITON = state("a")["tritons"][0]

WRONG: list[tuple[str, Any, str]] = [
    ("boards", [], "it names no GPU"),
    ("boards", [BOARD, BOARD], "GPU GPU-a is named twice"),
    ("tritons", [TRITON, TRITON], "Triton main is named twice"),
    ("tritons.0.gpus", ["GPU-a", "GPU-a"], "in Triton main GPU GPU-a is named twice"),
    ("models.1.name", "m0", "model m0 is named twice"),
    ("models.1.model", "m0", "model of a Triton main/m0 is named twice"),
    ("models.0.gpus", ["GPU-x"], "model m0 is on GPU-x, which the host does not have"),
    ("models.0.triton", "x", "model m0 is of Triton x, which the host does not have"),
    ("models.0.applied.devices", [3], "model m0 is on device 3 of Triton main, which has 1"),
    ("models.0.min_share", 0.9, ""),
    ("models.0", model("m0", "GPU-a", min_share=0.9, max_share=0.5), "min_share 0.9 above"),
    ("models.0.batches", [8, 4], "model m0 may be planned with batches from 8 to 4"),
    ("models.0.rate_upper_per_s", 99.0, "rate_upper_per_s 99 below rate_per_s 100"),
    ("models.0.applied.share", 0.9, "shares on GPU-a add up to 123 %; at most 100 % can be"),
    ("models.0.applied.instances", 4, "shares on GPU-a add up to 167 %"),
    ("decision.least_by_gpu", {"GPU-a": 1.4}, "the least that GPU-a needs is 140 % of it"),
    ("boards.0.memory_total_bytes", 0, "GPU-a uses 1 bytes of memory and has 0"),
    (
        "models.0.learnt",
        {"share": 0.3, "pressure": 0.0, "level": 2.5, "tilt": 0.0, "sd": 0.1},
        "model m0 has a learnt correction of 12.2 times; should be 0.1 to 10",
    ),
    # what may be true
    ("models.0.applied.share", 1.0, ""),  # caps nobody
    ("models.0.rate_upper_per_s", 100.0, ""),
    ("models.0.busy", 0.0, ""),
    ("models.0.gpus", [], ""),  # on the CPU
    ("models", [], ""),
    ("tritons", [], ""),
    ("boards.0.fault", "lost", ""),
    ("models.0.absent", True, ""),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG)
def test_what_is_surely_wrong_is_named_and_what_may_be_true_is_not(
    path: str, value: Any, said: str
) -> None:
    assert found(state("a")) == ""
    text = found(changed(state("a"), path, value))
    assert said in text if said else text == ""


def test_a_model_that_is_not_there_takes_no_share() -> None:
    said = changed(state("a"), "models.0.applied.share", 0.9)
    assert found(changed(said, "models.0.absent", True)) == ""
    assert found(changed(said, "models.0.seen", False)) == ""


def test_shares_count_on_the_gpu_of_each_instance() -> None:
    both = {**applied(0.5), "instances": 2, "devices": [0, 1]}
    one = model("m0", "GPU-a", gpus=["GPU-a", "GPU-b"], applied=both)
    other = model("m1", "GPU-a", applied=applied(0.5))
    assert found(two_gpus(one, other)) == ""
    third = model("m2", "GPU-a", applied=applied(0.1))
    assert "shares on GPU-a add up to 110 %" in found(two_gpus(one, other, third))
    uneven = {**both, "instances": 3, "devices": [1, 0, 1]}
    assert "shares on GPU-b add up to 100 %" not in found(
        two_gpus({**one, "applied": uneven}, other)
    )
    assert found(two_gpus({**one, "applied": uneven}, other)) == ""


def test_devices_must_be_the_gpus_that_the_model_is_on() -> None:
    assert (
        found(two_gpus(model("m0", "GPU-b")))
        == "model m0 is on GPU-b, and on device 0 of Triton main"
    )


def test_no_more_than_three_contradictions_are_said() -> None:
    said = changed(state("a", models=30), "boards.0.uuid", "GPU-x")
    assert found(said).count(";") == 2


def test_a_host_that_names_too_many_profiles_is_wrong() -> None:
    models = [
        model(f"m{i}", "GPU-a", profiles=[f"{64 * i + j:032x}" for j in range(64)])
        for i in range(17)
    ]
    said = {**state("a"), "models": [{**m, "applied": applied(0.01)} for m in models]}
    assert found(said) == "its models name more than 1024 profiles"
