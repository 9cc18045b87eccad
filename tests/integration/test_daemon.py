"""The daemon as a user starts it, on a real Triton, MPS control and broker; only the silicon is
emulated.

No latency is judged here: this machine has other work too. `bench/soak.py` judges P99s in virtual
time, and `igniterd demo` measures them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import pytest

from igniterd.clients.triton.apply import Applier
from igniterd.clients.triton.client import TritonClient
from igniterd.fleet.places import FleetTriton
from igniterd.fleet.remote import RemoteTriton
from igniterd.lab.host import EmulatedHost, EmulatedModel, HostSpec, emulated_host
from igniterd.lab.load.load import LoadSpec, Phase, RequestLog
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import Running, free_ports, running
from igniterd.messages.profile import ProfilePart, unpacked
from igniterd.messages.state import HostState
from igniterd.perf import Profile, builtin_profile
from tests.waiting import PATIENCE_S, until, until_answer, until_ended

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

SLOW = 4
SLOS = {"alexnet": 15 * SLOW, "resnet50": 40 * SLOW, "vgg19": 60 * SLOW}
PRIORITIES = {"alexnet": 1, "resnet50": 1, "vgg19": 2}


def write_config(folder: Path, host: EmulatedHost, admin_port: int) -> Path:
    builtin_profile("v100").time_scaled(SLOW).save(folder / "v100.json")
    assert host.mps and host.broker
    models = "".join(
        f'[[model]]\nname = "{name}"\nslo_p99_ms = {slo}\npriority = {PRIORITIES[name]}\nprofile '
        '= "v100.json"\n'
        for name, slo in SLOS.items()
    )
    path = folder / "igniterd.toml"
    path.write_text(
        f'[host]\nname = "gpu-a"\ncluster = "lab"\n'
        f'[[triton]]\nurl = "{host.triton.url}"\nmetrics_url = "{host.triton.metrics_url}"\n'
        f'[gpu]\nsource = "emulated:{host.triton.board_path}"\n'
        "[mps]\ncontrol = "
        f'"{programs.required(programs.mps_control(), "nvidia-cuda-mps-control").path}"\n'
        f'pipe_directory = "{host.mps.environment["CUDA_MPS_PIPE_DIRECTORY"]}"\n'
        f'[metrics]\nlisten = "127.0.0.1:{admin_port}"\n[mqtt]\nurl = "{host.broker.url}"\n'
        f'[state]\ndirectory = "{folder}/state"\n{models}'
    )
    return path


class Daemon:
    """A running ``igniterd run``."""

    def __init__(self, program: Running, address: str) -> None:
        self.program, self.address = program, address
        self.http = aiohttp.ClientSession(
            f"http://{address}", timeout=aiohttp.ClientTimeout(total=5)
        )

    async def state(self) -> dict[str, Any]:
        try:
            async with self.http.get("/state") as answer:
                return await answer.json()
        except (aiohttp.ClientError, TimeoutError):  # it is slow to answer, or not there yet
            return {}

    async def text(self, path: str) -> tuple[int, str]:
        async with self.http.get(path) as answer:
            return answer.status, await answer.text()

    async def until(
        self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """Wait for a state; the last one seen says why when it does not come."""
        try:
            return await until_answer(
                self.state, lambda state: state and condition(state), timeout_s, every_s=0.3
            )
        except AssertionError as error:
            raise AssertionError(f"{str(error)[:2000]} | {self.program.log_end()}") from None

    def said(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for line in self.program.log.read_text().splitlines()
            if line.startswith("{")
        ]


@asynccontextmanager
async def daemon(
    folder: Path, config: Path, port: int, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Daemon]:
    command = [sys.executable, "-m", "igniterd", "run", "--config", str(config)]
    async with running(
        "igniterd", command, log=folder / "igniterd.log", env={**os.environ, **(environment or {})}
    ) as program:
        made = Daemon(program, f"127.0.0.1:{port}")
        try:
            yield made
        finally:
            await made.http.close()


@asynccontextmanager
async def load(folder: Path, url: str, rates: Mapping[str, float]) -> AsyncIterator[Path]:
    """Open-loop Poisson load until the end of the context; yields the log of every request."""
    spec, log = folder / "load.json", folder / "requests.csv"
    spec.write_text(
        LoadSpec(
            url, (Phase("steady", 600.0, {m: r / SLOW for m, r in rates.items()}),), seed=5
        ).to_json()
    )
    command = [sys.executable, "-m", "igniterd.lab.load.generator", str(spec), "-o", str(log)]
    async with running("loadgen", command, log=folder / "load.log", env=dict(os.environ)):
        yield log


def holds(state: dict[str, Any]) -> bool:
    shares = [m["applied"]["share"] for m in state["models"] if m["seen"]]
    return (
        state["decision"]["outcome"] == "hold"
        and None not in shares
        and len(shares) == len(SLOS)
        and sum(shares) <= 1 + 1e-9
    )


async def messages(
    url: str, topic: str, count: int, timeout_s: float = 20.0
) -> list[tuple[str, dict[str, Any]]]:
    """The first messages on a topic, retained ones included."""
    host, port = url.removeprefix("mqtt://").split(":")
    seen: list[tuple[str, dict[str, Any]]] = []
    async with (
        asyncio.timeout(timeout_s),
        aiomqtt.Client(host, int(port), protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        await client.subscribe(topic, qos=1)
        async for message in client.messages:
            seen.append((str(message.topic), json.loads(message.payload)))
            if len(seen) >= count:
                break
    return seen


def answered(log_path: Path, count: int) -> bool:
    return log_path.read_bytes().count(b"\n") > count


async def steers_on_what_a_rebalance_changed(igniterd: Daemon, url: str, shares: Path) -> None:
    """And respects who loads that again with another share, the mark of its load left in it."""
    client = TritonClient("main", url, timeout_s=5.0, shares_dir=str(shares))
    remote = RemoteTriton(FleetTriton(host="gpu-a", url=url, shares=shares), client)
    try:
        now = remote.allocation(await client.config("alexnet"))
        assert now.share
        await remote.apply("alexnet", replace(now, share=0.8 * now.share), [now])

        def of_alexnet(state: dict[str, Any]) -> str:
            return next(str(m["state"]) for m in state["models"] if m["name"] == "alexnet")

        state = await igniterd.until(
            lambda s: any(move["kind"] == "rebalance" for move in s["last_moves"])
        )
        (move,) = (move for move in state["last_moves"] if move["kind"] == "rebalance")
        assert (move["model"], move["before"]["share"]) == ("alexnet", now.share)
        assert of_alexnet(state) == "steered"
        assert not any("somebody else" in line.get("reason", "") for line in igniterd.said())
        there = await client.config("alexnet")
        theirs = replace(remote.allocation(there), share=0.5 * now.share)
        changed = await Applier(client, shares).change(there, theirs)
        await client.load("alexnet", changed, exact=True)
        await igniterd.until(lambda s: of_alexnet(s) == "by_hand")
    finally:
        await client.close()


async def test_takes_over_a_host_and_asserts_it_again(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    spec = HostSpec(
        tuple(EmulatedModel(name, max_batch_size=32) for name in SLOS), slow_factor=SLOW, seed=2
    )
    async with (
        emulated_host(spec, tmp_path) as host,
        daemon(tmp_path, write_config(tmp_path, host, port), port) as igniterd,
    ):
        async with load(
            tmp_path, host.triton.url, {"alexnet": 400, "resnet50": 300, "vgg19": 150}
        ) as log_path:
            state = await igniterd.until(holds, 90.0)
            assert sum(m["applied"]["share"] for m in state["models"]) <= 1 + 1e-9
            assert all(m["feasible"] for m in state["models"])
            before = len(RequestLog.read(log_path))
            await until(partial(answered, log_path, before + 1000), 60.0)
        log = RequestLog.read(log_path)
        assert len(log) > 1000
        assert log.ok.all(), set(log.error[~log.ok])

        status, page = await igniterd.text("/metrics")
        assert status == 200
        for name in (
            "slo_latency_seconds",
            "mps_active_thread_ratio",
            "actuations_total",
            "gpu_headroom_ratio",
            "source_up",
        ):
            assert f"igniterd_{name}" in page
        for probe in ("/livez", "/readyz", "/healthz"):
            assert (await igniterd.text(probe))[0] == 200
        assert host.broker
        topics = dict(await messages(host.broker.url, "igniterd/v1/lab/gpu-a/#", 2))
        assert topics["igniterd/v1/lab/gpu-a/status"]["data"]["status"] in ("online", "degraded")
        state_said = json.dumps(topics["igniterd/v1/lab/gpu-a/state"]["data"])
        told = HostState.model_validate_json(state_said)
        assert [(m.name, m.state, m.stays) for m in told.models] == [
            (name, "steered", "") for name in SLOS
        ]
        assert told.tritons[0].gpus == (told.boards[0].uuid,)
        (digest,) = {digest for model in told.models for digest in model.profiles}
        ((topic, part),) = await messages(host.broker.url, f"igniterd/v1/lab/profile/{digest}/+", 1)
        assert topic.endswith("/1")
        profile = unpacked(digest, [ProfilePart.model_validate(part["data"])])
        assert set(Profile.model_validate_json(profile).models) >= set(SLOS)

        await steers_on_what_a_rebalance_changed(
            igniterd, host.triton.url, tmp_path / "state/shares"
        )

        await host.triton.restart()  # its files know nothing of the shares
        await igniterd.until(
            lambda s: (
                s["tick"] > state["tick"]
                and any(m["seen"] and m["applied"]["share"] is None for m in s["models"])
            ),
            60.0,
        )
        await igniterd.until(holds, 60.0)

        os.kill(igniterd.program.pid, signal.SIGTERM)
        await until_ended(igniterd.program)
        assert (
            dict(await messages(host.broker.url, "igniterd/v1/lab/gpu-a/status", 1)).popitem()[1][
                "data"
            ]["status"]
            == "offline"
        )
        gone = [
            line
            for line in igniterd.said()
            if line["event"] == "source silent" and line["source"] == "triton:main"
        ]
        assert len(gone) == 1


async def test_says_what_does_not_fit_and_keeps_the_rest(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    spec = HostSpec(
        tuple(EmulatedModel(name, max_batch_size=32) for name in SLOS), slow_factor=SLOW, seed=3
    )
    async with (
        emulated_host(spec, tmp_path) as host,
        load(
            tmp_path, host.triton.url, {"alexnet": 550, "resnet50": 450, "vgg19": 225}
        ) as log_path,
        daemon(tmp_path, write_config(tmp_path, host, port), port) as igniterd,
    ):

        def let_go(state: dict[str, Any]) -> bool:
            return (
                state["decision"]["outcome"] == "infeasible"
                and not state["decision"]["steps"]
                and {m["name"] for m in state["models"] if m.get("feasible") is False} == {"vgg19"}
                and all(m.get("applied", {}).get("share") is not None for m in state["models"])
            )

        state = await igniterd.until(let_go, 90.0)
        assert all(m["feasible"] for m in state["models"] if m["name"] != "vgg19")
        assert sum(m["applied"]["share"] for m in state["models"]) <= 1 + 1e-9
        assert host.broker
        (hint,) = [d for _, d in await messages(host.broker.url, "igniterd/v1/lab/gpu-a/hint", 1)]
        assert (hint["data"]["kind"], hint["data"]["model"]) == ("shed", "vgg19")
        before = len(RequestLog.read(log_path))
        await until(partial(answered, log_path, before + 1000), 60.0)
        assert RequestLog.read(log_path).ok.all()


async def test_waits_for_a_triton_that_is_not_there_and_says_so_once(tmp_path: Path) -> None:
    port, nowhere = free_ports(2)
    builtin_profile("v100").save(tmp_path / "v100.json")
    config = tmp_path / "igniterd.toml"
    config.write_text(
        f'[[triton]]\nurl = "127.0.0.1:{nowhere}"\n[gpu]\nsource = "none"\n[mps]\nenabled = false\n'
        f'[metrics]\nlisten = "127.0.0.1:{port}"\n[state]\ndirectory = "{tmp_path}/state"\n'
        '[[model]]\nname = "alexnet"\nslo_p99_ms = 15\nprofile = "v100.json"\n'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60.0)
        async with daemon(
            tmp_path,
            config,
            port,
            {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"},
        ) as igniterd:
            first = await asyncio.to_thread(systemd.recv, 4096)
            assert first.startswith(b"READY=1")
            assert b"does not answer" in first
            state = await igniterd.until(lambda s: s["tick"] >= 4)
            assert state["decision"]["outcome"] == "wait"
            assert [
                (await igniterd.text(probe))[0] for probe in ("/livez", "/healthz", "/readyz")
            ] == [200, 200, 503]
            assert b"WATCHDOG=1" in await asyncio.to_thread(systemd.recv, 4096)
    silent = [line for line in igniterd.said() if line["event"] == "source silent"]
    assert [line["source"] for line in silent] == ["triton:main"]


async def test_a_hangup_reads_the_configuration_again_and_a_wrong_one_is_refused(
    tmp_path: Path,
) -> None:
    port, nowhere = free_ports(2)
    config = tmp_path / "igniterd.toml"
    text = (
        f'[[triton]]\nurl = "127.0.0.1:{nowhere}"\n[gpu]\nsource = "none"\n[mps]\nenabled = false\n'
        f'[metrics]\nlisten = "127.0.0.1:{port}"\n[state]\ndirectory = "{tmp_path}/state"\n'
        '[[model]]\nname = "alexnet"\n'
    )
    config.write_text(text + "slo_p99_ms = 15\n")
    async with daemon(tmp_path, config, port) as igniterd:
        await igniterd.until(lambda s: s["tick"] >= 1, 60.0)
        config.write_text(text + "slo_p99_ms = -1\n")
        os.kill(igniterd.program.pid, signal.SIGHUP)
        await until(lambda: any("not taken up" in line["event"] for line in igniterd.said()))
        state = await igniterd.until(lambda s: s["tick"] >= 1)
        assert state["models"][0]["slo_p99_ms"] == 15
        config.write_text(text + "slo_p99_ms = 30\n")
        os.kill(igniterd.program.pid, signal.SIGHUP)
        await igniterd.until(lambda s: s["models"][0]["slo_p99_ms"] == 30, 60.0)
        assert igniterd.program.alive
        for slo_ms in (40, 50, 60):  # as fast as they come: the last one counts, and none ends it
            config.write_text(text + f"slo_p99_ms = {slo_ms}\n")
            os.kill(igniterd.program.pid, signal.SIGHUP)
        await igniterd.until(lambda s: s["models"][0]["slo_p99_ms"] == 60, 60.0)
        assert igniterd.program.alive


async def test_a_thousand_idle_connections_do_not_stop_the_steering(tmp_path: Path) -> None:
    port, nowhere = free_ports(2)
    config = tmp_path / "igniterd.toml"
    config.write_text(
        f'[[triton]]\nurl = "127.0.0.1:{nowhere}"\n[gpu]\nsource = "none"\n[metrics]\nlisten = '
        f'"127.0.0.1:{port}"\n'
        f'[mps]\ncontrol = "{tmp_path}/control"\ninterval_s = 1\n'
        f'[state]\ndirectory = "{tmp_path}/state"\n[[model]]\nname = "alexnet"\nslo_p99_ms = 15\n'
    )
    # a process each second: it needs files
    (tmp_path / "control").write_text("#!/bin/sh\ncat >/dev/null\necho 100.0\n")
    (tmp_path / "control").chmod(0o755)
    limited = ["prlimit", "--nofile=256"]
    command = [*limited, sys.executable, "-m", "igniterd", "run", "--config", str(config)]
    held: list[socket.socket] = []
    async with running(
        "igniterd", command, log=tmp_path / "igniterd.log", env=dict(os.environ)
    ) as program:
        made = Daemon(program, f"127.0.0.1:{port}")
        try:
            before = await made.until(lambda s: s["tick"] >= 1, 60.0)
            for _ in range(1000):
                idle = socket.socket()
                idle.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    idle.connect(("127.0.0.1", port))
                held.append(idle)
            await made.until(lambda s: s["tick"] >= before["tick"] + 12, 300.0)
        finally:
            for idle in held:
                idle.close()
            await made.http.close()
        assert program.alive
    silent = [line for line in made.said() if line["event"] == "source silent"]
    # a busy machine may start its process late: that is no lack of files
    assert [
        line
        for line in silent
        if line["source"] == "mps" and not line["reason"].startswith("no answer in")
    ] == []
    assert "Too many open files" not in str(made.said())
