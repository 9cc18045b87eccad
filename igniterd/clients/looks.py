"""Looks at the environments that models came with, without waiting for a mount that hangs."""

from __future__ import annotations

import asyncio
from typing import Any

from igniterd.clients.environments import ENV_PATH, Own, base_env_of
from igniterd.clients.shares import look_at
from igniterd.clients.triton.json_config import config_to_dict


class Looks:
    """For the models of one Triton, whose folder of shares is ``shares_dir``; a look may take
    ``timeout_s``."""

    def __init__(self, shares_dir: str, timeout_s: float) -> None:
        self._shares_dir, self._timeout_s = shares_dir, timeout_s
        self._hung: set[str] = set()

    async def at(self, message: Any) -> Own:
        """What is seen of the environment that the model of a ``ModelConfig`` came with."""
        if ENV_PATH not in message.parameters:  # as of most models
            return Own.UNSEEN
        base = base_env_of(config_to_dict(message), self._shares_dir)
        if base is None or base in self._hung:
            return Own.UNSEEN
        try:
            return await asyncio.wait_for(asyncio.to_thread(look_at, base), self._timeout_s)
        except TimeoutError:  # it holds its thread, perhaps for ever: not one more each time
            self._hung.add(base)
            return Own.UNSEEN
