"""What Triton's Python backend runs on a real GPU: one network of ``networks.py``. The harness
copies this file into the model repository.

It runs in Triton's stub process, whose MPS share is ``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`` of its
environment. Where there is no GPU the network runs on the CPU: slow, and good for trying the
harness out.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# The stub's interpreter is isolated: it reads no PYTHONPATH.
sys.path[:0] = os.environ["IGNITERD_BENCH_PATH"].split(os.pathsep)

import triton_python_backend_utils as pb_utils  # noqa: E402

try:
    import torch
except ImportError as problem:
    python = sys.version.split()[0]
    raise RuntimeError(
        f"torch cannot be imported by Triton's stub (Python {python}, path {sys.path}): {problem}"
    ) from problem

from bench.gpu.networks import network  # noqa: E402


class TritonPythonModel:
    """Triton's Python backend calls these two methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Make the network and run every batch size it will be asked for: kernels are loaded when
        they first run."""
        config = json.loads(args["model_config"])
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(1)  # as many models as there are cores
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        told = config["input"][0]
        self._network = network(config["parameters"]["network"]["string_value"], self._device)
        kind = {"TYPE_UINT8": torch.uint8, "TYPE_INT64": torch.int64, "TYPE_FP32": torch.float32}[
            told["data_type"]
        ]
        batch = 1
        while batch <= config["max_batch_size"] and (self._device.type == "cuda" or batch == 1):
            self._run(torch.zeros((batch, *(int(d) for d in told["dims"])), dtype=kind))
            batch *= 2

    def execute(self, requests: list[Any]) -> list[Any]:
        """One batch, made of the requests in order."""
        given = [
            torch.from_dlpack(pb_utils.get_input_tensor_by_name(r, "INPUT").to_dlpack())
            for r in requests
        ]
        found = self._run(given[0] if len(given) == 1 else torch.cat(given))
        parts = torch.split(found, [len(g) for g in given])
        # Not Tensor(name, array): the backend's C++ part reads numpy's arrays in the layout of
        # numpy 1.
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT", part.contiguous())])
            for part in parts
        ]

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        """Inputs in the host's memory to outputs in the host's memory; ends when the GPU is
        done."""
        with torch.inference_mode():
            return self._network(batch.to(self._device)).float().cpu()
