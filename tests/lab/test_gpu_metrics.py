"""Triton's page with the GPUs that only DCGM would name."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from igniterd.lab.gpu_metrics import GpuMetrics
from igniterd.lab.programs.process import free_ports, listens

PAGE = "# TYPE nv_inference_count counter\nnv_inference_count 3\n"


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[str]:
    """Address of a page like Triton's."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/plain")

    application = web.Application()
    application.router.add_get("/metrics", page)
    runner = web.AppRunner(application, shutdown_timeout=1.0)
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}/metrics"
    await runner.cleanup()


async def asked(port: int) -> tuple[int, str]:
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_gpus_are_added_in_their_order(triton: str) -> None:
    (port,) = free_ports(1)
    async with GpuMetrics(triton, port, ["GPU-b", "GPU-a"]):
        status, page = await asked(port)
    assert status == 200
    assert page.startswith(PAGE)
    assert page.splitlines()[-2:] == [
        'nv_gpu_utilization{gpu_uuid="GPU-b"} 0.000000',
        'nv_gpu_utilization{gpu_uuid="GPU-a"} 0.000000',
    ]
    assert not await listens(port)


@pytest.mark.parametrize("path", ["metrics", "elsewhere"])
async def test_a_page_that_is_not_there_is_not_made_up(triton: str, path: str) -> None:
    source = triton.replace("/metrics", "/elsewhere")
    if path == "metrics":
        source = f"http://127.0.0.1:{free_ports(1)[0]}/metrics"  # nobody listens
    (port,) = free_ports(1)
    async with GpuMetrics(source, port, ["GPU-a"]):
        status, page = await asked(port)
    assert status == (502 if path == "metrics" else 404)
    assert "GPU-a" not in page
