"""Words of servers and models reach terminals and logs as plain text, whatever they are made of."""

import pytest
import structlog
from rich.table import Table
from rich.text import Text

from igniterd.cli.common import log_to_stderr, shown
from igniterd.errors import CannotRun, ConfigError, NotServed, Refused
from igniterd.plain import plain

EVIL = "\x1b]0;owned\x07\x1b[2Jall is well\x9b31m\r\n\u202eigniterd: forged\u2028line"


def harmless(text: str) -> bool:
    return all(character.isprintable() for character in text.replace("\n", ""))


def test_plain_text_stays_and_the_rest_is_shown_as_escapes() -> None:
    assert plain("modèle 名前 …") == "modèle 名前 …"
    assert plain("a\tb\\n\n\x1b[0m") == "a b\\n\\n\\x1b[0m"
    assert harmless(plain(EVIL))


@pytest.mark.parametrize("kind", [Refused, NotServed, CannotRun])
def test_every_error_says_one_plain_line(kind: type[Exception]) -> None:
    said = str(kind(f"load of m: {EVIL}"))
    assert harmless(said) and "\n" not in said and "owned" in said


def test_the_problems_of_a_configuration_too() -> None:
    error = ConfigError("a\x1b", [EVIL, "b"])
    assert all(map(harmless, (error.source, *error.problems, str(error))))


def test_what_is_printed_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", box=None)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    shown(EVIL, Text.assemble((EVIL, "red")), table)
    out = capsys.readouterr().out
    assert harmless(out) and out.count("[2Jall is well\\x9b31m") == 4


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_logged_is_plain_and_one_line(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr(form)
    logger = structlog.get_logger("a")
    try:
        logger.warning(EVIL, reason=EVIL, models=[EVIL], left={EVIL: (EVIL,)})
        first = capsys.readouterr().err
        assert harmless(first) and first.count("\n") == 1
        try:
            raise ValueError(EVIL)
        except ValueError:
            logger.warning("failing", exc_info=True)
    finally:
        structlog.reset_defaults()
    traced = capsys.readouterr().err
    assert harmless(traced) and "Traceback" in traced
