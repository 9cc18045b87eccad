"""What the demo plays: models, SLOs, and the phases of traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Served:
    """A model with its SLO (P99) and rates as on a real board; what is played is slowed."""

    name: str
    slo_ms: float


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
    """Models, phases of traffic, and how much slower than a real board they are played."""

    models: tuple[Served, ...]
    phases: tuple[DemoPhase, ...]
    slow_factor: float = SLOW_FACTOR
    seed: int = 1

    def slo_ms(self, model: str) -> float:
        """The SLO that is played."""
        return next(m.slo_ms for m in self.models if m.name == model) * self.slow_factor

    def rates(self, phase: DemoPhase) -> dict[str, float]:
        """The rates that are played, requests a second."""
        return {model: rate / self.slow_factor for model, rate in phase.rates_per_s.items()}

    def host(self) -> HostSpec:
        """The emulated host: every model as Triton's defaults have it, without a share."""
        return HostSpec(
            models=tuple(EmulatedModel(m.name) for m in self.models),
            slow_factor=self.slow_factor,
            seed=self.seed,
        )


MODELS = (Served("alexnet", 15.0), Served("resnet50", 40.0), Served("vgg19", 60.0))
BEFORE = {"alexnet": 400.0, "resnet50": 300.0, "vgg19": 150.0}
AFTER = {"alexnet": 400.0, "resnet50": 450.0, "vgg19": 75.0}


def paper(*, frozen: bool = False, slow_factor: float = SLOW_FACTOR, seed: int = 1) -> Scenario:
    """The three example models of Xu et al. (IEEE TPDS 34(3), 2023) with their SLOs on one V100,
    under Poisson arrivals.

    ``frozen`` adds a phase in which the traffic has shifted and the plan made before stands still.
    """
    phases = [
        DemoPhase(
            "bare",
            "Triton as it comes",
            "default batching, no shares: the models take turns on the GPU",
            BEFORE,
            3.0,
            20.0,
        ),
        DemoPhase(
            "steered",
            "igniterd",
            "the daemon is started, reads the host and moves it",
            BEFORE,
            SETTLE_START_S,
            40.0,
            Mode.ACT,
            judged=True,
        ),
    ]
    shift = "resnet50 gets half as much traffic again, vgg19 half of it"
    if frozen:
        said = f"{shift}; the daemon only watches, the old plan stands still"
        phases.append(
            DemoPhase(
                "frozen",
                "traffic shifts, plan frozen",
                said,
                AFTER,
                SETTLE_SHIFT_S,
                30.0,
                Mode.OBSERVE,
            )
        )
        said = "the same traffic; the daemon may act again"
        phases.append(
            DemoPhase(
                "shifted",
                "traffic shifted, igniterd",
                said,
                AFTER,
                SETTLE_START_S,
                40.0,
                Mode.ACT,
                judged=True,
            )
        )
    else:
        phases.append(
            DemoPhase(
                "shifted",
                "traffic shifts",
                f"{shift}; the daemon answers",
                AFTER,
                SETTLE_SHIFT_S,
                40.0,
                Mode.ACT,
                judged=True,
            )
        )
    return Scenario(MODELS, tuple(phases), slow_factor, seed)
