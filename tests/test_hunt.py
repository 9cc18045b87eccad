"""A few hunts on fixed seeds, in virtual time; ``make fuzz`` hunts on new ones (HUNTS of them).

Whoever gets a failure here finds what happened, second by second, in the story that is printed with
it.
"""

import os
import secrets
from pathlib import Path

import pytest

from tests.hunt import Seen, hunted
from tests.hunt_around import hunted_around

pytestmark = pytest.mark.looptime
FIRST = (3, 7, 12)
NEW = [secrets.randbelow(2**31) for _ in range(int(os.environ.get("HUNTS", "0")))]
SECONDS = 900.0 if NEW else 400.0


def sound(seed: int, seen: Seen) -> None:
    story = "\n".join([f"seed {seed}", *seen.story])
    assert seen.broken == [], story
    assert seen.ticks >= SECONDS  # it was lived through, and things happened
    assert sum(seen.faults.values()) >= 3


@pytest.mark.parametrize("seed", NEW or FIRST)
async def test_nothing_that_happens_to_triton_breaks_a_promise(tmp_path: Path, seed: int) -> None:
    sound(seed, await hunted(tmp_path, seed, SECONDS))


@pytest.mark.parametrize("seed", NEW or FIRST)
async def test_nor_does_what_happens_around_it(tmp_path: Path, seed: int) -> None:
    sound(seed, await hunted_around(tmp_path, seed, SECONDS))
