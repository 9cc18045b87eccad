import base64
import gzip
import random
from typing import Any

import pytest

from igniterd.errors import Refused
from igniterd.jsontext import dumps
from igniterd.messages.event import MOST_DATA
from igniterd.messages.profile import (
    MOST_TEXT,
    ProfilePart,
    canonical,
    digest_of,
    packed,
    unpacked,
)
from igniterd.perf import Profile, builtin_profile


def noise(count: int, seed: int = 1) -> str:
    """A text that hardly can be packed: as of many profiles."""
    draw = random.Random(seed)
    return canonical({"noise": [draw.random() for _ in range(count)]})


def parts_of(text: str) -> list[ProfilePart]:
    return [ProfilePart.model_validate(part) for part in packed(text)]


def test_a_profile_goes_and_comes_as_it_was() -> None:
    profile = builtin_profile("v100")
    text = canonical(profile.model_dump(mode="json", exclude_none=True))
    back = unpacked(digest_of(text), parts_of(text))
    assert back == text
    assert Profile.model_validate_json(back) == profile


def test_many_parts_are_within_the_size_and_are_joined() -> None:
    text = noise(20_000)
    parts = packed(text)
    assert len(parts) > 3
    assert max(len(dumps(part)) for part in parts) <= MOST_DATA
    assert unpacked(digest_of(text), parts_of(text)) == text


def test_one_content_has_one_name_whoever_wrote_it() -> None:
    one, other = {"a": 1.5, "b": {"c": [1, 2]}}, {"b": {"c": [1, 2]}, "a": 1.5}
    assert canonical(one) == canonical(other) == '{"a":1.5,"b":{"c":[1,2]}}'
    # the first 32 digits that `printf '{"a":1.5,"b":{"c":[1,2]}}' | sha256sum` prints
    assert digest_of(canonical(one)) == "b567930e678386222348e9a1a825bb36"
    assert packed(canonical(one)) == packed(canonical(other))


def test_a_wrong_hash_is_found() -> None:
    text = noise(10)
    wrong = "0" * 32
    with pytest.raises(Refused, match=f"{wrong}: its content has the hash {digest_of(text)}"):
        unpacked(wrong, parts_of(text))


@pytest.mark.parametrize("chosen", [[], [1], [0, 2], [1, 0, 2], [0, 1], [0, 0, 1, 2]], ids=str)
def test_parts_that_do_not_belong_together_are_refused(chosen: list[int]) -> None:
    text = noise(7_000)
    parts = parts_of(text)
    assert len(parts) == 3
    digest = digest_of(text)
    with pytest.raises(Refused, match=r"its parts do not belong together|has the hash|unpacked"):
        unpacked(digest, [parts[n] for n in chosen])


def test_parts_of_two_profiles_are_refused() -> None:
    one, other = (parts_of(noise(7_000, seed)) for seed in (1, 2))
    with pytest.raises(Refused):
        unpacked(digest_of(noise(7_000, 1)), [*one[:2], other[2]])


def test_what_unpacks_to_too_much_is_refused() -> None:
    """A hundred MiB of blanks, in a hundred kB."""
    bomb = base64.b64encode(gzip.compress(b" " * (100 * 2**20), 9)).decode()
    size = 20_000
    pieces = [bomb[at : at + size] for at in range(0, len(bomb), size)]
    parts = [a_part(piece, part=n, parts=len(pieces)) for n, piece in enumerate(pieces, start=1)]
    with pytest.raises(Refused, match=f"unpacks to more than {MOST_TEXT} bytes"):
        unpacked("0" * 32, parts)


def a_part(content: str, **more: Any) -> ProfilePart:
    fields = {"profile": "0" * 32, "part": 1, "parts": 1, "encoding": "gzip+base64"}
    return ProfilePart.model_validate(fields | {"content": content} | more)


@pytest.mark.parametrize(
    "content",
    ["not base64!", "", base64.b64encode(b"not gzip").decode(), "H4sIAAAAAAAC/w=="],
    ids=["letters", "empty", "no gzip", "cut off"],
)
def test_what_cannot_be_unpacked_is_refused(content: str) -> None:
    with pytest.raises(Refused):
        unpacked("0" * 32, [a_part(content)])


def test_text_in_another_encoding_is_refused() -> None:
    content = base64.b64encode(gzip.compress("é".encode("latin-1"))).decode()
    with pytest.raises(Refused, match="cannot be unpacked"):
        unpacked("0" * 32, [a_part(content)])


@pytest.mark.parametrize("text", [noise(200_000), '"' + "x" * MOST_TEXT + '"'])
def test_a_profile_that_is_too_large_is_not_sent(text: str) -> None:
    with pytest.raises(Refused, match="is too large to be sent"):
        packed(text)
