"""What the demo plays: models, SLOs, and the phases of traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from igniterd.lab.gpu.boards import EmulatedBoard, boards_of
from igniterd.lab.host import EmulatedModel, HostSpec
from igniterd.records import Mode

SLOW_FACTOR = 4.0
"""The emulated V100 is this many times slower than a real one, so that Triton and the load fit on
two cores."""
SETTLE_START_S = 25.0
"""From the daemon's first tick: it watches the traffic (8 s), gives each model its share (a reload
of 2 s each), at times corrects the plan half way (4 s and another reload or two), and queues
drain."""
SETTLE_SHIFT_S = 20.0
"""From a change of traffic: it is noticed (5 to 10 s), and the shares are moved, shrinking before
growing (2 s each)."""
SETTLE_MOVE_S = 35.0
"""The same where a model has to be moved: the GPU that gets it makes room first. The GPU in trouble
may have answered with its own shares before that."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model with its SLO (P99) and rates as on a real board; what is played is slowed.

    ``gpu``: where it begins, on a host whose boards are given.
    """

    name: str
    slo_ms: float
    gpu: int | None = None


@dataclass(frozen=True, slots=True)
class DemoPhase:
    """A phase. ``rates_per_s`` as on a real board; ``mode`` None: no daemon. It settles for
    ``settle_s`` from the first tick of a daemon that is started in it, and otherwise from its
    beginning.

    Judged: every P99 must be within its SLO after ``settle_s``.
    """

    key: str
    title: str
    said: str
    rates_per_s: Mapping[str, float]
    settle_s: float
    measured_s: float
    mode: Mode | None = None
    judged: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """Models, phases of traffic, and how much slower than a real board they are played.

    Without ``boards`` there is one V100, which Triton knows nothing of.
    """

    models: tuple[Served, ...]
    phases: tuple[DemoPhase, ...]
    slow_factor: float = SLOW_FACTOR
    seed: int = 1
    boards: tuple[EmulatedBoard, ...] = ()

    def slo_ms(self, model: str) -> float:
        """The SLO that is played."""
        return next(m.slo_ms for m in self.models if m.name == model) * self.slow_factor

    def rates(self, phase: DemoPhase) -> dict[str, float]:
        """The rates that are played, requests a second."""
        return {model: rate / self.slow_factor for model, rate in phase.rates_per_s.items()}

    def host(self) -> HostSpec:
        """The emulated host: every model as Triton's defaults have it, without a share."""
        return HostSpec(
            models=tuple(
                EmulatedModel(m.name, gpus=None if m.gpu is None else (m.gpu,)) for m in self.models
            ),
            slow_factor=self.slow_factor,
            seed=self.seed,
            boards=self.boards,
        )


MODELS = (Served("alexnet", 15.0), Served("resnet50", 40.0), Served("vgg19", 60.0))
BEFORE = {"alexnet": 400.0, "resnet50": 300.0, "vgg19": 150.0}
AFTER = {"alexnet": 400.0, "resnet50": 450.0, "vgg19": 75.0}


def paper(*, frozen: bool = False, slow_factor: float = SLOW_FACTOR, seed: int = 1) -> Scenario:
    """The three example models of Xu et al. (IEEE TPDS 34(3), 2023) with their SLOs on one V100,
    under Poisson arrivals.

    ``frozen`` adds a phase in which the traffic has shifted and the plan made before stands still.
    """
    shift = Shift(
        BEFORE, AFTER, "resnet50 gets half as much traffic again, vgg19 half of it", SETTLE_SHIFT_S
    )
    return Scenario(MODELS, _phases(shift, frozen=frozen), slow_factor, seed)


ON_TWO = tuple(replace(m, gpu=1 if m.name == "alexnet" else 0) for m in MODELS)
BEFORE_ON_TWO = {"alexnet": 200.0, "resnet50": 300.0, "vgg19": 100.0}
AFTER_ON_TWO = BEFORE_ON_TWO | {"resnet50": 660.0, "vgg19": 220.0}
"""More than one V100 holds with the SLOs of resnet50 and vgg19, however its shares are dealt.
Either fits beside alexnet on the other."""


def two_gpus(*, frozen: bool = False, slow_factor: float = SLOW_FACTOR, seed: int = 1) -> Scenario:
    """The same models on two V100s, one Triton over both: GPU 0 gets more traffic than it can hold,
    GPU 1 has room.

    The boards are alike, so CUDA numbers them as the bus does, and NVML too.
    """
    said = "resnet50 and vgg19 get 2.2 times the traffic, more than GPU 0 can hold"
    shift = Shift(BEFORE_ON_TWO, AFTER_ON_TWO, said, SETTLE_MOVE_S)
    phases = _phases(shift, frozen=frozen)
    return Scenario(ON_TWO, phases, slow_factor, seed, boards_of("v100", "v100"))


@dataclass(frozen=True, slots=True)
class Shift:
    """A change of traffic, in words too, and how long its answer may take."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    said: str
    settle_s: float


def _phases(shift: Shift, *, frozen: bool) -> tuple[DemoPhase, ...]:
    """Without the daemon, with it, and after the shift; with ``frozen`` before that the shift with
    the plan standing still."""
    bare = DemoPhase(
        "bare",
        "Triton as it comes",
        "default batching, no shares: the models of a GPU take turns",
        shift.before,
        3.0,
        20.0,
    )
    steered = DemoPhase(
        "steered",
        "igniterd",
        "the daemon is started, reads the host and moves it",
        shift.before,
        SETTLE_START_S,
        40.0,
        Mode.ACT,
        judged=True,
    )
    shifted = DemoPhase(
        "shifted",
        "traffic shifts",
        f"{shift.said}; the daemon answers",
        shift.after,
        shift.settle_s,
        40.0,
        Mode.ACT,
        judged=True,
    )
    if not frozen:
        return bare, steered, shifted
    still = DemoPhase(
        "frozen",
        "traffic shifts, plan frozen",
        f"{shift.said}; the daemon only watches, the old plan stands still",
        shift.after,
        shift.settle_s,
        30.0,
        Mode.OBSERVE,
    )
    again = replace(
        shifted,
        title="traffic shifted, igniterd",
        said="the same traffic; the daemon may act again",
        settle_s=max(SETTLE_START_S, shift.settle_s),
    )
    return bare, steered, still, again
