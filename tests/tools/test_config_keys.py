"""The page of configuration keys is what the configuration says."""

import re

import pytest
from pydantic import Field

from igniterd.config import Section
from tests.tools.config_keys import BEGIN, END, PAGE, meanings, replace_table, row, sections, table


class Odd(Section):
    count: int = Field(default=3, ge=1)
    """How ``many``
    of them."""
    bare: str | None = None


def test_the_page_is_what_the_command_writes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == replace_table(page), "run `make keys`"


def test_every_key_says_what_it_means() -> None:
    for section in sections():
        assert set(section.model_fields) - set(meanings(section)) == set(), section.__name__


def test_every_key_has_a_row() -> None:
    keys = [key for section in sections() for key in section.model_fields]
    assert re.findall(r"^\| `(\w+)` \|", table(), re.MULTILINE) == keys


def test_a_row_has_kind_bound_default_and_meaning() -> None:
    assert row(Odd, "count") == (
        "| `count` | whole number, at least 1 | `3` | How `many` of them. |"
    )
    assert row(Odd, "bare") == "| `bare` | text | unset |  |"


def test_a_bound_inside_an_optional_field_is_found() -> None:
    assert "| `client_batch` | whole number, at least 1, at most 4,096 | unset |" in table()


def test_text_around_the_markers_stays() -> None:
    page = replace_table(f"before\n{BEGIN}\nstale row\n{END}\nafter\n")
    assert page.startswith(f"before\n{BEGIN}\n")
    assert page.endswith(f"{END}\nafter\n")
    assert "stale row" not in page


@pytest.mark.parametrize(
    "page", ["nothing", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{BEGIN}{END}"]
)
def test_a_page_without_its_markers_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="should stand"):
        replace_table(page)
