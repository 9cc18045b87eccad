"""The few lines of Triton's metrics page that igniterd reads: pending requests and, where Triton computes them, latency quantiles.

The page of a server with 64 models is some 400 kB; the two families wanted are found by their names and nothing else is parsed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp

from igniterd.errors import Refused, Unreachable

ModelVersion = tuple[str, str]

_LINE = re.compile(rb"\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(rb'(\w+)="((?:[^"\\]|\\.)*)"')
_REMEMBERED = 20_000  # label sets; models that come and go must not fill the memory
_SUMMARY = b"\nnv_inference_request_summary_us{"
_PENDING = b"\nnv_inference_pending_request_count{"


@dataclass(slots=True)
class ModelMetrics:
    """One version of one model. ``quantiles_s`` is ``None`` when Triton computes no summaries, and lacks those that had no requests."""

    pending: int | None = None
    quantiles_s: dict[float, float] | None = None


@dataclass(slots=True)
class MetricsParser:
    """Parses one page after another; labels seen before are not taken apart again."""

    _labels: dict[bytes, dict[str, str]] = field(default_factory=dict)

    def parse(self, page: bytes) -> dict[ModelVersion, ModelMetrics]:
        """``{(model, version): metrics}``. Where a model has a line for each GPU, the slowest quantile and the sum of the pending count."""
        found: dict[ModelVersion, ModelMetrics] = {}
        for labels, value in self._family(page, _PENDING):
            of = found.setdefault((labels.get("model", ""), labels.get("version", "")), ModelMetrics())
            of.pending = (of.pending or 0) + int(float(value))
        for labels, value in self._family(page, _SUMMARY):
            of = found.setdefault((labels.get("model", ""), labels.get("version", "")), ModelMetrics())
            quantiles = of.quantiles_s = of.quantiles_s if of.quantiles_s is not None else {}
            microseconds = float(value)
            if not math.isnan(microseconds):  # Triton writes Nan while a quantile has no samples
                quantile = float(labels["quantile"])
                quantiles[quantile] = max(quantiles.get(quantile, 0.0), microseconds / 1e6)
        return found

    def _family(self, page: bytes, prefix: bytes) -> Iterator[tuple[dict[str, str], bytes]]:
        start = page.find(prefix)
        if start < 0:
            return
        end = page.find(b"\n#", start)
        for line in page[start + 1 : end if end >= 0 else len(page)].split(b"\n"):
            if not line.startswith(prefix[1:]):
                continue
            matched = _LINE.search(line, len(prefix) - 2)
            if matched is None:
                continue
            labels = self._labels.get(matched[1])
            if labels is None:
                if len(self._labels) > _REMEMBERED:
                    self._labels.clear()
                labels = self._labels[matched[1]] = {key.decode(): _unescape(raw) for key, raw in _LABEL.findall(matched[1])}
            yield labels, matched[2]


def _unescape(raw: bytes) -> str:
    return re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), raw.decode())


class MetricsPage:
    """Reads the page at `url`, a deadline on every read, one connection kept."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._parser = MetricsParser()
        self._session: aiohttp.ClientSession | None = None

    async def read(self) -> dict[ModelVersion, ModelMetrics]:
        """Raises :class:`~igniterd.errors.Unreachable` or, on a status other than 200, :class:`~igniterd.errors.Refused`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        try:
            async with self._session.get(self._url) as answer:
                if answer.status != HTTPStatus.OK:
                    raise Refused(f"{self._url}: HTTP status {answer.status}")
                page = await answer.read()
        except TimeoutError as error:
            raise Unreachable(f"{self._url}: no answer in {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self._url}: {error}") from error
        return self._parser.parse(page)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
