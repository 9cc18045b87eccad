"""The kinds of GPU that can be rented: a profile, a price, how many there are, and the models
fitted to the profile when asked for."""

from __future__ import annotations

import math
from functools import cached_property

from igniterd.errors import ConfigError
from igniterd.perf import PerformanceModel, Profile, load_model, resolve_profile
from igniterd.perf.igniter_model import IgniterModel
from igniterd.predict import LatencyPredictor, service_cv

PRICES_PER_HOUR = {"v100": 3.06, "t4": 0.526}
"""USD an hour of one GPU where none is given: AWS p3.2xlarge and g4dn.xlarge, on demand, the
instances of the published evaluation."""


class GpuType:
    """One kind of GPU. ``name`` is the board's name in its profile."""

    def __init__(
        self, profile: Profile, price_per_hour: float | None = None, most: int | None = None
    ) -> None:
        self.profile = profile
        self.name = profile.board.name
        self.price_per_hour = (
            PRICES_PER_HOUR.get(self.name) if price_per_hour is None else price_per_hour
        )
        self.most = most
        """Most GPUs of this kind that may be used; ``None``: as many as needed."""
        self._predictors: dict[float, LatencyPredictor] = {}

    @cached_property
    def published(self) -> IgniterModel:
        """The published model. Raises :class:`igniterd.errors.ProfileError` when the profile lacks
        its inputs."""
        return IgniterModel(self.profile)

    @cached_property
    def model(self) -> PerformanceModel:
        """igniterd's own model."""
        return load_model(self.profile, "igniterd")

    def predictor(self, level: float) -> LatencyPredictor:
        """What :attr:`model` and the queue promise at this confidence, to the last digit."""
        if level not in self._predictors:
            self._predictors[level] = LatencyPredictor(self.model, level=level, exact=True)
        return self._predictors[level]

    @property
    def units(self) -> int:
        """Whole share units of one GPU."""
        return math.floor(1.0 / self.profile.board.share_unit + 1e-9)

    def memory_bytes(self, model: str) -> int | None:
        """Memory of one instance of ``model``, where the profile has it."""
        return self.profile.models[model].memory_bytes

    def service_cv(self, model: str) -> float:
        """Dispersion of one service time."""
        return service_cv(self.model, model)

    def __repr__(self) -> str:
        return f"GpuType({self.name!r}, {self.price_per_hour!r})"


def parse_gpu(text: str) -> GpuType:
    """``NAME_OR_PATH[@PRICE][xCOUNT]``, e.g. ``v100``, ``v100@2.48``, ``v100@2.48x8``,
    ``profiles/t4.json@0.53``.

    Raises :class:`ConfigError` for a price or count that is none,
    :class:`igniterd.errors.ProfileError` for an unknown GPU.
    """
    name, priced, tail = text.partition("@")
    price: float | None = None
    most: int | None = None
    if priced:
        amount, _, count = tail.partition("x")
        problems = []
        try:
            price = float(amount)
            if not (math.isfinite(price) and price > 0):
                problems.append(f"the price {amount!r} should be above 0 an hour")
        except ValueError:
            problems.append(f"the price {amount!r} should be a number, as in v100@2.48")
        if count and not (count.isdigit() and int(count) > 0):
            problems.append(
                f"the count {count!r} should be a whole number above 0, as in v100@2.48x8"
            )
        if problems:
            raise ConfigError(f"GPU {text}", problems)
        most = int(count) if count else None
    return GpuType(resolve_profile(name), price, most)


def check_gpus(gpus: tuple[GpuType, ...]) -> None:
    """Several kinds need a price each and names of their own, or costs cannot be compared. Raises
    :class:`ConfigError`."""
    problems = []
    names = [gpu.name for gpu in gpus]
    problems += [
        f"{name} is given twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if len(gpus) > 1:
        problems += [
            f"{gpu.name} has no price; give one as {gpu.name}@PRICE_PER_HOUR"
            for gpu in gpus
            if gpu.price_per_hour is None
        ]
    if problems:
        raise ConfigError("GPU", problems)
