"""The admin address: ``/metrics`` for Prometheus, ``/state`` for programs, ``/livez`` and
``/readyz`` for probes, ``/`` for a person at 3 a.m.

Every answer is rendered when it is asked for from what the loop last left behind; nothing here
waits for a tick and no tick waits for it. Read only: there is no request that changes anything.

Whoever reaches the address may be slow, many, or a web page in somebody's browser. A connection
carries one request and lives a few seconds; there are only so many at a time, since each takes a
file descriptor that the steering needs too; and the Host header must name this host (DNS
rebinding).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from igniterd.edgelog import EdgeLogger
from igniterd.errors import CannotRun
from igniterd.jsontext import dumps

CONNECTION_S = 10.0
"""A connection is cut so long after it was made, whatever its peer has sent or read by then."""
MOST_CONNECTIONS = 64
_MOST_ACCEPTED = 16
"""At once: each has a file before it can be refused, which takes a few turns of the event loop."""
_CLOSE_S = 1.0
_PAGE = files("igniterd.data") / "status.html"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
        "'self'"
    ),
}
_READS = ("GET", "HEAD")
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_LOCAL = ("localhost", "localhost.localdomain", "ip6-localhost")
# aiohttp writes a traceback for every bad request; a scanner must not be able to fill the log
_SILENT = logging.Logger("igniterd.admin", level=logging.CRITICAL + 1)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Health = Callable[[], tuple[bool, Sequence[str]]]


class _Connection(web.RequestHandler):
    """One connection, with an end that no peer can put off: a reader that does not read keeps even
    a closed one open until its buffer is empty, so it is aborted."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if isinstance(transport, asyncio.Transport):
            self._end = asyncio.get_running_loop().call_later(CONNECTION_S, transport.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)


class _Refused(asyncio.Protocol):
    """A connection too many: told so, and closed before it has said a word."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.write(_BUSY)
            transport.close()


class AdminServer:
    """Serves what its functions return; all are called in the loop's thread and must return at
    once."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Callable[[str], tuple[bytes, str]],
        state: Callable[[], Mapping[str, Any]],
        health: Health,
        ready: Health | None = None,
        hosts: Iterable[str] = (),
        page: bool = True,
    ) -> None:
        """`metrics(accept)` gives page and content type, `state()` a JSON object (empty before the
        first tick). `health()` says whether the daemon is alive, for ``/livez`` and ``/healthz``;
        `ready()` whether it does its work; both with what is wrong. `hosts` are names that this
        host is reached by beside its own. `page`: whether ``/`` is the daemon's status page."""
        self.address = (host, port)
        """Where it listens; once started with port 0, the port chosen."""
        self._metrics, self._state, self._health, self._ready = (
            metrics,
            state,
            health,
            ready or health,
        )
        self._own_names = frozenset(map(_plain, (*_LOCAL, host, *_names_of_this_host())))
        self._names = self._own_names
        self.admit(hosts)
        self._page = page
        self._once = EdgeLogger("admin")
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    def admit(self, hosts: Iterable[str]) -> None:
        """From now on also answer to these names."""
        self._names = self._own_names | {_plain(name) for name in hosts}

    async def start(self) -> None:
        """Listen, unless it does. Raises :class:`CannotRun` when the address cannot be had."""
        if self._listening is not None:
            return
        application = web.Application(middlewares=[self._guard])
        application.add_routes(
            [
                *([web.get("/", self._get_page)] if self._page else []),
                web.get("/metrics", self._get_metrics),
                web.get("/state", self._get_state),
                web.get("/livez", self._get_alive),
                web.get("/healthz", self._get_alive),
                web.get("/readyz", self._get_ready),
            ]
        )
        application.on_response_prepare.append(_one_a_connection)
        runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=_CLOSE_S)
        await runner.setup()
        host, port = self.address
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                self._connection, host, port, reuse_address=True, backlog=_MOST_ACCEPTED
            )
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no resolver takes
            await runner.cleanup()
            reason = getattr(error, "strerror", None) or error
            raise CannotRun(f"metrics.listen {host}:{port}: {reason}") from error
        self._runner = runner
        self.address = self._listening.sockets[0].getsockname()[:2]

    def _connection(self) -> asyncio.Protocol:
        server = None if self._runner is None else self._runner.server
        if server is None or len(server.connections) >= MOST_CONNECTIONS:
            return _Refused()
        return _Connection(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own way to have none
            logger=_SILENT,
            keepalive_timeout=CONNECTION_S,
            lingering_time=0,
        )

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _get_page(self, _: web.Request) -> web.Response:
        return web.Response(
            text=_PAGE.read_text(encoding="utf-8"), content_type="text/html", headers=_HEADERS
        )

    async def _get_metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers=_HEADERS | {"Content-Type": content_type})

    async def _get_state(self, _: web.Request) -> web.Response:
        state = self._state()
        return _json(state, HTTPStatus.OK if state else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _get_alive(self, _: web.Request) -> web.Response:
        return _answer(*self._health())

    async def _get_ready(self, _: web.Request) -> web.Response:
        return _answer(*self._ready())

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Only reads, only under a name of this host; what fails inside is said once, not per
        request."""
        if request.method not in _READS:
            raise web.HTTPMethodNotAllowed(request.method, _READS)
        for host in request.headers.getall("Host", ()):  # none at all: no browser sends that
            if not self._is_here(host):
                raise web.HTTPMisdirectedRequest(
                    text=f"{host[:200]!r} is no name of this host: ask for its address, or add "
                    "the name to "
                    "[metrics] hosts of igniterd's configuration\n"
                )
        try:
            answer = await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:
            self._once.failed(request.path, repr(error))
            raise web.HTTPInternalServerError from error
        self._once.worked(request.path)
        return answer

    def _is_here(self, header: str) -> bool:
        """An address, or a name of this host: a page of another name, resolved to us, is
        neither."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name.partition("%")[0])
            return True
        return _plain(name) in self._names or name.rstrip(".").endswith(".localhost")


def _names_of_this_host() -> tuple[str, ...]:
    """Without asking a resolver, which may take its time."""
    name = socket.gethostname()
    return (name, name.partition(".")[0])


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


async def _one_a_connection(_: web.Request, response: web.StreamResponse) -> None:
    response.force_close()


def _answer(well: bool, reasons: Sequence[str]) -> web.Response:
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    return _json({"status": "healthy" if well else "unhealthy", "reasons": list(reasons)}, status)


def _json(data: Mapping[str, Any], status: HTTPStatus) -> web.Response:
    text = dumps(data) + "\n"
    return web.Response(text=text, status=status, content_type="application/json", headers=_HEADERS)
