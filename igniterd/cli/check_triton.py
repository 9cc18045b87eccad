"""What ``igniterd check --live`` finds of one Triton and its models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from igniterd.cli.check_models import of_model
from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.clients.triton.client import TritonClient
    from igniterd.config import Config
    from igniterd.records import ModelReading


async def of_triton(
    client: TritonClient, settings: Config, readings: dict[str, ModelReading]
) -> AsyncIterator[Finding]:
    """``readings`` takes what its models answer."""
    from igniterd.clients.triton.info import Control
    from igniterd.clients.triton.version import named
    from igniterd.errors import NotNow
    from igniterd.records import ModelReading

    what = f"Triton {client.name}"
    try:
        info = await client.server()
    except NotNow as error:
        yield Finding("bad", what, str(error))
        return
    yield Finding(
        "ok" if info.ready else "warn",
        what,
        f"version {named(info.version)} at {client.url}, {'ready' if info.ready else 'not ready'}",
    )
    if info.too_old:
        yield Finding("bad" if settings.loop.mode == "act" else "warn", what, info.too_old)
    if info.control is Control.EXPLICIT:
        yield Finding(
            "ok", f"{what} model control", "explicit: configurations can be changed while it serves"
        )
    else:
        yield Finding(
            "bad" if settings.loop.mode == "act" else "warn",
            f"{what} model control",
            f"{info.control.value}: start tritonserver with --model-control-mode=explicit and "
            "--load-model for each model. "
            f"{info.control_reason}",
        )
    tenants = {m.name: m.tenant for m in settings.model if m.triton == client.name}
    for raw, reading in (await client.read_models(tenants)).items():
        name = tenants[raw]
        if not isinstance(reading, ModelReading):
            yield Finding("bad", f"model {name}", str(reading))
            continue
        readings[name] = reading
        share = (
            "no share of its own"
            if reading.allocation.share is None
            else f"share {reading.allocation.share:.1%}"
        )
        batching = (
            f"largest batch {reading.allocation.max_batch_size}, "
            f"{reading.allocation.instances} instances"
        )
        yield Finding(
            "ok",
            f"model {name}",
            f"version {reading.version}, backend {reading.backend}, {share}, {batching}",
        )
        async for finding in of_model(client, reading, settings.by_name()[name]):
            yield finding
    if client.unmanaged_models:
        models = ", ".join(sorted(client.unmanaged_models))
        yield Finding(
            "warn",
            what,
            f"it also serves {models}, which the configuration does not name: what they take of "
            "the GPU is not seen",
        )
    if client.copies:
        said = (
            "copies that igniterd adopt compares with models; where it does not run they were "
            "left behind: igniterd release --all"
        )
        yield Finding("warn", what, f"it serves {', '.join(sorted(client.copies))}: {said}")
    gap = client.metrics_gap
    if gap is not None:
        yield Finding(
            "warn", f"{what} metrics", f"{gap.reason}: no measured percentiles, no pending counts"
        )
