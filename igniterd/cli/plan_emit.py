"""``igniterd plan --emit DIR``: what makes a plan real, a folder for each GPU host.

    DIR/README.txt                          what to do with them
    DIR/routes/                             for balancers, see :mod:`igniterd.cli.plan_routes`
    DIR/gpu-000-v100/igniterd.toml          configuration of the daemon, with the models and SLOs of this GPU
    DIR/gpu-000-v100/v100.profile.json      the profile the plan was made with
    DIR/gpu-000-v100/overrides/W1.json      fields of Triton's model configuration: merge, or load the model with
    DIR/gpu-000-v100/state/shares/…/20/     the environment that gives a Python-backend model its MPS share

A model on Triton is named after its workload, since two workloads may use the same profiled model.
"""  # noqa: E501

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from igniterd.cli.plan_routes import HOW as HOW_ROUTES
from igniterd.cli.plan_routes import Route, write_routes
from igniterd.clients.environments import DEFAULT_SHARES
from igniterd.clients.shares import prepare_share
from igniterd.clients.triton.config_change import with_allocation
from igniterd.config import parse_config
from igniterd.errors import ConfigError, Refused
from igniterd.files import make_folder, replace_file
from igniterd.perf import Profile
from igniterd.planner.plan import PlannedGpu, PlannedTenant, ProvisionPlan
from igniterd.records import Allocation

_STATE = "/var/lib/igniterd"
_HOW = f"""A folder for each GPU of the plan, written by `igniterd plan --emit`. On the host that becomes gpu-000-…:

1. Copy state/shares to {_STATE}/shares (cp -a, as the user igniterd runs as): Triton must see it under that path.
2. Triton's model repository has a model for each file of overrides/, under that name, with one instance. Merge the file into the
   model's config.pbtxt, or into its whole configuration (GET /v2/models/NAME/config) and load it with that (POST
   /v2/repository/models/NAME/load, parameter config): fields replace fields, except that parameters are added to those there are.
   Where the model has an environment of its own already, keep that EXECUTION_ENV_PATH: igniterd puts the share in front of it.
3. Put igniterd.toml and the profile beside it into /etc/igniterd, then: igniterd check --live
"""  # noqa: E501
_LONGEST = 100
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def new_folder(folder: Path) -> None:
    """Make the folder. Raises :class:`ConfigError` where it is not empty or cannot be made."""
    try:
        make_folder(folder)
        empty = not any(folder.iterdir())
    except (OSError, Refused) as error:
        raise ConfigError(
            f"--emit {folder}", [f"cannot be made: {getattr(error, 'strerror', None) or error}"]
        ) from error
    if not empty:
        raise ConfigError(f"--emit {folder}", ["is there already and not empty; give a new folder"])


def emit(plan: ProvisionPlan, profiles: Mapping[str, Profile], folder: Path) -> list[Path]:
    """Write the folders and return them; ``profiles`` by kind of GPU. Raises :class:`ConfigError`
    as :func:`new_folder` does."""
    new_folder(folder)
    made = []
    routes: dict[str, list[Route]] = {}
    models, weights = _models(plan), plan.weights()
    for number, gpu in enumerate(plan.gpus):
        host = folder / f"gpu-{number:03d}-{_safe(gpu.gpu)}"
        make_folder(host / "overrides")
        profile = f"{_safe(gpu.gpu)}.profile.json"
        profiles[gpu.gpu].subset(sorted({seat.model for seat in gpu.tenants})).save(host / profile)
        names = _names(gpu.tenants, models)
        text = _config(host.name, gpu, names, profile)
        # what is written is what the daemon will accept
        parse_config(text, source=f"{host.name}/igniterd.toml")
        replace_file(host / "igniterd.toml", text)
        for seat, name, weight in zip(gpu.tenants, names, weights[number], strict=True):
            routes.setdefault(seat.workload, []).append(Route(host.name, name, weight))
            replace_file(
                host / "overrides" / f"{name}.json",
                json.dumps(_override(seat, name), indent=1) + "\n",
            )
            prepare_share(host / "state" / "shares", seat.share, install=True)
        made.append(host)
    write_routes(routes, folder / "routes")
    replace_file(folder / "README.txt", _HOW + HOW_ROUTES)
    return made


def _safe(name: str) -> str:
    """A name that folders, Triton and the configuration accept: letters, digits and . _ -, the
    first a letter or digit."""
    return _NAME.sub("-", name)[:_LONGEST].strip("-._") or "model"


def _models(plan: ProvisionPlan) -> dict[str, str]:
    """A name of its own for every workload of the plan, the same on all its hosts: a balancer
    routes by it."""
    models: dict[str, str] = {}
    taken: set[str] = set()
    for seat in (seat for gpu in plan.gpus for seat in gpu.tenants):
        if seat.workload not in models:
            models[seat.workload] = _unlike(_safe(seat.workload), taken)
            taken.add(models[seat.workload])
    return models


def _names(seats: Sequence[PlannedTenant], models: Mapping[str, str]) -> list[str]:
    """The models' names on one host; a workload that is there twice has a second name."""
    names: list[str] = []
    for seat in seats:
        name = models[seat.workload]
        names.append(_unlike(name, {*models.values(), *names}) if name in names else name)
    return names


def _unlike(name: str, taken: Collection[str]) -> str:
    """The name, numbered where it is taken."""
    free, n = name, 2
    while free in taken:
        free, n = f"{name}-{n}", n + 1
    return free


def _config(host: str, gpu: PlannedGpu, names: Sequence[str], profile: str) -> str:
    lines = [
        "# Written by `igniterd plan --emit`; `igniterd check --config` reads it.",
        "[host]",
        f"name = {json.dumps(host)}",
        "",
    ]
    lines += ["[loop]", 'mode = "act"', "", "[state]", f"directory = {json.dumps(_STATE)}", ""]
    for seat, name in zip(gpu.tenants, names, strict=True):
        lines += [
            "[[model]]",
            f"name = {json.dumps(name)}",
            f"slo_p99_ms = {float(seat.slo_p99_ms)!r}",
            f"profile = {json.dumps(profile)}",
            f"profile_model = {json.dumps(seat.model)}",
            f"min_share = {min(0.05, seat.share):g}",
            "",
        ]
    return "\n".join(lines)


def _override(seat: PlannedTenant, name: str) -> dict[str, object]:
    """The fields of Triton's configuration that the plan sets, for a Python-backend model."""
    # A base that differs from the plan in its batching and its share, so that both are set.
    batching = {"max_queue_delay_microseconds": seat.max_queue_delay_us + 1}
    base = {
        "name": name,
        "backend": "python",
        "max_batch_size": seat.max_batch_size,
        "instance_group": [{"count": 1}],
    }
    base["dynamic_batching"] = batching
    target = Allocation(seat.share, seat.max_batch_size, seat.max_queue_delay_us)
    made = with_allocation(base, target, DEFAULT_SHARES)
    kept = ("name", "backend", "max_batch_size", "dynamic_batching", "parameters")
    return {key: made[key] for key in kept if key in made}
