"""Simulated hosts for tests of the control loop, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from igniterd.config import Config
from igniterd.decisions import Tick
from igniterd.loop import Loop
from igniterd.observe import Sources
from igniterd.perf import PerformanceModel
from igniterd.profiled import Predictors
from tests.factories import latency_model, predictor_pair, settings_of
from tests.sim.host import SimHost

SLOS = {"alexnet": 15.0, "resnet50": 40.0, "vgg19": 60.0}


def config(
    folder: Path, slos: Mapping[str, float] = SLOS, *, more: str = "", **priorities: int
) -> Config:
    """A configuration for ``slos``; every model is profiled."""
    return settings_of(folder, slos, more=more, priorities=priorities)


_MODEL = latency_model()


def knowledge(settings: Config, model: PerformanceModel = _MODEL) -> Predictors:
    """What is known of the configured models, all of them in ``model``."""
    predictors = predictor_pair(model, level=settings.decide.level)
    return Predictors({model.name: model.name for model in settings.model}, predictors)


class Bench:
    """A loop on a simulated host; ``run`` ticks it once a second of virtual time.

    With ``proves`` it looks at the host's processes, as a daemon does. It knows the V100's profile,
    or another ``model`` of the same names.
    """

    def __init__(
        self,
        settings: Config,
        rates: Mapping[str, Callable[[float], float]],
        *,
        seed: int = 1,
        max_batch: int = 8,
        proves: bool = False,
        model: PerformanceModel = _MODEL,
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self.began_s = self.clock()
        shifted = {name: self._shifted(rate) for name, rate in rates.items()}
        self.host = SimHost(
            {name: (name, rate) for name, rate in shifted.items()},
            self.clock,
            seed=seed,
            max_batch=max_batch,
        )
        self.ticks: list[Tick] = []
        sources = Sources(
            tritons={"main": self.host},
            models={"main": tuple(rates)},
            timeout_s=settings.loop.io_timeout_s,
        )
        sources.processes = self.host.processes if proves else None
        self.loop = Loop(
            settings,
            sources,
            {"main": self.host},
            knowledge(settings, model),
            self.ticks.append,
            wall_clock=self.clock,
        )

    def _shifted(self, rate: Callable[[float], float]) -> Callable[[float], float]:
        return lambda at_s: rate(at_s - self.began_s)

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.began_s

    async def run(self, seconds: int) -> None:
        for _ in range(seconds):
            began_s = self.clock()
            await self.loop.tick(began_s)
            await asyncio.sleep(max(0.0, began_s + 1.0 - self.clock()))

    def p99_ms(self, model: str, since_s: float, until_s: float) -> float:
        return self.host.p99_ms(model, self.began_s + since_s, self.began_s + until_s)
