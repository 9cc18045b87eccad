"""Triton's page of metrics with what it says of GPUs, which comes from DCGM and so is missing
without a driver."""

from __future__ import annotations

from collections.abc import Sequence

import aiohttp
from aiohttp import web

_FAMILY = """\
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
"""


class GpuMetrics:
    """The page at ``source`` with a line of ``nv_gpu_utilization`` for each GPU, at
    ``http://127.0.0.1:PORT/metrics``.

    The utilisation is always 0: igniterd reads the labels alone.
    """

    def __init__(self, source: str, port: int, uuids: Sequence[str]) -> None:
        self._source, self._port = source, port
        self._more = _FAMILY + "".join(
            f'nv_gpu_utilization{{gpu_uuid="{uuid}"}} 0.000000\n' for uuid in uuids
        )
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> GpuMetrics:
        application = web.Application()
        application.router.add_get("/metrics", self._page)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0))
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _page(self, _: web.Request) -> web.Response:
        if self._session is None:
            raise web.HTTPServiceUnavailable
        try:
            async with self._session.get(self._source) as answer:
                page = await answer.text()
                return web.Response(
                    status=answer.status,
                    text=page + self._more if answer.status == 200 else page,
                    content_type=answer.content_type,
                    charset="utf-8",
                )
        except (aiohttp.ClientError, TimeoutError) as problem:
            raise web.HTTPBadGateway(text=f"{self._source}: {problem!r}") from problem
