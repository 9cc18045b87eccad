"""``igniterd profile``: measure models on a live Triton, show what was measured, put a server
back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from igniterd.cli.common import cannot, shown
from igniterd.cli.wording import finite, names, picture_path
from igniterd.errors import CannotRun

if TYPE_CHECKING:
    from igniterd.profiler.partial import Settings


def register(app: typer.Typer) -> None:
    """Add the verb to ``app``."""
    app.command(name="profile", short_help="Measure models on a live Triton into a profile.")(
        profile
    )


def profile(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Models that Triton has loaded.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile to write.")] = Path(
        "profile.json"
    ),
    triton: Annotated[
        str | None,
        typer.Option(
            help="Triton's gRPC endpoint, host:port (127.0.0.1:8001); with --config the name of "
            "a [[triton]]."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The daemon's configuration: its [[triton]] with TLS and headers, [gpu], [mps] "
            "and [state].",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="PEM file of who signed Triton's certificate: TLS.")
    ] = None,
    cert_file: Annotated[
        Path | None, typer.Option(help="PEM file of igniterd's own certificate: mutual TLS.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Sent with every call; others see it in ps, --config they do not.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Where the board is read: nvml (unless the configuration says otherwise), "
            "emulated:PATH or none."
        ),
    ] = None,
    mps: Annotated[
        bool | None,
        typer.Option(
            "--mps/--no-mps",
            help="Whether processes share the GPU by MPS; without it no share is measured.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the environments of shares (/var/lib/igniterd); Triton must see it "
            "under the same path."
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--input", help="An .npz file with items to send, an array an input."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL:]INPUT=d1,d2",
            help="Dimensions of one item, for inputs with variable ones.",
        ),
    ] = None,
    accuracy: Annotated[
        float,
        typer.Option(
            min=0.001, max=0.5, help="Stop when the fit is this certain (relative deviation)."
        ),
    ] = 0.03,
    points: Annotated[
        int, typer.Option(min=3, help="Most points to measure of a model alone.")
    ] = 11,
    budget: Annotated[
        float | None,
        typer.Option(
            min=1.0, callback=finite, metavar="SECONDS", help="Longest time to measure in all."
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs/--no-pairs", help="Also measure every two models beside each other."),
    ] = True,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Largest batch; by default the model's max_batch_size."),
    ] = None,
    min_share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Smallest share to measure.")
    ] = 0.1,
    sm_count: Annotated[
        int | None, typer.Option(min=1, help="SMs of the GPU, where they cannot be read.")
    ] = None,
    board_name: Annotated[
        str | None, typer.Option(help="Name of the GPU in the profile; by default NVML's.")
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Also while a daemon of this host acts on that Triton.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Go on from the .partial file of an interrupted profile."
        ),
    ] = None,
    restore: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put the server back as the .partial file says."),
    ] = None,
    show: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Print a profile and how well the model fits it."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE", help="Draw the fit of the profile shown or measured: png, svg, pdf."
        ),
    ] = None,
) -> None:
    """Measure models on a live Triton into a profile: alone at chosen batches and shares, then in
    pairs.

    The server should have no other traffic. Everything changed on it is put back at the end, also
    on Ctrl-C; should that not be possible, OUTPUT.partial keeps what it was and --restore puts it
    back later. The latency of a profile is Triton's compute_input + compute_infer + compute_output
    of one execution of exactly that batch: what the daemon compares its predictions with.
    """
    from igniterd.cli.profile_access import Access, headers_of, host_of, to_itself
    from igniterd.cli.profile_run import measure_models, restore_models, run_stoppable
    from igniterd.files import make_folder
    from igniterd.profiler.partial import Partial, partial_path

    with cannot():
        if sum(x is not None for x in (resume, restore, show)) + bool(models) != 1:
            raise typer.BadParameter(
                "name models to profile, or give one of --resume, --restore and --show"
            )
        picture_path("--plot", plot, ".png", ".svg", ".pdf")
        if show is not None:
            _show(show, plot)
            return
        access, headers = (
            Access(triton, config, ca_file, cert_file, key_file),
            headers_of(header or []),
        )
        if restore is not None:
            run_stoppable(restore_models(Partial.read(restore), restore, access, headers))
            return
        if resume is not None:
            partial, path = Partial.read(resume), resume
            partial.settings = access.over(partial.settings)
            output = path.with_suffix("") if path.suffix == ".partial" else output
        else:
            host = host_of(config)
            settings = _settings(
                models=models,
                **access.settings(),
                gpu=gpu or host["gpu"],
                mps=host["mps"] if mps is None else mps,
                shares=host["shares"] if state is None else _folder(state.absolute()) / "shares",
                input=inputs,
                shapes=shapes_of(shape or []),
                accuracy=accuracy,
                points=points,
                pairs=pairs,
                max_batch=max_batch,
                min_share=min_share,
                sm_count=sm_count,
                board_name=board_name,
            )
            partial, path = Partial(settings=settings), partial_path(output)
            if path.exists() and Partial.read(path).originals:
                raise CannotRun(
                    f"{path} says that the server was not put back after an earlier profile: use "
                    f"--resume or --restore {path}"
                )
        make_folder(path.parent)
        with to_itself(partial.settings, beside=beside):
            run_stoppable(measure_models(partial, path, output, budget, headers))
        if plot is not None:
            _show(output, plot)


def _settings(**given: Any) -> Settings:
    from igniterd.profiler.partial import Settings

    gpu = given["gpu"]
    if gpu not in ("nvml", "none") and not gpu.startswith("emulated:"):
        raise typer.BadParameter(
            f"{gpu!r} should be nvml, none or emulated:PATH", param_hint="--gpu"
        )
    names(given["models"])
    return Settings(**given)


def _folder(path: Path) -> Path:
    """The state folder, checked as the configuration's is: Triton would hang for ever on a space in
    it."""
    from pydantic import ValidationError

    from igniterd.config import State

    try:
        return State(directory=path).directory
    except ValidationError as error:
        raise typer.BadParameter(
            f"{str(path)!r} {error.errors()[0]['msg'].removeprefix('Value error, ')}",
            param_hint="--state",
        ) from error


def shapes_of(given: list[str]) -> dict[str, list[int]]:
    found = {}
    for text in given:
        name, _, dims = text.rpartition("=")
        try:
            found[name] = [int(d) for d in dims.split(",")]
        except ValueError:
            found[name] = []
        if not name or not found[name] or min(found[name]) < 1:
            raise typer.BadParameter(
                f"{text!r} should be INPUT=d1,d2,… with dimensions above 0", param_hint="--shape"
            )
    return found


def _show(path: Path, plot: Path | None) -> None:
    from igniterd.cli.profile_show import describe, draw
    from igniterd.perf.profile import Profile

    found = Profile.load(path)
    shown(*describe(found))
    if plot is not None:
        draw(found, plot)
        print(plot)
