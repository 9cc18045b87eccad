"""The load generator: times of requests, a log that misses nothing, latency that a stalled server
cannot hide."""

from __future__ import annotations

import csv
import io
import itertools
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from igniterd.lab.load import generator as loadgen
from igniterd.lab.load.generator import Gaps
from igniterd.lab.load.load import Arrivals, LoadSpec, Phase, RequestLog, load

HEADER = "model,phase,scheduled_s,sent_s,latency_ms,ok,error\n"


def times(arrivals: Arrivals, rate: float, until_s: float) -> np.ndarray[Any, Any]:
    gaps, phase = Gaps("7 m"), Phase("p", None, {"m": rate}, arrivals)
    found = [gaps.first(phase, rate, 0.0)]
    while found[-1] < until_s:
        found.append(gaps.next(phase, rate, found[-1]))
    return np.asarray(found[:-1])


def test_poisson_gaps() -> None:
    gaps = np.diff(times(Arrivals.POISSON, 200.0, 100.0))
    assert np.mean(gaps) == pytest.approx(1 / 200, rel=0.03)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1.0, abs=0.03)


def test_constant_gaps() -> None:
    at = times(Arrivals.CONSTANT, 50.0, 10.0)
    assert np.diff(at) == pytest.approx(np.full(len(at) - 1, 0.02))
    assert 0.0 <= at[0] < 0.02


def test_bursts_keep_the_mean_rate_and_spread_more_than_poisson() -> None:
    at = times(Arrivals.BURSTY, 100.0, 2000.0)
    assert len(at) / 2000.0 == pytest.approx(100.0, rel=0.06)
    counts = np.histogram(at, bins=np.arange(0.0, 2000.0, 0.25))[0]
    assert np.var(counts) / np.mean(counts) > 5.0  # 1 for Poisson


class Triton:
    """Answers ModelInfer as told: at once, not before ``gate`` is open, or with an error."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self._server = grpc.server(ThreadPoolExecutor(64))
        handler = grpc.unary_unary_rpc_method_handler(self._infer)
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "inference.GRPCInferenceService", {"ModelInfer": handler}
                )
            ]
        )
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _infer(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        request = service_pb2.ModelInferRequest.FromString(body)
        self.seen.append(request.model_name)
        self.shapes.append(tuple(request.inputs[0].shape))
        self.gate.wait(20.0)
        if request.model_name == "broken":
            context.abort(grpc.StatusCode.INTERNAL, "no, thanks")
        return b""

    def stop(self) -> None:
        self.gate.set()
        self._server.stop(None).wait(5.0)


@pytest.fixture
def triton() -> Iterator[Triton]:
    server = Triton()
    yield server
    server.stop()


async def test_every_request_is_logged(triton: Triton, tmp_path: Path) -> None:
    phases = (
        Phase("one", 0.5, {"a": 100.0, "broken": 40.0}),
        Phase("two", 0.5, {"a": 200.0}, Arrivals.CONSTANT),
    )
    async with load(LoadSpec(triton.url, phases, seed=3), tmp_path / "log.csv") as running:
        log = await running.wait_finished(timeout_s=30)
    assert (
        len(log)
        == len(triton.seen)
        == running.progress[-1]["scheduled"]
        == running.progress[-1]["ended"]
    )
    assert len(log.where(log.phase == "two")) == 100
    broken = log.of("broken")
    assert broken.failed == len(broken) > 5
    assert set(broken.error) == {"INTERNAL: no, thanks"}
    assert log.of("a").failed == 0
    assert (log.sent_s >= log.scheduled_s).all()
    assert np.isinf(broken.quantile_ms(0.5))


async def test_a_model_s_own_requests_are_sent_as_they_are(triton: Triton, tmp_path: Path) -> None:
    item = service_pb2.ModelInferRequest.InferInputTensor(
        name="IMAGE", datatype="UINT8", shape=[1, 3, 8, 8]
    )
    request = service_pb2.ModelInferRequest(
        model_name="a", inputs=[item], raw_input_contents=[bytes(192)]
    )
    own = {"a": b64encode(request.SerializeToString()).decode()}
    async with load(
        LoadSpec(triton.url, (Phase("one", 0.3, {"a": 50.0, "b": 50.0}),), requests=own),
        tmp_path / "log.csv",
    ) as running:
        await running.wait_finished(timeout_s=30)
    found = set(zip(triton.seen, triton.shapes, strict=True))
    assert found == {("a", (1, 3, 8, 8)), ("b", (1, 16))}


async def test_a_stalled_server_shows_in_every_request_that_was_due_meanwhile(
    triton: Triton, tmp_path: Path
) -> None:
    triton.gate.clear()
    async with load(
        LoadSpec(triton.url, (Phase("one", None, {"a": 60.0}, Arrivals.CONSTANT),)),
        tmp_path / "log.csv",
    ) as running:
        await running.until_sent(60, timeout_s=20)
        triton.gate.set()
        log = await running.stop()
    early = log.where(np.arange(len(log)) < 50)
    span_ms = np.ptp(early.scheduled_s) * 1e3
    assert span_ms == pytest.approx(49 / 60 * 1e3, rel=0.01)
    # the earlier it was due, the longer it waited for the gate to open
    assert early.latency_ms[0] - early.latency_ms[-1] == pytest.approx(span_ms, abs=300)
    assert log.failed == 0


async def test_no_answer_within_the_deadline_is_a_failure(triton: Triton, tmp_path: Path) -> None:
    triton.gate.clear()
    spec = LoadSpec(
        triton.url, (Phase("one", 1.0, {"a": 10.0}, Arrivals.CONSTANT),), deadline_s=0.3
    )
    async with load(spec, tmp_path / "log.csv") as running:
        log = await running.wait_finished(timeout_s=30)
    assert len(log) == log.failed == 10
    assert all(e.startswith("DEADLINE_EXCEEDED") for e in log.error)
    assert log.attainment(1e9) == 0.0


async def test_the_load_changes_when_told(triton: Triton, tmp_path: Path) -> None:
    async with load(
        LoadSpec(triton.url, (Phase("one", None, {"a": 100.0}),)), tmp_path / "log.csv"
    ) as running:
        await running.until_sent(50, timeout_s=20)
        await running.change(Phase("two", None, {"b": 100.0}))
        sent = running.progress[-1]["scheduled"]
        await running.until_sent(sent + 150, timeout_s=20)
        log = await running.stop()
    assert set(log.model[log.phase == "one"]) == {"a"}
    assert set(log.model[log.phase == "two"]) == {"b"}
    assert log.scheduled_s[log.phase == "two"].min() >= log.scheduled_s[log.phase == "one"].max()


def test_quantiles_count_failures_as_never(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [f"a,p,{t},{t},{10 * (t + 1)},1,\n" for t in range(99)]
    # the last line is still being written
    path.write_text(HEADER + "".join(rows) + "a,p,99,99,5,0,UNAVAILABLE: gone\na,p,100,1")
    log = RequestLog.read(path)
    assert len(log) == 100
    assert log.failed == 1
    assert log.quantile_ms(0.5) == 500.0
    assert log.quantile_ms(0.99) == 990.0
    assert np.isinf(log.quantile_ms(1.0))
    assert log.attainment(500.0) == 0.5
    assert len(log.of("a", 10.0, 20.0)) == 10
    assert np.isnan(log.of("b").quantile_ms(0.99))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "description is not right"),
        ('{"url": "x"}', "phases is missing; should be a list of phases"),
        ("[]", "the file is an empty list"),
        (
            '{"url": "x", "phases": [], "seed": true, "deadline_s": "1"}',
            "seed is .*deadline_s is|deadline_s is .*seed is True",
        ),
        ('{"url": "x", "phases": [{"rates": {"a": NaN}}]}', "rates.a is nan"),
        (
            '{"url": "x", "phases": [{"name": "n", "duration_s": 1, "rates": {"a": -1}}]}',
            r"phases\[0\].rates.a is -1; should be requests a second, 0 or more",
        ),
        (
            '{"url": "x", "phases": [{"name": "n", "duration_s": 0, "rates": {}}]}',
            r"phases\[0\].duration_s is 0; should be seconds above 0",
        ),
        (
            '{"url": "x", "phases": [{"name": "n", "rates": {}, "arrivals": "monthly"}]}',
            "arrivals is 'monthly'; should be poisson or constant or bursty",
        ),
    ],
)
def test_a_wrong_description_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoadSpec.from_json(text)


def test_a_description_survives_the_way_to_the_process() -> None:
    spec = LoadSpec(
        "h:1",
        (Phase("n", 2.5, {"a": 3.0}, Arrivals.BURSTY), Phase("m", None, {})),
        deadline_s=2.0,
        seed=9,
        requests={"a": "AAEC"},
    )
    assert LoadSpec.from_json(spec.to_json()) == spec


class Answered:
    """A call that has been answered."""

    def add_done_callback(self, ended: Callable[[Answered], None]) -> None:
        ended(self)

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK


def test_woken_late_it_sends_what_was_due_before_the_phase_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(1000.0, 0.07)
    monkeypatch.setattr(
        loadgen, "time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time)
    )
    phases = (
        Phase("one", 0.5, {"a": 200.0}, Arrivals.CONSTANT),
        Phase("two", 0.5, {"a": 100.0}, Arrivals.CONSTANT),
    )
    log = io.StringIO()
    generator = loadgen.Generator(
        LoadSpec("127.0.0.1:1", phases), log, io.StringIO(), io.StringIO()
    )
    monkeypatch.setattr(
        generator, "_infer", SimpleNamespace(future=lambda body, timeout: Answered())
    )
    generator.run()
    rows = list(csv.DictReader(io.StringIO(log.getvalue())))
    assert [row["phase"] for row in rows] == ["one"] * 100 + ["two"] * 50
