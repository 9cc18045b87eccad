"""What constants are chosen by, by hand."""

import numpy as np
import pytest

from bench.foreign_choices import added, chosen, parts
from bench.foreign_sets import Case
from igniterd.perf.api import Tenant
from igniterd.perf.kernels.mean import COMPANY

A, B, C = (Tenant(name, 4) for name in "abc")


def test_what_neighbours_cost_together() -> None:
    assert added([0.4, 0.1], 0.0) == pytest.approx(0.5)
    assert added([0.4, 0.1], 0.5) == pytest.approx(0.5 + 0.5 * (0.5 - 0.17 / 0.5))
    assert added([0.4], COMPANY) == pytest.approx(0.4)
    assert added([0.0, 0.0], COMPANY) == 0.0


def test_a_case_counts_where_all_its_pairs_are_known() -> None:
    cases = [Case("", (A, B, C), 1.0), Case("", (B, A, C), 1.0)]
    known = {(A, B): 0.2, (A, C): -0.1, (B, A): 0.3}
    assert parts(cases, lambda me, other: known.get((me, other))) == [(cases[0], [0.2, 0.0])]


def test_the_rest_choose_what_one_left_out_is_judged_by() -> None:
    """Whoever is left out, the rest are best at 0.25, the third value; there it is 10 % off."""
    size = np.full((5, 4), 0.3)
    size[2] = 0.1
    keys: list[set[object]] = [{"a"}, {"a"}, {"b"}, {"c"}]
    said = chosen(size, keys)
    assert said == "by median [0.25], by mean [0.25]; left out, median 10.0 (with 0 30.0)"
