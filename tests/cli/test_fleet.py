"""``igniterd fleet``: what it prints, and what it says when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.cli.fleet_plot import plot_rebalance, shares_after, shares_before
from igniterd.cli.fleet_table import rebalance_tables
from igniterd.fleet.cluster import Cluster, HostView
from igniterd.lab.programs.process import free_ports
from igniterd.messages.state import HostState
from tests.fleet import fakes
from tests.fleet.fakes import a_move, a_rebalance, a_state


def a_cluster(hosts: int = 3, gpus: int = 2, models: int = 2) -> Cluster:
    """Every GPU serves ``models`` models, of equal shares."""

    def host(h: int) -> HostView:
        boards = [{"uuid": f"GPU-{h}-{g}"} for g in range(gpus)]
        served = [
            {
                "name": f"net{h}-{g}-{m}" if hosts < 5 else f"net{(h + g + m) % 9}",
                "slo_p99_ms": 50.0,
                "seen": True,
                "gpus": [f"GPU-{h}-{g}"],
                "applied": {"share": 0.9 / models},
            }
            for g in range(gpus)
            for m in range(models)
        ]
        state = a_state(f"host{h:02}") | {"boards": boards, "models": served}
        return HostView.of(HostState.model_validate_json(json.dumps(state)))

    views = [host(h) for h in range(hosts)]
    return Cluster("lab", {view.name: view for view in views})


def a_plan(cluster: Cluster) -> dict[str, Any]:
    """The first model of the first host goes to the last GPU of the last, whose first one
    shrinks."""
    first, *_, last = cluster.hosts.values()
    model, board = next(iter(first.models.values())), list(last.boards)[-1]
    other = next(m for m in last.models.values() if board in m.gpus)
    move = a_move(1) | {
        "model": model.name,
        "served_as": model.name,
        "from": {"host": first.name, "gpu_uuid": model.gpus[0]},
        "to": {"host": last.name, "gpu_uuid": board},
    }
    there = {"move": 1, "host": last.name, "gpu_uuid": board}
    steps = [
        {**there, "number": 1, "action": "shrink", "model": other.name}
        | {"allocation": {"share": 0.2, "max_batch_size": 2}, "before": {"share": 0.45}},
        {**there, "number": 2, "action": "load", "model": model.name}
        | {"allocation": {"share": 0.3, "max_batch_size": 4}},
        {**there, "number": 3, "action": "route", "model": model.name},
        {
            "number": 4,
            "move": 1,
            "action": "unload",
            "host": first.name,
            "gpu_uuid": model.gpus[0],
            "model": model.name,
        },
    ]
    return a_rebalance(moves=[move], steps=steps)


def text_of(document: dict[str, Any], troubles: dict[str, str] | None = None) -> str:
    out = StringIO()
    console = Console(file=out, width=220, color_system=None)
    for part in rebalance_tables(document, troubles):
        console.print(part)
    return out.getvalue()


def test_the_tables_say_moves_latencies_steps_and_what_is_left() -> None:
    document = a_plan(a_cluster()) | {
        "unsolved": [{"host": "host01", "model": "big", "reason": "needs 1.2 GPUs"}],
        "more_unsolved": 2,
        "left_out": [{"host": "host09", "reason": "silent for 40 s"}],
    }
    text = text_of(document, {"host09": "its clock jumps"})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == (
        "cluster lab: 2 of 2 hosts planned with, 1 in trouble; 1 move, after it every SLO holds"
    )
    assert "1 net0-0-0 host00 GPU-0-0 host02 GPU-2-1 50 % 4 1 10 the GPU" in lines
    assert "1 host02 m1 – 31.50 50" in lines
    assert "1 1 shrink net2-1-0 host02 GPU-2-1 45 % → 20 %, batch 2" in lines
    assert "4 1 unload net0-0-0 host00 GPU-0-0" in lines
    assert "host01: big: needs 1.2 GPUs" in lines
    assert "… and 2 more" in lines
    assert "host09: silent for 40 s" in lines
    assert "host09: its clock jumps" in lines


def test_no_moves_is_said_too() -> None:
    assert "no moves, every SLO holds" in text_of(a_rebalance())
    assert "no moves, not every SLO holds" in text_of(a_rebalance(feasible=False))


def test_moves_that_are_not_in_the_message_are_counted_apart() -> None:
    cut = a_plan(a_cluster()) | {"more_moves": 7, "feasible": False}
    assert (
        "1 move, after it not every SLO holds; 7 more moves did not fit in the message"
        in text_of(cut)
    )


def test_the_shares_before_and_after_the_steps() -> None:
    cluster = a_cluster()
    before = shares_before(cluster)
    assert before["host00", "GPU-0-0"] == {"net0-0-0": 0.45, "net0-0-1": 0.45}
    after = shares_after(cluster, before, a_plan(cluster))
    assert after["host00", "GPU-0-0"] == {"net0-0-1": 0.45}
    assert after["host02", "GPU-2-1"] == {"net2-1-0": 0.2, "net2-1-1": 0.45, "net0-0-0": 0.3}
    assert before["host02", "GPU-2-1"] == {"net2-1-0": 0.45, "net2-1-1": 0.45}


def of_instances(name: str, host: str, share: float | None, devices: list[int]) -> dict[str, Any]:
    gpus = [f"GPU-{host}-{device}" for device in sorted(set(devices))]
    applied = {"instances": len(devices), "devices": devices}
    applied |= {} if share is None else {"share": share}
    return {"name": name, "slo_p99_ms": 50.0, "seen": True, "gpus": gpus, "applied": applied}


def test_every_instance_has_the_share() -> None:
    """Two instances at 0.3 may take 0.6 of their GPU."""

    def host(name: str, *models: dict[str, Any]) -> HostView:
        gpus = [f"GPU-{name}-{number}" for number in range(2)]
        state = a_state(name) | {
            "boards": [{"uuid": gpu} for gpu in gpus],
            "tritons": [{"name": "main", "gpus": gpus}],
            "models": list(models),
        }
        return HostView.of(HostState.model_validate_json(json.dumps(state)))

    source = host(
        "a",
        of_instances("two", "a", 0.3, [0, 0]),
        of_instances("spread", "a", 0.1, [0, 1, 1]),
        of_instances("free", "a", None, [1, 1]),
    )
    cluster = Cluster("lab", {"a": source, "b": host("b")})
    before = shares_before(cluster)
    assert before["a", "GPU-a-0"] == {"two": 0.6, "spread": 0.1}
    assert before["a", "GPU-a-1"] == {"spread": 0.2, "free": 1.0}
    there = {"move": 1, "number": 1, "host": "b", "gpu_uuid": "GPU-b-1", "model": "two"}
    spread = {"move": 1, "number": 3, "host": "a", "gpu_uuid": "GPU-a-0", "model": "spread"}
    steps = [
        {**there, "action": "load"}
        | {"allocation": {"share": 0.25, "instances": 3, "devices": [1, 1, 1]}},
        {**there, "number": 2, "action": "unload", "host": "a", "gpu_uuid": "GPU-a-0"},
        {**spread, "action": "grow"}
        | {"allocation": {"share": 0.2, "instances": 3, "devices": [0, 1, 1]}},
    ]
    after = shares_after(cluster, before, a_rebalance(steps=steps))
    assert after["b", "GPU-b-1"] == {"two": 0.75}
    assert after["a", "GPU-a-0"] == {"spread": 0.2}
    assert after["a", "GPU-a-1"] == {"spread": 0.4, "free": 1.0}


@pytest.mark.parametrize("hosts", [1, 3, 50])
def test_the_picture_is_one(tmp_path: Path, hosts: int) -> None:
    cluster = a_cluster(hosts, gpus=2, models=3)
    document = a_plan(cluster) if hosts > 1 else a_rebalance()
    plot_rebalance(cluster, document, tmp_path / "fleet.png")
    assert (tmp_path / "fleet.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------ the command


def ran(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["fleet", *arguments])


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['igniterd', 'fleet', '--help']\n"
        "from igniterd.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = ('numpy', 'aiomqtt', 'rich', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--consolidate" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_what_is_missing_is_said() -> None:
    done = ran()
    assert done.exit_code == 1
    assert "no broker: give --broker URL" in done.stderr
    done = ran("--broker", "mqtt://broker")
    assert "no cluster: give --cluster NAME" in done.stderr


def test_what_is_of_once_alone() -> None:
    assert ran("--format", "json").exit_code == 2
    assert ran("--plot", "x.png").exit_code == 2


def test_without_a_broker_it_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igniterd.fleet.parts.real_parts", lambda **_: fakes.Fakes().parts())
    port = free_ports(1)[0]
    done = ran(
        "--broker", f"mqtt://127.0.0.1:{port}", "--cluster", "lab", "--once", "--deadline", "1"
    )
    assert done.exit_code == 1
    assert f"no broker at 127.0.0.1:{port} within 1 s: " in done.stderr
    assert "Connection refused" in done.stderr


def test_once_wants_a_name() -> None:
    done = ran("--broker", "mqtt://127.0.0.1:1", "--cluster", "+", "--once")
    assert done.exit_code == 1
    assert "wants the names of clusters" in done.stderr
