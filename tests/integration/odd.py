"""A tritonserver with models of every kind that a production server may have beside plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from igniterd.lab.host import Servable, TritonHost
from igniterd.lab.programs import programs

ECHO = """
import os, sys
sys.path[:0] = os.environ["IGNITERD_EMULATOR_PATH"].split(":")
import triton_python_backend_utils as pb_utils

def echo(request):
    tensor = pb_utils.get_input_tensor_by_name(request, "INPUT")
    return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT", tensor)])

class TritonPythonModel:
    def execute(self, requests):
        return [echo(request) for request in requests]
"""
STREAM = """
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for _ in range(3):
                sender.send(echo(request))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
FLOATS = 4


@dataclass(frozen=True)
class OddModel:
    """A Python-backend model, or an ensemble; ``config`` is what is not usual of its
    configuration."""

    name: str
    more: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    max_batch_size: int = 8
    batching: bool = True

    def config(self) -> dict[str, object]:
        tensors = {"data_type": "TYPE_FP32", "dims": [FLOATS]}
        kind: dict[str, object] = (
            {} if "ensemble_scheduling" in self.more else {"backend": "python"}
        )
        if kind:
            kind["instance_group"] = [{"kind": "KIND_CPU", "count": 1}]
        if self.batching and kind:
            kind["dynamic_batching"] = {}
        return {
            "name": self.name,
            "max_batch_size": self.max_batch_size,
            "input": [{"name": "INPUT", **tensors}],
            "output": [{"name": "OUTPUT", **tensors}],
            **kind,
            **self.more,
        }


def ensemble(*members: str) -> dict[str, object]:
    """An ensemble that hands its input from one of ``members`` to the next."""
    names = ["INPUT", *(f"between{number}" for number in range(1, len(members))), "OUTPUT"]
    return {
        "platform": "ensemble",
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": member,
                    "model_version": -1,
                    "input_map": {"INPUT": names[n]},
                    "output_map": {"OUTPUT": names[n + 1]},
                }
                for n, member in enumerate(members)
            ]
        },
    }


RICH = {
    "version_policy": {"specific": {"versions": [1]}},
    "dynamic_batching": {
        "preferred_batch_size": [2, 4],
        "max_queue_delay_microseconds": 200,
        "priority_levels": 3,
        "default_priority_level": 2,
        "default_queue_policy": {
            "timeout_action": "DELAY",
            "default_timeout_microseconds": 900000,
            "max_queue_size": 77,
        },
        "priority_queue_policy": {
            "1": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": 800000,
                "max_queue_size": 11,
            }
        },
    },
    "optimization": {
        "priority": "PRIORITY_MAX",
        "input_pinned_memory": {"enable": False},
        "gather_kernel_buffer_threshold": 3,
    },
    "parameters": {
        "weights": {"string_value": "v7"},
        "$odd key": {"string_value": 'with "quotes"'},
    },
    "model_warmup": [
        {
            "name": "zeros",
            "batch_size": 4,
            "inputs": {"INPUT": {"data_type": "TYPE_FP32", "dims": [FLOATS], "zero_data": True}},
            "count": 3,
        }
    ],
    "response_cache": {"enable": True},
    "metric_tags": {"team": "a"},
}
ODD = "odd@2,b+c"
MODELS = (
    OddModel(ODD, RICH),
    OddModel("member"),
    OddModel("last", batching=False),
    OddModel("pipe", ensemble("member", "last"), max_batch_size=4),
    OddModel("stream", {"model_transaction_policy": {"decoupled": True}}, STREAM),
    OddModel(
        "talk",
        {"sequence_batching": {"max_sequence_idle_microseconds": 60_000_000}},
        batching=False,
    ),
)


class OddHost(TritonHost):
    """Serves them beside emulated models, with a response cache; ready also when one could not be
    loaded."""

    def _place(self, model: Servable, code: Path) -> None:
        if not isinstance(model, OddModel):
            super()._place(model, code)
            return
        folder = self.repository / model.name
        (folder / "1").mkdir(parents=True)
        if "ensemble_scheduling" not in model.more:
            (folder / "1" / "model.py").write_text(ECHO + model.code)
            stub = programs.python_stub(self.spec.server)
            (folder / stub.name).symlink_to(stub)
        message = json_format.ParseDict(model.config(), model_config_pb2.ModelConfig())
        (folder / "config.pbtxt").write_text(text_format.MessageToString(message, as_utf8=True))

    def _command(self) -> list[str]:
        caches = programs.backends(self.spec.server).with_name("caches")
        return [
            *super()._command(),
            f"--cache-directory={caches}",
            "--cache-config=local,size=1048576",
            "--strict-readiness=false",
        ]
