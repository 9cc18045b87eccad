"""The load that a model needs whatever its traffic. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from igniterd.config import Config
from igniterd.decide.cooldown import why_not_now
from igniterd.decide.state import DecisionState
from igniterd.decisions import Step, StepKind
from igniterd.records import Observation
from igniterd.states import Standing, State


def no_shares(observation: Observation, config: Config) -> str:
    """Why no process may be started that is to have a share, or an empty string."""
    if config.loop.mode != "act":
        return ""
    gap = next((gap for gap in observation.gaps if gap.source == "mps"), None)
    if gap is not None and not config.gpu.source.startswith("emulated:"):
        return (
            "MPS control does not answer, and nothing with a share is reloaded without it: "
            f"{gap.reason}"
        )
    if observation.mps is not None and "FAULT" in observation.mps.states.values():
        return (
            "an MPS server is in FAULT: what is started now finds no MPS and runs without a share"
        )
    return ""


def upkeep_of(
    dead: frozenset[str],
    observation: Observation,
    held: DecisionState,
    config: Config,
    known: Mapping[str, Standing],
    busy: Mapping[str, str],
    now_s: float,
) -> Step | None:
    """The load that a model needs whatever its traffic: one whose process has died is brought back,
    and one that its owner wants in a process of its own is given it. One at a time, none too
    often."""
    if config.loop.mode != "act" or no_shares(observation, config):
        return None
    own = {model.tenant for model in config.model if model.process == "own"}
    for name, reading in sorted(observation.models.items()):
        if (
            name not in known
            or known[name].state not in _KEPT_UP
            or busy.keys() & set(reading.gpus)
        ):
            continue
        as_it_is = replace(
            reading.allocation, share=reading.claimed_share or reading.allocation.share
        )
        if name in dead:
            why = (
                "Triton calls it ready, but its process is gone and its requests fail: loaded again"
            )
            step = Step(name, StepKind.REVIVE, as_it_is, as_it_is, why)
        elif name in own and not reading.owns_process:
            why = (
                "its owner wants it in a process of its own, and its backend "
                f"{reading.backend} runs inside tritonserver"
            )
            step = Step(name, StepKind.ADOPT, as_it_is, as_it_is, why)
        else:
            continue
        if not reading.left_alone and not why_not_now(held, (step,), config.decide, now_s):
            return step
    return None


_KEPT_UP = frozenset(
    {
        State.STEERED,
        State.WATCHED,
        State.WARMING,
        State.NOT_ANSWERING,
        State.UNPREDICTABLE,
        State.REFUSED,
    }
)
