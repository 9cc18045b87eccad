"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """A command sets the log up for its process, and here others come after it."""
    yield
    structlog.reset_defaults()
