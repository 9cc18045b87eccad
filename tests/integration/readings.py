"""Readings of a model on a real Triton, and waiting for what they count."""

from __future__ import annotations

from igniterd.clients.triton.client import TritonClient
from igniterd.records import ModelReading
from tests.waiting import until_answer


async def reading(client: TritonClient, model: str) -> ModelReading:
    """The model as it is read now. Raises ``AssertionError`` where it is not."""
    found = (await client.read_models([model]))[model]
    assert isinstance(found, ModelReading), found
    return found


async def counted(client: TritonClient, model: str, requests: int) -> ModelReading:
    """The first reading that counts so many requests: Triton counts one a moment after it has
    answered it."""
    return await until_answer(
        lambda: reading(client, model), lambda now: now.success_count >= requests
    )
