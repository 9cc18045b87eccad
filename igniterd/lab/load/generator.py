"""Open-loop load: ``python -m igniterd.lab.load.generator SPEC.json -o LOG.csv``.

Requests are sent when they are due, whether or not earlier ones were answered, and latency counts
from the moment a request was due: a server that stalls, or a generator that comes late, cannot
hide. Every request ends up in the log, answered or failed.

SPEC.json: ``{"url": "127.0.0.1:8001", "deadline_s": 10, "seed": 0, "phases": [{"name": "calm",
"duration_s": 30, "arrivals": "poisson", "rates": {"resnet50": 75.0}}]}``. A phase without
``duration_s`` lasts until the generator is told something else: it reads JSON lines from standard
input, ``{"name": "shift", "rates": {...}}`` to begin that phase now and ``{"stop": true}``. Every
second it prints one JSON line of progress. Exit 0 when every request has ended, 1 when it cannot
start.
"""

from __future__ import annotations

import argparse
import base64
import csv
import gc
import heapq
import json
import os
import random
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from igniterd.lab.load.load import INPUT_FLOATS, LOG_FIELDS, Arrivals, LoadSpec, Phase, phase_from

_FLUSH_S = 0.5
_REPORT_S = 1.0
_MOST_IN_FLIGHT = 20_000  # beyond that the server is plainly gone; further requests fail at once
_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_BURST_FACTOR, _BURST_S, _CALM_FACTOR, _CALM_S = 2.5, 0.5, 0.5, 1.5  # the mean factor is 1


class Gaps:
    """Times of one model's requests under one phase."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._burst, self._burst_ends_s = False, 0.0

    def first(self, phase: Phase, rate: float, now_s: float) -> float:
        """When the first request of a phase that begins now is due."""
        if phase.arrivals is Arrivals.CONSTANT:
            return now_s + self._random.random() / rate  # models should not march in step
        self._burst, self._burst_ends_s = False, now_s
        return self.next(phase, rate, now_s)

    def next(self, phase: Phase, rate: float, last_s: float) -> float:
        """When the request after the one due at ``last_s`` is due."""
        if phase.arrivals is Arrivals.CONSTANT:
            return last_s + 1.0 / rate
        if phase.arrivals is Arrivals.POISSON:
            return last_s + self._random.expovariate(rate)
        at = last_s
        while True:  # a process without memory may be drawn anew where its rate changes
            due = at + self._random.expovariate(
                rate * (_BURST_FACTOR if self._burst else _CALM_FACTOR)
            )
            if due <= self._burst_ends_s:
                return due
            at, self._burst = self._burst_ends_s, not self._burst
            self._burst_ends_s = at + self._random.expovariate(
                1.0 / (_BURST_S if self._burst else _CALM_S)
            )


class Generator:
    """Sends one load. ``run`` blocks until every request has ended."""

    def __init__(
        self, spec: LoadSpec, log: TextIO, out: TextIO, control: TextIO, *, owned: bool = False
    ) -> None:
        """``owned``: stop when ``control`` ends, because whoever started this is gone."""
        self._spec, self._out = spec, out
        self._rows = csv.writer(log, lineterminator="\n")
        self._rows.writerow(LOG_FIELDS)
        self._log = log
        options = [("grpc.max_receive_message_length", -1), ("grpc.lb_policy_name", "pick_first")]
        self._channel = grpc.insecure_channel(spec.url, options=options)
        # Bytes go out and come back as they are: building and parsing messages would cost more than
        # all the rest.
        self._infer = self._channel.unary_unary(
            _METHOD, request_serializer=None, response_deserializer=None
        )
        self._bytes = {model: base64.b64decode(text) for model, text in spec.requests.items()}
        self._gaps: dict[str, Gaps] = {}
        self._done: deque[tuple[str, str, float, float, float, str]] = deque()
        self._due: list[tuple[float, str]] = []
        self._pending = deque(spec.phases)
        self._phase = Phase("", None, {})
        self._phase_ends_s: float | None = None
        self._stopping = False
        self._wake = threading.Event()
        self._told: deque[dict[str, Any]] = deque()
        self._unix = time.time() - time.monotonic()
        self._scheduled = self._ended = self._failed = 0
        self._window: dict[str, list[float]] = {}
        self._late_ms: list[float] = []
        threading.Thread(
            target=self._listen, args=(control, owned), name="control", daemon=True
        ).start()

    def run(self) -> None:
        """Send everything, wait for every answer."""
        now = time.monotonic()
        self._next_phase(now)
        flush_s, report_s = now + _FLUSH_S, now + _REPORT_S
        while not (self._stopping and self._scheduled == self._ended):
            now = time.monotonic()
            self._obey(now)
            while self._phase_ends_s is not None and now >= self._phase_ends_s:
                # woken late, what was due before the end is sent all the same
                self._send_due(self._phase_ends_s)
                self._next_phase(self._phase_ends_s)
            self._send_due(now)
            now = time.monotonic()
            if now >= flush_s or self._stopping:
                self._flush()
                flush_s = now + _FLUSH_S
            if now >= report_s:
                self._report("progress")
                report_s += _REPORT_S
            wait = min(
                x
                for x in (
                    flush_s,
                    report_s,
                    self._phase_ends_s,
                    self._due[0][0] if self._due else None,
                )
                if x is not None
            )
            if self._stopping:
                wait = min(wait, now + 0.01)
            if self._wake.wait(max(0.0, wait - time.monotonic())):
                self._wake.clear()
        self._flush()
        self._report("done")
        self._channel.close()

    def _send_due(self, until_s: float) -> None:
        while self._due and self._due[0][0] <= until_s:
            self._send(*heapq.heappop(self._due))

    def _next_phase(self, now_s: float) -> None:
        if self._pending:
            self._begin(self._pending.popleft(), now_s)
        else:
            self._stop()

    def _begin(self, phase: Phase, now_s: float) -> None:
        self._phase = phase
        self._phase_ends_s = None if phase.duration_s is None else now_s + phase.duration_s
        self._due = [
            (self._gap(m).first(phase, rate, now_s), m)
            for m, rate in phase.rates.items()
            if rate > 0.0
        ]
        heapq.heapify(self._due)

    def _stop(self) -> None:
        self._due.clear()
        self._pending.clear()
        self._phase_ends_s = None
        self._stopping = True

    def _gap(self, model: str) -> Gaps:
        return self._gaps.setdefault(model, Gaps(f"{self._spec.seed} {model}"))

    def _send(self, due_s: float, model: str) -> None:
        rate = self._phase.rates[model]
        heapq.heappush(self._due, (self._gap(model).next(self._phase, rate, due_s), model))
        self._scheduled += 1
        phase, sent_s = self._phase.name, time.monotonic()
        if self._scheduled - self._ended > _MOST_IN_FLIGHT:
            self._done.append(
                (
                    model,
                    phase,
                    due_s,
                    sent_s,
                    sent_s,
                    f"not sent: {_MOST_IN_FLIGHT} requests are unanswered",
                )
            )
            return
        if model not in self._bytes:
            self._bytes[model] = _request(model)
        call = self._infer.future(self._bytes[model], timeout=self._spec.deadline_s)

        def ended(call: Any) -> None:
            at_s, code = time.monotonic(), call.code()
            error = "" if code is grpc.StatusCode.OK else f"{code.name}: {call.details()}"
            self._done.append((model, phase, due_s, sent_s, at_s, error))

        call.add_done_callback(ended)

    def _flush(self) -> None:
        while self._done:
            model, phase, due_s, sent_s, at_s, error = self._done.popleft()
            latency_ms = (at_s - due_s) * 1e3
            row = (
                model,
                phase,
                f"{due_s + self._unix:.6f}",
                f"{sent_s + self._unix:.6f}",
                f"{latency_ms:.3f}",
                0 if error else 1,
                error,
            )
            self._rows.writerow(row)
            self._ended += 1
            self._failed += bool(error)
            self._window.setdefault(model, []).append(float("inf") if error else latency_ms)
            self._late_ms.append((sent_s - due_s) * 1e3)
        self._log.flush()

    def _report(self, kind: str) -> None:
        models = {
            model: {
                "ended": len(seen),
                "failed": int(np.isinf(seen).sum()),
                "p50_ms": _finite(np.quantile(seen, 0.5, method="higher")),
                "p99_ms": _finite(np.quantile(seen, 0.99, method="higher")),
            }
            for model, seen in self._window.items()
        }
        line = {
            "kind": kind,
            "at_s": time.time(),
            "phase": self._phase.name,
            "scheduled": self._scheduled,
            "ended": self._ended,
            "failed": self._failed,
            "late_p99_ms": _finite(np.quantile(self._late_ms, 0.99)) if self._late_ms else 0.0,
            "models": models,
        }
        self._window, self._late_ms = {}, []
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()

    def _listen(self, control: TextIO, owned: bool) -> None:
        for line in control:
            self._told.append(json.loads(line))
            self._wake.set()
        if owned:
            self._told.append({"stop": True})
            self._wake.set()

    def _obey(self, now_s: float) -> None:
        while self._told:
            told = self._told.popleft()
            if told.get("stop"):
                self._stop()
            elif not self._stopping:
                self._pending.clear()
                self._begin(phase_from(told), now_s)


def _finite(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def _request(model: str) -> bytes:
    """A whole request for one item, as it goes over the wire."""
    item = service_pb2.ModelInferRequest.InferInputTensor(
        name="INPUT", datatype="FP32", shape=[1, INPUT_FLOATS]
    )
    message = service_pb2.ModelInferRequest(
        model_name=model, inputs=[item], raw_input_contents=[bytes(4 * INPUT_FLOATS)]
    )
    return bytes(message.SerializeToString())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m igniterd.lab.load.generator", description="open-loop load on a Triton"
    )
    parser.add_argument("spec", nargs="?", type=Path, help="what to send, a JSON file")
    parser.add_argument(
        "--spec-from-environment", action="store_true", help="take it from LOADGEN_SPEC instead"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the log of every request, CSV"
    )
    asked = parser.parse_args()
    try:
        text = os.environ["LOADGEN_SPEC"] if asked.spec_from_environment else asked.spec.read_text()
        spec = LoadSpec.from_json(text)
        log = asked.output.open("w", newline="")
    except (AttributeError, KeyError):
        parser.error("name a file with the load's description")
    except (OSError, ValueError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    gc.freeze()  # what was imported stays: no pauses to look through it
    with log:
        Generator(spec, log, sys.stdout, sys.stdin, owned=asked.spec_from_environment).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
