"""``igniterd simulate``: tables, JSON, exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from igniterd.cli.app import app

TENANT = {
    "workload": "W1",
    "model": "alexnet",
    "slo_p99_ms": 20.0,
    "rate_per_s": 200.0,
    "share": 0.3,
    "max_batch_size": 8,
}


def write(tmp_path: Path, *tenants: dict[str, object], gpu: str = "v100") -> str:
    path = tmp_path / "plan.json"
    path.write_text(
        json.dumps({"feasible": True, "gpus": [{"gpu": gpu, "tenants": list(tenants)}]})
    )
    return str(path)


def test_json_has_every_workload_and_gpu(tmp_path: Path) -> None:
    plan = write(
        tmp_path,
        TENANT,
        TENANT | {"workload": "W2", "model": "ssd", "rate_per_s": 30.0, "share": 0.5},
    )
    done = CliRunner().invoke(app, ["simulate", plan, "--duration", "20", "--format", "json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [w["workload"] for w in told["workloads"]] == ["W1", "W2"]
    assert told["gpus"][0]["against"] == "measured tables"
    first = told["gpus"][0]["tenants"][0]
    assert first["p50_ms"] <= first["p95_ms"] <= first["p99_ms"]
    assert 3500 < first["requests"] < 4500
    assert told["missed"] == [
        w["workload"] for w in told["workloads"] if w["p99_ms"] > w["slo_p99_ms"]
    ]


def test_a_missed_slo_fails_only_when_asked(tmp_path: Path) -> None:
    plan = write(tmp_path, TENANT | {"slo_p99_ms": 1.0})
    assert CliRunner().invoke(app, ["simulate", plan, "--duration", "5"]).exit_code == 0
    asked = CliRunner().invoke(app, ["simulate", plan, "--duration", "5", "--require-slo"])
    assert asked.exit_code == 1
    assert "W1: P99" in asked.stderr
    assert (
        CliRunner()
        .invoke(app, ["simulate", write(tmp_path, TENANT), "--duration", "5", "--require-slo"])
        .exit_code
        == 0
    )


def test_table_tells_replicas_and_their_sum(tmp_path: Path) -> None:
    plan = write(tmp_path, TENANT, TENANT | {"share": 0.6})
    done = CliRunner().invoke(app, ["simulate", plan, "--duration", "5", "--arrivals", "constant"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert sum("W1" in line for line in lines) == 3
    assert any(line.startswith("all") for line in lines)
    assert "P99 above its SLO: none" in done.stdout


def test_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("workload,time_s\n" + "".join(f"W1,{k / 50}\n" for k in range(100)))
    done = CliRunner().invoke(
        app,
        [
            "simulate",
            write(tmp_path, TENANT),
            "--arrivals",
            str(trace),
            "--duration",
            "10",
            "--format",
            "json",
        ],
    )
    assert json.loads(done.stdout)["workloads"][0]["requests"] == 100


def test_against_the_model(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            "simulate",
            write(tmp_path, TENANT),
            "--against",
            "model",
            "--duration",
            "5",
            "--format",
            "json",
        ],
    )
    assert json.loads(done.stdout)["gpus"][0]["against"].startswith("the model")


def simulate(plan: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", plan, "--duration", "5", *arguments])


WITHOUT_SHARE = {name: value for name, value in TENANT.items() if name != "share"}
OTHER = TENANT | {"workload": "W2", "model": "ssd", "rate_per_s": 30.0, "share": 0.5}


def test_beside_a_tenant_without_a_share_the_model_answers(tmp_path: Path) -> None:
    busy = {"rate_per_s": 1000.0}
    plan = write(tmp_path, WITHOUT_SHARE | busy, OTHER)
    told = json.loads(simulate(plan, "--format", "json").stdout)
    assert told["gpus"][0]["against"].startswith("the model")
    capped = write(tmp_path, TENANT | busy | {"share": 0.5}, OTHER)
    beside = json.loads(simulate(capped, "--against", "model", "--format", "json").stdout)
    # it takes the other's SMs, which a cap would have kept from it
    assert told["workloads"][1]["mean_ms"] > 1.15 * beside["workloads"][1]["mean_ms"]


@pytest.mark.parametrize("share", [{}, {"share": None}, {"share": 1.0}])
def test_a_tenant_without_a_share_is_shown_as_uncapped(
    tmp_path: Path, share: dict[str, object]
) -> None:
    done = simulate(write(tmp_path, WITHOUT_SHARE | share, OTHER))
    assert done.exit_code == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["0", "v100", "W1", "alexnet", "uncapped"] in [row[:5] for row in rows]
    assert ["W2", "ssd", "50.0%"] in [row[:3] for row in rows]


def test_the_measured_tables_refuse_it_by_name(tmp_path: Path) -> None:
    done = simulate(write(tmp_path, OTHER, WITHOUT_SHARE), "--against", "measured")
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    assert "workload W1: it has no share" in said and "(--against model)" in said


def test_alone_on_its_gpu_it_was_measured(tmp_path: Path) -> None:
    plan = write(tmp_path, WITHOUT_SHARE)
    for against in ("auto", "measured"):
        told = json.loads(simulate(plan, "--against", against, "--format", "json").stdout)
        assert told["gpus"][0]["against"] == "measured tables"


def test_shares_above_a_gpu_are_refused_whoever_has_none(tmp_path: Path) -> None:
    done = simulate(write(tmp_path, OTHER, OTHER | {"share": 0.6}, WITHOUT_SHARE))
    assert done.exit_code == 1
    assert "add up to 1.100" in done.stderr and "leave out the share" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--arrivals", "sometimes"], "none of poisson, constant, bursty"),
        (["--duration", "0"], "duration 0"),
        (["--arrivals", "bursty", "--burstiness", "1"], "burstiness 1"),
    ],
)
def test_mistakes_are_said(tmp_path: Path, arguments: list[str], word: str) -> None:
    done = CliRunner().invoke(app, ["simulate", write(tmp_path, TENANT), *arguments])
    assert done.exit_code == 1
    assert word in done.stderr


def test_a_gpu_nobody_knows_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["simulate", write(tmp_path, TENANT, gpu="abacus")])
    assert done.exit_code == 1
    assert "abacus" in done.stderr
