"""What igniterd relies on Triton for, tried on a real tritonserver."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from igniterd.clients.environments import VARIABLE
from igniterd.clients.processes import ProcessTable
from igniterd.clients.shares import prepare_share
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import with_allocation
from igniterd.clients.triton.info import Control
from igniterd.errors import Refused, Unanswered
from igniterd.lab.host import EmulatedModel, HostSpec, triton_host
from igniterd.lab.load.load import Arrivals, LoadSpec, Phase, load
from igniterd.records import Allocation
from tests.integration.conftest import Host
from tests.integration.readings import counted, reading
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


def environment(pid: int) -> dict[str, str]:
    parts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(p.decode().split("=", 1) for p in parts if b"=" in p)


async def stub_of(host: Host, model: str) -> int:
    """Process id of the copy that answers for ``model``, found by what it alone does: one more
    execution."""
    before = {c.pid: c.executions for c in host.board.copies()}
    await host.infer(model)
    (pid,) = (c.pid for c in host.board.copies() if c.executions > before.get(c.pid, 0))
    return pid


async def test_the_server_takes_configurations(host: Host) -> None:
    server = await host.client.server()
    assert server.ready
    assert server.control is Control.EXPLICIT


async def test_its_environment_is_found_by_its_port(host: Host) -> None:
    facts = (await ProcessTable().servers())[host.triton.grpc_port]
    given = environment(host.triton.pid).get("CUDA_VISIBLE_DEVICES")
    assert (facts.visible, facts.readable, facts.confined) == (given, True, False)


async def test_hot_reload_under_load_loses_no_request(host: Host, tmp_path: Path) -> None:
    spec = LoadSpec(host.triton.url, (Phase("on", None, {"steady": 60.0}, Arrivals.POISSON),))
    async with load(spec, tmp_path / "log.csv") as running:
        for target in (Allocation(0.2, 4), Allocation(0.4, 8, 2000), Allocation(0.1, 2)):
            await running.until_sent(
                (running.progress[-1]["scheduled"] if running.progress else 0) + 40, timeout_s=30
            )
            await host.allocate("steady", target)
            assert allocation_of(await host.client.config("steady")) == target
        await running.until_sent(running.progress[-1]["scheduled"] + 40, timeout_s=30)
        log = await running.stop()
    assert len(log) > 200
    assert log.failed == 0, set(log.error)


async def test_a_share_reaches_the_new_process_and_the_old_one_leaves(host: Host) -> None:
    before = await stub_of(host, "shared")
    assert VARIABLE not in environment(before)
    await host.give_share("shared", 0.125)
    after = await stub_of(host, "shared")
    assert after != before
    assert environment(after)[VARIABLE] == "12.5"
    assert {c.pid: c.units for c in host.board.copies()}[after] == 5
    await until(lambda: before not in {c.pid for c in host.board.copies()})
    assert (await reading(host.client, "shared")).allocation.share == 0.125


async def test_an_environment_that_the_model_came_with_is_sourced_first(
    host: Host, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (own / "bin").mkdir(parents=True)
    (own / "lib").mkdir()
    (own / "bin" / "activate").write_text(f"export MODELS_OWN=yes\nexport {VARIABLE}=77\n")
    spec = HostSpec(
        (EmulatedModel("alexnet", parameters={"EXECUTION_ENV_PATH": str(own)}),), slow_factor=1.0
    )
    async with triton_host(spec) as triton:
        there = Host(triton, TritonClient("own", triton.url, timeout_s=5.0), tmp_path / "shares")
        first = environment(await stub_of(there, "alexnet"))
        assert (first["MODELS_OWN"], first[VARIABLE]) == ("yes", "77")
        await there.give_share("alexnet", 0.3)
        second = environment(await stub_of(there, "alexnet"))
        assert (second["MODELS_OWN"], second[VARIABLE]) == ("yes", "30")
        # A restarted server comes back with what its files say: the override was never on disk.
        await triton.restart()
        third = environment(await stub_of(there, "alexnet"))
        assert third[VARIABLE] == "77"
        assert allocation_of(await there.client.config("alexnet")).share is None
        await there.close()


@pytest.mark.parametrize(
    "mistake",
    ["missing environment", "unknown field", "wrong type", "batch not measured", "backend"],
)
async def test_a_refused_configuration_leaves_the_old_copy_serving(
    host: Host, mistake: str
) -> None:
    config = await host.client.config("refusing")
    serving = await stub_of(host, "refusing")
    wrong = {
        "missing environment": config
        | {
            "parameters": config["parameters"]
            | {"EXECUTION_ENV_PATH": {"string_value": "/nowhere/shares/5"}}
        },
        "unknown field": config | {"no_such_field": 1},
        "wrong type": config | {"max_batch_size": "many"},
        "batch not measured": config | {"max_batch_size": 64},
        "backend": config | {"backend": "no_such_backend"},
    }[mistake]
    with pytest.raises(Refused):
        await host.client.load("refusing", wrong)
    assert (await host.client.config("refusing"))["max_batch_size"] == config["max_batch_size"]
    assert await stub_of(host, "refusing") == serving


async def test_an_environment_that_bash_cannot_source_blocks_that_model_s_loads_only(
    tmp_path: Path,
) -> None:
    """Triton runs ``bash -c "source DIR/bin/activate && exec ... stub"`` without quotes and waits
    for the stub for ever.

    So what igniterd writes must end with status 0 under a plain path: there is no way back but a
    restart of the server.
    """
    failing, spaced = tmp_path / "failing" / "shares", tmp_path / "a space" / "shares"
    (prepare_share(failing, 0.5) / "bin" / "activate").write_text("false\n")
    prepare_share(spaced, 0.5)
    models = tuple(EmulatedModel(name, like="alexnet") for name in ("one", "two", "other"))
    async with triton_host(HostSpec(models)) as triton:
        there = Host(triton, TritonClient("own", triton.url, timeout_s=5.0), tmp_path / "shares")
        hasty = Host(
            triton,
            TritonClient("own", triton.url, timeout_s=5.0, reload_timeout_s=1.5),
            tmp_path / "shares",
        )
        before = {m: await there.client.config(m) for m in ("one", "two")}
        wrong = [
            hasty.client.load(m, with_allocation(before[m], Allocation(0.5, 8), str(d)))
            for m, d in (("one", failing), ("two", spaced))
        ]
        ends = await asyncio.gather(*wrong, return_exceptions=True)
        assert [type(e) for e in ends] == [Unanswered, Unanswered]
        for model, config in before.items():
            await there.infer(model)
            assert await there.client.config(model) == config
        with pytest.raises(Unanswered):
            # nothing wrong with this one, but it is never looked at
            await hasty.allocate("one", Allocation(0.2, 8))
        await there.give_share("other", 0.2)
        assert (await reading(there.client, "other")).allocation.share == 0.2
        await hasty.close()
        await there.close()


async def test_a_process_that_dies_while_it_loads_is_refused(host: Host) -> None:
    serving = await stub_of(host, "dying")
    (host.triton.repository / "dying" / "1" / "model.py").write_text(
        "import os\nclass TritonPythonModel:\n    def initialize(self, args):\n        "
        "os._exit(3)\n"
    )
    with pytest.raises(Refused, match="not healthy"):
        await host.give_share("dying", 0.2)
    assert await stub_of(host, "dying") == serving


async def test_statistics_restart_at_zero_at_a_reload(host: Host) -> None:
    for _ in range(5):
        await host.infer("counted")
    before = await counted(host.client, "counted", 5)
    await host.allocate("counted", replace(before.allocation, max_batch_size=4))
    after = await reading(host.client, "counted")
    assert after.success_count == 0
    assert after.batches == ()
    await host.infer("counted")
    assert (await counted(host.client, "counted", 1)).success_count == 1


async def test_another_count_of_instances_alone_is_not_a_reload(host: Host) -> None:
    await host.infer("counted")
    before = await counted(host.client, "counted", 1)
    serving = await stub_of(host, "counted")
    await host.allocate("counted", replace(before.allocation, instances=2))
    after = await counted(host.client, "counted", before.success_count + 1)  # counted on
    assert after.allocation.instances == 2
    assert serving in {c.pid for c in host.board.copies()}
    await host.allocate("counted", before.allocation)


async def test_a_board_without_room_refuses_the_second_copy(host: Host, tmp_path: Path) -> None:
    # one copy needs about 1.3 GB
    spec = HostSpec((EmulatedModel("vgg19", max_batch_size=8),), memory_bytes=2 * 2**30)
    async with triton_host(spec) as triton:
        there = Host(triton, TritonClient("small", triton.url, timeout_s=5.0), tmp_path / "shares")
        with pytest.raises(Refused, match="out of memory"):
            await there.give_share("vgg19", 0.5)
        await there.infer("vgg19")
        await there.close()


async def test_percentiles_are_at_the_metrics_endpoint(host: Host) -> None:
    for _ in range(20):
        await host.infer("alexnet")
    quantiles = (await reading(host.client, "alexnet")).latency_quantiles_s
    assert quantiles is not None
    assert 0.0 < quantiles[0.5] <= quantiles[0.99] < 5.0
