"""Models that an emulated host serves, and how a model repository writes their configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Protocol

from igniterd.lab.gpu.floor import HostFloor
from igniterd.lab.gpu.truth import MAX_BATCH
from igniterd.lab.load.load import INPUT_FLOATS


@dataclass(frozen=True, slots=True)
class EmulatedModel:
    """A model in the repository. ``like`` names the measured model it behaves like (by default its
    own name).

    ``max_queue_delay_us`` None leaves Triton's default dynamic batching; ``parameters`` are added
    to its configuration. ``gpus`` are device numbers of its server, each with ``instances``: they
    are for a host whose boards are given. None there leaves the devices to Triton.

    With ``host_ms`` (ms, before the host's slow factor) its host takes that long to launch a batch
    of any size, and ``1 + host_rise`` times as long beside a neighbour: see
    :class:`~igniterd.lab.gpu.floor.HostFloor`.
    """

    name: str
    like: str = ""
    max_batch_size: int = 8
    max_queue_delay_us: int | None = None
    instances: int = 1
    parameters: dict[str, str] = field(default_factory=dict)
    gpus: tuple[int, ...] | None = None
    host_ms: float = 0.0
    host_rise: float = 0.0

    def config(self) -> dict[str, object]:
        """Its ModelConfig, in JSON's names. Raises ``ValueError`` for a batch that was not
        measured, and for a floor that is none."""
        if not 1 <= self.max_batch_size <= MAX_BATCH:
            raise ValueError(
                f"model {self.name}: max_batch_size {self.max_batch_size} was not measured: give "
                f"1 to {MAX_BATCH}"
            )
        batching = (
            {}
            if self.max_queue_delay_us is None
            else {"max_queue_delay_microseconds": self.max_queue_delay_us}
        )
        texts = {"emulated_model": self.like or self.name, **self._floor(), **self.parameters}
        return {
            "name": self.name,
            "backend": "python",
            "max_batch_size": self.max_batch_size,
            "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [INPUT_FLOATS]}],
            "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [1]}],
            "instance_group": self._groups(),
            "dynamic_batching": batching,
            "parameters": {key: {"string_value": text} for key, text in texts.items()},
        }

    def config_on_boards(self) -> dict[str, object]:
        """Its ModelConfig on a host whose boards are given: without ``gpus`` it names no group, or
        one with its ``instances`` alone. Raises ``ValueError`` as :meth:`config`."""
        config = self.config()
        if self.gpus is None:
            del config["instance_group"]
            if self.instances != 1:
                config["instance_group"] = [{"count": self.instances}]
        return config

    def _floor(self) -> dict[str, str]:
        try:
            floor = HostFloor(self.host_ms, self.host_rise)
        except ValueError as problem:
            raise ValueError(f"model {self.name}: host_ms, host_rise: {problem}") from None
        if not floor.ms:
            return {}
        return {"emulated_host_ms": repr(floor.ms), "emulated_host_rise": repr(floor.rise)}

    def _groups(self) -> list[dict[str, object]]:
        if self.gpus is None:
            return [{"kind": "KIND_CPU", "count": self.instances}]
        if not self.gpus:
            raise ValueError(
                f"model {self.name}: gpus names no device: give numbers of devices, or None for "
                "those that Triton chooses"
            )
        return [{"kind": "KIND_GPU", "count": self.instances, "gpus": list(self.gpus)}]


class Servable(Protocol):
    """A model that a Triton can be started with."""

    @property
    def name(self) -> str: ...

    @property
    def max_batch_size(self) -> int: ...

    def config(self) -> dict[str, object]:
        """Its ModelConfig, in JSON's names."""
        ...


def pbtxt(message: dict[str, object], indent: str = "") -> str:
    """A ModelConfig in protobuf's text format, which is what a model repository holds."""
    lines = []
    for key, value in message.items():
        if key == "parameters" and isinstance(value, dict):
            value = [{"key": k, "value": v} for k, v in value.items()]  # noqa: PLW2901  a map is a list of entries there
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                lines.append(f"{indent}{key} {{\n{pbtxt(each, indent + '  ')}{indent}}}\n")
            else:
                enum = key in ("data_type", "kind")
                lines.append(f"{indent}{key}: {each if enum else json.dumps(each)}\n")
    return "".join(lines)
