"""The work of ``igniterd profile``: models measured or put back, to the end or to a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from igniterd import __version__
from igniterd.boards import nvml_library
from igniterd.cli.profile_access import Access, client_of, mps_warning
from igniterd.clients.nvml import NvmlClient
from igniterd.clients.processes import ProcessTable
from igniterd.clients.triton.client import TritonClient
from igniterd.clients.triton.config import devices_of_instances
from igniterd.devices import ServerFacts, devices_of
from igniterd.errors import CannotRun, IgniterdError
from igniterd.profiler.board import Counters, Probe
from igniterd.profiler.partial import Partial, Settings
from igniterd.profiler.server import restore
from igniterd.profiler.session import Session
from igniterd.records import BoardReading

PROCESSES_S = 5.0  # longest look at the processes of the host


def run_stoppable(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; the first SIGINT or SIGTERM stops it in order (the server is put back), a
    second one at once."""

    async def main() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.create_task(work)

        def stop() -> None:
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            # not in the main thread: nobody sends it a signal
            with contextlib.suppress(RuntimeError):
                loop.add_signal_handler(number, stop)
        await task

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        print("igniterd: stopped", file=sys.stderr)
        raise typer.Exit(1) from None


async def _open_probe(settings: Settings, client: TritonClient) -> tuple[Probe | None, int]:
    """The board the models run on, or ``None`` where it is not to be read, and its index."""
    indices = {
        device
        for model in settings.models
        for device in devices_of_instances(await client.config(model)) or (0,)
    }
    if len(indices) > 1:
        raise CannotRun(
            f"the models run on GPUs {', '.join(map(str, sorted(indices)))}: profile those of "
            "one GPU at a time"
        )
    (device,) = indices
    library = nvml_library(settings.gpu, field="--gpu")
    if library is None:
        return None, device
    source = NvmlClient(library, timeout_s=2.0)
    index = await board_index(await source.read(), client.url, device)
    return Probe(source, index, Counters(library, index)), device


async def board_index(boards: Sequence[BoardReading], url: str, device: int) -> int:
    """NVML's index of the GPU that the Triton at ``url`` calls ``device``.

    Raises :class:`CannotRun` where that cannot be told: figures of another board would be taken for
    this one's.
    """
    servers: Mapping[int, ServerFacts] = {}
    with contextlib.suppress(IgniterdError, TimeoutError):
        async with asyncio.timeout(PROCESSES_S):
            servers = await ProcessTable().servers()
    port = url.rpartition(":")[2]
    facts = servers.get(int(port) if port.isdecimal() else 0, ServerFacts())
    found = devices_of("main", (), boards, facts)
    if device < len(found.gpus):
        return next(board.index for board in boards if board.uuid == found.gpus[device])
    if len(boards) <= 1:
        return device
    why = (found.ambiguous or found.rests_on).partition(";")[0]
    raise CannotRun(
        f"which of the {len(boards)} boards of this host is device {device} of the Triton at {url} "
        f"is not known: {why}. Start it with CUDA_VISIBLE_DEVICES=UUID of the board to profile"
    )


async def measure_models(
    partial: Partial, path: Path, output: Path, budget_s: float | None, headers: Mapping[str, str]
) -> None:
    """Measure what ``partial`` (kept in ``path``) lacks and write the profile to ``output``.

    ``budget_s`` is the longest time to measure, in all; ``headers`` go with every call. Raises
    :class:`~igniterd.errors.IgniterdError`; the server is put back in any case.
    """
    settings = partial.settings
    client = client_of(settings, headers)
    try:
        server = await client.server()
        if refusal := await client.refuses_loads():
            raise CannotRun(f"Triton at {settings.triton}: {refusal}")
        probe, index = await _open_probe(settings, client)
        warning = await mps_warning(settings)
        with _show_progress() as listener:
            if warning:
                listener.say(warning)
            link = settings.gpu == "nvml"
            session = Session(
                client,
                probe,
                partial,
                path,
                listener,
                index=index,
                measure_link=link,
                budget_s=budget_s,
                reach=client.reach,
                processes=ProcessTable(),
            )
            try:
                await session.run()
            finally:
                report_left_behind(path)
    finally:
        await client.close()
    origin = (
        f"igniterd {__version__} profile, Triton {server.version}, {datetime.now(UTC):%Y-%m-%d}"
    )
    found = partial.profile(
        origin="; ".join([origin, *partial.notes, *([warning] if warning else [])])
    )
    found.save(output)
    path.unlink()  # noqa: ASYNC240  nothing else runs any more
    for name, done in partial.models.items():
        print(f"{name}: {len(done.solo)} points in {done.spent_s:.0f} s", file=sys.stderr)
    if partial.co_runs:
        print(f"{len(partial.co_runs)} co-runs in {partial.pairs_spent_s:.0f} s", file=sys.stderr)
    print(output)


def report_left_behind(path: Path) -> None:
    """Say what is not as it was. The file tells: it is written before the server is changed for the
    first time."""
    if path.exists() and (left := Partial.read(path).originals):
        print(
            f"igniterd: {', '.join(left)} not as it was found: igniterd profile --restore {path} "
            "puts it back",
            file=sys.stderr,
        )


async def restore_models(
    partial: Partial, path: Path, access: Access, headers: Mapping[str, str]
) -> None:
    """Put the server back as ``partial`` says. Raises :class:`CannotRun` for models that could not
    be."""
    settings = access.over(partial.settings)
    if not partial.originals:
        print(f"{path}: nothing to put back")
        return
    client = client_of(settings, headers)
    try:
        failed = await restore(
            client,
            partial.originals,
            run=partial.run,
            shares=settings.shares,
            patience_s=30.0,
            say=lambda text: print(text, file=sys.stderr),
        )
    finally:
        await client.close()
    print("\n".join(f"{name}: as it was" for name in partial.originals if name not in failed))
    partial.originals = {
        name: config for name, config in partial.originals.items() if name in failed
    }
    partial.write(path)
    if failed:
        raise CannotRun("; ".join(f"{name}: {why}" for name, why in failed.items()))


@contextlib.contextmanager
def _show_progress() -> Iterator[Any]:
    """A progress bar on a terminal, a line for each measurement elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    class Lines:
        def __init__(
            self, show: Callable[[int, int, float, str], None], tell: Callable[[str], None]
        ) -> None:
            self.progress, self.say = show, tell

    if not sys.stderr.isatty():
        yield Lines(
            lambda done, total, left_s, now: print(
                f"[{done}/{total}, {left_s:.0f} s left] {now}", file=sys.stderr, flush=True
            ),
            lambda text: print(text, file=sys.stderr, flush=True),
        )
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None, left="")

        def show(done: int, total: int, left_s: float, now: str) -> None:
            bar.update(
                task, description=now, completed=done, total=total, left=f"{left_s:.0f} s left"
            )

        yield Lines(show, bar.console.print)
