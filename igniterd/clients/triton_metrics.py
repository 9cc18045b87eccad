"""The few lines of Triton's metrics page that igniterd reads: pending requests and, where Triton computes them, latency quantiles.

The page of a server with 64 models is some 400 kB; the two families wanted are found by their names and nothing else is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp

from igniterd.addresses import Address
from igniterd.errors import Refused, Unreachable

ModelVersion = tuple[str, str]

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SUMMARY = "nv_inference_request_summary_us"
_PENDING = "nv_inference_pending_request_count"
_REMEMBERED = 20_000  # label sets; models that come and go must not fill the memory


@dataclass(slots=True)
class ModelMetrics:
    """One version of one model. ``quantiles_s`` is ``None`` when Triton computes no summaries, and lacks those that had no requests."""

    pending: int | None = None
    quantiles_s: dict[float, float] | None = None


@dataclass(slots=True)
class MetricsParser:
    """Parses one page after another; labels seen before are not taken apart again."""

    _labels: dict[str, tuple[ModelVersion, float]] = field(default_factory=dict)

    def parse(self, page: bytes) -> dict[ModelVersion, ModelMetrics]:
        """``{(model, version): metrics}``. Where a model has a line for each GPU, the slowest quantile and the sum of the pending count."""
        found: dict[ModelVersion, ModelMetrics] = {}
        for (key, _), value in self._family(page, _PENDING):
            of = found.get(key) or found.setdefault(key, ModelMetrics())
            of.pending = (of.pending or 0) + int(value)
        for (key, quantile), value in self._family(page, _SUMMARY):
            of = found.get(key) or found.setdefault(key, ModelMetrics())
            if of.quantiles_s is None:
                of.quantiles_s = {}
            if value == value:  # noqa: PLR0124 - Triton writes Nan while a quantile has no samples
                of.quantiles_s[quantile] = max(of.quantiles_s.get(quantile, 0.0), value / 1e6)
        return found

    def _family(self, page: bytes, name: str) -> Iterator[tuple[tuple[ModelVersion, float], float]]:
        """Labels and value of each line ``name{labels} value``. The lines of a family follow one another."""
        start = page.find(f"\n{name}{{".encode())
        if start < 0:
            return
        end = page.find(b"\n#", start)
        prefix, known = f"{name}{{", self._labels
        for line in page[start + 1 : end if end >= 0 else len(page)].decode().split("\n"):
            if line.startswith(prefix):
                labels, _, value = line.rpartition(" ")
                yield known.get(labels) or self._remember(labels), float(value)

    def _remember(self, text: str) -> tuple[ModelVersion, float]:
        if len(self._labels) > _REMEMBERED:
            self._labels.clear()
        labels = {key: _unescape(raw) for key, raw in _LABEL.findall(text)}
        understood = (labels.get("model", ""), labels.get("version", "")), float(labels.get("quantile", "nan"))
        self._labels[text] = understood
        return understood


def _unescape(raw: str) -> str:
    return re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), raw)


class MetricsPage:
    """Reads the page at `url`, a deadline on every read, one connection kept."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._page = Address.of(url)
        self._timeout_s = timeout_s
        self._parser = MetricsParser()
        self._session: aiohttp.ClientSession | None = None

    async def read(self) -> dict[ModelVersion, ModelMetrics]:
        """Raises :class:`~igniterd.errors.Unreachable` or, on a status other than 200, :class:`~igniterd.errors.Refused`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s), headers=self._page.headers)
        try:
            async with self._session.get(self._page.url) as answer:
                if answer.status != HTTPStatus.OK:
                    raise Refused(f"{self._page.shown}: HTTP status {answer.status}")
                page = await answer.read()
        except TimeoutError as error:
            raise Unreachable(f"{self._page.shown}: no answer in {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self._page.shown}: {self._page.said(error)}") from error
        try:
            return self._parser.parse(page)
        except ValueError as error:  # cut off in the middle, or somebody else's page
            raise Refused(f"{self._page.shown}: not a metrics page of Triton: {self._page.said(error)}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
