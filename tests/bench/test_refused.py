"""The bench of refused requests: what it counts, and its shorter half on a real Triton."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import refused
from igniterd.lab.load.load import RequestLog

ROWS = (
    ("alexnet", 1, ""),
    ("alexnet x32", 1, ""),
    ("alexnet x32", 0, "INVALID_ARGUMENT: [request id: <id_unknown>] inference request batch-size"),
    ("alexnet", 0, "UNAVAILABLE: failed to connect to all addresses; Connection refused"),
    ("vgg19", 0, "DEADLINE_EXCEEDED: Deadline Exceeded"),
)


def test_refused_is_not_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = enumerate(ROWS)
    lines = [f"{model},day,{at},{at},5.0,{ok},{error}" for at, (model, ok, error) in rows]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["model,phase,scheduled_s,sent_s,latency_ms,ok,error", *lines]) + "\n")
    refused.told("a day", RequestLog.read(log))
    said = capsys.readouterr().out
    assert "sent     5 (2 of batch 32), failed 2, refused 1" in said
    assert "1 of alexnet x32: INVALID_ARGUMENT" in said


@pytest.mark.integration
async def test_beside_an_old_copy_that_stays_no_third_one_is_started() -> None:
    seen = await refused.hanging_host(60.0)
    assert seen.copies == 2
    assert seen.states["old_copy"] > 0
    assert seen.reloads["hanging"] == 1
    assert seen.log is not None
    assert len(seen.log) > 1000
    assert seen.log.failed == 0, set(seen.log.error[~seen.log.ok])
