"""What was measured so far, on disk after every point: an interrupted profile goes on from here,
and a server is restored from here.

The file is written whole or not at all, first of all before the server is changed for the first
time. While it holds ``originals``, the server may not be as it was found; they leave the file once
everything is back.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igniterd.errors import CannotRun, ProfileError, Refused
from igniterd.files import replace_file
from igniterd.perf.profile import Board, CoRun, ModelProfile, Profile, SoloPoint

FORMAT = "igniterd-profile-partial"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Settings(_Part):
    """What was asked for."""

    models: list[str] = Field(min_length=1)
    triton: str
    """gRPC endpoint, host:port."""
    config: Path | None = None
    """The daemon's configuration; its ``[[triton]]`` named ``server`` says how that is reached:
    TLS, headers."""
    server: str = "main"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    gpu: str = "nvml"
    mps: bool = True
    """Whether processes share the GPU; without MPS every model is measured with all of it."""
    shares: Path
    """Folder of share environments; ends in ``shares``."""
    input: Path | None = None
    shapes: dict[str, list[int]] = Field(default_factory=dict)
    """Dimensions of one item by input name, or by ``model:input``."""
    accuracy: float = Field(default=0.03, gt=0, lt=1)
    points: int = Field(default=11, ge=3, le=1000)
    pairs: bool = True
    max_batch: int | None = Field(default=None, ge=1, le=4096)
    min_share: float = Field(default=0.1, gt=0, le=1)
    sm_count: int | None = Field(default=None, ge=1)
    board_name: str | None = None


class Done(_Part):
    """What is known of one model."""

    solo: list[SoloPoint] = Field(default_factory=list)
    most_batch: int | None = None
    """Batches above this were refused by the model."""
    memory_bytes: int | None = None
    spent_s: float = 0.0

    def measured(self) -> dict[tuple[int, float], tuple[float, float]]:
        """Time (ms) and its relative error by (batch, share)."""
        return {(p.batch, p.share): (p.latency_ms, p.latency_error or 0.0) for p in self.solo}


class Partial(_Part):
    """The file."""

    format: Literal["igniterd-profile-partial"] = "igniterd-profile-partial"
    version: Literal[1] = 1
    settings: Settings
    run: str = Field(default_factory=lambda: secrets.token_hex(8))
    """On every model it changes, so that its own changes are told from somebody else's."""
    originals: dict[str, dict[str, Any]] = Field(default_factory=dict)
    board: Board | None = None
    notes: list[str] = Field(default_factory=list)
    models: dict[str, Done] = Field(default_factory=dict)
    item_bytes: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Input and output bytes of one item."""
    co_runs: list[CoRun] = Field(default_factory=list)
    even: bool | None = None
    """Whether co-runs are at half the GPU each, because reloads are slow; settled with the first
    model."""
    pairs_spent_s: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises :class:`CannotRun` naming the file and what is wrong."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise CannotRun(f"{path}: cannot be read: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CannotRun(
                f"{path}: not what igniterd profile leaves behind when it is interrupted "
                f'("format" must be "{FORMAT}")'
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise CannotRun(
                f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from error

    def write(self, path: Path) -> None:
        """Raises :class:`CannotRun` when it cannot be written."""
        try:
            replace_file(path, self.model_dump_json(exclude_none=True) + "\n", sync=True)
        except (OSError, Refused) as error:
            raise CannotRun(f"{path}: cannot be written: {error}") from error

    def profile(self, *, origin: str) -> Profile:
        """The profile as far as it goes. Raises :class:`ProfileError` when too little was
        measured."""
        if self.board is None:
            raise ProfileError("the board has not been measured yet")
        few = [name for name in self.settings.models if len(self.models.get(name, Done()).solo) < 3]
        if few:
            raise ProfileError(
                f"fewer than 3 points of {', '.join(few)} were measured: go on with --resume"
            )
        models = {
            name: ModelProfile(
                input_bytes=self.item_bytes[name][0],
                output_bytes=self.item_bytes[name][1],
                memory_bytes=done.memory_bytes,
                solo=tuple(sorted(done.solo, key=lambda p: (p.batch / p.share, p.batch))),
            )
            for name, done in self.models.items()
        }
        return Profile(board=self.board, models=models, co_runs=tuple(self.co_runs), origin=origin)


def partial_path(output: Path) -> Path:
    """Where the partial file of a profile lies."""
    return output.with_name(output.name + ".partial")
