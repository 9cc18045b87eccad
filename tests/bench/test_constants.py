"""The study of the constants: what it changes, and that the tables in the docstrings are of the
constants as they are."""

import re
import sys
from types import ModuleType

import pytest

from bench import constants
from igniterd.estimators import arrivals, bias, bias_filter


def rows(module: ModuleType) -> dict[str, str]:
    """Constant and value of each row of the docstring's table."""
    assert module.__doc__ is not None
    found = re.findall(r"^    ([A-Z_]+) +(\S+) +half[:,]", module.__doc__, re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize(
    ("module", "studied"), [(arrivals, constants.OF_ARRIVALS), (bias, constants.OF_BIAS)]
)
def test_the_table_has_every_constant_that_is_studied_at_its_value(
    module: ModuleType, studied: str
) -> None:
    table = rows(module)
    assert list(table) == studied.split()
    for name, value in table.items():
        assert value == constants.shown(getattr(module, name)), name


def test_one_constant_is_changed_and_what_follows_from_it_and_nothing_else() -> None:
    with constants.altered(constants.BIAS, "LEVEL_SD", 0.1) as (changed, update):
        assert changed.Bias().p_level == pytest.approx(0.01)
        assert update.LEVEL_SD == 0.1
        assert update.Bias is changed.Bias
        assert changed.TILT_SD == bias.TILT_SD
    assert bias.Bias().p_level == pytest.approx(0.0025)
    assert sys.modules[bias.__name__] is bias
    assert sys.modules[bias_filter.__name__] is bias_filter


def test_a_constant_that_is_nowhere_is_no_constant_without_effect() -> None:
    with (
        pytest.raises(ValueError, match=r"NONE: 0 lines of .*bias_filter assign it, not 1"),
        constants.altered(constants.BIAS, "NONE", 1.0),
    ):
        pass
    assert sys.modules[bias.__name__] is bias
