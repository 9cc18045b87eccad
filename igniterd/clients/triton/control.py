"""Whether a Triton is up, and whether it takes configurations. Nothing here changes anything on it.

``call`` is one call of its gRPC API: the method and its request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from tritonclient.grpc import service_pb2

from igniterd.clients.triton.channel import NOT_EXPLICIT, RESTRICTED
from igniterd.clients.triton.info import Control, ServerInfo
from igniterd.clients.triton.version import too_old
from igniterd.errors import NotNow, Refused, Unreachable

Call = Callable[[str, Any], Awaitable[Any]]

_PROBE = "igniterd-asks-for-the-model-control-mode"


async def read_server(call: Call) -> ServerInfo:
    """What it says of itself. Raises :class:`~igniterd.errors.NotNow`."""
    live, ready, metadata = await asyncio.gather(
        call("ServerLive", service_pb2.ServerLiveRequest()),
        call("ServerReady", service_pb2.ServerReadyRequest()),
        call("ServerMetadata", service_pb2.ServerMetadataRequest()),
    )
    control, reason = await _read_control(call)
    return ServerInfo(
        live=live.live,
        ready=ready.ready,
        version=metadata.version,
        extensions=tuple(metadata.extensions),
        control=control,
        control_reason=reason,
        too_old=too_old(metadata.version),
    )


async def why_loads_are_refused(call: Call) -> str:
    """Why configurations cannot be changed on this server, or an empty string."""
    # a server may restrict this call too; what cannot be known is not in the way
    with contextlib.suppress(NotNow):
        metadata = await call("ServerMetadata", service_pb2.ServerMetadataRequest())
        if old := too_old(metadata.version):
            return old
    control, reason = await _read_control(call)
    if control is Control.NOT_EXPLICIT:
        return (
            f"model control is {control.value}; start tritonserver with "
            f"--model-control-mode=explicit ({reason})"
        )
    if control is Control.RESTRICTED:
        header = (
            "it wants a header: [[triton]] header of the configuration, or --header of "
            "igniterd profile"
        )
        return f"its model repository API is {control.value}; {header} ({reason})"
    return ""


async def _read_control(call: Call) -> tuple[Control, str]:
    """The mode shows in the answer to unloading a model that does not exist."""
    try:
        await call(
            "RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=_PROBE)
        )
    except Unreachable as error:
        return Control.UNKNOWN, str(error)
    except Refused as error:
        if NOT_EXPLICIT in str(error):
            return Control.NOT_EXPLICIT, str(error)
        if RESTRICTED in str(error):
            return Control.RESTRICTED, str(error)
    return Control.EXPLICIT, ""
