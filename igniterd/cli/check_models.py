"""What ``igniterd check --live`` says of one model beforehand: what it cannot be given, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.clients.triton.client import TritonClient
    from igniterd.config import Model
    from igniterd.records import ModelReading


async def of_model(
    client: TritonClient, reading: ModelReading, told: Model
) -> AsyncIterator[Finding]:
    """Findings of a model that was read. ``told``: what the configuration says of it."""
    what = f"model {reading.model}"
    if too_large := await _too_large(client, reading.model, told.client_batch):
        yield Finding("bad", what, too_large)
    for said in _left_as_it_is(reading, gpu_given=told.gpu is not None, own=told.process == "own"):
        yield Finding("warn", what, said)
    if not (reading.left_alone or reading.batching_fixed):
        for said in await _predicted_without(client, reading.model):
            yield Finding("warn", what, said)


def _left_as_it_is(reading: ModelReading, *, gpu_given: bool, own: bool) -> Iterator[str]:
    """What igniterd does not steer of a model, and why."""
    if reading.hands_off:
        yield f"it is left as it is: {reading.hands_off}"
        return
    alone = reading.left_alone or ("" if gpu_given else reading.chooses_gpu)
    if alone:
        yield f"it is watched, not steered: {alone}"
        return
    if reading.batching_fixed and reading.batching_fixed == reading.share_fixed:
        yield f"it is left as it is: {reading.batching_fixed}"
        return
    if reading.batching_fixed:
        yield f"its batching is left as it is: {reading.batching_fixed}"
    if reading.owns_process and reading.share_fixed:
        yield f"it gets no share: {reading.share_fixed}"
    if not reading.owns_process and own:
        way = "the daemon tries to give it a process of its own (as igniterd adopt --dry-run does)"
        yield f"backend {reading.backend} runs inside tritonserver; {way}"
    elif not reading.owns_process:
        yield (
            f"backend {reading.backend} runs inside tritonserver: its MPS share is the server's; "
            "igniterd steers its batching only, "
            'unless it gets a process of its own (igniterd adopt, or [[model]] process = "own")'
        )


async def _too_large(client: TritonClient, name: str, client_batch: int | None) -> str:
    """What is wrong with ``client_batch``, or an empty string; a configuration that cannot be read
    is said elsewhere."""
    from igniterd.clients.triton.config import own_limit_of
    from igniterd.errors import NotNow

    if client_batch is None:
        return ""
    try:
        limit = max(1, own_limit_of(await client.config(name)))
    except NotNow:
        return ""
    said = (
        f"client_batch = {client_batch} is above the largest batch of a request that its own "
        "configuration admits"
    )
    return (
        f"{said}, which is {limit}: Triton refuses such requests; give 1 to {limit}"
        if client_batch > limit
        else ""
    )


async def _predicted_without(client: TritonClient, name: str) -> list[str]:
    """Parts of a model's configuration that igniterd keeps but does not reckon with."""
    from igniterd.clients.triton.config import preferred_sizes_of
    from igniterd.errors import NotNow

    try:
        config = await client.config(name)
    except NotNow as error:
        return [f"it cannot be changed: {error}"]
    said = []
    sizes = preferred_sizes_of(config)
    if sizes:
        names = ", ".join(map(str, sizes))
        said.append(
            f"preferred_batch_size {names} gives way when igniterd sets another largest batch or "
            "delay; predicted without it"
        )
    levels = int(config["dynamic_batching"].get("priority_levels", 0))
    if levels > 1:
        said.append(
            f"its {levels} priority levels are kept; its P99 is predicted as if all requests "
            "were of one"
        )
    batching = config["dynamic_batching"]
    if batching.get("priority_queue_policy") or any(
        map(int, _limits(batching.get("default_queue_policy", {})))
    ):
        said.append(
            "its queue policies are kept; predicted as if no request were turned away or put off"
        )
    if any(
        group.get("rate_limiter", {}).get("resources") for group in config.get("instance_group", ())
    ):
        said.append("its rate_limiter is kept; predicted as if it never waited for others")
    if config.get("response_cache", {}).get("enable"):
        said.append(
            "its response_cache is kept; requests answered from it are no load, and its P99 is "
            "predicted for the others"
        )
    return said


def _limits(policy: Mapping[str, Any]) -> tuple[Any, Any]:
    return policy.get("default_timeout_microseconds", 0), policy.get("max_queue_size", 0)
