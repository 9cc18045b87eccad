from typing import Any

import jsonschema
import pytest

from igniterd.messages.schemas import EVENTS, json_schema
from tests.tools.schemas import FOLDER, texts


def test_the_shipped_schemas_are_what_the_command_writes() -> None:
    files = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    assert files == texts(), "run `make schemas`"


@pytest.mark.parametrize("kind", EVENTS)
def test_each_is_a_json_schema(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(kind))


@pytest.mark.parametrize("kind", EVENTS)
def test_a_schema_has_no_word_that_json_schema_does_not_know(kind: str) -> None:
    """Such a limit would be no limit: a validator ignores it."""
    known = jsonschema.Draft202012Validator.VALIDATORS.keys() | WORDS_ALONE
    assert words_of(json_schema(kind)) - known == set()


WORDS_ALONE = {"$schema", "title", "description", "default", "$defs", "discriminator"}


def words_of(schema: Any) -> set[str]:
    """The keywords of a schema, and of those in it."""
    found = set(schema)
    named = [schema.get(key, {}) for key in ("properties", "$defs")]
    inner = [each for table in named for each in table.values()]
    inner += [schema[key] for key in ("items", "additionalProperties") if key in schema]
    inner += [each for key in ("anyOf", "oneOf", "prefixItems") for each in schema.get(key, ())]
    return found.union(*(words_of(each) for each in inner if isinstance(each, dict)))
