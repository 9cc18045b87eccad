"""What live traffic corrects of a model's predictions, and when plans are told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from igniterd.belief import ModelState
from igniterd.estimators.bias import Measured, Point
from igniterd.estimators.bias_filter import update_bias
from igniterd.loads import BiasEstimate, Changed

# smallest changes of a bias estimate that are published to plans
PUBLISH_LEVEL, PUBLISH_TILT, PUBLISH_SD = 0.01, 0.01, 0.75
PUBLISH_CV = 0.01, 0.1  # the larger of this and so much of it


def update_model_bias(
    belief: ModelState,
    measured: Sequence[Measured],
    at_s: float,
    point: Point,
    dispersion: tuple[float, float],
) -> ModelState:
    """``belief`` with what ``measured`` at ``point`` teaches; nothing until the model has settled.

    ``dispersion``: of one service time, as profiled and what uncapped neighbours add.
    """
    if at_s < belief.settled_at_s or not measured:
        return belief
    bias, factor = update_bias(
        belief.bias, at_s, measured, point, usual_cv=dispersion[0], met_cv=dispersion[1]
    )
    changed = belief.changed
    if factor is not None:
        changed = Changed(
            at_s,
            f"its service times became {factor:.2f} times what they were: what was learnt of "
            "them is forgotten",
        )
    return replace(
        belief,
        bias=bias,
        published_bias=_publish(belief.published_bias, bias.estimate),
        changed=changed,
    )


def _publish(published: BiasEstimate | None, now: BiasEstimate | None) -> BiasEstimate | None:
    """The estimate that plans read: ``published``, until ``now`` differs from it enough."""
    if published is None or now is None:
        return now
    if (published.share, published.pressure) != (now.share, now.pressure):
        return now
    sd_ratio = now.sd / published.sd
    still = (
        abs(now.level - published.level) < PUBLISH_LEVEL
        and abs(now.tilt - published.tilt) < PUBLISH_TILT
        and PUBLISH_SD < sd_ratio < 1 / PUBLISH_SD
        and published.cv is not None
        and now.cv is not None
        and abs(now.cv - published.cv) < max(PUBLISH_CV[0], PUBLISH_CV[1] * published.cv)
    )
    return published if still else now
