"""The admin address: ``/metrics`` for Prometheus, ``/state`` for programs, ``/healthz`` for probes, ``/`` for a person at 3 a.m.

Every answer is rendered when it is asked for from what the loop last left behind; nothing here waits for a tick and no tick waits for it.
Read only: there is no request that changes anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from aiohttp import web

from igniterd.clients.jsontext import dumps
from igniterd.errors import CannotRun

_PAGE = files("igniterd.data") / "status.html"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'",
}
_READS = ("GET", "HEAD")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """Serves what its three functions return; all three are called in the loop's thread and must return at once."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Callable[[str], tuple[bytes, str]],
        state: Callable[[], Mapping[str, Any]],
        health: Callable[[], tuple[bool, Sequence[str]]],
    ) -> None:
        """`metrics(accept)` gives page and content type, `state()` a JSON object (empty before the first tick), `health()` whether all
        is well and what is not."""
        self.address = (host, port)
        """Where it listens; once started with port 0, the port chosen."""
        self._metrics, self._state, self._health = metrics, state, health
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises :class:`CannotRun` when the address cannot be had."""
        application = web.Application(middlewares=[_read_only])
        application.add_routes(
            [
                web.get("/", self._get_page),
                web.get("/metrics", self._get_metrics),
                web.get("/state", self._get_state),
                web.get("/healthz", self._get_health),
            ]
        )
        runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        host, port = self.address
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise CannotRun(f"metrics.listen {host}:{port}: {error.strerror or error}") from error
        self._runner = runner
        self.address = runner.addresses[0][:2]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _get_page(self, _: web.Request) -> web.Response:
        return web.Response(text=_PAGE.read_text(encoding="utf-8"), content_type="text/html", headers=_HEADERS)

    async def _get_metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers=_HEADERS | {"Content-Type": content_type})

    async def _get_state(self, _: web.Request) -> web.Response:
        state = self._state()
        return _json(state, HTTPStatus.OK if state else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _get_health(self, _: web.Request) -> web.Response:
        healthy, reasons = self._health()
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return _json({"status": "healthy" if healthy else "unhealthy", "reasons": list(reasons)}, status)


@web.middleware
async def _read_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method not in _READS:
        raise web.HTTPMethodNotAllowed(request.method, _READS)
    return await handler(request)


def _json(data: Mapping[str, Any], status: HTTPStatus) -> web.Response:
    return web.Response(text=dumps(data) + "\n", status=status, content_type="application/json", headers=_HEADERS)
