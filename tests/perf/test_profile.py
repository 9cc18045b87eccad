"""Profiles: what is read back is what was written, and what cannot be true is refused with its
name."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.data.v100 import build
from igniterd.errors import ProfileError
from igniterd.perf.api import UNCAPPED
from igniterd.perf.profile import Profile, builtin_profile, json_schema, resolve_profile


@pytest.fixture
def data() -> dict[str, Any]:
    return dict(json.loads(builtin_profile("v100").dump()))


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(ProfileError) as caught:
        Profile.parse(json.dumps(data), source="p.json")
    return str(caught.value)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    profile = builtin_profile("v100")
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    assert resolve_profile(str(tmp_path / "p.json")) == profile
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_the_shipped_profile_and_schema_are_what_the_tool_writes() -> None:
    assert builtin_profile("v100") == build.profile()
    schema = (
        resources.files("igniterd")
        .joinpath("data", "profile.schema.json")
        .read_text(encoding="utf-8")
    )
    assert json.loads(schema) == json_schema()


def test_the_shipped_profile_is_cheap() -> None:
    """At most eleven solo points a model and one co-run an ordered pair of models."""
    profile = builtin_profile("v100")
    assert all(len(m.solo) <= 11 for m in profile.models.values())
    pairs = [frozenset(t.model for t in run.tenants) for run in profile.co_runs]
    assert all(pairs.count(pair) <= len(pair) for pair in pairs)
    for m in profile.models.values():
        assert min(p.share for p in m.solo) == 0.1 and max(p.share for p in m.solo) == 1.0
        assert min(p.batch for p in m.solo) == 1 and max(p.batch for p in m.solo) == 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 0}, "measure again with igniterd profile"),
        ({"version": 2}, "upgrade igniterd"),
        ({"version": None}, "measure again"),
        ({"format": "else"}, "not an igniterd profile"),
        ({"models": {}}, "models"),
        ({"surprise": 1}, "surprise: Extra inputs"),
    ],
)
def test_the_outside_of_a_profile_is_checked(
    data: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    assert said in refused(data | change)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("share", 20, "models.ssd.solo.1.share"),
        ("share", "0.2", "models.ssd.solo.1.share"),
        ("batch", 0, "models.ssd.solo.1.batch"),
        ("latency_ms", -1, "models.ssd.solo.1.latency_ms"),
        ("latency_ms", float("nan"), "models.ssd.solo.1.latency_ms"),
        ("latency_ms", 1e-3, "cannot be faster"),
        ("latency_ms", 1e6, "cannot be faster"),
        ("clock_mhz", 1700, "above the board's 1530"),
        ("l2_pct", 120, "models.ssd.solo.1.l2_pct"),
    ],
)
def test_a_wrong_point_is_named(data: dict[str, Any], field: str, value: object, said: str) -> None:
    data["models"]["ssd"]["solo"][1][field] = value
    text = refused(data)
    assert said in text and text.startswith("p.json: ")


def test_a_wrong_co_run_is_named(data: dict[str, Any]) -> None:
    one = {"model": "ssd", "batch": 1, "share": 0.5, "latency_ms": 1.0}
    data["co_runs"] = [{"tenants": [one, {**one, "model": "who", "share": 0.6}]}]
    text = refused(data)
    assert (
        "co_runs.0: who: no such model" in text
        and "1.1, above 1" in text
        and "a neighbour cannot help" in text
    )


def co_run(data: dict[str, Any], *shares: float | None) -> dict[str, Any]:
    """``data`` with one co-run of ssd, slower than alone, in ``shares``."""
    tenants: list[dict[str, object]] = [
        {"model": "ssd", "batch": 4, "latency_ms": 900.0} | ({} if s is None else {"share": s})
        for s in shares
    ]
    return data | {"co_runs": [{"tenants": tenants}]}


def test_who_had_no_share_in_a_co_run_is_read_back_without_a_cap(data: dict[str, Any]) -> None:
    profile = Profile.parse(json.dumps(co_run(data, None, 0.5, None)))
    assert [t.share for t in profile.co_runs[0].tenants] == [UNCAPPED, 0.5, UNCAPPED]
    again = Profile.parse(profile.dump())
    assert again == profile and again.dump() == profile.dump()
    assert Profile.parse(json.dumps(co_run(data, 1.0, 0.5, 1.0))) == profile


def test_only_caps_of_a_co_run_count_towards_one_gpu(data: dict[str, Any]) -> None:
    Profile.parse(json.dumps(co_run(data, 0.5, None, 0.5, 1.0)))
    text = refused(co_run(data, 0.6, None, 0.6))
    assert (
        "co_runs.0: shares add up to 1.2, above 1 (leave out the share of a tenant that had none)"
        in text
    )


def test_the_schema_asks_no_share_of_a_co_run(data: dict[str, Any]) -> None:
    tenant = json_schema()["$defs"]["CoTenant"]
    assert tenant["required"] == ["model", "batch", "latency_ms"]
    assert tenant["properties"]["share"]["default"] == UNCAPPED
    assert "share" in json_schema()["$defs"]["SoloPoint"]["required"]


def test_what_is_no_file_or_no_json_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.load(tmp_path / "none.json")
    with pytest.raises(ProfileError, match="not JSON"):
        Profile.parse("{")
    with pytest.raises(ProfileError, match="no profile is shipped for GPU 'k80'; shipped: v100"):
        builtin_profile("k80")
    with pytest.raises(ProfileError, match="cannot be written"):
        builtin_profile("v100").save(tmp_path / "none" / "p.json")


def test_one_file_a_model_makes_one_profile() -> None:
    whole = builtin_profile("v100")
    parts = [whole.subset([name]) for name in whole.models]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.merge(part)
    assert joined.models == whole.models
    # beside copies of themselves
    assert set(joined.co_runs) == {
        run for run in whole.co_runs if len({t.model for t in run.tenants}) == 1
    }
    assert set(joined.merge(whole).co_runs) == set(whole.co_runs)
    with pytest.raises(ProfileError, match=r"share_unit: 0\.025 and 0\.05"):
        whole.merge(
            whole.model_copy(update={"board": whole.board.model_copy(update={"share_unit": 0.05})})
        )
    other = whole.time_scaled(2).models["ssd"]
    with pytest.raises(ProfileError, match="twice with different figures: ssd"):
        whole.merge(whole.model_copy(update={"models": {"ssd": other}}))


@given(st.floats(1e-2, 1e2))
def test_a_slowed_board_differs_in_every_time_and_nothing_else(factor: float) -> None:
    profile = builtin_profile("v100")
    slowed = profile.time_scaled(factor)
    assert slowed.board.pcie_bytes_per_ms == pytest.approx(profile.board.pcie_bytes_per_ms / factor)
    assert slowed.co_runs[0].tenants[0].latency_ms == pytest.approx(
        profile.co_runs[0].tenants[0].latency_ms * factor
    )
    before, after = profile.models["ssd"], slowed.models["ssd"]
    assert [p.latency_ms for p in after.solo] == pytest.approx(
        [p.latency_ms * factor for p in before.solo]
    )
    assert [p.model_copy(update={"latency_ms": 1}) for p in after.solo] == [
        p.model_copy(update={"latency_ms": 1}) for p in before.solo
    ]
    slowed.check()


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_no_board_is_slowed_by_nonsense(factor: float) -> None:
    with pytest.raises(ValueError, match="finite number above 0"):
        builtin_profile("v100").time_scaled(factor)
