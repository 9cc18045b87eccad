"""The emulated GPU, through a real Triton, takes the time that the measured tables say."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from igniterd.lab.gpu.truth import Neighbour, Truth
from igniterd.records import ModelReading
from tests.integration.conftest import SLOW, Host
from tests.integration.readings import reading
from tests.waiting import until, until_answer

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

TRUTH = Truth.v100()


@asynccontextmanager
async def busy(host: Host, *loads: tuple[str, int]) -> AsyncIterator[None]:
    """Closed loops: each model executes batches of the given size one after another, two requests
    ahead so that it never idles."""

    async def loop(model: str, batch: int) -> None:
        while True:
            await host.infer(model, batch)

    tasks = [asyncio.create_task(loop(m, b)) for m, b in loads for _ in range(2)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def executions_ms(host: Host, model: str, batch: int, count: int) -> list[float]:
    """Times of single executions, as the board saw them."""
    found = []
    for _ in range(count):
        await host.infer(model, batch)
        copy = host.last_executed(model)
        found.append((copy.last_ended_s - copy.last_started_s) * 1e3)
    return found


async def share_out(host: Host, **shares: float) -> None:
    for model, share in shares.items():
        await host.give_share(model, share)


async def test_alone_without_mps_it_has_the_whole_board(host: Host) -> None:
    got = statistics.median(await executions_ms(host, "resnet50", 4, 40))
    assert got == pytest.approx(SLOW * TRUTH.solo_ms("resnet50", 4, 1.0), rel=0.05)


async def test_without_mps_two_busy_models_take_turns(host: Host) -> None:
    async with busy(host, ("vgg19", 8)):
        got = statistics.median(await executions_ms(host, "resnet50", 8, 30))
    assert got == pytest.approx(2 * SLOW * TRUTH.solo_ms("resnet50", 8, 1.0), rel=0.08)


async def test_alone_at_a_share(host: Host) -> None:
    await share_out(host, alexnet=0.2, resnet50=0.4, vgg19=0.4)
    for model, batch, share in (("alexnet", 4, 0.2), ("resnet50", 4, 0.4), ("vgg19", 2, 0.4)):
        got = statistics.median(await executions_ms(host, model, batch, 40))
        assert got == pytest.approx(SLOW * TRUTH.solo_ms(model, batch, share), rel=0.05), model


async def test_beside_one_and_two_neighbours(host: Host) -> None:
    await share_out(host, alexnet=0.2, resnet50=0.4, vgg19=0.4)
    alexnet, vgg19 = Neighbour("alexnet", 16, 0.2), Neighbour("vgg19", 4, 0.4)
    for neighbours in ([vgg19], [alexnet, vgg19]):
        async with busy(host, *((n.model, n.batch) for n in neighbours)):
            got = statistics.median(await executions_ms(host, "resnet50", 4, 50))
        alone = SLOW * TRUTH.solo_ms("resnet50", 4, 0.4)
        expected = SLOW * TRUTH.latency_ms("resnet50", 4, 0.4, neighbours)
        assert expected > 1.04 * alone
        assert got == pytest.approx(expected, rel=0.05), neighbours


async def settled(host: Host, model: str) -> ModelReading:
    """The model's statistics once they stand still: Triton counts a batch a moment after it has
    answered."""
    last: list[ModelReading] = []

    def still(now: ModelReading) -> bool:
        last.append(now)
        return len(last) > 1 and last[-2].batches == now.batches

    return await until_answer(lambda: reading(host.client, model), still, every_s=0.2)


async def test_triton_s_own_figures_agree(host: Host) -> None:
    """What the daemon sees, the compute time in Triton's statistics, is the table's time within a
    few percent. Other work on the machine only lengthens it: the quickest of four rounds counts."""
    await share_out(host, vgg19=0.4)
    rounds = [await mean_compute_ms(host, "vgg19", 4, requests=5) for _ in range(4)]
    assert min(rounds) == pytest.approx(SLOW * TRUTH.solo_ms("vgg19", 4, 0.4), rel=0.06)


async def test_a_host_bound_model_takes_its_host_s_time_whatever_its_share(host: Host) -> None:
    """By Triton's own figures: the host's time while the GPU is quicker, and more of it beside a
    neighbour. alexnet's GPU takes less than that at every share and batch here."""
    await share_out(host, vgg19=0.4)
    for share, batch in ((0.2, 1), (0.2, 4), (0.6, 4)):
        await share_out(host, eager=share)
        assert TRUTH.solo_ms("alexnet", batch, share) < 5.0
        rounds = [await mean_compute_ms(host, "eager", batch, requests=5) for _ in range(8)]
        assert min(rounds) == pytest.approx(SLOW * 6.0, rel=0.06), (share, batch)
    async with busy(host, ("vgg19", 8)):
        rounds = [await mean_compute_ms(host, "eager", 4, requests=10) for _ in range(5)]
    # between two of the neighbour's batches nobody is beside it
    assert statistics.median(rounds) == pytest.approx(SLOW * 6.0 * 1.4, rel=0.08)


async def mean_compute_ms(host: Host, model: str, batch: int, *, requests: int) -> float:
    """Of so many requests of one batch each, by Triton's statistics."""
    before = await settled(host, model)
    for _ in range(requests):
        await host.infer(model, batch)
    after = await settled(host, model)
    old = {b.batch_size: b for b in before.batches}.get(batch)
    new = {b.batch_size: b for b in after.batches}[batch]
    assert new.count - (old.count if old else 0) == requests
    spent_ns = sum(
        getattr(new, f) - (getattr(old, f) if old else 0)
        for f in ("compute_input_ns", "compute_infer_ns", "compute_output_ns")
    )
    return float(spent_ns) / requests / 1e6


async def test_the_board_s_power_follows_the_work(host: Host) -> None:
    def power_w() -> float:
        return host.nvml.nvmlDeviceGetPowerUsage(0) / 1e3

    await until(lambda: power_w() == pytest.approx(TRUTH.idle_power_w, abs=1.0))
    async with busy(host, ("vgg19", 8)):
        await until(
            lambda: power_w() > TRUTH.idle_power_w + 0.6 * TRUTH.added_power_w("vgg19", 8, 0.4)
        )
    assert host.nvml.nvmlDeviceGetMemoryInfo(0).used > 5 * 2**30  # nine models are loaded
