"""``igniterd check``: is everything as the daemon needs it, in plain words. Changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.config import Config
    from igniterd.devices import Devices
    from igniterd.profiled import Predictors
    from igniterd.records import BoardReading, ModelReading


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    from igniterd.cli.run import CONFIG

    @app.command(short_help="Is everything as the daemon needs it? Changes nothing.")
    def check(
        config: Path = CONFIG,
        live: bool = typer.Option(False, "--live", help="Also ask Triton, MPS control and NVML."),
        form: str = typer.Option("table", "--format", metavar="FORMAT", help="table or json."),
    ) -> None:
        """Check the configuration and the profiles; with --live also the host. Exit status 1 when
        something is wrong."""
        import json

        from igniterd.cli.common import cannot, configured, log_to_stderr
        from igniterd.cli.wording import one_of
        from igniterd.exposed import exposed
        from igniterd.predictors import load_knowledge

        one_of("--format", form, "table", "json")
        log_to_stderr("auto")  # standard output is for the findings
        settings = configured(config)
        with cannot():
            knowledge = load_knowledge(settings)
            findings = list(_check_files(settings, knowledge, _read_curves(settings, live)))
            findings += [Finding("warn", "secrets", said) for said in exposed(settings, config)]
            findings += asyncio.run(_collect(settings, knowledge)) if live else []
        if form == "json":
            print(json.dumps([f.as_json() for f in findings], indent=2))
        else:
            _print(findings)
        if any(f.level == "bad" for f in findings):
            raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    from rich.text import Text

    from igniterd.cli.common import shown

    colour = {"ok": "green", "warn": "yellow", "bad": "red"}
    shown(
        *(
            Text.assemble((f"{f.level:>4}", colour[f.level]), f"  {f.what}: {f.said}")
            for f in findings
        )
    )


async def _collect(settings: Config, knowledge: Predictors) -> list[Finding]:
    return [finding async for finding in _check_live(settings, knowledge)]


def _read_curves(settings: Config, live: bool) -> dict[str, str]:
    """What live traffic has taught of the models without a profile: from the running daemon if it
    is to be asked, else from its file."""
    import time

    from igniterd.cli.show import fetched
    from igniterd.errors import Unreachable
    from igniterd.estimators.live_curve import where
    from igniterd.state.checkpoint import service_times

    names = [model.tenant for model in settings.model if not model.profiles]
    known = (
        service_times(settings.state.directory / "learnt.json", names, time.time()) if names else {}
    )
    if live and names:
        with contextlib.suppress(Unreachable):
            states = fetched(f"http://{settings.metrics.listen}/state")["models"]
            known |= {
                m["name"]: f"{where(m['live']['share'])}: {m['live']['said']}"
                for m in states
                if m["name"] in names and m.get("live")
            }
    return known


def _check_files(
    settings: Config, knowledge: Predictors, learnt: dict[str, str]
) -> Iterator[Finding]:
    """What the files alone tell. ``learnt``: what is known without a profile, by model."""
    yield Finding(
        "ok",
        "configuration",
        f"{len(settings.model)} models on {len(settings.triton)} Triton, mode {settings.loop.mode}",
    )
    if settings.mqtt is not None:
        yield _broker(settings)
    for model in settings.model:
        if model.tenant in knowledge.all_profiled:
            yield Finding(
                "ok",
                f"profile of {model.tenant}",
                f"{', '.join(map(str, model.profiles))} ({knowledge.all_profiled[model.tenant]})",
            )
            yield from _host_bound(model.tenant, knowledge)
        else:
            yield Finding(
                "warn",
                f"profile of {model.tenant}",
                "none: its traffic is watched, its share and batching are left alone. "
                f"{_explain_no_profile(learnt.get(model.tenant))} "
                "A profile adds other shares, larger batches and the effect of neighbours, so "
                "that all of them are planned for its P99 of "
                f"{model.slo_p99_ms:g} ms: igniterd profile {model.name}",
            )


def _host_bound(name: str, knowledge: Predictors) -> Iterator[Finding]:
    """Whether a model waits for its host, on each kind of board that it has a profile of."""
    from igniterd.cli.host_bound import host_bound

    for kind in knowledge.kinds:
        if name not in kind.profiled or kind.predictors is None:
            continue
        model, profiled_as = kind.predictors.mean.model, kind.profiled[name]
        bound = host_bound(model, profiled_as, kind.least_shares[name])
        if bound is not None:
            board = f" on {kind.board}" if knowledge.others else ""
            yield Finding("warn", f"model {name}{board}", bound.sentence, bound.as_json())


def _broker(settings: Config) -> Finding:
    """Whether the files that ``[mqtt]`` names are there; without them the daemon does not start."""
    from igniterd.errors import CannotRun
    from igniterd.setup import mqtt_publisher

    try:
        mqtt_publisher(settings)
    except CannotRun as error:
        return Finding("bad", "MQTT", str(error))
    return Finding(
        "ok",
        "MQTT",
        f"hints go to {settings.mqtt.url if settings.mqtt else 'nobody'}; whether the broker "
        "answers shows at run time",
    )


def _explain_no_profile(learnt: str | None) -> str:
    """What can be told of a model without its profile."""
    if learnt is None:
        return (
            "Nothing is learnt of its service times yet: igniterd run in mode observe learns "
            "them from traffic."
        )
    return (
        f"Its traffic tells its service times {learnt}; that predicts its P99 as long as "
        "nothing is changed."
    )


async def _check_live(settings: Config, knowledge: Predictors) -> AsyncIterator[Finding]:
    from igniterd.cli.check_devices import devices, kinds, on_their_gpus
    from igniterd.cli.check_folders import folders
    from igniterd.cli.check_host import (
        boards,
        copies,
        mps_control,
        read_mps,
        read_servers,
        read_stubs,
    )
    from igniterd.cli.check_shares import shares
    from igniterd.cli.check_triton import of_triton
    from igniterd.records import MpsReading
    from igniterd.setup import triton_client

    readings: dict[str, ModelReading] = {}
    labels: dict[str, tuple[str, ...]] = {}
    mps = await read_mps(settings)
    for server in settings.triton:
        there: dict[str, ModelReading] = {}
        client = triton_client(server, settings)
        try:
            async for finding in of_triton(client, settings, there):
                yield finding
            labels[server.name] = client.gpu_labels
            if there and settings.mps.enabled:
                version = (await client.server()).version
                for finding in shares(
                    settings,
                    server,
                    version,
                    there,
                    await read_stubs(),
                    mps if isinstance(mps, MpsReading) else None,
                ):
                    yield finding
        finally:
            await client.close()
        readings |= there
    yield mps_control(settings, mps)
    read: list[BoardReading] = []
    async for finding in boards(settings, read):
        yield finding
    known: dict[str, Devices] = {}
    for finding in devices(settings, read, labels, await read_servers(), known):
        yield finding
    for finding in kinds(read, knowledge):
        yield finding
    readings = on_their_gpus(settings, readings, known)
    for finding in copies(readings, read, knowledge):
        yield finding
    for finding in folders(settings):
        yield finding
