"""What outlives the daemon."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from igniterd.estimate import ModelState
from igniterd.estimators.bias import LEVEL_SD, Bias, Measured, Point
from igniterd.estimators.bias_filter import update_bias
from igniterd.estimators.live_curve import LiveCurve, points, update_curve
from igniterd.perf import builtin_profile
from igniterd.state.checkpoint import (
    SAVE_EVERY_S,
    STALE_S,
    Checkpoint,
    identity,
    plain,
    recalled,
    service_times,
)

NOW_S, WALL_S = 500.0, 1.7e9
IDENTITIES = {"resnet50": "abc", "bert": ""}


def belief() -> dict[str, ModelState]:
    bias = Bias()
    for t in range(30):
        bias, _ = update_bias(bias, NOW_S - 30 + t, [Measured(4, 50, 1.1)], Point(0.4, 0.3))
    curve = update_curve(
        LiveCurve(), NOW_S, {1: 100, 2: 50}, {1: 10.0, 2: 15.0}, share=None, instances=1
    )
    return {
        "resnet50": ModelState(bias=bias, published_bias=bias.estimate, copy=("1", "python")),
        "bert": ModelState(curve=curve, copy=("3", "onnxruntime")),
        "never seen": ModelState(),
    }


def kept(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(plain(belief(), IDENTITIES, NOW_S, WALL_S))) | changes


def test_taken_up_again_a_little_less_sure() -> None:
    out, words = recalled(kept(), IDENTITIES, 7.0, WALL_S + 100)
    assert words == []
    assert out.keys() == {"resnet50", "bert"}
    before, after = belief()["resnet50"], out["resnet50"]
    assert after.bias.level == before.bias.level
    assert after.bias.point == Point(0.4, 0.3)
    assert before.bias.p_level < after.bias.p_level < LEVEL_SD**2
    assert after.published_bias is not None
    assert after.copy == ("1", "python")
    assert out["bert"].curve.sizes[2].mean_ms == 15.0
    assert out["bert"].copy == ("3", "onnxruntime")


def test_another_profile_forgets_the_bias_and_says_so() -> None:
    out, words = recalled(kept(), {"resnet50": "def", "bert": ""}, 0.0, WALL_S)
    assert out["resnet50"].bias == Bias()
    assert words == ["resnet50: its profile is another one now; its bias is learnt anew"]


def test_models_no_longer_configured_are_left_out() -> None:
    assert recalled(kept(), {"bert": ""}, 0.0, WALL_S)[0].keys() == {"bert"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([], "it is not a file of igniterd's"),
        ({"format": "something"}, "it is not a file of igniterd's"),
        (kept(version=9), "it has version 9; this igniterd reads version 1"),
        (kept(saved_s=WALL_S - STALE_S - 86_400), "it is 15 days old"),
    ],
)
def test_other_files_are_refused_with_a_reason(data: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        recalled(data, IDENTITIES, 0.0, WALL_S)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"level": "x"},
        {"p_level": -1.0},
        {"share": 0.0},
        {"level": 1e9},
        {"p_both": 1.0},
        {"windows": None},
    ],
)
def test_a_model_with_nonsense_is_left_out_with_a_word_and_the_others_are_not(
    nonsense: dict[str, Any],
) -> None:
    data = kept()
    data["models"]["resnet50"]["bias"] |= nonsense
    out, words = recalled(data, IDENTITIES, 0.0, WALL_S)
    assert out.keys() == {"bert"}
    assert len(words) == 1
    assert words[0].startswith("resnet50: ")


def test_all_that_is_wrong_with_a_model_is_named() -> None:
    data = kept()
    bias = data["models"]["resnet50"]["bias"]
    data["models"]["resnet50"]["bias"] = bias | {"level": "1", "windows": True, "share": math.nan}
    _, words = recalled(data, IDENTITIES, 0.0, WALL_S)
    assert len(words) == 1
    for part in ("level is '1'", "windows is True", "share is nan"):
        assert part in words[0]


def test_identity_tells_profiles_apart() -> None:
    profile = builtin_profile("v100")
    slower = profile.time_scaled(2.0)
    assert identity(profile, "vgg19") == identity(profile, "vgg19")
    assert (
        len({identity(profile, "vgg19"), identity(profile, "ssd"), identity(slower, "vgg19")}) == 3
    )


def test_written_at_a_slow_pace_and_read_again(tmp_path: Path) -> None:
    memory = Checkpoint(tmp_path / "state" / "learnt.json", IDENTITIES)
    assert memory.recall(0.0, WALL_S) == {}
    memory.keep(belief(), NOW_S, WALL_S)
    memory.keep(belief(), NOW_S + SAVE_EVERY_S - 1, WALL_S)
    assert not memory.path.exists()
    memory.keep(belief(), NOW_S + SAVE_EVERY_S, WALL_S)
    memory.close({}, NOW_S, WALL_S)
    assert memory.path.exists()
    assert list(tmp_path.glob("state/*")) == [memory.path]
    assert memory.recall(0.0, WALL_S).keys() == {"resnet50", "bert"}


def test_written_at_the_end(tmp_path: Path) -> None:
    memory = Checkpoint(tmp_path / "learnt.json", IDENTITIES)
    memory.close(belief(), NOW_S, WALL_S)
    assert Checkpoint(memory.path, IDENTITIES).recall(0.0, WALL_S).keys() == {"resnet50", "bert"}


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": "igniterd-learnt", "version": 1, "saved_s": 1}', "[1, 2]", "\x00"]
)
def test_an_unreadable_file_is_a_word_in_the_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "learnt.json"
    path.write_text(text)
    structlog.reset_defaults()
    with capture_logs() as logs:
        assert Checkpoint(path, IDENTITIES).recall(0.0, WALL_S) == {}
    assert [log["event"] for log in logs] == ["what was learnt before is not taken up"]


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        memory = Checkpoint(tmp_path / "file" / "learnt.json", IDENTITIES)
        for t in range(3):
            memory.keep(belief(), NOW_S + t * SAVE_EVERY_S, WALL_S)
            memory.close(belief(), NOW_S, WALL_S)
    assert [log["event"] for log in logs] == ["what is learnt is not kept"]


def test_service_times_in_words(tmp_path: Path) -> None:
    path = tmp_path / "learnt.json"
    assert service_times(path, ["bert"], WALL_S) == {}
    path.write_text(json.dumps(kept()))
    assert service_times(path, ["bert", "resnet50"], WALL_S) == {
        "bert": "as it runs now: batches 1 to 2 within 4 %"
    }


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_file_holds_it_is_taken_up_usable_or_not_at_all(data: st.DataObject) -> None:
    """One value of a good file, anywhere in it, becomes another."""
    good = kept()
    node: Any = good
    while True:
        key = data.draw(
            st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node))))
        )
        if not (isinstance(node[key], dict | list) and node[key]) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(LEAVES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learnt.json"
        path.write_text(json.dumps(good))
        out = Checkpoint(path, IDENTITIES).recall(0.0, WALL_S)
    for belief in out.values():
        assert math.isfinite(belief.bias.mean)
        assert math.isfinite(belief.bias.upper(0.95))
        if belief.curve.sizes:
            known = points(belief.curve, belief.curve.largest, 1.0)
            assert known is None or bool((known.mean_ms > 0).all())
        assert math.isfinite(belief.daily.usual_per_s(WALL_S))
        plain({"resnet50": belief}, IDENTITIES, 1.0, WALL_S)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 20_000,
        "{}",
        "null",
        '"igniterd-learnt"',
        '{"format": "igniterd-learnt", "version": 1, "saved_s": 1' + "0" * 400 + "}",
    ],
)
def test_a_foreign_file_does_not_keep_the_daemon_from_starting(tmp_path: Path, text: str) -> None:
    path = tmp_path / "learnt.json"
    path.write_text(text)
    with capture_logs() as said:
        assert Checkpoint(path, IDENTITIES).recall(0.0, WALL_S) == {}
    assert [line["event"] for line in said] == ["what was learnt before is not taken up"]


def test_a_disk_that_is_mended_is_said_once(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.write_text("a file where the folder should be")
    memory = Checkpoint(folder / "learnt.json", IDENTITIES)
    with capture_logs() as said:
        memory._write(kept())
        memory._write(kept())
        folder.unlink()
        memory._write(kept())
        memory._write(kept())
    assert [line["event"] for line in said] == [
        "what is learnt is not kept",
        "what is learnt is kept again",
    ]
