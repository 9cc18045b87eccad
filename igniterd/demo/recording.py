"""All that was seen in one run of the demo: what the page is drawn from, kept as JSON beside the
log of requests. Times are Unix time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from igniterd.errors import CannotRun
from igniterd.records import Allocation

FILE = "recording.json"
REQUESTS = "requests.csv"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Applied(_Frozen):
    """What is applied to a model; ``share`` None: it takes turns with the others. ``gpu``: the
    number that its server gives its GPU, None where it knows of none."""

    share: float | None
    max_batch_size: int
    max_queue_delay_us: int = 0
    gpu: int | None = None

    def allocation(self) -> Allocation:
        """The same, as the predictor wants it."""
        devices = () if self.gpu is None else (self.gpu,)
        return Allocation(self.share, self.max_batch_size, self.max_queue_delay_us, devices=devices)

    def __str__(self) -> str:
        share = "no share" if self.share is None else f"{self.share:.1%}"
        delay = f", waits {self.max_queue_delay_us / 1000:g} ms" if self.max_queue_delay_us else ""
        return f"{share}, batch {self.max_batch_size}{delay}"


class Sample(_Frozen):
    """The daemon's ``/state`` at one moment, as much of it as is drawn."""

    at_s: float
    outcome: str
    why: str
    headroom: float | None
    power_w: float | None
    applied: dict[str, Applied]
    predicted_p99_ms: dict[str, float | None]
    rate_per_s: dict[str, float]
    bias: dict[str, float]
    """Measured over predicted service time, as learnt."""


class Move(_Frozen):
    """One change as the daemon reported it."""

    at_s: float
    model: str
    kind: str
    before: Applied
    after: Applied
    ok: bool
    duration_s: float
    why: str
    error: str = ""

    @property
    def relocates(self) -> bool:
        """Whether it was to another GPU."""
        return self.before.gpu != self.after.gpu


class Message(_Frozen):
    """One MQTT message; ``topic`` without the host's prefix."""

    at_s: float
    topic: str
    retained: bool
    data: dict[str, Any]


class PhaseResult(_Frozen):
    """A phase as it went. Measured from ``measured_s`` to ``end_s``; before that it settled."""

    key: str
    title: str
    said: str
    mode: str | None
    judged: bool
    rates_per_s: dict[str, float]
    begin_s: float
    measured_s: float
    end_s: float


class Recording(_Frozen):
    """One run."""

    began_s: float
    machine: str
    slow_factor: float
    slos_ms: dict[str, float]
    initial: dict[str, Applied]
    phases: list[PhaseResult]
    samples: list[Sample] = Field(default_factory=list)
    moves: list[Move] = Field(default_factory=list)
    messages: list[Message] = Field(default_factory=list)
    forecast_p99_ms: dict[str, float | None] = Field(default_factory=dict)
    """What the model, with what it had learnt, predicts after the shift if the plan before it had
    stood still; None is overload."""
    notes: list[str] = Field(default_factory=list)
    gpus: list[str] = Field(default_factory=list)
    """UUIDs of the GPUs by their server's numbers; empty where it knows of none."""

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """The last run in ``folder``. Raises :class:`CannotRun` when there is none or it is of
        another version."""
        try:
            return cls.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise CannotRun(
                f"{folder} holds no finished run of the demo to draw: run `igniterd demo` first "
                f"({problem})"
            ) from problem

    @property
    def models(self) -> list[str]:
        return list(self.slos_ms)

    def said(self, text: str) -> str:
        """A sentence of the daemon, which calls GPUs by their UUIDs, with their numbers."""
        for number, uuid in enumerate(self.gpus):
            text = text.replace(uuid, f"GPU {number}")
        return text


def applied_from(raw: dict[str, Any]) -> Applied:
    """From the daemon's JSON."""
    devices = raw["devices"]
    return Applied(
        gpu=devices[0] if devices else None,
        share=raw["share"],
        max_batch_size=raw["max_batch_size"],
        max_queue_delay_us=raw["max_queue_delay_us"],
    )


def sample_from(state: dict[str, Any]) -> Sample:
    """From the daemon's ``/state``."""
    seen = [m for m in state["models"] if m["seen"]]
    decision = state["decision"]
    boards = state["boards"]
    return Sample(
        at_s=state["time_s"],
        outcome=decision["outcome"],
        why=decision["why"],
        headroom=decision["headroom"],
        power_w=boards[0]["power_w"] if boards else None,
        applied={m["name"]: applied_from(m["applied"]) for m in seen},
        predicted_p99_ms={m["name"]: m["predicted"]["p99"] for m in seen if "predicted" in m},
        rate_per_s={m["name"]: m["rate_per_s"] for m in seen if "rate_per_s" in m},
        bias={m["name"]: m["bias"] for m in seen if "bias" in m},
    )


def moves_from(state: dict[str, Any]) -> list[Move]:
    """The last moves of the daemon's ``/state``."""
    return [
        Move(
            at_s=raw["time_s"],
            model=raw["model"],
            kind=raw["kind"],
            before=applied_from(raw["before"]),
            after=applied_from(raw["after"]),
            ok=raw["ok"],
            duration_s=raw["duration_s"],
            why=raw["why"],
            error=raw["error"],
        )
        for raw in state["last_moves"]
    ]
