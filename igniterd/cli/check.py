"""``igniterd check``: is everything as the daemon needs it, in plain words. Changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from igniterd.cli.check_models import of_model
from igniterd.cli.findings import Finding

if TYPE_CHECKING:
    from igniterd.clients.triton.client import TritonClient
    from igniterd.config import Config
    from igniterd.errors import IgniterdError
    from igniterd.loop import Predictors
    from igniterd.records import BoardReading, ModelReading, MpsReading, Stub


PROCESSES_S = 5.0  # longest look at the host's processes


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
            findings = list(_static(settings, knowledge, _learnt(settings, live)))
            findings += [Finding("warn", "secrets", said) for said in exposed(settings, config)]
            findings += asyncio.run(_collected(settings, knowledge)) if live else []
        if form == "json":
            print(
                json.dumps(
                    [{"level": f.level, "what": f.what, "said": f.said} for f in findings], indent=2
                )
            )
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


async def _collected(settings: Config, knowledge: Predictors) -> list[Finding]:
    return [finding async for finding in _live(settings, knowledge)]


def _learnt(settings: Config, live: bool) -> dict[str, str]:
    """What live traffic has taught of the models without a profile: from the running daemon if it
    is to be asked, else from its file."""
    import time

    from igniterd.cli.show import fetched
    from igniterd.errors import Unreachable
    from igniterd.estimators.live_curve import where
    from igniterd.state.checkpoint import service_times

    names = [model.name for model in settings.model if model.profile is None]
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


def _static(settings: Config, knowledge: Predictors, learnt: dict[str, str]) -> Iterator[Finding]:
    """What the files alone tell. ``learnt``: what is known without a profile, by model."""
    yield Finding(
        "ok",
        "configuration",
        f"{len(settings.model)} models on {len(settings.triton)} Triton, mode {settings.loop.mode}",
    )
    if settings.mqtt is not None:
        yield _broker(settings)
    for model in settings.model:
        if model.name in knowledge.profiled:
            yield Finding(
                "ok",
                f"profile of {model.name}",
                f"{model.profile} ({knowledge.profiled[model.name]})",
            )
        else:
            yield Finding(
                "warn",
                f"profile of {model.name}",
                "none: its traffic is watched, its share and batching are left alone. "
                f"{_without(learnt.get(model.name))} "
                "A profile adds other shares, larger batches and the effect of neighbours, so "
                "that all of them are planned for its P99 of "
                f"{model.slo_p99_ms:g} ms: igniterd profile {model.name}",
            )


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


def _without(learnt: str | None) -> str:
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


async def _live(settings: Config, knowledge: Predictors) -> AsyncIterator[Finding]:
    from igniterd.cli.check_folders import folders
    from igniterd.cli.check_shares import shares
    from igniterd.records import MpsReading
    from igniterd.setup import triton_client

    readings: dict[str, ModelReading] = {}
    mps = await _mps_reading(settings)
    for server in settings.triton:
        there: dict[str, ModelReading] = {}
        client = triton_client(server, settings)
        try:
            async for finding in _triton(client, settings, there):
                yield finding
            if there and settings.mps.enabled:
                version = (await client.server()).version
                for finding in shares(
                    settings,
                    server,
                    version,
                    there,
                    await _stubs(),
                    mps if isinstance(mps, MpsReading) else None,
                ):
                    yield finding
        finally:
            await client.close()
        readings |= there
    yield _mps(settings, mps)
    boards: list[BoardReading] = []
    async for finding in _boards(settings, boards):
        yield finding
    for finding in _copies(readings, boards, knowledge):
        yield finding
    for finding in folders(settings):
        yield finding


async def _triton(
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
    names = [m.name for m in settings.model if m.triton == client.name]
    for name, reading in (await client.read_models(names)).items():
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


def _copies(
    readings: Mapping[str, ModelReading], boards: Sequence[BoardReading], knowledge: Predictors
) -> Iterator[Finding]:
    """Whether every model that is steered fits beside itself for the time of a reload."""
    from igniterd.act import second_copy
    from igniterd.records import Observation

    seen, unknown = Observation(0.0, boards=tuple(boards), models=readings), list[str]()
    for name in readings.keys() & knowledge.steerable(seen).keys():
        fits = second_copy(name, seen, knowledge.copy_bytes)
        if fits.refused:
            yield Finding(
                "warn",
                f"model {name}",
                f"it cannot be changed: {fits.refused.removeprefix(f'{name}: ')}",
            )
        elif fits.unknown:
            unknown.append(name)
    if unknown:
        why = (
            "whether there is room for a second copy while one is reloaded is not known: it "
            "takes memory_bytes of a profile, and NVML"
        )
        yield Finding("warn", "GPU memory", f"{', '.join(sorted(unknown))}: {why}")


async def _stubs() -> tuple[Stub, ...] | None:
    """The stub processes of this host; ``None`` where its table cannot be read."""
    from igniterd.clients.processes import ProcessTable
    from igniterd.errors import IgniterdError

    try:
        async with asyncio.timeout(PROCESSES_S):
            return await ProcessTable().read()
    except (IgniterdError, TimeoutError):
        return None


async def _mps_reading(settings: Config) -> MpsReading | IgniterdError | None:
    """MPS control's answer, or why there is none; ``None`` where MPS is not used."""
    from igniterd.errors import IgniterdError
    from igniterd.setup import mps_client

    client = mps_client(settings)
    if client is None:
        return None
    try:
        return await client.read()
    except IgniterdError as error:
        return error


def _mps(settings: Config, reading: MpsReading | IgniterdError | None) -> Finding:
    from igniterd.errors import IgniterdError

    if reading is None:
        return Finding(
            "warn", "MPS", "mps.enabled is false: shares have no effect; only batching is steered"
        )
    if isinstance(reading, IgniterdError):
        return Finding(
            "bad" if settings.loop.mode == "act" else "warn",
            "MPS control",
            f"{reading}; start nvidia-cuda-mps-control -d",
        )
    if reading.default_share is not None and reading.default_share < 1:
        return Finding(
            "warn",
            "MPS control",
            f"the default active thread percentage is {reading.default_share:.0%} and caps every "
            "client: "
            "set_default_active_thread_percentage 100",
        )
    return _mps_servers(settings, reading)


def _mps_servers(settings: Config, reading: MpsReading) -> Finding:
    faulty = [str(pid) for pid, state in reading.states.items() if state == "FAULT"]
    if faulty:
        what = (
            f"server {', '.join(faulty)} is in FAULT: it takes no client until all it has are gone"
        )
        return Finding("bad" if settings.loop.mode == "act" else "warn", "MPS control", what)
    if reading.server_pids:
        clients = "" if reading.client_pids is None else f", {len(reading.client_pids)} clients"
        return Finding(
            "ok", "MPS control", f"answers; {len(reading.server_pids)} servers running{clients}"
        )
    if settings.gpu.source.startswith("emulated:"):
        return Finding(
            "ok", "MPS control", "answers; no server, as models of an emulated board are no clients"
        )
    return Finding(
        "warn",
        "MPS control",
        f"answers, but no process has connected to {settings.mps.pipe_directory}: with models "
        "that use the GPU that means that "
        "Triton does not reach it (its CUDA_MPS_PIPE_DIRECTORY, a mount, --ipc=host, or another "
        "user), and shares have no effect",
    )


async def _boards(settings: Config, read: list[BoardReading]) -> AsyncIterator[Finding]:
    """``read`` takes what they answer."""
    from igniterd.errors import IgniterdError
    from igniterd.setup import nvml_client

    client = nvml_client(settings)
    if client is None:
        yield Finding("warn", "NVML", "gpu.source is none: power, clock and memory are not watched")
        return
    try:
        boards = await client.read()
    except IgniterdError as error:
        yield Finding("warn", "NVML", str(error))
        return
    finally:
        await client.close()
    read.extend(boards)
    for board in boards:
        yield Finding("ok", f"GPU {board.index}", f"{board.name}, {board.uuid}")
