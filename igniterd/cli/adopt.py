"""``igniterd adopt``: models of in-process backends in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from igniterd.cli.common import cannot, configured, shown
from igniterd.cli.wording import address, finite, names, one_of
from igniterd.errors import IgniterdError

if TYPE_CHECKING:
    from igniterd.adopt_compare import Adoption
    from igniterd.clients.triton.client import TritonClient
    from igniterd.config import Config, Model, Triton

_TIMEOUT_S, _RELOAD_S = 10.0, 180.0
_MIB = 2.0**20

Models = Annotated[
    list[str] | None, typer.Argument(metavar="MODEL...", help="Models that Triton has loaded.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The daemon's configuration: [[triton]], [engines] and [gpu] of it are used.",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="Triton's gRPC endpoint, host:port (127.0.0.1:8001), without a configuration."
    ),
]
Format = Annotated[str, typer.Option("--format", metavar="FORMAT", help="table or json.")]


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    app.command(
        name="adopt", short_help="Give models of in-process backends processes of their own."
    )(adopt)


def adopt(
    models: Models = None,
    config: ConfigFile = None,
    url: Url = None,
    max_slowdown: Annotated[
        float,
        typer.Option(
            min=1.0,
            callback=finite,
            help="A batch may take this many times the owner's time, and the allowance.",
        ),
    ] = 1.5,
    allowance: Annotated[
        float,
        typer.Option(
            min=0.0,
            callback=finite,
            metavar="MS",
            help="Milliseconds that a batch may take beyond the slowdown.",
        ),
    ] = 0.5,
    environment: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Python environment with the engine, as Triton sees it; else [engines] "
            "environment.",
        ),
    ] = "",
    repository: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER", help="Folder of models as Triton sees it; else [[triton]] repository."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=d1,d2", help="Dimensions of one item, for inputs with variable ones."
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--input", help="An .npz file with items to send, an array an input."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Compare only: the model that serves is left as it is."),
    ] = False,
    form: Format = "table",
) -> None:
    """Give each MODEL a process of its own, so that it can have an MPS share of its own.

    A hosted copy is loaded under another name first and asked the same as the model that serves.
    Only one that answers the same and is not slower than agreed takes its place, by one load: no
    request fails and nothing is written into the repository. Triton restarted serves the owner's
    own. While the copy comes and goes, about a second each, Triton as a whole says that it is not
    ready (/v2/health/ready). Exit status 1 when a model could not be adopted.
    """
    from igniterd.adopt import adopt as adopted
    from igniterd.adopt_compare import Terms
    from igniterd.cli.profile import shapes_of
    from igniterd.profiler.inputs import read_items

    one_of("--format", form, "table", "json")
    _plain(environment)
    with cannot():
        given = shapes_of(shape or []), read_items(inputs) if inputs is not None else {}
        settings = None if config is None else configured(config)

        async def work(client: TritonClient, server: Triton | None, model: str) -> Adoption:
            terms = Terms(
                repositories=tuple(repository or (server.repository if server else ())),
                environment=environment or (settings.engines.environment if settings else ""),
                max_slowdown=max_slowdown,
                allowance_ms=allowance,
                dry_run=dry_run,
                shapes=given[0],
                items=given[1],
                board_bytes=await _board(settings, client, model),
            )
            return await adopted(client, model, terms)

        end(*asyncio.run(each(_named(models), settings, url, work)), form)


def _plain(environment: str) -> None:
    """Checked as the configuration's is: a shell of Triton gets the path unquoted."""
    from pydantic import ValidationError

    from igniterd.config import Engines

    try:
        Engines(environment=environment)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(f"{environment!r} {said}", param_hint="--environment") from error


Work = Callable[["TritonClient", "Triton | None", str], Coroutine[Any, Any, "Adoption"]]
Found = Callable[
    ["TritonClient", "Triton | None"], Coroutine[Any, Any, tuple[list[str], dict[str, str]]]
]


def _named(models: list[str] | None) -> list[str]:
    if not models:
        raise typer.BadParameter("name models to adopt", param_hint="MODEL")
    return names(models)


async def each(
    models: list[str] | None,
    settings: Config | None,
    url: str | None,
    work: Work,
    found_on: Found | None = None,
) -> tuple[list[Adoption], list[str]]:
    """``work`` for each model, one after the other; ``None``: for those that ``found_on`` finds.
    Also says what could not be asked."""
    found: list[Adoption] = []
    silent: list[str] = []
    at = ""
    task = asyncio.current_task()
    with contextlib.suppress(RuntimeError):  # not in the main thread: nobody sends it a signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel if task else int)
    try:
        for server, client in _clients(settings, url):
            async with _closing(client):
                try:
                    mine = [name for m in models or () for name in _on(m, server, settings)]
                    if found_on is not None:
                        mine, unread = await found_on(client, server)
                        silent += [f"{name}: {why}" for name, why in unread.items()]
                except IgniterdError as error:
                    silent.append(str(error))
                    continue
                for model in mine:
                    at = f" at {model}: release puts the owner's back if it was just being swapped"
                    found.append(await _one(work, client, server, model))
    except asyncio.CancelledError:  # the copy of the model in hand is gone
        silent.append(f"stopped{at}")
    return found, silent


async def _one(work: Work, client: TritonClient, server: Triton | None, model: str) -> Adoption:
    from igniterd.adopt import unload_copy
    from igniterd.adopt_compare import Adoption
    from igniterd.engines.hosting import SHADOW

    try:
        if model.startswith(SHADOW):
            await unload_copy(client, model)
            return Adoption(model, "released")
        return await work(client, server, model)
    except IgniterdError as error:
        return Adoption(model, "failed", str(error).removeprefix(f"{model}: "))


@asynccontextmanager
async def _closing(client: TritonClient) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await client.close()


def _clients(settings: Config | None, url: str | None) -> list[tuple[Triton | None, TritonClient]]:
    from igniterd.clients.triton.client import TritonClient
    from igniterd.setup import triton_client

    if settings is None:
        place = address("--url", url or "127.0.0.1:8001")
        return [
            (None, TritonClient("main", place, timeout_s=_TIMEOUT_S, reload_timeout_s=_RELOAD_S))
        ]
    if url is not None:
        raise typer.BadParameter(
            "the configuration says where Triton is: give one of --url and --config",
            param_hint="--url",
        )
    patient = settings.model_copy(
        update={"loop": settings.loop.model_copy(update={"io_timeout_s": _TIMEOUT_S})}
    )
    return [(server, triton_client(server, patient)) for server in settings.triton]


def tenants_of(model: str, settings: Config | None) -> list[Model]:
    """The configured models that are meant by a name: the one that is called so on this host, or
    all of that name, on whatever Triton they are."""
    if settings is None:
        return []
    told = settings.by_name().get(model)
    return [told] if told is not None else [m for m in settings.model if m.name == model]


def _on(model: str, server: Triton | None, settings: Config | None) -> list[str]:
    """What is meant by a name on this server, as the server calls it. One that the configuration
    does not name is the first one's."""
    if settings is None or server is None:
        return [model]
    told = tenants_of(model, settings)
    if not told:
        return [model] if server.name == settings.triton[0].name else []
    return [each.name for each in told if each.triton == server.name]


async def _board(
    settings: Config | None, client: TritonClient, model: str
) -> Callable[[], Coroutine[Any, Any, int | None]] | None:
    """How the memory in use of the model's board is read; ``None`` where it cannot be."""
    from igniterd.cli.profile_run import board_index
    from igniterd.clients.triton.config import devices_of_instances
    from igniterd.profiler.board import Probe
    from igniterd.setup import nvml_client

    if settings is None:
        return None
    with contextlib.suppress(IgniterdError, ImportError, OSError):
        source = nvml_client(settings)
        if source is not None:
            devices = devices_of_instances(await client.config(model))
            boards = await source.read()
            index = await board_index(boards, client.url, devices[0] if devices else 0)
            return Probe(source, index).memory_used_bytes
    return None


def end(found: list[Adoption], silent: list[str], form: str) -> None:
    """Say what came of it; exit status 1 when one was refused, or a server could not be asked."""
    import json
    from dataclasses import asdict

    if form == "json":
        print(json.dumps([asdict(each) for each in found], indent=2))
    else:
        for each in found:
            _table(each)
    problems = [f"{each.model}: {each.why}" for each in found if not each.ok] + silent
    for problem in problems:
        print(f"igniterd: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)


def _table(each: Adoption) -> None:
    from rich.table import Table

    said = f"{each.model}: {each.outcome}" + (f", {each.engine} by {each.how}" if each.how else "")
    shown(said + (", nothing is changed" if each.outcome == "refused" else ""))
    if each.outputs:
        table = Table("output", "type", "largest difference", "allowed", "same")
        for o in each.outputs:
            table.add_row(
                o.name,
                o.datatype,
                f"{o.largest:.3g}",
                f"{o.allowed:.3g}",
                "yes" if o.same else "no",
            )
        shown(table)
    if each.timings:
        table = Table("batch", "owner's ms", "hosted ms", "allowed ms", "fast enough")
        for t in each.timings:
            table.add_row(
                str(t.batch),
                f"{t.owner_ms:.3f}",
                f"{t.hosted_ms:.3f}",
                f"{t.allowed_ms:.3f}",
                "yes" if t.fast_enough else "no",
            )
        shown(table)
    if each.process_bytes is not None:
        shown(f"memory of one hosted copy: {each.process_bytes / _MIB:.0f} MiB of the host")
    if each.board_bytes is not None:
        shown(f"memory of one hosted copy: {each.board_bytes / _MIB:.0f} MiB of the board")
    shown(*(f"not carried over: {note}" for note in each.notes))
