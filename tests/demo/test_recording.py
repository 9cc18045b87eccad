"""What is kept of a run, and that it is read rightly from the daemon's own words."""

import json
from pathlib import Path

import pytest

from igniterd.demo.recording import Recording, moves_from, sample_from
from igniterd.errors import CannotRun
from igniterd.report import moves_of, state_of
from tests.demo.runs import recording
from tests.hosts import Bench, config
from tests.test_loop_moves import HOMES, HOT, TwoGpus


@pytest.mark.looptime
async def test_samples_and_moves_are_what_the_daemon_reports(tmp_path: Path) -> None:
    settings = config(tmp_path)
    bench = Bench(
        settings,
        {"alexnet": lambda _: 400.0, "resnet50": lambda _: 300.0, "vgg19": lambda _: 150.0},
    )
    await bench.run(30)
    moves = tuple(m for tick in bench.ticks for m in moves_of(tick))
    tick = bench.ticks[-1]
    state = json.loads(json.dumps(state_of(tick, settings, moves)))
    sample = sample_from(state)
    assert sample.why == tick.plan.why
    for name, reading in tick.observation.models.items():
        seen = sample.applied[name]
        assert (seen.share, seen.max_batch_size) == (
            reading.allocation.share,
            reading.allocation.max_batch_size,
        )
        assert sample.predicted_p99_ms[name] == pytest.approx(
            tick.estimate.loads[name].predicted_p99_ms, abs=1e-3
        )
    found = moves_from(state)
    assert [m.model for m in found] == [
        done.step.model for each in bench.ticks for done in each.outcome.actuations
    ]
    assert all(m.ok and m.before.share is None and m.after.share is not None for m in found[:3])


@pytest.mark.looptime
async def test_a_move_to_another_gpu_is_read_as_one(tmp_path: Path) -> None:
    bench = TwoGpus(tmp_path, HOT, HOMES)
    await bench.run(100)
    moves = tuple(m for tick in bench.ticks for m in moves_of(tick))
    found = moves_from({"last_moves": json.loads(json.dumps(moves))})
    (moved,) = [m for m in found if m.relocates]
    assert [moved.model] == bench.moved
    assert (moved.before.gpu, moved.after.gpu) == (0, 1)
    sample = sample_from(json.loads(json.dumps(state_of(bench.ticks[-1], bench.config, moves))))
    assert {m: a.gpu for m, a in sample.applied.items()} == bench.gpus
    assert Recording.said(recording(gpus=["GPU-a", "GPU-b"]), moved.why).endswith("relieves GPU 0")


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    run = recording()
    run.save(tmp_path)
    assert Recording.load(tmp_path) == run


@pytest.mark.parametrize(
    "text", [None, "{", '{"began_s": 1}'], ids=["none", "not JSON", "another version"]
)
def test_nothing_to_draw_is_said(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "recording.json").write_text(text)
    with pytest.raises(CannotRun, match="run `igniterd demo` first"):
        Recording.load(tmp_path)
