"""The demo, shortened, on real programs; and that nothing is left behind when it is interrupted."""

import asyncio
import os
import re
import signal
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from igniterd.demo.environment import workplace
from igniterd.demo.measure import figures, problems
from igniterd.demo.page import Page
from igniterd.demo.recording import Recording
from igniterd.demo.runner import play
from igniterd.demo.scenario import paper, two_gpus
from igniterd.demo.terminal import DemoConsole
from igniterd.lab.load.load import RequestLog
from igniterd.lab.programs.process import listens
from tests.ctrl_c import HEARS

pytestmark = pytest.mark.integration


def ports(folder: Path) -> list[int]:
    """Where the servers of a run listen."""
    settings = tomllib.loads((folder / "igniterd.toml").read_text())
    places = [settings["triton"][0]["url"], settings["metrics"]["listen"], settings["mqtt"]["url"]]
    return [int(place.rpartition(":")[2]) for place in places]


async def silent(folder: Path) -> bool:
    return not any([await listens(port) for port in ports(folder)])


async def test_a_short_run_moves_the_host_and_loses_nothing(tmp_path: Path) -> None:
    whole = paper()
    bare, steered = (
        replace(whole.phases[0], settle_s=1.0, measured_s=4.0),
        replace(whole.phases[1], measured_s=8.0),
    )
    seen: list[tuple[Recording, RequestLog]] = []
    with workplace(tmp_path / "demo") as folder:
        short = replace(whole, phases=(bare, steered))
        await play(
            short,
            folder,
            DemoConsole(Console(quiet=True)),
            lambda run, log: seen.append((run, log)),
        )
        assert await silent(folder)
    run, log = seen[0]
    results = figures(log, run)
    assert log.failed == 0
    assert [p.key for p in run.phases] == ["bare", "steered"]
    assert all(f.requests > 20 and f.p50_ms > 1 for f in results)
    assert {m.model for m in run.moves if m.ok} == {"alexnet", "resnet50", "vgg19"}
    last = run.samples[-1].applied
    assert (
        all(a.share for a in last.values()) and sum(a.share or 0 for a in last.values()) <= 1 + 1e-9
    )
    statuses = [m.data["status"] for m in run.messages if m.topic == "status"]
    assert (statuses[0], statuses[-1]) == ("online", "offline")
    html = Page(run, log, results, problems(log, run, results)).html()
    assert all(move.why.partition(": ")[2][:12] in html for move in run.moves)
    assert Recording.load(folder) == run


async def test_on_two_gpus_a_model_moves_to_the_one_that_has_room_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    whole = two_gpus()
    phases = tuple(replace(phase, measured_s=2.0) for phase in whole.phases[1:])
    seen: list[tuple[Recording, RequestLog]] = []
    with workplace(tmp_path / "demo") as folder:
        await play(
            replace(whole, phases=phases),
            folder,
            DemoConsole(Console(quiet=True)),
            lambda run, log: seen.append((run, log)),
        )
        assert await silent(folder)
    run, log = seen[0]
    assert log.failed == 0
    assert run.gpus == [board.uuid for board in whole.boards]
    moves = [m for m in run.moves if m.relocates and m.ok]
    assert moves, run.samples[-1].why
    assert all(m.at_s > run.phases[-1].begin_s and m.kind == "relocate" for m in moves)
    assert (moves[0].before.gpu, moves[0].after.gpu) == (0, 1)
    # each ends where its last move took it; a busy machine may have made others room by then
    homes, ends = run.initial, run.samples[-1].applied
    moved = {move.model: move.after.gpu for move in moves}
    assert {m: a.gpu for m, a in ends.items()} == {m: a.gpu for m, a in homes.items()} | moved
    for sample in run.samples:
        if all(a.share for a in sample.applied.values()) and sample.at_s > run.phases[-1].begin_s:
            for gpu in (0, 1):
                granted = [a.share or 0 for a in sample.applied.values() if a.gpu == gpu]
                assert sum(granted) <= 1 + 1e-9
    results = figures(log, run)
    html = Page(run, log, results, problems(log, run, results)).html()
    assert "GPU 0 → GPU 1" in html and "GPU-" not in html.partition("Phase by phase")[2]


async def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = (sys.executable, "-m", "igniterd", "demo", "--folder", str(folder))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipe, both = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(
        *HEARS,
        *command,
        stdout=pipe,
        stderr=both,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(90):
            while not re.search(rb"igniterd check", line := await process.stdout.readline()):
                assert line, "it ended by itself"
        assert not await silent(folder)
        process.send_signal(signal.SIGINT)
        rest, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130
    assert b"everything that was started is stopped" in rest
    assert b"Traceback" not in rest
    assert await silent(folder)
