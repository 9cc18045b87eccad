"""Half an hour and more of everything that can go wrong, in virtual time. ``bench/soak.py`` lives
through days of it."""

from pathlib import Path

import pytest

from tests.soak import Soak

pytestmark = pytest.mark.looptime


async def test_nothing_that_happens_breaks_a_promise(tmp_path: Path) -> None:
    seen = await Soak(tmp_path, 2).run(2100.0)
    assert seen.broken == []
    assert seen.late == []
    assert seen.judged >= 5  # there was calm enough to judge by
    assert len(seen.faults) >= 6
    assert seen.reloads >= 5
    # where nothing happens, next to nothing is moved
    assert seen.calm_reloads <= 12 * max(1.0, seen.calm_s / 3600)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [31, 32, 33])
async def test_nor_do_two_hours_of_it(tmp_path: Path, seed: int) -> None:
    seen = await Soak(tmp_path, seed).run(7200.0)
    assert seen.broken == []
    assert seen.late == []
    assert len(seen.faults) >= 10
