"""On which GPUs models are, and which GPUs belong together."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from igniterd.devices import Devices
from igniterd.placement import groups_of, placed
from igniterd.records import Allocation, ModelReading

PLAIN = ModelReading("m", "1", "main", True, "python", Allocation(0.5, 8))
KNOWN = Devices(("GPU-b", "GPU-a"), "order")


def on(*devices: int) -> ModelReading:
    return replace(
        PLAIN, allocation=replace(PLAIN.allocation, instances=len(devices), devices=devices)
    )


def test_device_numbers_become_the_gpus_of_the_host() -> None:
    assert placed(on(1), KNOWN).gpus == ("GPU-a",)
    assert placed(on(0, 1, 1), KNOWN).gpus == ("GPU-b", "GPU-a", "GPU-a")
    assert placed(on(1, 1), KNOWN).gpu_of_each == ("GPU-a", "GPU-a")
    assert placed(PLAIN, KNOWN).gpus == ("GPU-b",), "the server's first, where none is named"
    assert placed(on(1), Devices()).gpus == ("main:1",), "no UUID is known"


def test_what_is_granted_counts_on_each_gpu() -> None:
    spread = placed(replace(on(0, 1, 1)), KNOWN)
    assert [spread.granted_on(gpu) for gpu in ("GPU-b", "GPU-a", "GPU-c")] == [0.5, 1.0, 0.0]
    assert spread.allocation.granted == 1.0, "of the GPU that has most"


def test_what_is_not_known_for_sure_is_watched() -> None:
    unclear = placed(on(0), Devices(ambiguous="two kinds; gpus = [...]"))
    assert unclear.left_alone == unclear.share_fixed == "two kinds; gpus = [...]"
    assert unclear.gpus == ("main:0",)
    beyond = placed(on(2), KNOWN)
    assert "names GPU 2, and Triton main is known to have 2" in beyond.left_alone
    wrong = placed(on(0), Devices(("GPU-x",), wrong="no GPU is called GPU-x"))
    assert wrong.left_alone == "no GPU is called GPU-x"


def test_instances_on_the_cpu_are_on_no_gpu() -> None:
    cpu = replace(PLAIN, on_cpu=True)
    assert placed(cpu, KNOWN).gpus == ()
    assert "run on the CPU" in placed(cpu, KNOWN).left_alone
    assert placed(cpu, KNOWN, cpu_counts=True).gpus == ("GPU-b",)
    assert placed(cpu, KNOWN, 1).gpus == ("GPU-a",), "its owner says that it uses one"


def test_what_the_configuration_tells_is_checked() -> None:
    model = replace(PLAIN, chooses_gpu="KIND_MODEL")
    assert placed(model, KNOWN).left_alone == "KIND_MODEL"
    assert placed(model, KNOWN, 1).left_alone == ""
    assert placed(model, KNOWN, "GPU-b").gpus == ("GPU-b",)
    assert "is none of the GPUs of Triton main" in placed(model, KNOWN, "GPU-z").left_alone
    assert "give a number below 2" in placed(model, KNOWN, 5).left_alone


def test_a_number_tells_no_gpu_where_it_is_not_known_what_the_server_calls_so() -> None:
    unclear = Devices(ambiguous="two Tritons; gpus = [...]")
    assert placed(on(0), unclear, 0).left_alone == "two Tritons; gpus = [...]"
    assert placed(on(0), Devices(("GPU-x",), wrong="none is"), 0).left_alone == "none is"
    assert placed(on(0), unclear, "GPU-b").left_alone == "", "a UUID does"


def test_gpus_that_share_a_model_belong_together() -> None:
    models = {
        "a": replace(PLAIN, gpus=("1",)),
        "b": replace(PLAIN, gpus=("1", "2")),
        "c": replace(PLAIN, gpus=("3",)),
        "cpu": replace(PLAIN, gpus=()),
    }
    assert [(g.gpus, g.models) for g in groups_of(models, models)] == [
        (("1", "2"), ("a", "b")),
        (("3",), ("c",)),
    ]


@given(st.lists(st.sets(st.sampled_from("abcdef"), max_size=3), max_size=8))
def test_every_model_is_in_the_one_group_that_has_all_its_gpus(placements: list[set[str]]) -> None:
    models = {str(n): replace(PLAIN, gpus=tuple(sorted(gpus))) for n, gpus in enumerate(placements)}
    groups = groups_of(models, models)
    seen = [gpu for group in groups for gpu in group.gpus]
    assert len(seen) == len(set(seen))
    for name, reading in models.items():
        there = [group for group in groups if name in group.models]
        assert len(there) == bool(reading.gpus)
        assert all(set(reading.gpus) <= set(group.gpus) for group in there)
