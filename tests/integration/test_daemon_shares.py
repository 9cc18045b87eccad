"""The daemon on a launcher of 25.08 and later: what it says of a share is what the process has.

MPS control is played by a script with the answers of the real one, whose clients are the stubs of
the real Triton: without a GPU nobody connects to a real MPS server.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from igniterd.clients.processes import ProcessTable
from igniterd.clients.triton.client import TritonClient
from igniterd.lab.gpu.boardfile import BoardFile
from igniterd.lab.gpu.truth import UNITS
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.load.load import RequestLog
from igniterd.lab.programs.process import free_ports
from igniterd.perf import builtin_profile
from tests.integration.test_daemon import SLOS, SLOW, Daemon, daemon, load
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

LAUNCHER: Final = "25.08"
# It starts no other program: who answers late on a busy machine is no proof of a share.
CONTROL = """#!/bin/bash
cd "${0%/*}"
[ -e gone ] && { echo "Cannot find MPS control daemon process" >&2; exit 1; }
say() { local line; while read -r line; do echo "$line"; done; }
started() {
  local thread process children
  for thread in /proc/$1/task/*/children; do
    read -ra children <"$thread"
    for process in "${children[@]}"; do echo "$process"; done
  done
}
while read -r command argument; do
  case $command in
    get_default_active_thread_percentage | get_active_thread_percentage) say <default ;;
    get_server_list) say <servers ;;
    get_server_status) say <status ;;
    get_client_list)
      read -r triton <triton
      if [ -e clients ]; then say <clients; else started "$triton"; fi ;;
  esac
done
"""


class PlayedMps:
    """A control program whose answers are files."""

    def __init__(self, folder: Path, triton_pid: int) -> None:
        self.folder = folder
        folder.mkdir()
        self.program = folder / "control"
        self.program.write_text(CONTROL)
        self.program.chmod(0o755)
        self.set(default="100.0", servers="77", status="ACTIVE", triton=str(triton_pid))

    def set(self, **answers: str) -> None:
        for name, text in answers.items():
            (self.folder / name).write_text(f"{text}\n" if text else "")

    def forget(self, name: str) -> None:
        (self.folder / name).unlink()


def write_config(
    folder: Path, triton: TritonHost, control: Path, admin_port: int, mps: str = ""
) -> Path:
    builtin_profile("v100").time_scaled(SLOW).save(folder / "v100.json")
    models = "".join(
        f'[[model]]\nname = "{n}"\nslo_p99_ms = {slo}\nprofile = "v100.json"\n'
        for n, slo in SLOS.items()
    )
    path = folder / "igniterd.toml"
    path.write_text(
        f'[[triton]]\nurl = "{triton.url}"\nmetrics_url = "{triton.metrics_url}"\n'
        f'[gpu]\nsource = "emulated:{triton.board_path}"\n[mps]\ncontrol = "{control}"\n'
        f"interval_s = 2\n{mps}"
        f'[metrics]\nlisten = "127.0.0.1:{admin_port}"\n[state]\ndirectory = "{folder}/state"\n'
        f"{models}"
    )
    return path


def shares(state: Mapping[str, Any]) -> dict[str, str]:
    return {m["name"]: m["share"]["state"] for m in state["models"] if m.get("share")}


def rate(state: Mapping[str, Any], model: str) -> float:
    """Requests/s of a model, 0 while it is not known."""
    return next((m.get("rate_per_s") or 0.0 for m in state["models"] if m["name"] == model), 0.0)


def on_board(triton: TritonHost) -> dict[int, float | None]:
    """The share of every process of the emulated board, as it took it from its own environment."""
    board = BoardFile(triton.board_path)
    return {copy.pid: copy.units / UNITS if copy.units else None for copy in board.copies()}


def proven(state: Mapping[str, Any]) -> bool:
    return state["decision"]["outcome"] == "hold" and shares(state) == dict.fromkeys(SLOS, "proven")


async def test_take_over_shift_and_mps_faults(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    spec = HostSpec(
        tuple(EmulatedModel(name, max_batch_size=32) for name in SLOS),
        slow_factor=SLOW,
        seed=2,
        launcher=LAUNCHER,
    )
    async with triton_host(spec, tmp_path / "triton") as triton:
        mps = PlayedMps(tmp_path / "mps", triton.pid)
        config = write_config(tmp_path, triton, mps.program, port, "prove_within_s = 12\n")
        async with daemon(tmp_path, config, port) as igniterd:
            (tmp_path / "one").mkdir()
            (tmp_path / "two").mkdir()
            async with load(
                tmp_path / "one", triton.url, {"alexnet": 400, "resnet50": 300, "vgg19": 150}
            ) as first:
                before = await igniterd.until(proven, 90.0)
                await _is_true_of_the_board(triton, before)
            async with load(
                tmp_path / "two", triton.url, {"alexnet": 100, "resnet50": 150, "vgg19": 250}
            ) as second:
                moved = await igniterd.until(
                    lambda s: proven(s) and _applied(s)["vgg19"] > _applied(before)["vgg19"], 90.0
                )
                await _is_true_of_the_board(triton, moved)
                await _mps_faults(igniterd, mps)
        for log in map(RequestLog.read, (first, second)):
            assert len(log) > 500
            assert log.ok.all(), set(log.error[~log.ok])


def _applied(state: Mapping[str, Any]) -> dict[str, float]:
    return {m["name"]: m["applied"]["share"] for m in state["models"]}


async def _is_true_of_the_board(triton: TritonHost, state: Mapping[str, Any]) -> None:
    """The emulated board knows which share each process that executes has: the daemon's figures are
    no others."""
    shares_by_pid = on_board(triton)
    for model in state["models"]:
        assert model["share"]["effective"] == model["applied"]["share"]
        pid = int(model["share"]["by"].split("process ")[1].split(";")[0])
        assert shares_by_pid[pid] == pytest.approx(model["applied"]["share"], abs=0.013)


async def _mps_faults(igniterd: Daemon, mps: PlayedMps) -> None:
    """Whatever happens to MPS, no share is believed until it is shown again, and nothing is
    reloaded meanwhile."""

    async def becomes(state: str, why: str) -> None:
        found = await igniterd.until(
            lambda s: (
                set(shares(s).values()) == {state}
                and all(
                    why in m["share"]["reason"] and m["share"]["effective"] is None
                    for m in s["models"]
                )
            ),
        )
        assert {gap["source"] for gap in found["gaps"]} >= {f"share:{name}" for name in SLOS}
        later = await igniterd.until(lambda s: s["tick"] >= found["tick"] + 3)
        assert _applied(later) == _applied(found)  # no share is given into what cannot hold it

    mps.set(status="FAULT")
    await becomes("unproven", "in FAULT")
    mps.set(status="ACTIVE")
    await igniterd.until(lambda s: set(shares(s).values()) == {"proven"})
    mps.set(clients="4711")
    await becomes("refuted", "is no client of MPS")
    mps.forget("clients")
    await igniterd.until(lambda s: set(shares(s).values()) == {"proven"})
    mps.set(default="5.0")
    await becomes("refuted", "caps every client at 5%")
    mps.set(default="100.0")
    await igniterd.until(lambda s: set(shares(s).values()) == {"proven"})
    mps.set(servers="", gone="yes")
    await becomes("unproven", "no control daemon")
    status, page = await igniterd.text("/metrics")
    assert status == 200
    assert page.count("igniterd_share_effective{") == len(SLOS)
    assert all(
        line.endswith(" 0.0")
        for line in page.splitlines()
        if line.startswith("igniterd_share_effective{")
    )
    said = [line for line in igniterd.said() if line["event"] == "share without effect"]
    # once each time, however many ticks it lasts
    assert 4 * len(SLOS) <= len(said) <= 5 * len(SLOS)


async def test_an_old_share_folder_is_refuted_and_not_planned_with(tmp_path: Path) -> None:
    """What igniterd wrote for launchers up to 25.07 alone: Triton says OK, and nothing reads it."""
    (port,) = free_ports(1)
    old = tmp_path / "state" / "shares" / "30"
    (old / "bin").mkdir(parents=True)
    (old / "lib").mkdir()
    (old / "bin" / "activate").write_text("export CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=30\n")
    of_old = {"EXECUTION_ENV_PATH": str(old)}
    models = tuple(EmulatedModel(n, max_batch_size=8, parameters=of_old) for n in SLOS)
    spec = HostSpec(models, slow_factor=SLOW, seed=3, launcher=LAUNCHER)
    async with triton_host(spec, tmp_path / "triton") as triton:
        client = TritonClient("main", triton.url, shares_dir=str(tmp_path / "state" / "shares"))
        assert (await client.read_models(["vgg19"]))["vgg19"].allocation.share == 0.3  # type: ignore[union-attr]
        await client.close()
        mps = PlayedMps(tmp_path / "mps", triton.pid)
        config = write_config(tmp_path, triton, mps.program, port)
        async with (
            daemon(tmp_path, config, port) as igniterd,
            load(tmp_path, triton.url, {"alexnet": 200, "resnet50": 150, "vgg19": 75}) as log_path,
        ):
            state = await igniterd.until(lambda s: set(shares(s).values()) == {"refuted"})
            for model in state["models"]:
                assert model["share"]["applied"] == 0.3
                assert model["share"]["effective"] is None
                assert "25.08 or later) does not run bin/activate" in model["share"]["reason"]
                assert model["planned"]["share"] is None
            assert set(on_board(triton).values()) == {None}  # as it is
            await igniterd.until(proven, 90.0)  # its own reload gives them what works there
        log = RequestLog.read(log_path)
        assert log.ok.all(), set(log.error[~log.ok])


async def test_a_process_that_is_killed_is_brought_back_with_and_without_traffic(
    tmp_path: Path,
) -> None:
    """Triton says READY of a model whose process is gone, and keeps its zombie until the next
    load."""
    (port,) = free_ports(1)
    models = (
        EmulatedModel("alexnet", instances=2),
        EmulatedModel("resnet50"),
        EmulatedModel("vgg19"),
    )
    async with triton_host(
        HostSpec(models, slow_factor=SLOW, seed=4, launcher=LAUNCHER), tmp_path / "triton"
    ) as triton:
        mps = PlayedMps(tmp_path / "mps", triton.pid)
        # no change of a share takes the dead process' place
        watching = "[decide]\nwarmup_s = 3600\n"
        config = write_config(tmp_path, triton, mps.program, port, watching)
        async with daemon(tmp_path, config, port) as igniterd:

            def processes(model: str) -> set[int]:
                return {
                    s.pid
                    for s in ProcessTable().scan()
                    if s.server_pid == triton.pid and s.instance.startswith(model)
                }

            async def revived(model: str, count: int) -> None:
                before = processes(model)
                os.kill(min(before), signal.SIGKILL)
                gap = f"model:{model}"
                await igniterd.until(lambda s: gap in {g["source"] for g in s["gaps"]})
                await igniterd.until(lambda s: gap not in {g["source"] for g in s["gaps"]})
                # the old copy ends once what it was asked is answered
                await until(lambda: not processes(model) & before)
                assert len(processes(model) - before) == count == len(processes(model))

            await igniterd.until(lambda s: s["tick"] >= 2)
            await revived("alexnet", 2)
            async with load(tmp_path, triton.url, {"resnet50": 100}) as log_path:
                await igniterd.until(lambda s: rate(s, "resnet50") > 10.0)
                await revived("resnet50", 1)
                before = len(RequestLog.read(log_path))

                def serves() -> bool:
                    """What was sent since; what waited when it was killed may fail until then."""
                    log = RequestLog.read(log_path)
                    return len(log) >= before + 20 and bool(log.ok[-10:].all())

                await until(serves)
        kinds = [line["kind"] for line in igniterd.said() if line["event"] == "moved"]
        assert kinds.count("revive") == 2
