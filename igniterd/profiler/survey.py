"""The board, once: what it is, what it draws when nothing runs, how fast its link to the host
is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Protocol

from igniterd.errors import CannotRun, IgniterdError, NotNow
from igniterd.perf.profile import Board
from igniterd.profiler import bandwidth
from igniterd.profiler.board import Probe, now_s
from igniterd.records import BoardReading, ModelReading

IDLE_S = 1.2
_SAMPLE_S = 0.3


class ModelSource(Protocol):
    """What is asked of a Triton client."""

    async def read_models(self, names: Iterable[str]) -> dict[str, ModelReading | NotNow]: ...


async def quiet(client: ModelSource, models: Sequence[str], *, span_s: float = IDLE_S) -> None:
    """Raise :class:`CannotRun` when one of ``models`` is being used by others: what is measured
    beside that would be wrong."""
    before = await client.read_models(models)
    await asyncio.sleep(span_s)
    after = await client.read_models(models)
    used = []
    for name in models:
        one, other = before[name], after[name]
        if (
            isinstance(one, ModelReading)
            and isinstance(other, ModelReading)
            and one.inference_count != other.inference_count
        ):
            used.append(name)
    if used:
        raise CannotRun(
            f"{', '.join(used)}: in use by others; a profile needs the GPU to itself: take the "
            "traffic off this server first"
        )


async def board_of(
    probe: Probe | None, *, index: int, name: str | None, sm_count: int | None, measure_link: bool
) -> tuple[Board, list[str]]:
    """The board, and notes on what was assumed. Call while nothing runs on it. Raises
    :class:`CannotRun` when it must be told more."""
    reading, idle_w, notes = None, None, list[str]()
    if probe is not None:
        reading, idle_w = await _idle(probe)
    sms = sm_count or (reading.sm_count if reading else None)
    if sms is None:
        raise CannotRun("how many SMs the GPU has cannot be read here: give --sm-count")
    bytes_per_ms, note = (
        await _link(index) if measure_link else (bandwidth.ASSUMED_BYTES_PER_MS, "")
    )
    notes.append(note or f"host-to-device bandwidth assumed to be {bytes_per_ms / 1e6:g} GB/s")
    units = max(1, sms // 2)
    board = Board(
        name=name or (reading.name if reading else "GPU"),
        sm_count=sms,
        share_unit=1.0 / units,
        pcie_bytes_per_ms=bytes_per_ms,
        memory_bytes=reading.memory_total_bytes if reading else None,
        max_clock_mhz=reading.max_sm_clock_mhz if reading else None,
        power_limit_w=reading.power_limit_w if reading else None,
        idle_power_w=idle_w,
    )
    return board, notes


async def _idle(probe: Probe) -> tuple[BoardReading, float | None]:
    """A reading, and the mean power over ``IDLE_S``. Raises :class:`CannotRun` when the board
    cannot be read at all."""
    try:
        reading = await probe.read()
        powers, until_s = [], now_s() + IDLE_S
        while now_s() < until_s:
            await asyncio.sleep(_SAMPLE_S)
            powers.append((await probe.read()).power_w)
    except IgniterdError as error:
        raise CannotRun(
            f"the GPU cannot be read: {error} (--gpu none profiles without power, clocks and "
            "memory)"
        ) from error
    known = [p for p in powers if p is not None]
    return reading, fmean(known) if known else None


async def _link(index: int) -> tuple[float, str]:
    try:
        return await bandwidth.measure(index), "host-to-device bandwidth measured"
    except (IgniterdError, OSError) as error:
        assumed = bandwidth.ASSUMED_BYTES_PER_MS
        return (
            assumed,
            f"host-to-device bandwidth assumed to be {assumed / 1e6:g} GB/s (not measured: "
            f"{error})",
        )
