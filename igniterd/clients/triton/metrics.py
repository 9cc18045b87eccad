"""The few lines of Triton's metrics page that igniterd reads: pending and rejected requests,
latency quantiles, which GPUs there are, and what copies still answer that a load has replaced.

prometheus_client parses the lines. It is given only those of the families wanted, and only where
they differ from the last page's: of 64 models, one page costs 2.2 to 8.7 ms of CPU (one model in
eight busy, all busy), against 53 to 56 ms for the whole page (``bench/parser.py``, two shared
cores).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp
import structlog
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from igniterd.addresses import Address
from igniterd.errors import NotNow, Refused, Unreachable
from igniterd.records import Gap

ModelVersion = tuple[str, str]

_SUMMARY = "nv_inference_request_summary_us"
_PENDING = "nv_inference_pending_request_count"
_FAILURE = "nv_inference_request_failure"
_SUCCESS = "nv_inference_request_success"
# Only these: the label of a model's own lines is the UUID of another device where
# CUDA_VISIBLE_DEVICES is set, as Triton takes CUDA's number for DCGM's
_GPU = "nv_gpu_"
_GPU_LABEL = re.compile(rb'gpu_uuid="([^"\\]+)"')
_MODEL_LABEL = re.compile(rb'[{,]model="((?:[^"\\]|\\.)*)"')
_MOST_REQUESTS = 1e9  # more is no count of requests
_LONGEST_S = 1e6  # nor is more a latency
DRAIN_S = 300.0
"""For how long a copy that was replaced is taken to have requests yet."""
_NO_SUMMARIES = (
    "P99 is not measured: start tritonserver with --metrics-config summary_latencies=true"
)
_NO_P99 = (
    "P99 is not measured: there is no 0.99 in the tritonserver's --metrics-config summary_quantiles"
)


@dataclass(slots=True)
class ModelMetrics:
    """One version of one model; ``None`` for what the page does not tell, or tells nonsense of.

    ``rejected`` counts requests whose time in the queue ran out, where Triton gives reasons (24.10
    does). ``quantiles_s`` lacks those that had no requests. ``answered`` counts requests that
    every copy there was has answered, with what they asked for or an error, where that is wanted.
    """

    pending: int | None = None
    rejected: int | None = None
    quantiles_s: dict[float, float] | None = None
    answered: int | None = None


@dataclass(slots=True)
class MetricsParser:
    """Parses one page after another; a line that was on the last one too is not parsed again."""

    note: str = ""
    """Why the last page says nothing of the P99, though it is one of Triton's."""
    gpu_labels: tuple[str, ...] = ()
    """UUIDs of the GPUs on the last page, in its order, which is none of the server's."""
    _spoilt: set[tuple[str, ModelVersion]] = field(default_factory=set)
    _before: dict[tuple[str, str], dict[bytes, Sample]] = field(default_factory=dict)

    def parse(self, page: bytes, replaced: Iterable[str] = ()) -> dict[ModelVersion, ModelMetrics]:
        """``{(model, version): metrics}``. Where a model has a line for each GPU, the slowest
        quantile and the sum of the counts. ``replaced``: models of which ``answered`` is wanted.

        Raises :class:`ValueError` for a page of something else. A line that makes no sense costs
        its own model that value.
        """
        if b"nv_" not in page:
            raise ValueError("nothing in it begins with nv_")
        found: dict[ModelVersion, ModelMetrics] = {}
        self._spoilt.clear()
        for sample in self._samples(page, _PENDING):
            of, count = _entry(found, sample), _count(sample)
            of.pending = self._sum(of.pending, count, sample)
        for sample in self._samples(page, _FAILURE, _is_rejected):
            of, count = _entry(found, sample), _count(sample)
            of.rejected = self._sum(of.rejected, count, sample)
        if names := frozenset(map(_escaped, replaced)):
            self._take_answered(found, page, lambda line: _model_of(line) in names)
        quantiles = set[str]()
        for sample in self._samples(page, _SUMMARY):
            quantiles.add(sample.labels.get("quantile", ""))
            _take_quantile(_entry(found, sample), sample)
        self.note = _NO_SUMMARIES if found and not quantiles else ""
        if quantiles and 0.99 not in map(_as_number, quantiles):
            self.note = _NO_P99
        self.gpu_labels = _gpu_labels(page)
        return found

    def _take_answered(
        self, found: dict[ModelVersion, ModelMetrics], page: bytes, wanted: Callable[[bytes], bool]
    ) -> None:
        """Requests that ended, well or not: both left the queue."""
        for sample in self._samples(page, _SUCCESS, wanted):
            of, count = _entry(found, sample), _count(sample)
            of.answered = self._sum(of.answered, count, sample)
        for sample in self._samples(page, _FAILURE, wanted, "ended"):
            of, count = _entry(found, sample), _count(sample)
            if of.answered is not None:
                of.answered = self._sum(of.answered, count, sample)

    def _samples(
        self,
        page: bytes,
        name: str,
        wanted: Callable[[bytes], bool] | None = None,
        use: str = "",
    ) -> Iterable[Sample]:
        """The family's samples, or those of the lines ``wanted``. Raises :class:`ValueError` where
        there are lines of a family and none can be read."""
        lines = list(filter(wanted, _lines(page, name.encode() + b"{")))
        before = self._before.get((name, use), {})
        now = self._before[name, use] = {line: before[line] for line in lines if line in before}
        now |= _parse_lines([line for line in lines if line not in now])
        if lines and not now and wanted is None:
            raise ValueError(f"none of its lines of {name} can be read, as {lines[0][:80]!r}")
        return now.values()

    def _sum(self, so_far: int | None, count: int | None, sample: Sample) -> int | None:
        key = sample.name, _key(sample)
        if count is None:
            self._spoilt.add(key)
        return None if key in self._spoilt or count is None else (so_far or 0) + count


def _gpu_labels(page: bytes) -> tuple[str, ...]:
    found = (_GPU_LABEL.search(line) for line in _lines(page, _GPU.encode()))
    return tuple(dict.fromkeys(label[1].decode(errors="replace") for label in found if label))


def _is_rejected(line: bytes) -> bool:
    return b'reason="REJECTED"' in line


def _model_of(line: bytes) -> bytes:
    """The model that a line is of, as it stands there."""
    found = _MODEL_LABEL.search(line)
    return found[1] if found else b""


def _escaped(name: str) -> bytes:
    """A label's value as pages write it."""
    return name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").encode()


def _lines(page: bytes, prefix: bytes) -> Iterator[bytes]:
    """Each line that begins with ``prefix``."""
    start = 0 if page.startswith(prefix) else page.find(b"\n" + prefix) + 1
    while start or page.startswith(prefix):
        end = page.find(b"\n", start)
        yield page[start : end if end >= 0 else len(page)]
        if end < 0:
            return
        start = end + 1 if page.startswith(prefix, end + 1) else page.find(b"\n" + prefix, end) + 1
        if not start:
            return


def _parse_lines(lines: list[bytes]) -> dict[bytes, Sample]:
    """What each line says; without those that cannot be read."""
    try:
        samples = _parse_text(b"\n".join(lines))
        if len(samples) == len(lines):
            return dict(zip(lines, samples, strict=True))
    except ValueError:  # one line spoils them all
        pass
    found: dict[bytes, Sample] = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            (found[line],) = _parse_text(line)
    return found


def _parse_text(text: bytes) -> list[Sample]:
    return [s for family in text_string_to_metric_families(text.decode()) for s in family.samples]


def _key(sample: Sample) -> ModelVersion:
    return sample.labels.get("model", ""), sample.labels.get("version", "")


def _entry(found: dict[ModelVersion, ModelMetrics], sample: Sample) -> ModelMetrics:
    key = _key(sample)
    return found.get(key) or found.setdefault(key, ModelMetrics())


def _count(sample: Sample) -> int | None:
    """A number of requests, or ``None`` for what can be none."""
    value = float(sample.value)
    return int(value) if 0 <= value < _MOST_REQUESTS and value == int(value) else None


def _take_quantile(of: ModelMetrics, sample: Sample) -> None:
    if of.quantiles_s is None:
        of.quantiles_s = {}
    quantile, seconds = _as_number(sample.labels.get("quantile", "")), float(sample.value) / 1e6
    # Triton writes Nan while a quantile has no samples
    if 0 <= quantile <= 1 and 0 <= seconds < _LONGEST_S:
        of.quantiles_s[quantile] = max(of.quantiles_s.get(quantile, 0.0), seconds)


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


class MetricsPage:
    """Reads the page at `url`, a deadline on every read, one connection kept."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._page = Address.of(url)
        self._timeout_s = timeout_s
        self._parser = MetricsParser()
        self._session: aiohttp.ClientSession | None = None

    @property
    def note(self) -> str:
        """Why the last page that was read says nothing of the P99, or an empty string."""
        return self._parser.note

    @property
    def gpu_labels(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that the last page that was read names."""
        return self._parser.gpu_labels

    async def read(self, replaced: Iterable[str] = ()) -> dict[ModelVersion, ModelMetrics]:
        """``replaced`` as :meth:`MetricsParser.parse` has it. Raises
        :class:`~igniterd.errors.Unreachable` or, on what is no page of Triton,
        :class:`~igniterd.errors.Refused`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_s), headers=self._page.headers
            )
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
            return self._parser.parse(page, replaced)
        except ValueError as error:  # cut off in the middle, or somebody else's page
            raise Refused(
                f"{self._page.shown}: not a metrics page of Triton: {self._page.said(error)}"
            ) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class MetricsSource:
    """The metrics page of one Triton, where it has one: what it does not say is a gap, no fault."""

    def __init__(
        self, triton: str, url: str | None, timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self.gap: Gap | None = None
        """Why the last :meth:`read` found nothing, though a page is configured."""
        self._triton, self._clock = triton, clock
        self._page = MetricsPage(url, timeout_s) if url else None
        self._noted = ""  # what the last page was said to lack
        self._replaced_s: dict[str, float] = {}

    @property
    def gpu_labels(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that the last page that was read names; empty without one."""
        return self._page.gpu_labels if self._page is not None else ()

    def replaced(self, model: str) -> None:
        """Another copy of ``model`` serves, and the one before it may have requests yet."""
        self._replaced_s[model] = self._clock()

    async def read(self) -> dict[ModelVersion, ModelMetrics]:
        """What the page says now; empty without a page or an answer."""
        self.gap = None
        since_s = self._clock() - DRAIN_S
        self._replaced_s = {m: at_s for m, at_s in self._replaced_s.items() if at_s > since_s}
        if self._page is None:
            return {}
        try:
            found = await self._page.read(self._replaced_s)
        except NotNow as error:
            self.gap = Gap(f"metrics:{self._triton}", str(error), self._clock())
            return {}
        if self._page.note != self._noted:
            self._noted = self._page.note
            if self._noted:
                structlog.get_logger("igniterd").info(
                    "metrics page", triton=self._triton, note=self._noted
                )
        return found

    async def close(self) -> None:
        if self._page is not None:
            await self._page.close()
