"""``igniterd fleet apply``: carry out a rebalance, go on with one, take one back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from igniterd.cli.common import cannot, shown
from igniterd.cli.wording import finite, given

if TYPE_CHECKING:
    from igniterd.config_sections import Mqtt
    from igniterd.fleet.apply import Crew
    from igniterd.fleet.journal import Journal
    from igniterd.fleet.places import Places
    from igniterd.fleet.route import Confirm
    from igniterd.messages.rebalance import Rebalance, Step

_TIMEOUT_S, _BROKER_S = 10.0, 10.0

ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The fleet's configuration: [[triton]], [route], [broker], [fleet] clusters.",
    ),
]


def register_apply(group: typer.Typer) -> None:
    """Add the verb to the group ``igniterd fleet``."""
    group.command(name="apply", short_help="Carry out a rebalance, or take one back.")(apply)


def apply(
    config: ConfigFile = Path("/etc/igniterd/fleet.toml"),
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="The rebalance, in place of the broker's; - for stdin."
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The cluster, where the configuration names not just one."
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it. Without it nothing is changed.")
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where what is done is written down; ./igniterd-apply-<cluster>-<time>.jsonl.",
        ),
    ] = None,
    go_on: Annotated[
        Path | None,
        typer.Option("--continue", metavar="JOURNAL", help="Go on with one that has stopped."),
    ] = None,
    undo: Annotated[
        Path | None,
        typer.Option(metavar="JOURNAL", help="Take back what was done, the last step first."),
    ] = None,
    routed: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEP", help="The route that this step waits for is changed."),
    ] = None,
    max_age: Annotated[
        float,
        typer.Option(
            min=1.0, callback=finite, metavar="S", help="The rebalance may be so old, seconds."
        ),
    ] = 900.0,
    drain: Annotated[
        float,
        typer.Option(
            min=1.0,
            callback=finite,
            metavar="S",
            help="Longest wait for the last requests at a source, seconds.",
        ),
    ] = 180.0,
) -> None:
    """Carry out a rebalance on the hosts' Tritons, one step at a time; nothing without --yes.

    Everything is checked first. A model is loaded at its new place, and answers, before its route
    is changed, and is unloaded only when no request comes to it any more. At the first refusal
    nothing more is done (exit status 1); the journal has what was, for --continue and --undo.
    """
    if sum(each is not None for each in (file, go_on, undo)) > 1:
        raise typer.BadParameter("give one of --file, --continue and --undo", param_hint="--file")
    if routed is not None and go_on is None and undo is None:
        raise typer.BadParameter("goes with --continue or --undo", param_hint="--routed")
    from igniterd.fleet.journal import Journal
    from igniterd.fleet.places import read_places
    from igniterd.fleet.told import read_rebalance, rebalance_from

    with cannot():
        places = read_places(config)
        past = go_on or undo
        if past is not None:
            journalled = Journal.read(past)
            opened: Journal | None = journalled
            rebalance = journalled.rebalance
        elif file is not None:
            opened, rebalance = None, rebalance_from(given(file))
        else:
            broker, name = _asked(places, cluster)
            opened, rebalance = None, asyncio.run(read_rebalance(broker, name, _BROKER_S))
        _check_cluster(rebalance, config, [cluster] if cluster else places.fleet.clusters)
        path = journal or Path(
            f"igniterd-apply-{rebalance.cluster}-{time.strftime('%Y%m%dT%H%M%S')}.jsonl"
        )
        with _alone(rebalance.cluster, needed=yes):
            work = _Work(places, rebalance, opened, past or path, drain, max_age, yes, routed)
            asyncio.run(_interruptible(work.undo if undo is not None else work.apply))


def _asked(places: Places, cluster: str | None) -> tuple[Mqtt, str]:
    """The broker and the cluster that it is asked for."""
    if places.broker is None:
        raise typer.BadParameter(
            "the configuration has no [broker]: where is the rebalance?", param_hint="--file"
        )
    named = [cluster] if cluster else places.fleet.clusters
    if len(named) != 1 or named == ["+"]:
        raise typer.BadParameter("which cluster is meant?", param_hint="--cluster")
    return places.broker, named[0]


def _check_cluster(rebalance: Rebalance, config: Path, named: list[str]) -> None:
    """Hosts of two clusters may have the same name: addresses of one are none of the other.
    Raises :class:`CannotRun` for a rebalance of a cluster that is not among ``named``."""
    from igniterd.errors import CannotRun
    from igniterd.fleet.sections import ALL

    if named and ALL not in named and rebalance.cluster not in named:
        raise CannotRun(
            f"the rebalance is of cluster {rebalance.cluster!r}, and not of {' or '.join(named)}, "
            f"as --cluster or [fleet] clusters of {config} says"
        )


class _Work:
    def __init__(
        self,
        places: Places,
        rebalance: Rebalance,
        journal: Journal | None,
        path: Path,
        drain_s: float,
        max_age_s: float,
        yes: bool,
        routed: int | None,
    ) -> None:
        self._places, self._rebalance, self._journal = places, rebalance, journal
        self._path, self._drain_s, self._max_age_s = path, drain_s, max_age_s
        self._yes, self._routed = yes, routed

    async def apply(self) -> None:
        """A new one, or one that goes on."""
        from igniterd.fleet.apply import carry_out, mark_routed
        from igniterd.fleet.journal import Journal

        journal, rebalance = self._journal, self._rebalance
        async with self._crew() as crew:
            begun = frozenset(journal.begun) if journal else frozenset[int]()
            await self._check(crew, begun)
            done = journal.done if journal else {}
            steps = [step for step in rebalance.steps if step.number not in done]
            if not steps:
                shown("nothing is to be done")
                return
            if not self._yes:
                _table(rebalance, steps)
                shown("nothing is changed: --yes carries it out")
                return
            if journal is None:
                journal = Journal.start(self._path, rebalance)
            if self._routed is not None:
                mark_routed(journal, self._routed)
            await self._guard(journal, carry_out(journal, crew), "--continue")
            shown(f"all is done; {self._undo_with()} takes it back")

    async def undo(self) -> None:
        from igniterd.fleet.apply import mark_routed
        from igniterd.fleet.undo import take_back, to_undo

        journal = self._journal
        async with self._crew() as crew:
            steps = to_undo(journal) if journal else []
            if journal is None or not steps:
                shown("nothing is to be taken back")
                return
            if not self._yes:
                _table(self._rebalance, steps, "take back")
                shown("nothing is changed: --yes takes them back")
                return
            if self._routed is not None:
                mark_routed(journal, self._routed)
            left = await self._guard(journal, take_back(journal, crew), "--undo")
        for each in left:
            print(f"igniterd: {each}", file=sys.stderr)
        if left:
            raise typer.Exit(1)
        shown("all is taken back")

    async def _guard(self, journal: Journal, work: Coroutine[Any, Any, Any], again: str) -> Any:
        """Says what state things are in where it stops."""
        from igniterd.errors import CannotRun
        from igniterd.fleet.apply import StepFailed

        try:
            return await work
        except StepFailed as error:
            on = f"igniterd fleet apply {again} {self._path} --yes"
            if error.waits:
                raise CannotRun(f"{error}; then {on} --routed {error.step.number}") from error
            raise CannotRun(f"{error}. {self._state(journal)}; {on} tries again") from error
        except asyncio.CancelledError:
            raise CannotRun(f"stopped. {self._state(journal)}") from None

    def _state(self, journal: Journal) -> str:
        if journal.undo_begun:
            return f"{len(journal.undone)} of {len(journal.begun)} steps are taken back"
        done = len(journal.done)
        return (
            f"{done} of {len(self._rebalance.steps)} steps are done, and every model serves; "
            f"{self._undo_with()} takes them back"
        )

    def _undo_with(self) -> str:
        return f"igniterd fleet apply --undo {self._path} --yes"

    async def _check(self, crew: Crew, begun: frozenset[int]) -> None:
        from igniterd.errors import ConfigError
        from igniterd.fleet.orders import faults_now, faults_of, why_too_old

        rebalance = self._rebalance
        found = faults_of(rebalance)
        if self._journal is None and (old := why_too_old(rebalance, time.time(), self._max_age_s)):
            found.append(old)
        found = found or await faults_now(rebalance, crew.remotes, begun)
        if found:
            raise ConfigError("nothing is changed", found)

    @asynccontextmanager
    async def _crew(self) -> AsyncIterator[Crew]:
        from igniterd.errors import ConfigError
        from igniterd.fleet.apply import Crew
        from igniterd.fleet.orders import Patience, places_of
        from igniterd.fleet.places import client_of
        from igniterd.fleet.remote import RemoteTriton
        from igniterd.fleet.route import Router

        wanted = places_of(self._rebalance)
        if missing := self._places.missing(wanted):
            raise ConfigError("nothing is changed", missing)
        remotes = {
            server.key: RemoteTriton(server, client_of(server, _TIMEOUT_S))
            for server in self._places.triton
            if server.key in wanted
        }
        crew = Crew(remotes, Router(self._places, _confirm()), Patience(self._drain_s), shown)
        try:
            yield crew
        finally:
            await crew.close()


def _confirm() -> Confirm | None:
    """How the operator is asked; None where nobody sits at the terminal."""
    return _asked_operator if sys.stdin.isatty() and sys.stdout.isatty() else None


async def _asked_operator(task: str) -> bool:
    """Waits for a whole line, which Ctrl-C ends: a thread that reads would hold the end up."""
    shown(task, "Is that done? [y/N]")
    loop, line = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), line.set)
    try:
        await line.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextlib.contextmanager
def _alone(cluster: str, *, needed: bool) -> Iterator[None]:
    from igniterd.fleet.alone import alone

    with alone(cluster) if needed else contextlib.nullcontext():
        yield


async def _interruptible(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """SIGTERM and Ctrl-C end the step in hand, and the journal says so."""
    task = asyncio.current_task()
    for each in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(RuntimeError):  # not in the main thread: nobody sends it one
            asyncio.get_running_loop().add_signal_handler(each, task.cancel if task else int)
    await work()


def _table(rebalance: Rebalance, steps: list[Step], what: str = "step") -> None:
    from rich.table import Table

    from igniterd.fleet.orders import move_of

    table = Table(what, "do", "model", "on", "to", "why")
    for step in steps:
        move = move_of(rebalance, step)
        where = f"{move.source.host} → {move.to.host}" if step.action == "route" else step.host
        table.add_row(
            str(step.number), step.action, step.model, where, _short(step), f"move {step.move}"
        )
    shown(rebalance.why, table)


def _short(step: Step) -> str:
    found = step.allocation
    if found is None:
        return ""
    share = "" if found.share is None else f"share {found.share:.1%}, "
    gpus = f", GPU {', '.join(map(str, sorted(set(found.devices))))}" if found.devices else ""
    return f"{share}batch {found.max_batch_size}, {found.instances} instances{gpus}"
