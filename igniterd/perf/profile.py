"""Profiles: what was measured of models on one kind of GPU, as versioned JSON.

A profile holds one board, one or several models with their solo measurements, and co-runs. It is
written by tools only (``igniterd profile``, ``python -m igniterd.data.v100.build``) and checked in
full when it is read: types and units by the schema shipped as
``igniterd/data/profile.schema.json``, then what physics says (a larger share or a smaller batch is
never slower, a neighbour never helps) within the noise of a measurement.

Units: times in ms, shares as a fraction of the SMs in (0, 1], power in W, clocks in MHz, sizes in
bytes, use of L2 and DRAM in percent of the peak.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igniterd.errors import ProfileError, Refused
from igniterd.files import replace_file
from igniterd.perf.api import UNCAPPED
from igniterd.perf.plausible import board_problems, co_run_problems, model_problems

FORMAT = "igniterd-profile"
VERSION = 1


Share = Annotated[float, Field(gt=0, le=1, description="fraction of the SMs")]
Batch = Annotated[int, Field(ge=1, le=4096, description="items in a batch")]
Milliseconds = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Watts = Annotated[float, Field(gt=0, le=5000, allow_inf_nan=False)]
Megahertz = Annotated[float, Field(gt=0, le=10000, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Part(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False
    )


class SoloPoint(_Part):
    """Mean time of one batch in a closed loop with the GPU to itself, both transfers included."""

    batch: Batch
    share: Share
    latency_ms: Milliseconds
    # standard deviation of single batches over their mean
    latency_cv: Annotated[float, Field(ge=0, le=10)] | None = None
    # standard error of the mean over the mean
    latency_error: Annotated[float, Field(ge=0, le=1)] | None = None
    l2_pct: Percent | None = None  # of peak L2 throughput
    dram_pct: Percent | None = None  # of peak DRAM bandwidth
    sm_pct: Percent | None = None  # of the time, any SM busy
    pcie_bytes_per_ms: Annotated[float, Field(ge=0)] | None = None  # both directions
    power_w: Watts | None = None  # whole board
    clock_mhz: Megahertz | None = None


class GpuPoint(_Part):
    """A solo measurement as the published method takes it: time on the GPU, without transfers."""

    batch: Batch
    share: Share
    gpu_ms: Milliseconds
    power_w: Watts
    clock_mhz: Megahertz
    l2_pct: Percent | None = None


class IgniterInputs(_Part):
    """The measurements the published method (Xu et al., TPDS 2023, sec. 3) is fitted from;
    igniterd's own model does not read them."""

    gpu_points: Annotated[tuple[GpuPoint, ...], Field(min_length=6)]
    active_solo_ms: Milliseconds  # active time alone, at one operating point
    active_pair_ms: Milliseconds  # the same beside a copy of itself
    pair_clock_mhz: Megahertz
    pair_l2_pct: Annotated[float, Field(gt=0, le=100)]  # L2 use of that copy


class ModelProfile(_Part):
    """One model on this board."""

    input_bytes: Annotated[int, Field(ge=0)] = 0  # per item, host to device
    output_bytes: Annotated[int, Field(ge=0)] = 0  # per item, device to host
    kernels: Annotated[int, Field(ge=1)] | None = None  # per batch
    # idle time between kernels of one batch, alone on the GPU
    gap_ms: Annotated[float, Field(ge=0)] | None = None
    memory_bytes: Annotated[int, Field(ge=0)] | None = None  # device memory of one instance
    solo: Annotated[tuple[SoloPoint, ...], Field(min_length=3)]
    igniter: IgniterInputs | None = None

    @property
    def service_cv(self) -> float | None:
        """Coefficient of variation of one service time, to a hundredth: the mean over the points
        where it was measured; ``None`` where it was at none."""
        measured = [p.latency_cv for p in self.solo if p.latency_cv is not None]
        return round(sum(measured) / len(measured), 2) if measured else None


class CoTenant(_Part):
    """One closed loop of a co-run. Without ``share`` no cap held it."""

    model: Name
    batch: Batch
    share: Share = UNCAPPED
    latency_ms: Milliseconds
    latency_error: Annotated[float, Field(ge=0, le=1)] | None = None


class CoRun(_Part):
    """Two or more closed loops at once on one GPU. Their shares below 1 add up to at most 1."""

    tenants: Annotated[tuple[CoTenant, ...], Field(min_length=2)]
    power_w: Watts | None = None
    clock_mhz: Megahertz | None = None


class Copies(_Part):
    """The board under a number of co-located copies of one model."""

    copies: Annotated[int, Field(ge=1)]
    power_w: Watts
    clock_mhz: Megahertz
    gap_per_kernel_ms: Annotated[float, Field(ge=0)]


class Board(_Part):
    """The GPU."""

    name: Name
    sm_count: Annotated[int, Field(ge=1, le=2048)]
    share_unit: Share  # granularity of a share
    pcie_bytes_per_ms: Annotated[float, Field(gt=0)]
    memory_bytes: Annotated[int, Field(ge=0)] | None = None
    max_clock_mhz: Megahertz | None = None
    power_limit_w: Watts | None = None
    idle_power_w: Watts | None = None
    copies: tuple[Copies, ...] = ()


class Profile(_Part):
    """Everything measured of one kind of GPU. Immutable; ``load`` and ``save`` are the only ways in
    and out."""

    format: Literal["igniterd-profile"] = "igniterd-profile"
    version: Literal[1] = 1
    board: Board
    models: Annotated[dict[Name, ModelProfile], Field(min_length=1)]
    co_runs: tuple[CoRun, ...] = ()
    origin: str = ""  # where the figures come from, for people

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a profile. Raises :class:`ProfileError` naming the file, the field and
        what would be right."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ProfileError(f"{path}: cannot be read: {exc}") from exc
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "profile") -> Self:
        """Check the JSON ``text``; ``source`` names it in errors."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ProfileError(f"{source}: not JSON: {exc}") from exc
        _check_version(data, source)
        try:
            profile = cls.model_validate_json(text, strict=True)
        except ValidationError as exc:
            raise ProfileError(f"{source}: " + "; ".join(_said(e) for e in exc.errors())) from exc
        profile.check(source)
        return profile

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, whole or not at all. Raises :class:`ProfileError` when it is
        implausible or cannot be written."""
        path = Path(path)
        self.check(str(path))
        try:
            replace_file(path, self.dump())
        except (OSError, Refused) as exc:
            raise ProfileError(f"{path}: cannot be written: {exc}") from exc

    def dump(self) -> str:
        """The profile as JSON text; ``parse`` reads it back to an equal profile."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1) + "\n"

    def check(self, source: str = "profile") -> None:
        """Raise :class:`ProfileError` with every contradiction of physics found, or return."""
        problems = [*board_problems(self), *model_problems(self), *co_run_problems(self)]
        if problems:
            raise ProfileError(f"{source}: " + "; ".join(problems))

    def merge(self, other: Profile) -> Profile:
        """Both profiles as one: same board, models of either, co-runs of both.

        Raises :class:`ProfileError` when the boards differ or a model is in both with different
        figures.
        """
        if self.board != other.board:
            mine, theirs = self.board.model_dump(), other.board.model_dump()
            differing = ", ".join(
                f"{k}: {mine[k]!r} and {theirs[k]!r}" for k in mine if mine[k] != theirs[k]
            )
            raise ProfileError(f"profiles of different boards cannot be merged ({differing})")
        twice = [
            name
            for name in self.models
            if name in other.models and self.models[name] != other.models[name]
        ]
        if twice:
            raise ProfileError(
                f"profiled twice with different figures: {', '.join(sorted(twice))}; keep one of "
                "the files"
            )
        extra = tuple(run for run in other.co_runs if run not in self.co_runs)
        origin = (
            self.origin
            if other.origin in ("", self.origin)
            else f"{self.origin}; {other.origin}".strip("; ")
        )
        return Profile(
            board=self.board,
            models={**self.models, **other.models},
            co_runs=self.co_runs + extra,
            origin=origin,
        )

    def time_scaled(self, factor: float) -> Profile:
        """The same board with every time ``factor`` times as long (bandwidth as much less): a
        slowed emulated GPU."""
        if not (factor > 0 and factor < float("inf")):
            raise ValueError(f"factor is {factor}: it must be a finite number above 0")
        data = _scaled(self.model_dump(), factor)
        return Profile.model_validate(data)

    def subset(self, models: Iterable[str]) -> Profile:
        """The profile of some of its models only, with the co-runs among them. Raises ``KeyError``
        for one that is not here."""
        kept = {name: self.models[name] for name in models}
        runs = tuple(run for run in self.co_runs if all(t.model in kept for t in run.tenants))
        return self.model_copy(update={"models": kept, "co_runs": runs})


def builtin_profile(gpu: str) -> Profile:
    """The profile shipped for ``gpu`` (``"v100"``). Raises :class:`ProfileError` naming those there
    are."""
    found = builtin_profiles()
    if gpu not in found:
        raise ProfileError(
            f"no profile is shipped for GPU {gpu!r}; shipped: {', '.join(found)} (or give the "
            "path of a profile)"
        )
    text = (
        resources.files("igniterd")
        .joinpath("data", gpu, f"{gpu}.profile.json")
        .read_text(encoding="utf-8")
    )
    return Profile.parse(text, source=f"shipped profile {gpu}")


def builtin_profiles() -> tuple[str, ...]:
    """Names of the GPUs a profile is shipped for."""
    data = resources.files("igniterd").joinpath("data")
    names = (folder.name for folder in data.iterdir() if folder.is_dir())
    return tuple(sorted(n for n in names if data.joinpath(n, f"{n}.profile.json").is_file()))


def resolve_profile(gpu: str) -> Profile:
    """A shipped profile by name, or one read from a path (anything with a ``/`` or ending in
    ``.json``)."""
    if "/" in gpu or gpu.endswith(".json"):
        return Profile.load(gpu)
    return builtin_profile(gpu)


def json_schema() -> dict[str, Any]:
    """The published JSON schema of a profile."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Profile.model_json_schema(),
    }


# ---------------------------------------------------------------- checks


def _check_version(data: object, source: str) -> None:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ProfileError(f'{source}: not an igniterd profile ("format" must be "{FORMAT}")')
    version = data.get("version")
    if version == VERSION:
        return
    if isinstance(version, int) and version > VERSION:
        raise ProfileError(
            f"{source}: version {version} was written by a newer igniterd (this one reads "
            f"{VERSION}): upgrade igniterd"
        )
    raise ProfileError(
        f"{source}: version {version!r} is no longer read (this igniterd reads {VERSION}): "
        "measure again with igniterd profile"
    )


def _said(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "profile"
    given = error.get("input")
    shown = (
        f" (is {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    )
    return f"{where}: {error['msg']}{shown}"


def _scaled(value: Any, factor: float) -> Any:
    """``value`` (nested dicts and lists) with every field ending in ``_ms`` scaled: rates per ms
    divided, times multiplied."""
    if isinstance(value, dict):
        return {key: _scaled_field(key, item, factor) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scaled(item, factor) for item in value]
    return value


def _scaled_field(key: str, item: Any, factor: float) -> Any:
    if isinstance(item, int | float):
        if key.endswith("_per_ms"):
            return item / factor
        if key.endswith("_ms"):
            return item * factor
    return _scaled(item, factor)
