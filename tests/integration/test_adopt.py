"""``adopt`` and ``release`` on a real tritonserver: what serves, what is refused, and that no
request fails through it all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from typer.testing import CliRunner

from igniterd.adopt import adopt
from igniterd.adopt_compare import Terms
from igniterd.cli.app import app
from igniterd.clients.environments import base_env_of
from igniterd.clients.shares import prepare_share
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import with_allocation
from igniterd.engines.hosting import SHADOW, hosting_of
from igniterd.errors import Refused
from igniterd.giveback import release
from igniterd.lab.programs import programs
from igniterd.records import Allocation
from tests.ctrl_c import HEARS
from tests.integration.engine_host import EngineHost, Engines
from tests.waiting import until, until_answer

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

GENEROUS = Terms(max_slowdown=3.0, allowance_ms=20.0)  # two cores that others use too


async def served(engines: Engines, model: str, version: str = "") -> np.ndarray[Any, Any]:
    values = np.arange(4, dtype=np.float32).reshape(1, 4)
    given = InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(values)
    async with InferenceServerClient(engines.triton.url) as client:
        answer = await client.infer(model, [given], model_version=version, client_timeout=20.0)
    return np.asarray(answer.as_numpy("y"))


def copies(triton: EngineHost) -> list[str]:
    """Processes of copies that were loaded to be compared."""
    return [w for _, words in triton.processes() for w in words if w.startswith(SHADOW)]


async def nothing_left(triton: EngineHost) -> None:
    """A stub ends a moment after its model is gone."""
    await until(lambda: not copies(triton))


async def ready_again(engines: Engines) -> None:
    """While a copy is being unloaded Triton says that it is not ready, and for ever where a first
    load was refused."""
    await until_answer(engines.client.server, lambda server: server.ready)


@contextlib.asynccontextmanager
async def open_loop(
    engines: Engines, model: str, rate_per_s: float = 60.0
) -> AsyncIterator[list[str]]:
    """Requests sent when they are due, whatever became of earlier ones; yields what failed."""
    failures, sent = list[str](), set[asyncio.Task[None]]()
    given = InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.arange(4, dtype=np.float32).reshape(1, 4))
    async with InferenceServerClient(engines.triton.url) as client:

        async def one() -> None:
            try:
                answer = await client.infer(model, [given], client_timeout=20.0)
                if answer.as_numpy("y").tolist() != [[0.0, 2.0, 4.0, 6.0]]:
                    failures.append(f"a wrong answer: {answer.as_numpy('y')}")
            except Exception as error:  # whatever it is, a client would have seen it
                failures.append(str(error))

        async def due() -> None:
            clock = asyncio.get_running_loop().time
            at = clock()
            while True:
                at += 1.0 / rate_per_s
                await asyncio.sleep(max(0.0, at - clock()))
                task = asyncio.create_task(one())
                sent.add(task)
                task.add_done_callback(sent.discard)

        sending = asyncio.create_task(due())
        try:
            yield failures
        finally:
            sending.cancel()
            await asyncio.gather(*sent)


async def answered(engines: Engines, model: str) -> int:
    """Requests since the model was loaded."""
    found = (await engines.client.statistics(model)).model_stats
    return sum(each.inference_stats.success.count for each in found)


async def test_through_adoption_shares_and_release_no_request_fails(engines: Engines) -> None:
    client, before = engines.client, await engines.client.config("moving")
    terms = replace(GENEROUS, environment=engines.environment)
    async with open_loop(engines, "moving") as failures:
        found = await adopt(client, "moving", terms)
        assert found.outcome == "adopted", found
        for share in (0.3, 0.6, 0.3):
            config = await client.config("moving")
            prepare_share(engines.shares, share, base_env_of(config))
            await client.load(
                "moving", with_allocation(config, Allocation(share, 8, 0, 1), str(engines.shares))
            )
            now = await client.config("moving")
            assert (allocation_of(now).share, hosting_of(now)) == (share, hosting_of(config))
        assert (await release(client, "moving")).outcome == "released"
        # some more, to what the owner has again
        await until_answer(lambda: answered(engines, "moving"), lambda count: count >= 10)
    assert failures == []
    assert await client.config("moving") == before
    assert [o.same for o in found.outputs] == [True, True]
    assert [t.batch for t in found.timings] == [1, 8]
    assert found.process_bytes is not None
    assert 20 << 20 < found.process_bytes < 500 << 20
    await nothing_left(engines.triton)


async def test_every_version_that_is_served_goes_on_being_served(engines: Engines) -> None:
    assert (await adopt(engines.client, "many", GENEROUS)).outcome == "adopted"
    assert [(await served(engines, "many", version))[0, 1] for version in ("1", "2", "")] == [
        2.0,
        3.0,
        3.0,
    ]
    assert (await adopt(engines.client, "many", GENEROUS)).outcome == "already"
    assert (await release(engines.client, "many")).outcome == "released"
    assert (await release(engines.client, "many")).outcome == "own already"
    assert [(await served(engines, "many", version))[0, 1] for version in ("1", "2")] == [2.0, 3.0]
    await nothing_left(engines.triton)


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two that lack something: numpy, and ONNX Runtime."""
    folder, found = tmp_path_factory.mktemp("environments"), {}
    for lacking in ("numpy", "onnxruntime"):
        place = folder / lacking
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=60
        )
        found[lacking] = str(place)
    inside = f"lib/python{programs.PYTHON}/site-packages"
    for name in ("numpy", "numpy.libs"):
        (folder / "onnxruntime" / inside / name).symlink_to(programs.engines_root() / inside / name)
    return found


async def refused(engines: Engines, model: str, terms: Terms) -> str:
    """Why; and that what served serves on."""
    before = await engines.client.config(model)
    found = await adopt(engines.client, model, terms)
    assert found.outcome == "refused"
    assert await engines.client.config(model) == before
    await nothing_left(engines.triton)
    await ready_again(engines)
    return found.why


async def test_other_answers_are_refused(engines: Engines) -> None:
    terms = replace(GENEROUS, repositories=(engines.other("net", "three"),))
    why = await refused(engines, "net", terms)
    assert "its answers at batch 1 are not the owner's: output y differs by" in why
    assert (await served(engines, "net"))[0, 1] == 2.0


async def test_a_slower_copy_is_refused(engines: Engines) -> None:
    terms = Terms(repositories=(engines.other("net", "slow"),), max_slowdown=1.0, allowance_ms=2.0)
    why = await refused(engines, "net", terms)
    assert "a batch of 1 takes" in why
    assert "is allowed" in why


async def test_answers_that_differ_from_themselves_cannot_be_compared(engines: Engines) -> None:
    assert "between two answers of the owner's own" in await refused(engines, "random", GENEROUS)


async def test_what_is_missing_is_named(engines: Engines, environments: dict[str, str]) -> None:
    why = await refused(engines, "net", replace(GENEROUS, environment=environments["numpy"]))
    assert f"the environment {environments['numpy']} lacks numpy: install it there" in why
    why = await refused(engines, "net", replace(GENEROUS, environment=environments["onnxruntime"]))
    assert "lacks onnxruntime" in why
    assert "[engines] environment" in why
    why = await refused(engines, "net", replace(GENEROUS, environment="/nowhere"))
    assert "the environment /nowhere is not there as Triton sees the disk" in why
    why = await refused(engines, "net", replace(GENEROUS, repositories=("/nowhere",)))
    assert "/nowhere/net/1/model.onnx is not there as Triton sees the disk" in why


async def test_a_command_that_is_ended_leaves_nothing_and_what_a_killed_one_leaves_is_released(
    engines: Engines, tmp_path: Path
) -> None:
    np.savez(tmp_path / "items.npz", x=np.zeros((8, 4), np.float32))
    words = [
        "adopt",
        "net",
        "--url",
        engines.triton.url,
        "--dry-run",
        "--input",
        str(tmp_path / "items.npz"),
    ]

    def started_or_ended(process: asyncio.subprocess.Process) -> bool:
        return bool(copies(engines.triton) or process.returncode)

    for number, status in ((signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGKILL, -9)):
        process = await asyncio.create_subprocess_exec(
            *(*HEARS, sys.executable, "-m", "igniterd", *words),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30.0):
            await until(partial(started_or_ended, process))
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            _, said = await process.communicate()
        assert process.returncode == status, said.decode()
        if number != signal.SIGKILL:
            assert b"igniterd: stopped at net" in said
            await nothing_left(engines.triton)
    await until_answer(lambda: engines.client.read_models(["net"]), lambda _: engines.client.copies)
    done = await asyncio.to_thread(
        CliRunner().invoke, app, ["release", "--all", "--url", engines.triton.url]
    )
    assert done.exit_code == 0, done.output
    await nothing_left(engines.triton)
    await ready_again(engines)


async def executed_by_copies(engines: Engines) -> int:
    """Batches that copies loaded to be compared have executed; -1 before one serves."""
    counts = []
    for name in {word.rpartition("_")[0] for word in copies(engines.triton)}:
        with contextlib.suppress(Refused):
            seen = await engines.client.statistics(name)
            counts += [version.execution_count for version in seen.model_stats]
    return sum(counts) if counts else -1


@pytest.mark.parametrize("least", [-1, 0, 1], ids=["loading", "serving", "compared"])
async def test_a_cancelled_trial_leaves_nothing(engines: Engines, least: int) -> None:
    items = {"x": np.zeros((8, 4), np.float32)}
    trial = asyncio.create_task(
        adopt(engines.client, "net", replace(GENEROUS, items=items, dry_run=True))
    )
    await until(lambda: copies(engines.triton))
    await until_answer(lambda: executed_by_copies(engines), lambda n: n >= least, every_s=0.002)
    assert not trial.done()
    trial.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await trial
    await nothing_left(engines.triton)
    await ready_again(engines)
    assert hosting_of(await engines.client.config("net")) is None


async def test_a_response_cache_does_not_fool_the_comparison(engines: Engines) -> None:
    found = await adopt(engines.client, "cached", replace(GENEROUS, dry_run=True))
    assert found.outcome == "would adopt", found
    assert all(timing.owner_ms > 0.02 for timing in found.timings)


@pytest_asyncio.fixture(loop_scope="session")
async def file(engines: Engines, tmp_path: Path) -> Path:
    path = tmp_path / "igniterd.toml"
    path.write_text(
        f'[[triton]]\nurl = "{engines.triton.url}"\nmetrics_url = ""\nrepository = '
        f'["{engines.triton.repository}"]\n'
        f'[gpu]\nsource = "none"\n[engines]\nenvironment = "{engines.environment}"\n[[model]]\n'
        'name = "told"\nslo_p99_ms = 50\n'
    )
    return path


async def test_the_command_adopts_and_releases(engines: Engines, file: Path) -> None:
    async def run(*words: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, app, list(words))

    done = await run(
        "adopt",
        "told",
        "--config",
        str(file),
        "--max-slowdown",
        "4",
        "--allowance",
        "20",
        "--format",
        "json",
    )
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    assert (record["outcome"], record["engine"], record["how"]) == (
        "adopted",
        "onnxruntime",
        "igniterd's hosting file",
    )
    assert base_env_of(await engines.client.config("told")) == engines.environment
    done = await run("release", "--all", "--url", engines.triton.url)
    assert done.exit_code == 0, done.output
    assert "told: released" in done.stdout
    assert hosting_of(await engines.client.config("told")) is None
    done = await run("adopt", "nosuch", "--url", engines.triton.url)
    assert done.exit_code == 1
    assert "nosuch" in done.stderr
