"""What many tests make alike: predictors and configurations of the built-in V100 profile."""

from collections.abc import Mapping
from pathlib import Path

from igniterd.config import Config, parse_config
from igniterd.decide.judge import PredictorPair
from igniterd.perf import PerformanceModel, builtin_profile, load_model
from igniterd.predict import LatencyPredictor

LEVEL = 0.95


def latency_model(*, time_scale: float = 1.0) -> PerformanceModel:
    """The V100's model with every service time multiplied by ``time_scale``."""
    profile = builtin_profile("v100")
    return load_model(profile if time_scale == 1.0 else profile.time_scaled(time_scale))


def predictor_pair(model: PerformanceModel | None = None, *, level: float = LEVEL) -> PredictorPair:
    """Both predictors of ``model`` (default: the V100's), each with an empty memo."""
    model = latency_model() if model is None else model
    return PredictorPair(
        upper=LatencyPredictor(model, level=level),
        mean=LatencyPredictor(model, level=level, upper=False),
    )


def settings_of(
    folder: Path,
    slos: Mapping[str, float],
    *,
    more: str = "",
    priorities: Mapping[str, int] | None = None,
) -> Config:
    """A configuration of models that keep ``slos`` (P99 in ms by model), its state in ``folder``.

    ``more`` is TOML that stands before the models. Their profile is ``folder/v100.json``.
    """
    priorities = priorities or {}
    models = "".join(
        f'[[model]]\nname = "{name}"\nslo_p99_ms = {slo}\npriority = {priorities.get(name, 1)}\n'
        'profile = "v100.json"\n'
        for name, slo in slos.items()
    )
    return parse_config(
        f'[host]\nname = "test"\n[state]\ndirectory = "{folder}/state"\n{more}\n{models}',
        source="test",
        folder=folder,
    )
