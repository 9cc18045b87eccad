"""Which host says that it has which GPU: one GPU on two hosts is found as states come. Pure."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_NAMED = 3
_NONE: frozenset[str] = frozenset()


class Claims:
    """GPUs by host, and the other way round."""

    def __init__(self) -> None:
        self._by_gpu: dict[str, set[str]] = {}
        self._by_host: dict[str, frozenset[str]] = {}

    def set(self, host: str, gpus: Iterable[str]) -> frozenset[str]:
        """``host`` has these GPUs now. Returns the other hosts that gained or lost a rival."""
        before, now = self._by_host.get(host, _NONE), frozenset(gpus)
        if now == before:
            return _NONE
        rivals: set[str] = set()
        for gpu in before - now:
            holders = self._by_gpu[gpu]
            holders.discard(host)
            rivals |= holders
            if not holders:
                del self._by_gpu[gpu]
        for gpu in now - before:
            holders = self._by_gpu.setdefault(gpu, set())
            rivals |= holders
            holders.add(host)
        if now:
            self._by_host[host] = now
        else:
            del self._by_host[host]
        return frozenset(rivals)

    def clash(self, host: str) -> str:
        """Why not all GPUs of ``host`` are its own; empty where they are."""
        for gpu in sorted(self._by_host.get(host, _NONE)):
            holders = self._by_gpu[gpu]
            if len(holders) > 1:
                others = sorted(holders - {host})
                named = ", ".join(others[:_MOST_NAMED])
                more = len(others) - _MOST_NAMED
                return f"{gpu} is also said to be of {named}" + (
                    f" and {more} more" if more > 0 else ""
                )
        return ""
