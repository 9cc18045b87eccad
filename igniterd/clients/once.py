"""Say a failure once when it begins and once when it is over, however many ticks it lasts."""

from __future__ import annotations

from typing import Any

import structlog


class Once:
    """Turns a stream of "it failed" / "it worked" into one warning and one recovery for each key.

    >>> once = Once("nvml")
    >>> once.failed("read", "no answer in 0.3 s")   # doctest: +SKIP
    """

    def __init__(self, source: str) -> None:
        self._log = structlog.get_logger("igniterd").bind(source=source)
        self._failures: dict[str, int] = {}

    def failed(self, key: str, reason: str, **more: Any) -> None:
        """Warn if `key` worked until now; otherwise only count."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        if count == 0:
            self._log.warning("failing", what=key, reason=reason, **more)

    def worked(self, key: str, **more: Any) -> None:
        """Tell of the recovery if `key` failed until now; otherwise nothing."""
        count = self._failures.pop(key, 0)
        if count:
            self._log.info("recovered", what=key, failures=count, **more)

    def failing(self, key: str) -> bool:
        return key in self._failures
