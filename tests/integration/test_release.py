"""``igniterd release`` on a real tritonserver: what serves afterwards is what its owner's file
says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from igniterd.cli.app import app
from igniterd.clients.owned import touched
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config import allocation_of
from igniterd.giveback import release
from igniterd.lab.host import EmulatedModel, HostSpec, emulated_host
from igniterd.lab.load.load import RequestLog
from igniterd.lab.programs.process import free_ports
from igniterd.perf import builtin_profile
from igniterd.records import Allocation
from igniterd.state.released import FILE, Released
from tests.integration.conftest import Host
from tests.integration.test_daemon import SLOS, SLOW, daemon, holds, load, write_config

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


@asynccontextmanager
async def traffic(host: Host, model: str) -> AsyncIterator[list[str]]:
    """One request after another; yields what failed."""
    failures, over = list[str](), asyncio.Event()

    async def send() -> None:
        while not over.is_set():
            try:
                await host.infer(model)
            except Exception as error:  # whatever it is, a client would have seen it
                failures.append(str(error))

    sending = asyncio.create_task(send())
    try:
        yield failures
    finally:
        over.set()
        await sending


async def reloads(host: Host, model: str) -> int:
    """Loads since the server started, as its log has them."""
    text = await asyncio.to_thread(host.triton.log.read_text, errors="replace")
    return text.count(f"loading: {model}:")


def standing(state: dict[str, Any], model: str) -> str:
    return next(str(each["state"]) for each in state["models"] if each["name"] == model)


async def invoke(*words: str) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, app, list(words))


@pytest.mark.parametrize("file_is_seen", [True, False])
async def test_a_model_with_share_and_batching_is_given_back_by_one_reload(
    host: Host, file_is_seen: bool
) -> None:
    owner = await host.client.config("alexnet")
    wanted = allocation_of(owner)
    await host.allocate("alexnet", Allocation(0.4, 7, 0, wanted.instances))
    await host.allocate("alexnet", Allocation(0.55, 5, 0, wanted.instances))
    assert touched(await host.client.config("alexnet"))
    before = await reloads(host, "alexnet")
    elsewhere = () if file_is_seen else ("s3://bucket/models",)  # nobody can look into it from here
    async with traffic(host, "alexnet") as failures:
        found = await release(host.client, "alexnet", str(host.shares), elsewhere)
    assert (found.outcome, failures) == ("released", [])
    assert await host.client.config("alexnet") == owner
    assert await reloads(host, "alexnet") == before + 1
    again = await release(host.client, "alexnet", str(host.shares), elsewhere)
    assert again.outcome == "own already"
    assert await reloads(host, "alexnet") == before + 1


async def test_all_gives_back_what_no_configuration_names(host: Host, tmp_path: Path) -> None:
    owners = {name: await host.client.config(name) for name in ("steady", "shared")}
    for name in owners:
        await host.allocate(name, Allocation(0.3, 1, 0, 1))
    file = tmp_path / "igniterd.toml"
    file.write_text(
        f'[state]\ndirectory = "{tmp_path}"\n[[triton]]\nurl = "{host.triton.url}"\nmetrics_url '
        '= ""\n'
        '[gpu]\nsource = "none"\n[[model]]\nname = "steady"\nslo_p99_ms = 50\n'
    )
    done = await invoke("release", "--all", "--config", str(file))
    assert done.exit_code == 0, done.output
    for name, owner in owners.items():
        assert f"{name}: released" in done.stdout
        assert await host.client.config(name) == owner
        assert name in Released(tmp_path / FILE).now()
    done = await invoke("take", "--all", "--config", str(file))
    assert done.exit_code == 0
    assert Released(tmp_path / FILE).now() == frozenset()


async def test_one_that_cannot_be_given_back_is_said_and_the_others_go_on(host: Host) -> None:
    owner = await host.client.config("counted")
    await host.allocate("counted", Allocation(0.3, 1, 0, 1))
    done = await invoke("release", "nosuch", "counted", "--url", host.triton.url)
    assert done.exit_code == 1
    assert "nosuch" in done.stderr
    assert "counted: released" in done.stdout
    assert "IGNITERD_HANDS_OFF" in done.stderr
    assert await host.client.config("counted") == owner


async def test_a_running_daemon_leaves_a_released_model_until_it_is_taken(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    models = tuple(EmulatedModel(name, max_batch_size=32) for name in SLOS)
    async with emulated_host(HostSpec(models, slow_factor=SLOW, seed=2), tmp_path) as host:
        client = TritonClient("main", host.triton.url, timeout_s=5.0)
        owner = await client.config("vgg19")
        file = write_config(tmp_path, host, port)
        async with (
            load(tmp_path, host.triton.url, {"alexnet": 100, "resnet50": 80, "vgg19": 40}) as log,
            daemon(tmp_path, file, port) as igniterd,
        ):
            await igniterd.until(holds, 90.0)
            done = await invoke("release", "vgg19", "--config", str(file))
            assert done.exit_code == 0, done.output
            seen = await igniterd.until(lambda s: standing(s, "vgg19") == "hands_off")
            await igniterd.until(lambda s: s["tick"] >= seen["tick"] + 12, 60.0)
            assert await client.config("vgg19") == owner
            done = await invoke("take", "vgg19", "--config", str(file))
            assert done.exit_code == 0, done.output
            await igniterd.until(holds, 90.0)
            assert touched(await client.config("vgg19"), str(tmp_path / "state" / "shares"))
        sent = RequestLog.read(log)
        assert sent.ok.all(), set(sent.error[~sent.ok])
        await client.close()


@pytest.mark.parametrize(("batch", "status"), [(33, 1), (32, 0)])
async def test_check_live_says_a_client_batch_that_triton_refuses(
    host: Host, tmp_path: Path, batch: int, status: int
) -> None:
    file = tmp_path / "igniterd.toml"
    builtin_profile("v100").save(tmp_path / "v100.json")
    file.write_text(
        f'[state]\ndirectory = "{tmp_path}"\n[loop]\nmode = "advise"\n[mps]\nenabled = false\n'
        f'[[triton]]\nurl = "{host.triton.url}"\n'
        f'metrics_url = "{host.triton.metrics_url}"\n[gpu]\nsource = '
        f'"emulated:{host.triton.board_path}"\n'
        '[[model]]\nname = "resnet50"\nslo_p99_ms = 90\nprofile = "v100.json"\nclient_batch = '
        f"{batch}\n"
    )
    done = await invoke("check", "--live", "--config", str(file))
    assert (done.exit_code == 1) == (status == 1), done.output
    assert ("client_batch = 33 is above" in done.output) == (status == 1), done.output
