"""What is known of the configured profiles, beside what is predicted from them."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from igniterd.config import Config, parse_config
from igniterd.messages import profile as profiles
from igniterd.messages.profile import ProfilePart, digest_of, unpacked
from igniterd.perf import Profile, builtin_profile
from igniterd.predictors import load_knowledge

MQTT = '[mqtt]\nurl = "mqtt://broker"\n'


def settings(folder: Path, more: str = MQTT) -> Config:
    """Two models of one file, and one of another file that says the same."""
    for name in ("one", "other"):
        builtin_profile("v100").save(folder / f"{name}.json")
    (folder / "other.json").write_text((folder / "one.json").read_text() + "\n\n")
    models = "".join(
        f'[[model]]\nname = "{model}"\nslo_p99_ms = 500\nprofile = "{file}.json"\n'
        for model, file in (("alexnet", "one"), ("vgg19", "one"), ("resnet50", "other"))
    )
    bare = '[[model]]\nname = "bare"\nslo_p99_ms = 500\n'
    return parse_config(more + models + bare, source="test", folder=folder)


def test_the_contents_of_profiles_have_names_and_are_packed_once(tmp_path: Path) -> None:
    known = load_knowledge(settings(tmp_path))
    (digest,) = known.packed
    assert known.digests == {
        "alexnet": (digest,),
        "vgg19": (digest,),
        "resnet50": (digest,),
        "bare": (),
    }
    parts = [ProfilePart.model_validate(part) for part in known.packed[digest]]
    text = unpacked(digest, parts)
    assert digest_of(text) == digest
    assert Profile.model_validate_json(text) == builtin_profile("v100")


def test_without_a_broker_nothing_is_packed(tmp_path: Path) -> None:
    assert load_knowledge(settings(tmp_path, "")).packed == {}


def test_a_profile_that_is_too_large_to_be_sent_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MOST_TEXT", 1000)
    with capture_logs() as said:
        known = load_knowledge(settings(tmp_path))
    assert known.packed == {}
    assert known.predictors is not None
    (line,) = [line for line in said if "not told of a profile" in line["event"]]
    assert line["file"] == f"{tmp_path}/one.json"
    assert "is too large to be sent" in line["reason"]
