"""Why a model is not steered, or not in every way: read from its configuration. Pure."""

from __future__ import annotations

import re

from igniterd.clients.environments import (
    DEFAULT_SHARES,
    PLAIN,
    ModelConfig,
    Own,
    Reach,
    parameter,
    way_obstacle,
)
from igniterd.clients.triton.config import kinds_of

HANDS_OFF = "IGNITERD_HANDS_OFF"
"""A parameter that the owner of a model sets: igniterd then leaves the model as it is."""


_PLAIN_NAME = re.compile(r"[\w.+@%=:,-]+")


def share_obstacle(
    config: ModelConfig,
    shares_dir: str = DEFAULT_SHARES,
    *,
    reach: Reach = PLAIN,
    own: Own = Own.UNSEEN,
) -> str:
    """Why the model cannot be given an MPS share of its own, or an empty string."""
    return (
        left_alone(config) or way_obstacle(config, shares_dir, reach, own) or name_obstacle(config)
    )


def name_obstacle(config: ModelConfig) -> str:
    """Why a model of this name cannot be started in an environment, or an empty string."""
    name = str(config.get("name", ""))
    if name and not _PLAIN_NAME.fullmatch(name):
        # Triton starts a process with an environment through a shell that gets the model's folder
        # unquoted, and waits for it for ever
        return (
            f"its name {name!r} has characters that mean something to a shell, through which "
            "Triton would start it with a share"
        )
    return ""


def batching_obstacle(config: ModelConfig) -> str:
    """Why the model's batches are formed as they are whatever igniterd sets, or an empty string."""
    alone = left_alone(config)
    if alone:
        return alone
    if int(config.get("max_batch_size", 0)) == 0:
        return (
            "max_batch_size is 0, so its tensors have no batch dimension and requests cannot "
            "be put together"
        )
    if "dynamic_batching" not in config:
        # code that was only ever given one request at a time may answer only one
        return (
            "it has no dynamic_batching, so it gets one request at a time; add "
            "dynamic_batching { } to it if it takes more"
        )
    return ""


def hands_off(config: ModelConfig) -> str:
    """Why igniterd must not change the model: its owner says so on the model itself. Empty where
    nobody does."""
    said = (parameter(config, HANDS_OFF) or "").strip()
    if said.lower() in {"", "0", "false", "no"}:
        return ""
    return f"its owner says {HANDS_OFF} = {said!r} in its configuration"


def left_alone(config: ModelConfig) -> str:
    """Why igniterd neither steers nor predicts the model but only watches it, or an empty
    string."""
    if "ensemble_scheduling" in config:
        return "it is an ensemble, which executes nothing itself: name the models it is made of"
    if "sequence_batching" in config:
        return (
            "it has sequence_batching: a reload would end the sequences under way, and a "
            "sequence's requests wait for one another"
        )
    if config.get("model_transaction_policy", {}).get("decoupled"):
        return (
            "it is decoupled: when the last answer to a request is sent is not told by "
            "Triton's statistics"
        )
    if len(kinds := kinds_of(config)) > 1 and "KIND_CPU" in kinds:
        return (
            "it has instances on a GPU and on the CPU, and which of them serves a request is "
            "not told"
        )
    return ""


def chooses_gpu(config: ModelConfig) -> str:
    """Why the GPU of a model is not told by its configuration, or an empty string."""
    if "KIND_MODEL" not in kinds_of(config):
        return ""
    return (
        "its instance_group is KIND_MODEL: its own code chooses its GPU, and its configuration "
        "does not tell which; give [[model]] gpu"
    )
