"""Triton's HTTP endpoint, for the one thing that gRPC does not give: a configuration in the
server's own words.

Over gRPC a field that this tritonclient does not know comes as a number without a name, and cannot
be written into a load. The JSON that the server makes of its own configuration has the names.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import aiohttp

from igniterd.addresses import Address
from igniterd.clients.triton.channel import TlsFiles
from igniterd.errors import CannotRun, Refused, Unreachable


class TritonHttp:
    """Reads configurations from the server at ``url``, with the headers and certificates of its
    gRPC endpoint."""

    def __init__(
        self, url: str, timeout_s: float, headers: Mapping[str, str], tls: TlsFiles | None
    ) -> None:
        self._server = Address.of(url)
        self._timeout_s, self._headers, self._tls = timeout_s, dict(headers), tls
        self._session: aiohttp.ClientSession | None = None

    async def config(self, model: str) -> dict[str, Any]:
        """The configuration that serves now, defaults of the server and all. Raises
        :class:`Unreachable` or :class:`Refused`."""
        path = f"/v2/models/{quote(model, safe='')}/config"
        page = _below(self._server.shown, path)
        try:
            async with self._connect().get(
                _below(self._server.url, path), allow_redirects=False
            ) as answer:
                said = await answer.read()
                if answer.status != HTTPStatus.OK:
                    raise Refused(f"{page}: HTTP status {answer.status}")
        except TimeoutError as error:
            raise Unreachable(f"{page}: no answer in {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{page}: {self._server.said(error)}") from error
        try:
            config = json.loads(said)
        except ValueError as error:
            raise Refused(f"{page}: not the JSON of a configuration: {error}") from error
        if not isinstance(config, dict) or config.get("name") != model:
            raise Refused(f"{page}: not the configuration of {model}")
        return config

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _connect(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=True if self._tls is None else _context(self._tls))
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, headers=self._server.headers | self._headers
            )
        return self._session


def _below(url: str, path: str) -> str:
    """``path`` under that of ``url``, whose parameters stay behind it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))


def _context(files: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=files.root_certificates)
        if files.certificate_chain is not None:
            context.load_cert_chain(files.certificate_chain, files.private_key)
    except (OSError, ssl.SSLError) as error:
        raise CannotRun(f"TLS for Triton: {error}") from error
    return context
