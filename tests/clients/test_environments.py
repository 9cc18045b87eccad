from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.environments import (
    DEFAULT_SHARES,
    PLAIN,
    Own,
    Reach,
    backend_of,
    base_env_of,
    is_stale,
    percent_name,
    runs_in_stubs,
    share_of,
    share_path,
)
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import with_allocation
from igniterd.clients.triton.obstacles import share_obstacle
from igniterd.errors import Refused
from igniterd.records import Allocation

SHARES = DEFAULT_SHARES
SHIM = Reach(shim_backend="igniterd_python")


def with_environment(path: Any, **more: Any) -> dict[str, Any]:
    parameters = {"weights": {"string_value": "v7"}, "EXECUTION_ENV_PATH": {"string_value": path}}
    return {"name": "m", "backend": "python", "parameters": parameters} | more


def given_share(
    config: dict[str, Any],
    share: float | None,
    shares: str = SHARES,
    reach: Reach = PLAIN,
    own: Own = Own.UNSEEN,
) -> Any:
    return with_allocation(config, Allocation(share, 1), shares, reach=reach, own=own)


def path_of(config: dict[str, Any]) -> str:
    return str(config["parameters"]["EXECUTION_ENV_PATH"]["string_value"])


def test_a_share_is_a_folder_named_by_its_percentage() -> None:
    config = given_share({"name": "m", "backend": "python"}, 0.125)
    assert path_of(config) == "/var/lib/igniterd/shares/igniterd-v2/12.5"
    assert share_of(config) == 0.125
    assert [percent_name(share) for share in (0.025, 0.3, 1.0, 1 / 3)] == [
        "2.5",
        "30",
        "100",
        "33.333",
    ]


def test_a_models_own_environment_is_remembered_and_given_back() -> None:
    own = with_environment("/opt/envs/torch")
    first = given_share(own, 0.3)
    assert path_of(first) == share_path(SHARES, 0.3, "/opt/envs/torch")
    assert path_of(first).startswith(SHARES + "/igniterd-v2/env-")
    second = given_share(first, 0.4)
    assert (share_of(second), base_env_of(second)) == (0.4, "/opt/envs/torch")
    assert given_share(second, None) == own


@pytest.mark.parametrize(
    "path",
    [
        "/nfs/shares/3.11",
        "/mnt/shares/38",
        "/var/lib/igniterd/shares/0",
        "/var/lib/igniterd/shares/500",
        "/var/lib/igniterd/shares/igniterd-v2/0",
        "/var/lib/igniterd/shares/30/more",
        "/var/lib/igniterd/shares/../envs/30",
        "/var/lib/igniterd/shares2/30",
        "/envs/v2/30",
        "30",
        "/",
        "/a\nb/30",
    ],
)
def test_an_environment_of_its_owner_is_no_share(path: str) -> None:
    config = with_environment(path)
    assert share_of(config) is None
    assert base_env_of(config) == path
    if share_obstacle(config) == "":
        assert given_share(given_share(config, 0.3), None) == config


@pytest.mark.parametrize("shares", ["/data/igniterd", "/data/igniterd/", "/d//x/shares"])
def test_what_is_under_the_folder_of_shares_is_a_share_whatever_its_name(shares: str) -> None:
    config = given_share(with_environment("/opt/env"), 0.3, shares)
    assert share_of(config, shares) == 0.3
    assert base_env_of(config, shares) == "/opt/env"
    assert allocation_of(config, shares).share == 0.3


@pytest.mark.parametrize("path", ["/var/lib/igniterd/shares/30", "/var/lib/igniterd/shares/30/"])
def test_a_share_of_an_earlier_igniterd_is_seen_and_replaced(path: str) -> None:
    config = with_environment(path)
    assert share_of(config) == 0.3
    assert base_env_of(config) is None
    again = given_share(config, 0.3)
    assert path_of(again) == share_path(SHARES, 0.3), (
        "another path: Triton takes the same for no change"
    )
    assert (is_stale(config), is_stale(again), is_stale(again, reach=Reach(python="/p"))) == (
        True,
        False,
        True,
    )
    assert given_share(again, 0.3) == again
    assert "EXECUTION_ENV_PATH" not in given_share(config, None)["parameters"]


@pytest.mark.parametrize(
    "path", ["/old/shares/igniterd-v2/30", "/old/igniterd-v2/env-0123456789ab/30"]
)
def test_a_share_of_another_directory_is_a_share_and_comes_home(path: str) -> None:
    assert share_of(with_environment(path)) == 0.3
    config = with_environment(path)
    config["parameters"]["IGNITERD_BASE_ENV"] = {"string_value": "/opt/env"}
    moved = given_share(config, 0.3)
    assert path_of(moved) == share_path(SHARES, 0.3, "/opt/env")
    assert path_of(given_share(config, None)) == "/opt/env"


def test_an_earlier_igniterds_chain_in_another_directory_is_told_by_what_it_remembers() -> None:
    config = with_environment("/old/shares/env-281fb72e0784/30")
    assert share_of(config) is None
    config["parameters"]["IGNITERD_BASE_ENV"] = {"string_value": "/opt/other"}
    assert share_of(config) is None, "it is not the digest of that"
    config["parameters"]["IGNITERD_BASE_ENV"] = {"string_value": "/opt/env"}
    assert share_of(config) is not None


ARCHIVES = [
    "/e/a.tar.gz",
    "/e/a.tgz",
    "/e/a.tar",
    "/e/a.tar.bz2",
    "/e/a.zip",
    "/e/A.TAR.GZ",
    "/e/a.tar.xz",
    "/e/a.txz",
]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        *(
            (path, "is an archive; unpack it and point EXECUTION_ENV_PATH at the folder")
            for path in ARCHIVES
        ),
        ("$$TRITON_MODEL_DIRECTORY/env", "is relative to the repository"),
        ("$$TRITON_MODEL_DIRECTORY/../env.tar.gz", "is relative to the repository"),
        ("s3://bucket/env", "is in a remote store"),
        ("env", "is relative to Triton's folder"),
    ],
)
def test_what_nothing_can_be_put_in_front_of_is_known_before_it_is_tried(
    path: str, words: str
) -> None:
    config = with_environment(path)
    assert words in share_obstacle(config)
    with pytest.raises(Refused, match="m: its environment"):
        given_share(config, 0.3)
    assert share_obstacle(config, reach=SHIM) == ""
    shimmed = given_share(config, 0.3, reach=SHIM)
    assert (shimmed["backend"], backend_of(shimmed), path_of(shimmed)) == (
        "igniterd_python",
        "python",
        path,
    )
    assert (share_of(shimmed), base_env_of(shimmed), runs_in_stubs(shimmed)) == (0.3, path, True)
    again = given_share(shimmed, 0.4, reach=SHIM)
    assert (share_of(again), base_env_of(again), again["backend"]) == (0.4, path, "igniterd_python")
    for reach in (SHIM, PLAIN):
        assert given_share(again, None, reach=reach) == config


def test_what_was_seen_goes_before_what_a_name_says() -> None:
    assert "is an archive" in share_obstacle(with_environment("/e/torch_pack"), own=Own.ARCHIVE)
    assert share_obstacle(with_environment("/e/torch_pack"), own=Own.FOLDER) == ""
    assert share_obstacle(with_environment("/e/env.zip"), own=Own.FOLDER) == ""
    for reach in (PLAIN, SHIM):
        said = share_obstacle(with_environment("/old/shares/30"), own=Own.SHARE, reach=reach)
        assert (
            "is a share that igniterd made in another directory; name that one with [state] shares"
            in said
        )


def test_the_shim_is_only_for_what_it_can_run() -> None:
    assert "EXECUTION_ENV_PATH" not in given_share(
        {"name": "m", "backend": "python"}, 0.3, reach=SHIM
    ).get("backend", "")
    assert given_share(with_environment("/opt/env"), 0.3, reach=SHIM)["backend"] == "python", (
        "a folder needs none"
    )
    own_code = with_environment("/e/a.zip", backend="pytorch", runtime="model.py")
    assert "is an archive" in share_obstacle(own_code, reach=SHIM), (
        "the backend's own code would be replaced"
    )


@pytest.mark.parametrize(
    ("config", "stubs"),
    [
        ({"backend": "python"}, True),
        ({"backend": "pytorch", "runtime": "model.py"}, True),
        ({"backend": "vllm", "runtime": "/opt/backends/vllm/model.py"}, True),
        ({"backend": "pytorch"}, False),
        ({"backend": "onnxruntime", "runtime": ""}, False),
        ({"backend": "x", "runtime": "libtriton_x.so"}, False),
        ({"platform": "ensemble"}, False),
        ({}, False),
    ],
)
def test_what_runs_in_processes_of_its_own(config: dict[str, Any], stubs: bool) -> None:
    assert runs_in_stubs(config) is stubs
    assert ("inside tritonserver" in share_obstacle({"name": "m"} | config)) is not stubs


anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
keys = st.sampled_from(
    [
        "EXECUTION_ENV_PATH",
        "IGNITERD_BASE_ENV",
        "IGNITERD_OWN_BACKEND",
        "IGNITERD_ENV_CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        "x",
    ]
)
odd_texts = st.sampled_from(
    [
        "/var/lib/igniterd/shares/999",
        "/s/igniterd-v2/1.",
        "x" * 300,
        "/",
        "$$",
        "1e9",
        "/a/env-000000000000/7",
    ]
) | st.text(max_size=12)


@given(
    st.dictionaries(keys, st.fixed_dictionaries({"string_value": odd_texts}) | anything) | anything
)
def test_nothing_odd_in_the_parameters_is_an_error(parameters: Any) -> None:
    config = {"name": "m", "backend": "python", "parameters": parameters}
    share = share_of(config)
    assert share is None or 0 < share <= 1
    base_env_of(config)
    share_obstacle(config)


def test_what_is_in_a_folder_is_told_by_its_path() -> None:
    paths = {
        share_path(SHARES, 0.3),
        share_path(SHARES, 0.3, "/opt/env"),
        share_path(SHARES, 0.3, python="/opt/python3"),
        share_path(SHARES, 0.3, "/opt/env", python="/opt/python3"),
        share_path(SHARES, 0.3, variables={"A": "b"}),
    }
    assert len(paths) == 5
    assert (
        path_of(
            given_share({"name": "m", "backend": "python"}, 0.3, reach=Reach(python="/opt/python3"))
        )
        in paths
    )
