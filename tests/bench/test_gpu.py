"""The GPU harness: its budget, what it measures, its networks, and its emulated mode from end to
end."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import closedloop, loop, openloop, report
from bench.gpu.budget import Budget
from bench.gpu.stage import ROOT, Kind, networks
from igniterd.errors import CannotRun
from igniterd.lab.programs.process import running
from igniterd.perf import builtin_profile
from igniterd.perf.surface_model import SurfaceModel
from igniterd.predict import LatencyPredictor
from igniterd.profiler.partial import Done, Partial, Settings
from igniterd.records import Allocation
from tests.waiting import until_ended

MODELS = ("alexnet", "resnet50", "vgg19", "ssd")
PROFILE = builtin_profile("v100")


# ---------------------------------------------------------------- the budget


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_what_a_phase_leaves_goes_to_the_others() -> None:
    clock, given = Clock(), list[float]()
    budget = Budget(100.0, {"a": 1.0, "b": 2.0, "c": 1.0}, clock)

    async def work(allowed_s: float) -> None:
        given.append(allowed_s)
        clock.now_s += 10.0

    for name in ("a", "b", "c"):
        assert await budget.phase(name, work)
    assert given == [25.0, 60.0, 80.0]
    assert budget.incomplete == []
    assert budget.spent_s == {"a": 10.0, "b": 10.0, "c": 10.0}
    with pytest.raises(KeyError, match="'a' is not one of the phases to come"):
        budget.allowed_s("a")


async def test_a_phase_that_does_not_end_is_stopped_and_named() -> None:
    budget = Budget(0.3, {"a": 1.0, "b": 1.0, "c": 1.0})
    stopped = []

    async def hang(_: float) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(True)

    async def fail(_: float) -> None:
        raise KeyError("x")

    async def refuse(_: float) -> None:
        raise CannotRun("no such board")

    assert not await budget.phase("a", hang)
    assert stopped == [True]
    assert not await budget.phase("b", refuse)
    assert not await budget.phase("c", fail)
    assert budget.incomplete == [
        "a: stopped after the 0 s it had",
        "b: no such board",
        "c: KeyError: 'x'",
    ]


def test_no_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="budget is 0"):
        Budget(0.0, {})


# ---------------------------------------------------------------- what is measured


def test_nothing_measured_together_was_profiled() -> None:
    """Shares and batches of co-locations differ from those that `igniterd profile` runs
    together."""
    from igniterd.profiler.pairs import co_runs, operating_points

    for largest in (8, 32):
        shares = closedloop.arrangements(MODELS)
        measured = {
            frozenset((m, b, shares[c.arrangement][m]) for m, b in c.loads)
            for c in closedloop.cases(MODELS, largest)
            if c.kind != "alone"
        }
        for even in (False, True):
            points = operating_points(largest, 0.025, even=even)
            profiled = co_runs(dict.fromkeys(MODELS, points), even=even)
            assert measured.isdisjoint(
                {frozenset((t.model, t.batch, t.share) for t in run) for run in profiled}
            )
        assert all(sum(s.values()) <= 1.0 + 1e-9 for s in shares)
        assert all(1 <= b <= largest for c in closedloop.cases(MODELS, largest) for _, b in c.loads)


def test_the_offered_load_is_what_it_says_and_what_one_generator_can_send() -> None:
    allocations = {m: Allocation(s, 4) for m, s in zip(MODELS[:3], closedloop.SHARES, strict=True)}
    slow = LatencyPredictor(SurfaceModel(PROFILE.time_scaled(4.0)), level=0.95, upper=False)
    low, high = (openloop.rates(slow, allocations, level) for level in (0.3, 0.6))
    # less than twice: busier neighbours slow more
    assert all(1.6 < high[m] / low[m] <= 2.0 for m in high)
    fast = LatencyPredictor(SurfaceModel(PROFILE.time_scaled(0.01)), level=0.95, upper=False)
    assert sum(openloop.rates(fast, allocations, 0.6).values()) == pytest.approx(
        openloop.MOST_PER_S
    )


def test_the_loop_s_traffic_fits_before_and_after_the_shift() -> None:
    from igniterd.decide.search import find
    from igniterd.predict import Demand

    found = loop.traffic(PROFILE.time_scaled(4.0), MODELS[:3])
    predictor = LatencyPredictor(SurfaceModel(PROFILE.time_scaled(4.0)), level=0.95)
    for rates in (found.before, found.after):
        demands = [
            Demand(m, m, r, loop.MARGIN * found.slos_ms[m], max_batch=predictor.model.max_batch(m))
            for m, r in rates.items()
        ]
        plan = find(predictor, demands)
        assert plan.feasible
        assert plan.headroom > 1.15
    assert (
        found.after["alexnet"] / found.after["vgg19"]
        > 2 * found.before["alexnet"] / found.before["vgg19"]
    )


def test_of_an_interrupted_profile_the_models_it_got_to_are_used(tmp_path: Path) -> None:
    models = {name: Done(solo=list(PROFILE.models[name].solo)) for name in ("alexnet", "vgg19")} | {
        "ssd": Done()
    }
    models["ssd"].solo = list(PROFILE.models["ssd"].solo[:2])
    partial = Partial(
        settings=Settings(models=list(models), triton="h:1", shares=tmp_path / "shares"),
        board=PROFILE.board,
        models=models,
    )
    partial.item_bytes = dict.fromkeys(models, (4, 4))
    partial.co_runs = [
        run for run in PROFILE.co_runs if {t.model for t in run.tenants} <= models.keys()
    ]
    partial.write(tmp_path / "profile.json.partial")
    found = closedloop.profiled(tmp_path)
    assert found is not None
    assert set(found.models) == {"alexnet", "vgg19"}
    assert found.co_runs
    assert all({t.model for t in run.tenants} <= found.models.keys() for run in found.co_runs)
    assert closedloop.profiled(tmp_path) == found  # it was saved for the daemon
    assert {c.kind for c in closedloop.cases(list(found.models), 8)} == {"pair", "alone"}


def test_without_anything_measured_there_is_no_profile(tmp_path: Path) -> None:
    assert closedloop.profiled(tmp_path) is None


# ---------------------------------------------------------------- the report


def tenant(model: str, measured: float, predicted: float, **more: float) -> dict[str, Any]:
    return {
        "model": model,
        "batch": 4,
        "share": 0.4,
        "measured_ms": measured,
        "predicted_ms": predicted,
        "upper_ms": 1.1 * predicted,
        **more,
    }


def test_errors_are_summed_by_kind() -> None:
    records = [
        {
            "kind": "pair",
            "tenants": [
                tenant("a", 10.0, 11.0, withheld_ms=12.0),
                tenant("b", 20.0, 18.0, withheld_ms=20.0),
            ],
        },
        {"kind": "triple", "tenants": [tenant("a", 10.0, 8.0)]},
    ]
    pairs, unseen, triples = report.summed(records)
    assert (pairs["what"], pairs["points"]) == ("pairs", 2)
    assert (pairs["mean_error"], pairs["bias"], pairs["under_by_5pct"], pairs["bound_covers"]) == (
        0.1,
        0.0,
        0.5,
        0.5,
    )
    assert unseen["mean_error"] == pytest.approx(0.1)
    assert "bound_covers" not in unseen
    assert (triples["mean_error"], triples["bound_covers"]) == (0.2, 0.0)


@pytest.mark.parametrize(
    "measured", [{}, {"together": [{"kind": "alone", "tenants": [tenant("a", 10.0, 11.0)]}]}]
)
def test_what_is_missing_is_said_and_drawn_as_missing(
    tmp_path: Path, measured: dict[str, Any]
) -> None:
    results = {
        "mode": "emulated",
        "remark": "not a GPU",
        "date": "2026-01-01",
        "machine": {"processor": "x", "cores": 2},
        "took_s": 3.0,
        "spent_s": {},
        "notes": ["no MPS"],
        "incomplete": ["tails: no time"],
        **measured,
    }
    said = report.text(results)
    assert "not a GPU" in said
    assert "note: no MPS" in said
    assert "NOT MEASURED: tails: no time" in said
    report.draw(results, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- the networks

STUB = """
import json, sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
"""


def test_a_model_says_plainly_that_torch_is_missing() -> None:
    code = f"{STUB}\nsys.modules['torch'] = None\nimport bench.gpu.torch_model"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"IGNITERD_BENCH_PATH": str(ROOT), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "torch cannot be imported by Triton's stub (Python 3." in done.stderr


def test_configurations_of_the_networks_are_what_their_code_takes() -> None:
    for model in networks(Kind.GPU):
        config: Any = model.config()
        assert config["max_batch_size"] == 32
        assert config["parameters"]["network"]["string_value"] == model.name
        assert config["input"][0]["data_type"] in ("TYPE_UINT8", "TYPE_INT64", "TYPE_FP32")


if importlib.util.find_spec("torch") is not None:

    @pytest.mark.parametrize("model", networks(Kind.GPU), ids=lambda m: m.name)
    def test_networks_take_and_give_what_their_configurations_say(model: Any) -> None:
        import torch

        from bench.gpu.networks import network

        kind = {"TYPE_UINT8": torch.uint8, "TYPE_INT64": torch.int64, "TYPE_FP32": torch.float32}[
            model.takes[0]
        ]
        with torch.inference_mode():
            found = network(model.name, torch.device("cpu"))(
                torch.ones((2, *model.takes[1]), dtype=kind)
            )
        assert tuple(found.shape) == (2, model.gives)
        assert bool(torch.isfinite(found).all())


# ---------------------------------------------------------------- the whole of it


def command(folder: Path, *more: str) -> list[str]:
    own = ["--emulated", "-o", str(folder / "out.json"), "--keep", str(folder / "kept")]
    return ["bash", str(ROOT / "bench" / "gpu" / "run.sh"), *own, *more]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHON": sys.executable}


def of(folder: Path) -> Iterator[str]:
    """Processes that were started with something of ``folder``."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            yield line


@pytest.mark.integration
async def test_a_short_emulated_run_measures_everything_but_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    PROFILE.time_scaled(4.0).save(profile)
    # compiled here, the kernels cost the run's budget nothing
    await asyncio.to_thread(loop.traffic, PROFILE, MODELS[:3])
    async with running(
        "harness",
        command(tmp_path, "--budget", "130", "--profile", str(profile)),
        log=tmp_path / "log",
        env=environment(),
    ) as program:
        await until_ended(program, 170.0)
        said = program.log_end(40)
    results = json.loads((tmp_path / "out.json").read_text())
    # a busy machine may cut a phase short; what each must have all the same is asked below
    short = re.compile(r"for want of time|stopped after the \d+ s it had")
    assert [gap for gap in results["incomplete"] if not short.search(gap)] == [], said
    assert results["mode"] == "emulated"
    assert "not figures of a GPU" in results["remark"]
    assert {r["kind"] for r in results["together"]} >= {"triple", "pair"}
    in_time = not any(gap.startswith("tails: for want of time") for gap in results["incomplete"])
    assert {(r["model"], r["load"]) for r in results["tails"]} == {
        (m, x) for m in MODELS[:3] for x in openloop.LOADS if in_time
    }
    assert all(r["requests"] > 0 and r["failed"] == 0 for r in results["tails"])
    figures = results["loop"]["figures"]
    assert {(f["phase"], f["model"]) for f in figures} == {
        (p, m) for p in loop.PARTS for m in MODELS[:3]
    }
    assert results["loop"]["shares"]  # the daemon was there and said what it saw
    assert results["loop"]["failed"] == 0
    assert (tmp_path / "out.png").exists()
    assert list(of(tmp_path / "kept")) == []


@pytest.mark.integration
async def test_told_to_stop_it_writes_what_it_has_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.json"
    async with running(
        "harness", command(tmp_path), log=tmp_path / "log", env=environment()
    ) as program:

        async def profiling() -> bool:
            return output.exists() and "start" in json.loads(output.read_text())["spent_s"]

        await program.until(profiling, timeout_s=180.0)
        os.kill(program.pid, signal.SIGTERM)
        await until_ended(program, 90.0)
    results = json.loads(output.read_text())
    assert results["incomplete"] == ["the rest: stopped by a signal"]
    assert results["triton"].startswith("2.")
    assert list(of(tmp_path / "kept")) == []
