"""``igniterd plan`` as people and programs use it: contract of the JSON, exit status, what-if,
pictures, configurations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.cli.plan_sweep import parse_sweep
from igniterd.clients.environments import LAYOUT
from igniterd.config import load_config
from igniterd.errors import ConfigError
from igniterd.perf import builtin_profile
from igniterd.planner.gpu_types import parse_gpu

CONTRACT = {"feasible", "gpus", "cost_per_hour", "lower_bound_gpus", "planning_s", "infeasible"}
TENANT = {
    "workload",
    "model",
    "rate_per_s",
    "weight",
    "share",
    "max_batch_size",
    "max_queue_delay_us",
    "predicted",
}


def _piped(command: str, given: str) -> str:
    _, *arguments = command.split()
    return subprocess.run(
        [sys.executable, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def run(*args: object):
    return CliRunner().invoke(app, ["plan", *map(str, args)])


@pytest.fixture
def few(tmp_path: Path) -> Path:
    path = tmp_path / "few.csv"
    path.write_text(
        "workload,model,slo_p99_ms,rate_per_s\nA,alexnet,15,400\nB,resnet50,40,200\nC,ssd,55,50\n"
    )
    return path


@pytest.mark.parametrize("strategy", ["igniterd", "igniter", "gpu-lets+"])
def test_the_json_keeps_its_contract(few: Any, strategy: str) -> None:
    result = run(few, "--strategy", strategy, "--format", "json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert set(document) >= CONTRACT
    assert document["feasible"] is True
    for gpu in document["gpus"]:
        assert gpu["gpu"] == "v100"
        for tenant in gpu["tenants"]:
            assert set(tenant) >= TENANT
            assert set(tenant["predicted"]) == {"mean_ms", "p99_ms"}
    assert {t["workload"] for gpu in document["gpus"] for t in gpu["tenants"]} == {"A", "B", "C"}


def test_what_cannot_be_planned_is_named_and_the_rest_planned(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text(
        "workload,model,slo_p99_ms,rate_per_s\nok,alexnet,15,400\nfast,ssd,4,10\nodd,bert,20,10\n"
        "neg,ssd,-1,10\nnan,ssd,20,many\n"
    )
    result = run(path, "--format", "json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["feasible"] is False
    assert {entry["workload"] for entry in document["infeasible"]} == {"fast", "odd", "neg", "nan"}
    assert [t["workload"] for gpu in document["gpus"] for t in gpu["tenants"]] == ["ok"]
    for name in ("fast", "odd", "neg", "nan"):
        assert f"{name}: " in result.stderr


def test_the_table_shows_shares_as_bars(few: Any) -> None:
    result = run(few, "--arrivals", "constant")
    assert result.exit_code == 0
    assert "█" in result.stdout
    assert "lower bound" in result.stdout


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--gpu", "t4000"], 1, "t4000"),
        (["--gpu", "v100@cheap"], 1, "--gpu v100@cheap: the price 'cheap' should be a number"),
        (["--gpu", "v100", "--gpu", "v100"], 1, "--gpu: v100 is given twice"),
        (["--gpu", "v100@"], 1, "should be a number"),
        (["--gpu", "v100@1x0"], 1, "whole number above 0"),
        (["--sweep", "rate=3..1"], 1, "should be above 0 and not above HIGH"),
        (["--sweep", "price=1..2"], 1, "rate=LOW..HIGH"),
        (["--emit", "/proc/nowhere"], 1, "--emit /proc/nowhere: cannot be made"),
        (["--emit", "/dev/null"], 1, "--emit /dev/null: cannot be made"),
        (["--emit", "/proc"], 1, "not empty"),
        (["--plot", "plan.txt"], 1, "should end in"),
        (["--max-moves", "3"], 2, "needs --from"),
        (["--sweep", "rate=1..2", "--emit", "x"], 2, "cannot go with"),
        (["--strategy", "magic"], 2, "magic"),
        (["--even-splits", "--strategy", "igniter"], 1, "--even-splits: are for strategy"),
    ],
)
def test_wrong_usage_says_what_would_be_right(few: Any, args: Any, status: Any, said: Any) -> None:
    result = run(few, *args)
    assert result.exit_code == status
    assert result.stdout == ""  # said before anything is planned
    assert said in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("igniterd", "--from: the plan has GPUs of kind slow; offer that kind too"),
        ("igniter", "--from: strategy igniter plans from nothing"),
    ],
)
def test_a_running_plan_that_cannot_be_used_is_named_by_its_option(
    few: Any, slow: Any, tmp_path: Path, strategy: str, said: Any
) -> None:
    running = tmp_path / "plan.json"
    running.write_text(run(few, "--gpu", f"{slow}@0.4", "--format", "json").stdout)
    result = run(few, "--from", running, "--strategy", strategy)
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A GPU that takes three times as long as a V100."""
    profile = builtin_profile("v100").time_scaled(3.0)
    path = tmp_path / "slow.json"
    profile.model_copy(update={"board": profile.board.model_copy(update={"name": "slow"})}).save(
        path
    )
    return path


def test_a_dear_gpu_that_would_be_half_empty_is_not_taken(few: Any, slow: Any) -> None:
    """Each share costs less on the V100; a whole V100 costs more than what is needed of the
    other."""
    both = json.loads(
        run(few, "--gpu", "v100@3", "--gpu", f"{slow}@0.4", "--format", "json").stdout
    )
    alone = json.loads(run(few, "--gpu", f"{slow}@0.4", "--format", "json").stdout)
    assert both["cost_per_hour"] <= alone["cost_per_hour"] < 3.0
    assert both["cost_per_hour"] >= both["lower_bound_cost_per_hour"]


def test_what_a_kind_that_ran_out_has_no_room_for_goes_to_another(few: Any, slow: Any) -> None:
    """The V100 is cheaper for all of them, and there is one."""
    many = few.with_name("many.csv")
    rows = few.read_text().splitlines()
    many.write_text("\n".join([*rows, *(f"0{row}" for row in rows[1:])]))
    document = json.loads(
        run(many, "--gpu", "v100@1x1", "--gpu", f"{slow}@2", "--format", "json").stdout
    )
    assert document["feasible"] is True
    assert sum(gpu["gpu"] == "v100" for gpu in document["gpus"]) == 1
    placed: dict[str, float] = {}
    for tenant in (t for gpu in document["gpus"] for t in gpu["tenants"]):
        placed[tenant["workload"]] = placed.get(tenant["workload"], 0.0) + tenant["rate_per_s"]
    asked = dict(zip(("A", "B", "C"), (400.0, 200.0, 50.0), strict=True))
    assert placed == pytest.approx(
        {f"{k}{name}": rate for k in ("", 0) for name, rate in asked.items()}, rel=1e-4
    )


def test_a_model_that_no_memory_holds_is_named(few: Any, tmp_path: Path) -> None:
    profile = builtin_profile("v100")
    models = profile.models | {
        "ssd": profile.models["ssd"].model_copy(update={"memory_bytes": 20 * 2**30})
    }
    board = profile.board.model_copy(update={"memory_bytes": 16 * 2**30})
    profile.model_copy(update={"models": models, "board": board}).save(tmp_path / "small.json")
    result = run(few, "--gpu", tmp_path / "small.json", "--format", "json")
    assert result.exit_code == 1
    assert "C: one instance of ssd takes 20 GiB, and the GPU has 16 GiB" in result.stderr
    assert [t["workload"] for gpu in json.loads(result.stdout)["gpus"] for t in gpu["tenants"]] == [
        "A",
        "B",
    ]


def test_a_plan_goes_from_one_command_to_the_next(few: Any) -> None:
    made = CliRunner().invoke(app, ["plan", str(few), "--format", "json"]).stdout
    shell = "python -m igniterd simulate - --duration 1 --format json"
    assert json.loads(_piped(shell, made))["missed"] == []


def test_a_missing_file() -> None:
    result = run("nowhere.csv")
    assert result.exit_code == 1
    assert "nowhere.csv" in result.output


def test_sweep_needs_more_as_rates_grow(few: Any, tmp_path: Path) -> None:
    picture = tmp_path / "sweep.svg"
    result = run(few, "--sweep", "rate=0.5..6:3", "--format", "json", "--plot", picture)
    assert result.exit_code == 0
    points = json.loads(result.stdout)
    assert [point["rate"] for point in points] == [0.5, 3.25, 6.0]
    gpus = [len(point["gpus"]) for point in points]
    assert gpus == sorted(gpus)
    assert gpus[0] < gpus[-1]
    assert picture.read_text().startswith("<?xml")


def test_sweep_by_slo_says_where_it_ends(few: Any) -> None:
    result = run(few, "--sweep", "slo=0.05..1:2", "--strategy", "igniter")
    assert result.exit_code == 1
    assert "A: at 0.05 times" in result.stderr


def test_default_points_of_a_sweep() -> None:
    assert parse_sweep("rate=1..2").factors == pytest.approx((1.0, 1.2, 1.4, 1.6, 1.8, 2.0))
    with pytest.raises(ConfigError, match="2 to 200"):
        parse_sweep("rate=1..2:1")


def test_a_plan_is_drawn(few: Any, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    assert run(few, "--strategy", "igniter", "--plot", picture).exit_code == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_from_a_running_plan(few: Any, tmp_path: Path) -> None:
    running = tmp_path / "plan.json"
    running.write_text(run(few, "--format", "json").stdout)
    result = run(few, "--from", running, "--max-moves", 0, "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["moves"] == []


def test_a_running_plan_without_a_share_is_answered_with_a_note(few: Any, tmp_path: Path) -> None:
    running = tmp_path / "plan.json"
    document = json.loads(run(few, "--format", "json").stdout)
    seats = [seat for gpu in document["gpus"] for seat in gpu["tenants"]]
    capped = next(seat for seat in seats if seat["share"] < 1)
    del capped["share"]
    running.write_text(json.dumps(document))
    said = f"had no share in the running plan and get one here: {capped['workload']} ("
    shown = run(few, "--from", running, "--max-moves", 0)
    assert shown.exit_code == 0 and said in " ".join(shown.stdout.split())
    (note,) = json.loads(run(few, "--from", running, "--format", "json").stdout)["notes"]
    assert note.startswith(said)


def test_emitted_configurations_are_what_the_daemon_accepts(few: Any, tmp_path: Path) -> None:
    folder = tmp_path / "hosts"
    result = run(few, "--emit", folder, "--format", "json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    hosts = sorted(folder.glob("gpu-*"))
    assert len(hosts) == len(document["gpus"])
    for host, gpu in zip(hosts, document["gpus"], strict=True):
        config = load_config(host / "igniterd.toml")
        assert [model.name for model in config.model] == [t["workload"] for t in gpu["tenants"]]
        for model, tenant in zip(config.model, gpu["tenants"], strict=True):
            assert model.slo_p99_ms == tenant["slo_p99_ms"]
            assert model.profile_model == tenant["model"]
            assert parse_gpu(str(model.profile)).name == "v100"
            override = json.loads((host / "overrides" / f"{model.name}.json").read_text())
            assert override["max_batch_size"] == tenant["max_batch_size"]
            assert (
                override["dynamic_batching"]["max_queue_delay_microseconds"]
                == tenant["max_queue_delay_us"]
            )
            share = Path(override["parameters"]["EXECUTION_ENV_PATH"]["string_value"]).name
            assert float(share) / 100 == pytest.approx(tenant["share"])
            assert (
                "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
                in (host / "state" / "shares" / LAYOUT / share / "bin" / "activate").read_text()
            )
    again = run(few, "--emit", folder)
    assert again.exit_code == 1
    assert "not empty" in again.output


def test_names_that_nothing_else_would_take_are_emitted_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    names = ["_first", "-x", "日本", "größe", "gr.ße", "w" * 300, "a/../../b", "[/] :bug:"]
    path.write_text(
        "workload,model,slo_p99_ms,rate_per_s\n"
        + "".join(f"{name},alexnet,20.123456,20\n" for name in names)
    )
    folder = tmp_path / "hosts"
    result = run(path, "--strategy", "igniter", "--emit", folder)
    assert result.exit_code == 0, result.output
    # the table has every name whole, and reads none as markup
    assert all(name in result.stdout for name in names)
    emitted = [
        model
        for host in folder.glob("gpu-*")
        for model in load_config(host / "igniterd.toml").model
    ]
    assert len({model.name for model in emitted}) == len(names)
    assert {model.slo_p99_ms for model in emitted} == {20.123456}
    assert (folder / "README.txt").is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "workload,model,slo_p99_ms,rate_per_s\nA,alexnet,15,400,7\n",
            "line 2 has 5 fields under 4 columns",
        ),
        ("workload,model,slo_p99_ms,rate_per_s,model\nA,alexnet,15,400,ssd\n", "has 'model' twice"),
        ("", "holds no workload"),
        (
            "workload;model;slo_p99_ms;rate_per_s\nA;alexnet;15;400\n",
            "lacks workload, model, slo_p99_ms, rate_per_s",
        ),
        ("workload,model,slo_p99_ms,rate_per_s\n", "holds no workload"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: Any, said: Any) -> None:
    path = tmp_path / "w.csv"
    path.write_text(text)
    result = run(path)
    assert result.exit_code == 1
    assert said in result.stderr


def test_figures_of_any_length_are_refused_by_workload(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text(
        f'[[workload]]\nname = "big"\nmodel = "alexnet"\nslo_p99_ms = 15\nrate_per_s = {10**400}\n'
    )
    result = run(path, "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["infeasible"][0]["workload"] == "big"
    assert "big: rate_per_s is 1000" in result.stderr
