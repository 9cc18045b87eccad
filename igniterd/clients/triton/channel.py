"""The gRPC connection to one tritonserver: how it is kept, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from igniterd.errors import CannotRun, NotNow, Refused, Unanswered, Unreachable

NOT_EXPLICIT = "explicit model load / unload is not allowed"
RESTRICTED = "protocol is restricted"
_NOT_POLLED = "failed to poll from model repository"
_NO_ANSWER = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}

KEEPALIVE_MS = 330_000
"""A server takes one ping in 300 s from a client that it sends no data, and ends the connection at
the third too many.

Loads may be that quiet for minutes. The 30 s more are for pings that arrive closer together than
they were sent.
"""
KEEPALIVE_TIMEOUT_MS = 5_000
"""How long what was sent may stay without the network's acknowledgement: a peer that is gone is
noticed by this, not by pings.

gRPC makes it the socket's TCP_USER_TIMEOUT. A peer that is there and says nothing is noticed by the
deadline that every call has.
"""
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    # Triton is beside us: http_proxy in somebody's shell is not meant for it
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),  # a restarted Triton is seen at the next tick or two
]


def channel_options(keepalive_ms: int = KEEPALIVE_MS) -> list[tuple[str, int]]:
    """gRPC's options for a channel to Triton."""
    return [
        *_OPTIONS,
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS; only ``root_certificates`` for a server certificate alone, all three for
    mutual TLS."""

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC wants. Raises :class:`CannotRun` for a file that cannot be read."""
        try:
            parts = [
                None if path is None else path.read_bytes()
                for path in (self.root_certificates, self.private_key, self.certificate_chain)
            ]
        except OSError as error:
            raise CannotRun(f"TLS for Triton: {error}") from error
        return grpc.ssl_channel_credentials(*parts)


class TritonChannel:
    """Opened by the first call. Every call raises :class:`Unreachable` without an answer in time,
    :class:`Refused` on Triton's no."""

    def __init__(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str],
        tls: TlsFiles | None,
        lost: Callable[[], None],
    ) -> None:
        """``lost`` is told when the connection is gone."""
        self._said = f"Triton {name!r} at {url}"
        self._url, self._tls, self._lost = url, tls, lost
        self._metadata = tuple((key.lower(), value) for key, value in headers.items())
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """One call of the protocol, by its name."""
        try:
            return await getattr(self._connect(), method)(
                request, timeout=timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            meaning = _meaning(error, self._said, timeout_s)
            if isinstance(meaning, Unreachable) and not isinstance(meaning, Unanswered):
                self._lost()
            raise meaning from error

    @property
    def connected(self) -> bool:
        """Whether a call made now goes out."""
        return (
            self._channel is not None
            and self._channel.get_state() is grpc.ChannelConnectivity.READY
        )

    async def close(self) -> None:
        """The next call would open it again."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _connect(self) -> Any:
        if self._channel is None:
            if self._tls is None:
                self._channel = grpc.aio.insecure_channel(self._url, options=channel_options())
            else:
                self._channel = grpc.aio.secure_channel(
                    self._url, self._tls.credentials(), options=channel_options()
                )
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            # Bytes go out and come back as they are: building and parsing messages of tensors would
            # cost more than all the rest.
            self._stub.ModelInfer = self._channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer"
            )
        return self._stub


def _meaning(error: grpc.aio.AioRpcError, server: str, timeout_s: float) -> NotNow:
    """gRPC status -> own error. Triton's own UNAVAILABLE is told from a connection's by its words:
    gRPC has one code for both."""
    details = error.details() or error.code().name
    if error.code() in _NO_ANSWER and NOT_EXPLICIT not in details and RESTRICTED not in details:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unanswered(f"{server}: no answer in {timeout_s:g} s")
        return Unreachable(f"{server}: {details}")
    if _NOT_POLLED in details:
        details = (
            f"{details}: the configuration or the model's folder is not as Triton wants "
            "it; only Triton's log says why"
        )
    return Refused(details.strip())
