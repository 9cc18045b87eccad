"""The daemon gives models of in-process backends processes of their own, and then shares, where
their owner says so."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igniterd.clients.triton.client import TritonClient
from igniterd.engines.hosting import hosting_of
from igniterd.lab.load.load import LoadSpec, Phase, RequestLog
from igniterd.lab.programs.process import free_ports, running
from igniterd.perf import builtin_profile
from igniterd.profiler.inputs import feed_of
from tests.integration.engine_host import XYZ, EngineHost, FileModel, floats, onnx_files
from tests.integration.test_adopt import nothing_left
from tests.integration.test_daemon import Daemon, answered, daemon
from tests.integration.test_daemon_shares import PlayedMps
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

SLOW, SLO_MS = 4, 60
NAMES = ("a-random", "b-lacking", "net")
RATE_PER_S = 60.0
ECHO_BACKEND = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", t)]) for t in tensors]
"""
ONE: dict[str, object] = {"input": floats(("x", [4])), "output": floats(("y", [4]))}


def repository(onnx: Mapping[str, bytes]) -> list[FileModel]:
    """One that can be adopted; before it, by name, one that answers as it likes, and one of an
    engine that is not there."""
    return [
        FileModel("a-random", ONE, {"1/model.onnx": onnx["random"]}, 8),
        FileModel("b-lacking", {**ONE, "backend": "tensorrt"}, {"1/model.plan": b"a plan"}, 8),
        FileModel("net", XYZ, {"1/model.onnx": onnx["two"]}, 8),
    ]


def write_config(folder: Path, triton: EngineHost, control: Path, admin_port: int) -> Path:
    builtin_profile("v100").time_scaled(SLOW).save(folder / "v100.json")
    models = "".join(
        f'[[model]]\nname = "{m}"\nslo_p99_ms = {SLO_MS}\nprocess = "own"\ngpu = 0\n' for m in NAMES
    )
    path = folder / "igniterd.toml"
    path.write_text(
        f'[[triton]]\nurl = "{triton.url}"\nmetrics_url = "{triton.metrics_url}"\n'
        f'[gpu]\nsource = "none"\n[mps]\ncontrol = "{control}"\ninterval_s = 2\n[decide]\n'
        "warmup_s = 3\n"
        f'[metrics]\nlisten = "127.0.0.1:{admin_port}"\n[state]\ndirectory = "{folder}/state"\n'
        f'{models}profile = "v100.json"\nprofile_model = "alexnet"\n'
    )
    return path


@asynccontextmanager
async def load(folder: Path, triton: EngineHost) -> AsyncIterator[Path]:
    """Open-loop Poisson load on ``net``; yields the log of every request."""
    described, log = folder / "load.json", folder / f"requests-{triton.spec.launcher}.csv"
    net = FileModel("net", XYZ, max_batch_size=8)
    request = base64.b64encode(feed_of(net.config(), 1).request(1)).decode()
    spec = LoadSpec(
        triton.url, (Phase("steady", 600.0, {"net": RATE_PER_S}),), requests={"net": request}
    )
    described.write_text(spec.to_json())
    command = [sys.executable, "-m", "igniterd.lab.load.generator", str(described), "-o", str(log)]
    async with running("loadgen", command, log=folder / "load.log", env=dict(os.environ)):
        yield log


def proven(state: Mapping[str, Any]) -> bool:
    """Whether ``net`` has a share that its process shows."""
    (net,) = (m for m in state["models"] if m["name"] == "net")
    return (
        bool(net.get("share"))
        and net["share"]["state"] == "proven"
        and net["share"]["effective"] == net["applied"]["share"]
    )


async def test_the_daemon_adopts_gives_a_share_and_does_so_again_after_an_upgrade_of_triton(
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    models = repository(onnx_files(tmp_path))
    triton = EngineHost(models, tmp_path / "triton", free_ports(3))
    triton.folder.mkdir()
    triton.prepare()
    (triton.folder / "backends" / "tensorrt").mkdir()
    (triton.folder / "backends" / "tensorrt" / "model.py").write_text(ECHO_BACKEND)
    try:
        for backend in ("onnxruntime", "tensorrt"):
            triton.in_server(backend)
        await triton.start()
        mps = PlayedMps(tmp_path / "mps", triton.pid)
        mps.set(gone="yes")  # nothing is begun before there is traffic
        async with daemon(
            tmp_path, write_config(tmp_path, triton, mps.program, port), port
        ) as igniterd:
            await _adopted_with_a_share(tmp_path, triton, mps, igniterd)
            said = [line for line in igniterd.said() if line["event"] == "move refused"]
            assert [(line["model"], line["kind"]) for line in said] == [
                ("a-random", "adopt"),
                ("b-lacking", "adopt"),
            ]
            assert "between two answers of the owner's own" in said[0]["error"]
            assert "lacks tensorrt" in said[1]["error"]
            mps.set(gone="yes")
            triton.spec = replace(triton.spec, launcher="25.08")
            await triton.restart()  # nothing of igniterd's is in its files: the owner's own serves
            mps.set(triton=str(triton.pid))
            await _adopted_with_a_share(tmp_path, triton, mps, igniterd)
            await nothing_left(triton)
    finally:
        await triton.stop()


async def _adopted_with_a_share(
    folder: Path, triton: EngineHost, mps: PlayedMps, igniterd: Daemon
) -> None:
    """All of it under load: ``net`` is its owner's, is adopted, and has a share that its process
    shows."""
    async with load(folder, triton) as log_path:
        await until(lambda: log_path.exists() and answered(log_path, 30))
        assert await adopted(triton) == []
        mps.forget("gone")
        state = await igniterd.until(proven, 60.0)
        count = log_path.read_bytes().count(b"\n")
        await until(lambda: answered(log_path, count + 30))
    (net,) = (m for m in state["models"] if m["name"] == "net")
    assert "receipt" in net["share"]["by"], net["share"]
    assert await adopted(triton) == ["net"]
    log = RequestLog.read(log_path)
    assert log.ok.all(), set(log.error[~log.ok])


async def adopted(triton: EngineHost) -> list[str]:
    client = TritonClient("main", triton.url, timeout_s=5.0)
    try:
        return [name for name in NAMES if hosting_of(await client.config(name)) is not None]
    finally:
        await client.close()
