"""What igniterd puts on a model comes off again, whatever it was and however often it was
changed."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.environments import Reach
from igniterd.clients.owned import as_owned, touched
from igniterd.clients.triton.config_change import marked, with_allocation
from igniterd.engines.hosting import host_model
from igniterd.errors import Refused
from igniterd.profiler.server import for_measuring
from igniterd.records import Allocation
from tests.clients.triton.test_config import SHARES, a_config, allocations, owners

Config = dict[str, Any]


def served(config: Config) -> Config:
    """As Triton serves it: preferred sizes filled in, default values not told."""
    out = dict(config)
    batching = dict(out.get("dynamic_batching", {}))
    if "dynamic_batching" in out:
        batching.setdefault("preferred_batch_size", [out["max_batch_size"]])
        if not batching.get("max_queue_delay_microseconds"):
            batching.pop("max_queue_delay_microseconds", None)
        out["dynamic_batching"] = batching
    if not out.get("parameters"):
        out.pop("parameters", None)
    return out


environments = st.sampled_from(
    [None, "/opt/envs/torch", "/nfs/shares/3.11", "$$TRITON_MODEL_DIRECTORY/env.tar.gz"]
)
reaches = st.sampled_from(
    [
        Reach(),
        Reach(python="/usr/bin/python3"),
        Reach(variables={"CUDA_MPS_PIPE_DIRECTORY": "/tmp/x"}),
    ]
)
shim = Reach(shim_backend="igniterd_shim")


def owned_config(owner: Config, env: str | None, bare: bool) -> Config:
    config = a_config(**owner)
    if bare:
        del config["parameters"]
    if env:
        config.setdefault("parameters", {})["EXECUTION_ENV_PATH"] = {"string_value": env}
    return served(config)


@given(owners, st.lists(allocations, min_size=1, max_size=4), environments, reaches, st.booleans())
def test_round_trip(
    owner: Config, targets: list[Any], env: str | None, reach: Reach, bare: bool
) -> None:
    config = owned_config(owner, env, bare)
    reach = shim if env and "$$" in env else reach
    now = config
    for n, target in enumerate(targets):
        changed = now
        with contextlib.suppress(Refused):  # a delay below the owner's largest batch
            changed = with_allocation(now, target, SHARES, reach=reach)
        now = served(marked(changed, f"{n:08x}"))
    # no mark tells how many there were
    expected = {**config, "instance_group": now["instance_group"]}
    assert touched(now, SHARES)
    assert served(as_owned(now, SHARES)) == expected
    assert not touched(as_owned(now, SHARES), SHARES)


@given(owners, environments)
def test_what_igniterd_never_touched_stays(owner: Config, env: str | None) -> None:
    config = owned_config(owner, env, False)
    assert not touched(config, SHARES)
    assert as_owned(config, SHARES) == config


@given(owners, st.none() | st.integers(1, 20).map(lambda n: n * 0.05))
def test_a_share_of_another_directory_comes_off_too(owner: Config, share: float | None) -> None:
    config = owned_config(owner, None, False)
    now = with_allocation(config, allocation(share or 0.5), "/elsewhere/shares")
    assert touched(now, SHARES)
    assert "EXECUTION_ENV_PATH" not in as_owned(now, SHARES)["parameters"]


def allocation(share: float) -> Allocation:
    return Allocation(share, 1, 0, 1)


@pytest.mark.parametrize("share", [None, 0.3])
def test_a_model_whose_profiler_was_killed(share: float | None, tmp_path: Path) -> None:
    config = a_config(dynamic_batching={"max_queue_delay_microseconds": 500})
    config["instance_group"][0]["count"] = 3
    earlier = with_allocation(config, allocation(0.5), str(tmp_path))
    for before in (config, earlier):
        now = marked(for_measuring(before, share, 4, tmp_path, run="r1"), "00")
        assert touched(now, str(tmp_path))
        found = as_owned(now, str(tmp_path))
        assert found == {**config, "instance_group": before["instance_group"]}


def test_a_model_in_a_process_of_its_own_with_a_share() -> None:
    owner = a_config(backend="onnxruntime") | {
        "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [4]}]
    }
    config, _ = host_model(owner, ["1"], "/models/resnet50", environment="/opt/engines")
    now = served(marked(with_allocation(config, allocation(0.25), SHARES), "00"))
    found = as_owned(now, SHARES)
    assert served(found) == served({**owner, "instance_group": now["instance_group"]})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"before": 3}', "[" * 100_000])
def test_a_mark_that_somebody_else_wrote_is_only_taken_off(text: str) -> None:
    config = a_config()
    odd = {
        **config,
        "parameters": {**config["parameters"], "IGNITERD_PROFILE": {"string_value": text}},
    }
    assert as_owned(odd, SHARES) == config
