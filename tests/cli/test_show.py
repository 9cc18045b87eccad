"""``igniterd show`` against what may answer at an admin address, igniterd or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app

MODEL: dict[str, Any] = {"name": "bert", "slo_p99_ms": 40.0, "priority": 1, "seen": True}
APPLIED = {"share": 0.25, "max_batch_size": 8, "max_queue_delay_us": 0, "instances": 1}
FIGURES: dict[str, Any] = {
    "rate_per_s": 120.0,
    "busy": 0.5,
    "measured": {"p99": 21.5},
    "predicted": {"p99": 20.4},
    "bias": 1.0,
    "learnt": None,
    "applied": APPLIED,
    "fixed": ["it is decoupled [z]"],
}
STATE: dict[str, Any] = {
    "host": "gpu-a",
    "cluster": "default",
    "mode": "act",
    "tick": 7,
    "time_s": 1e9,
    "decision": {"outcome": "hold", "why": "a reason with [/] and [red] :bug: in it"},
    "models": [MODEL | FIGURES],
    "boards": [
        {
            "index": 0,
            "uuid": "GPU-a",
            "name": "Tesla [V100]",
            "power_w": 100.0,
            "sm_clock_mhz": None,
        }
    ],
    "gaps": [{"source": "mps", "reason": "[Errno 2] no such file"}],
    "last_moves": [{"ok": False, "model": "bert", "why": "grow [x]", "error": "refused [y]"}],
}


class Answering(ThreadingHTTPServer):
    answer: tuple[int, bytes] = (200, b"")

    @property
    def admin(self) -> list[str]:
        return ["show", "--admin", f"127.0.0.1:{self.server_port}"]


class _Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        status, body = self.server.answer
        if status:
            self.send_response(status)
            self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering(("127.0.0.1", 0), _Handler) as made:
        thread = threading.Thread(
            target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((0, b"\x00\x00\x06\x04 this is gRPC\n"), "is no igniterd"),
        ((404, b"nothing"), "is no igniterd: HTTP Error 404"),
        ((200, b"<html>"), "is no igniterd"),
        ((200, b"[1, 2]"), "its answer is no state"),
        ((200, b'{"status": "success"}'), "its answer is no state"),
        ((503, b"{}"), "has not finished its first tick"),
        (
            (421, b"'gpu-a' is no name of this host: ask for its address"),
            "is no name of this host: ask for its address",
        ),
    ],
)
def test_what_is_no_daemon_is_said(server: Answering, answer: tuple[int, bytes], said: str) -> None:
    server.answer = answer
    done = CliRunner().invoke(app, server.admin)
    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr


@pytest.mark.parametrize("address", ["nonsense", "localhost:port", "127.0.0.1:99999", "a b:1"])
def test_an_address_that_is_none(address: str) -> None:
    done = CliRunner().invoke(app, ["show", "--admin", address])
    assert done.exit_code == 2
    assert "should be host:port" in done.stderr


def test_reasons_are_shown_as_they_are_and_no_proxy_is_asked(
    server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server.answer = (200, json.dumps(STATE).encode())
    done = CliRunner().invoke(app, server.admin)
    assert done.exit_code == 0, done.stderr
    for text in (
        "a reason with [/] and [red] :bug: in it",
        "Tesla [V100]: 100 W, -",
        "[Errno 2] no such file",
        "grow [x] refused [y]",
        "bert: left as it is: it is decoupled [z]",
    ):
        assert text in done.stdout
    assert json.loads(CliRunner().invoke(app, [*server.admin, "--format", "json"]).stdout) == STATE


def test_what_is_not_steered_is_said_with_what_it_takes(server: Answering) -> None:
    board = STATE["boards"][0] | {"reserved": 0.15}
    more = {"boards": [board], "models": [MODEL | FIGURES | {"takes": 0.15}]}
    server.answer = (200, json.dumps(STATE | more).encode())
    shown = CliRunner().invoke(app, server.admin).stdout
    assert "bert: not steered, takes 15% of its GPU" in shown
    assert "100 W, -, not steered 15%" in shown


def test_who_has_no_share_is_shown_as_uncapped(server: Answering) -> None:
    applied = {"applied": APPLIED | {"share": None}}
    server.answer = (200, json.dumps(STATE | {"models": [MODEL | FIGURES | applied]}).encode())
    assert "uncapped, batch 8" in " ".join(CliRunner().invoke(app, server.admin).stdout.split())
    server.answer = (200, json.dumps(STATE).encode())
    assert "uncapped" not in CliRunner().invoke(app, server.admin).stdout


def test_of_several_gpus_it_is_said_which_a_model_is_on(server: Answering) -> None:
    boards = [STATE["boards"][0] | {"uuid": uuid} for uuid in ("GPU-a", "GPU-b")]
    models = [
        MODEL | FIGURES | {"name": "one", "gpus": ["GPU-b"]},
        MODEL | FIGURES | {"name": "both", "gpus": ["GPU-a", "GPU-b"]},
    ]
    server.answer = (200, json.dumps(STATE | {"boards": boards, "models": models}).encode())
    shown = " ".join(CliRunner().invoke(app, server.admin).stdout.split())
    assert "GPU 1 Tesla [V100] GPU-b: 100 W" in shown
    assert "on GPU 0, 1" in shown
    assert "on GPU 1 " in shown


def test_a_model_without_traffic_yet_has_a_row(server: Answering) -> None:
    unseen = {"name": "gone", "slo_p99_ms": 10.0, "seen": False}
    server.answer = (
        200,
        json.dumps(STATE | {"models": [MODEL | {"applied": APPLIED}, unseen]}).encode(),
    )
    done = CliRunner().invoke(app, server.admin)
    assert done.exit_code == 0, done.stderr
    assert "no traffic seen" in done.stdout
    assert "not seen" in done.stdout


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"state": "by_hand", "why": "somebody loaded it [q]"},
            "bert: by hand: somebody loaded it [q]",
        ),
        (
            {"state": "not_answering", "why": "it hangs", "stuck_s": 31.0},
            "bert: not answering: it hangs",
        ),
        ({"state": None, "why": "", "stuck_s": 31.0}, "bert: not answering for 31 s"),
    ],
)
def test_the_state_of_a_model_is_shown_unless_it_is_steered(
    server: Answering, model: dict[str, Any], said: str
) -> None:
    server.answer = (200, json.dumps(STATE | {"models": [MODEL | FIGURES | model]}).encode())
    assert said in CliRunner().invoke(app, server.admin).stdout
    server.answer = (
        200,
        json.dumps(
            STATE | {"models": [MODEL | FIGURES | {"state": "steered", "why": ""}]}
        ).encode(),
    )
    assert "steered" not in CliRunner().invoke(app, server.admin).stdout
