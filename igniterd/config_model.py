"""The section of the configuration that says what each model is to keep, and what it may be
given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from igniterd.config_sections import UUID, Name, Section

ModelName = Annotated[str, Field(min_length=1, max_length=200)]
_MOST_GPUS = 64


class Model(Section):
    """One model. Repeat the section for each."""

    name: ModelName
    """As Triton has it: the name of a folder of its repository."""
    triton: Name = "main"
    """``name`` of the Triton that serves it."""
    served_by: Literal["host", "cluster"] = "host"
    """Who is to serve it: this ``host``; or any host of its ``cluster``, for a model that
    ``igniterd fleet`` may move. It decides when ``IgniterdModelNotServed`` fires."""
    slo_p99_ms: Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]
    """P99 latency to stay at or below, ms."""
    priority: Annotated[int, Field(ge=1, le=1000)] = 1
    """1 is the most important: where not every SLO can be kept, the largest number is let go
    first."""
    profile: Path | list[Path] | None = None
    """Profile of this model on this GPU, or one for each kind of GPU it may run on; without one the
    model is observed, not steered."""
    profile_model: str | None = None
    """Name of the model inside the profile, when it is not ``name``."""
    gpu: int | str | None = None
    """GPU it runs on, for a model that chooses its GPU itself: a device number of its Triton (0 to
    63), or a UUID; unset: as Triton's instance_group says."""
    min_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Least share it is given, as a fraction of the GPU."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest share it is given, as a fraction of the GPU."""
    reserve_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """What it takes of its GPU while it is not steered, as a fraction of the GPU; plans leave that
    free. Unset: the part of the time that it executes."""
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Largest batch that igniterd may have formed; unset: the largest one profiled."""
    client_batch: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Largest batch that clients bring in one request, where that is known; unset: as seen."""
    _tenant: str = PrivateAttr("")
    process: Literal["server", "own"] = "server"
    """``server``: where Triton runs it. ``own``: in a process of its own, so that a model of ONNX
    Runtime, PyTorch or TensorRT can have a share."""

    @field_validator("name")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        if (
            "/" in value
            or value in (".", "..")
            or not value.isprintable()
            or value != value.strip()
        ):
            raise ValueError(
                "should be the name of the model's folder in Triton's repository: no slash, no "
                "control characters"
            )
        return value

    @field_validator("gpu", mode="before")
    @classmethod
    def _a_gpu(cls, value: object) -> object:
        number = type(value) is int and 0 <= value < _MOST_GPUS
        if value is None or number or (isinstance(value, str) and UUID.fullmatch(value)):
            return value
        raise ValueError(
            f"should be a device number of its Triton, 0 to {_MOST_GPUS - 1}, or a UUID as "
            "nvidia-smi -L shows it, GPU-… or MIG-…"
        )

    @field_validator("profile", mode="before")
    @classmethod
    def _files(cls, value: object) -> object:
        several = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
        if value is None or isinstance(value, str | Path) or several:
            return value
        raise ValueError("should be the path of a profile, or a list of such paths")

    @property
    def tenant(self) -> str:
        """What it is called on this host: its name, after that of its Triton where several serve a
        model of this name."""
        return self._tenant or self.name

    @property
    def profiles(self) -> tuple[Path, ...]:
        """Its profiles, in the order given; empty without one."""
        if self.profile is None:
            return ()
        return tuple(self.profile) if isinstance(self.profile, list) else (self.profile,)

    @model_validator(mode="after")
    def _ordered(self) -> Model:
        if self.min_share > self.max_share:
            raise ValueError(
                f"min_share ({self.min_share:g}) must not be above max_share ({self.max_share:g})"
            )
        return self
