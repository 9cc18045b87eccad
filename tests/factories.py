"""What many tests make alike: predictors and configurations of the built-in V100 profile."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from igniterd.config import Config, parse_config
from igniterd.decide.judge import PredictorPair
from igniterd.lab.gpu.floor import NO_FLOOR, HostFloor
from igniterd.lab.gpu.truth import Neighbour, Truth
from igniterd.perf import PerformanceModel, Profile, builtin_profile, load_model
from igniterd.perf.profile import CoTenant
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


def profile_of_truth(floors: Mapping[str, HostFloor]) -> Profile:
    """The V100's profile as it would be measured of the emulated board, at the shipped points, with
    ``floors`` (by model) under the times; without the published method's inputs."""
    truth, shipped = Truth.v100(), builtin_profile("v100")
    floor_of = {name: floors.get(name, NO_FLOOR) for name in shipped.models}

    def took_ms(me: CoTenant, others: Sequence[CoTenant]) -> float:
        near = [
            Neighbour(
                o.model,
                o.batch,
                o.share,
                floor_of[o.model].busy(truth.solo_ms(o.model, o.batch, o.share)),
            )
            for o in others
        ]
        return truth.latency_ms(me.model, me.batch, me.share, near, floor_of[me.model])

    models = {
        name: model.model_copy(
            update={
                "igniter": None,
                "solo": tuple(
                    p.model_copy(
                        update={
                            "latency_ms": truth.latency_ms(
                                name, p.batch, p.share, floor=floor_of[name]
                            )
                        }
                    )
                    for p in model.solo
                ),
            }
        )
        for name, model in shipped.models.items()
    }
    runs = tuple(
        run.model_copy(
            update={
                "tenants": tuple(
                    t.model_copy(
                        update={"latency_ms": took_ms(t, run.tenants[:i] + run.tenants[i + 1 :])}
                    )
                    for i, t in enumerate(run.tenants)
                )
            }
        )
        for run in shipped.co_runs
    )
    made = shipped.model_copy(update={"models": models, "co_runs": runs})
    made.check("profile of the truth")
    return made
