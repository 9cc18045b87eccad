"""The emulated model: what Triton's Python backend runs. ``host.py`` copies this file into the
model repository as ``model.py``.

It runs in Triton's stub process, on the board that its device number means to CUDA there. Its MPS
share is ``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`` in its own environment, read when it is loaded, as a
CUDA context would. Other settings come from the server's environment (see ``host.py``) and from the
model's parameters: ``emulated_model``, the name of the measured model it behaves like, and
``emulated_host_ms`` and ``emulated_host_rise``, its host's floor.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# The stub's interpreter is isolated: it reads no PYTHONPATH, and the Python it embeds may have no
# numpy of its own.
sys.path[:0] = os.environ["IGNITERD_EMULATOR_PATH"].split(":")

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

from igniterd.lab.gpu.boardfile import BoardFile, OutOfMemory, Slot, board_paths  # noqa: E402
from igniterd.lab.gpu.executor import HANDOVER_S, SLICE_S, Dispersion, Executor, Rates  # noqa: E402
from igniterd.lab.gpu.floor import HostFloor  # noqa: E402
from igniterd.lab.gpu.truth import DISPERSION_CV, MAX_BATCH, TruthTables, memory_bytes, share_units  # noqa: E402

_PR_SET_TIMERSLACK = 29
_INSTANCE_SHARE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


class TritonPythonModel:
    """Triton's Python backend calls these three methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tables and take a place on the board; what is wrong is said in the load's
        error."""
        config = json.loads(args["model_config"])
        name = _text(config, "emulated_model") or args["model_name"]
        floor = _floor(config)
        folder = Path(os.environ["IGNITERD_EMULATOR"])
        board = _board(Path(os.environ["IGNITERD_EMULATOR_BOARDS"]), args)
        kind = board.about.get("kind", "v100")
        tables = TruthTables.load(folder / f"truth-{kind}.npz")
        if name not in tables.models:
            raise pb_utils.TritonModelException(
                f"emulated_model {name!r} was not measured: use one of {', '.join(tables.models)}"
            )
        if config["max_batch_size"] > MAX_BATCH:
            raise pb_utils.TritonModelException(
                f"max_batch_size {config['max_batch_size']}: measured up to {MAX_BATCH}"
            )
        units = _units(os.environ.get(_INSTANCE_SHARE))
        self._slot = self._claim(
            board, tables.models.index(name), units, memory_bytes(name, config["max_batch_size"])
        )
        self._checked_s = 0.0
        self._board = board
        self._ready = False
        setting = os.environ.get
        self._executor = Executor(
            Rates(tables, tables.models.index(name), units, floor),
            self._slot,
            Dispersion(
                f"{setting('IGNITERD_EMULATOR_SEED', '0')} {args['model_name']} {board.claims}",
                cv=float(setting("IGNITERD_EMULATOR_CV", DISPERSION_CV)),
            ),
            slow_factor=board.slow_factor,
            slice_s=float(setting("IGNITERD_EMULATOR_SLICE_S", SLICE_S)),
            handover_s=float(setting("IGNITERD_EMULATOR_HANDOVER_S", HANDOVER_S)),
        )

    @staticmethod
    def _claim(board: BoardFile, model: int, units: int, memory: int) -> Slot:
        try:
            return board.claim(model=model, units=units, memory_bytes=memory)
        except OutOfMemory as problem:
            raise pb_utils.TritonModelException(f"CUDA {problem}") from None

    def execute(self, requests: list[Any]) -> list[Any]:
        """One batch: answer every request after the time that the batch takes."""
        now = time.monotonic()
        if not self._ready:
            # Sleeps of this thread end on time, not up to 50 us later. The backend may call
            # initialize from another thread.
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
            self._ready = True
        sizes = [pb_utils.get_input_tensor_by_name(r, "INPUT").shape()[0] for r in requests]
        responses = [pb_utils.InferenceResponse([_output(n)]) for n in sizes]
        if now - self._checked_s > 1.0:
            self._board.reap()
            self._checked_s = now
        self._executor.execute(sum(sizes), now)
        return responses

    def finalize(self) -> None:
        """Leave the board."""
        self._slot.release()


def _board(path: Path, args: dict[str, str]) -> BoardFile:
    """The one board of a host without CUDA, or the one of this instance's device."""
    if not path.is_dir():
        return BoardFile(path)
    if args["model_instance_kind"] != "GPU":
        raise pb_utils.TritonModelException(
            f"an instance of kind {args['model_instance_kind']}: on a host with boards, emulated "
            "models run on KIND_GPU"
        )
    device, pci = int(args["model_instance_device_id"]), ctypes.create_string_buffer(32)
    if error := ctypes.CDLL(None).cudaDeviceGetPCIBusId(pci, len(pci), device):
        raise pb_utils.TritonModelException(f"CUDA device {device}: error {error}")
    boards = map(BoardFile, board_paths(path))
    return next(board for board in boards if board.about["pci"] == pci.value.decode())


def _text(config: dict[str, Any], parameter: str) -> str:
    return str(config["parameters"].get(parameter, {}).get("string_value", ""))


def _floor(config: dict[str, Any]) -> HostFloor:
    try:
        ms, rise = (float(_text(config, f"emulated_host_{key}") or 0.0) for key in ("ms", "rise"))
        return HostFloor(ms, rise)
    except ValueError as problem:
        raise pb_utils.TritonModelException(
            f"emulated_host_ms, emulated_host_rise: {problem}"
        ) from None


def _output(items: int) -> Any:
    # Not Tensor(name, array): the backend's C++ part reads numpy's arrays in the layout of numpy 1
    # and would send no bytes.
    return pb_utils.Tensor.from_dlpack("OUTPUT", np.zeros((items, 1), np.float32))


def _units(share_pct: str | None) -> int:
    """Units of the board for the MPS percentage; 0 without one."""
    if share_pct is None:
        return 0
    try:
        return share_units(float(share_pct) / 100.0)
    except ValueError:
        raise pb_utils.TritonModelException(
            f"{_INSTANCE_SHARE}={share_pct!r} is not a percentage above 0 and at most 100"
        ) from None
