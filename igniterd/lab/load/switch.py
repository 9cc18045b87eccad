"""A route that can be switched: one address for clients, and files that say where it leads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2

from igniterd.lab.programs.process import free_ports

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_DEADLINE_S = 120.0


class _Switch(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Sends each request to the address that a file names when it comes."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._last: dict[Path, str] = {}
        self._calls: dict[str, tuple[grpc.aio.Channel, Any]] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return (
            grpc.unary_unary_rpc_method_handler(self._send) if details.method == _METHOD else None
        )

    async def _send(self, request: bytes, context: Any) -> bytes:
        file = self._target
        if file.is_dir():
            file /= service_pb2.ModelInferRequest.FromString(request).model_name
        # whoever writes the file may just have emptied it
        url = file.read_text(encoding="utf-8").strip() or self._last[file]
        self._last[file] = url
        if url not in self._calls:
            channel = grpc.aio.insecure_channel(url)
            self._calls[url] = channel, channel.unary_unary(_METHOD)
        try:
            return bytes(await self._calls[url][1](request, timeout=_DEADLINE_S))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
            raise

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel, _ in self._calls.values()))


@asynccontextmanager
async def switchable_route(target: Path) -> AsyncIterator[str]:
    """An address (host:port) whose inference requests go to the one that stands in ``target``, or,
    where that is a folder, in its file that is called as the model is."""
    url, switch, server = f"127.0.0.1:{free_ports(1)[0]}", _Switch(target), grpc.aio.server()
    server.add_generic_rpc_handlers((switch,))
    server.add_insecure_port(url)
    await server.start()
    try:
        yield url
    finally:
        await server.stop(grace=None)
        await switch.close()
