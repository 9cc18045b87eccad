"""``igniterd profile`` as a user runs it, on a real Triton; only the silicon is emulated."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.client import TritonClient
from igniterd.lab.gpu.truth import Neighbour, Truth, memory_bytes
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost, triton_host
from igniterd.lab.programs.process import running
from igniterd.perf.profile import Profile
from igniterd.profiler.partial import Partial
from tests.waiting import until_ended

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

SLOW = 4.0
MODELS = ("alexnet", "resnet50")
TRUTH = Truth.v100()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonHost]:
    spec = HostSpec(
        tuple(EmulatedModel(name, max_batch_size=8) for name in MODELS), slow_factor=SLOW, seed=7
    )
    async with triton_host(spec, tmp_path_factory.mktemp("profiled") / "triton") as host:
        yield host


async def configs(host: TritonHost) -> dict[str, ModelConfig]:
    client = TritonClient("main", host.url, timeout_s=5.0)
    try:
        return {name: await client.config(name) for name in MODELS}
    finally:
        await client.close()


def command(host: TritonHost, folder: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "igniterd", "profile", "-o", str(folder / "profile.json")]
    return [
        *base,
        "--triton",
        host.url,
        "--gpu",
        f"emulated:{host.board_path}",
        "--state",
        str(folder / "state"),
        *more,
    ]


async def test_a_profile_of_two_models_says_what_the_board_does(
    triton: TritonHost, tmp_path: Path
) -> None:
    before = await configs(triton)
    asked = command(
        triton, tmp_path, *MODELS, "--points", "4", "--min-share", "0.2", "--max-batch", "4"
    )
    async with running("profile", asked, log=tmp_path / "log", env=dict(os.environ)) as program:
        await until_ended(program, 240.0)  # 50 s, on a host with nothing else to do less
        assert (tmp_path / "profile.json").exists(), program.log_end()
    assert await configs(triton) == before
    assert not (tmp_path / "profile.json.partial").exists()
    profile = Profile.load(tmp_path / "profile.json").time_scaled(1 / SLOW)
    assert (profile.board.sm_count, profile.board.share_unit, profile.board.power_limit_w) == (
        80,
        0.025,
        300.0,
    )
    assert profile.board.idle_power_w == pytest.approx(TRUTH.idle_power_w, abs=2.0)
    for name in MODELS:
        model = profile.models[name]
        assert len(model.solo) == 4
        assert model.memory_bytes == memory_bytes(name, 8), (
            "a second copy is loaded with its owner's limit, too"
        )
        off = [p.latency_ms / TRUTH.solo_ms(name, p.batch, p.share) - 1 for p in model.solo]
        # The host's other work makes the emulated GPU late, by up to a ms of short batches; never
        # early.
        assert sorted(off)[1] == pytest.approx(0.0, abs=0.15), off
        assert min(off) > -0.05, off
        assert all(p.power_w and p.clock_mhz and p.power_w > TRUTH.idle_power_w for p in model.solo)
    assert len(profile.co_runs) == 2
    for run in profile.co_runs:
        for me, other in (run.tenants, run.tenants[::-1]):
            beside = TRUTH.latency_ms(
                me.model, me.batch, me.share, [Neighbour(other.model, other.batch, other.share)]
            )
            assert 0.9 * beside < me.latency_ms < 1.3 * beside


async def test_interrupted_by_ctrl_c_it_leaves_the_server_as_it_was(
    triton: TritonHost, tmp_path: Path
) -> None:
    before = await configs(triton)
    partial = tmp_path / "profile.json.partial"
    async with running(
        "profile", command(triton, tmp_path, *MODELS), log=tmp_path / "log", env=dict(os.environ)
    ) as program:

        async def one_point() -> bool:
            return partial.exists() and bool(Partial.read(partial).models["alexnet"].solo)

        await program.until(one_point, timeout_s=60.0)
        assert await configs(triton) != before
        os.kill(program.pid, signal.SIGINT)
        await until_ended(program, 60.0)
    assert await configs(triton) == before
    assert Partial.read(partial).originals == {}
    assert not (tmp_path / "profile.json").exists()


async def test_killed_it_leaves_word_of_how_the_server_was(
    triton: TritonHost, tmp_path: Path
) -> None:
    before = await configs(triton)
    partial = tmp_path / "profile.json.partial"
    async with running(
        "profile", command(triton, tmp_path, "resnet50"), log=tmp_path / "log", env=dict(os.environ)
    ) as program:

        async def changed() -> bool:
            return await configs(triton) != before

        await program.until(changed, timeout_s=60.0)
        os.killpg(program.pid, signal.SIGKILL)
        await until_ended(program, 30.0)
    assert Partial.read(partial).originals == {"resnet50": before["resnet50"]}
    back = [sys.executable, "-m", "igniterd", "profile", "--restore", str(partial)]
    async with running(
        "restore", back, log=tmp_path / "restore.log", env=dict(os.environ)
    ) as program:
        await until_ended(program, 60.0)
        assert "resnet50: as it was" in program.log_end()
    assert await configs(triton) == before
