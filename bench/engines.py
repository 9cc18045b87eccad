"""Milliseconds a batch, hosted in a process of its own against ONNX Runtime called directly.

    python bench/engines.py [-o bench/results/engines.txt]

Both run the same network with one thread, in turn, so that a machine that is busy for one is busy
for the other. Hosted: Triton's own statistics of an execution, by what it is made of (input,
compute, output). Direct: the time of ``session.run`` in a process of its own, which has the input
already. One request of b items, and b requests of one item put together by Triton's batcher.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from igniterd.clients.triton.client import TritonClient
from igniterd.engines.hosting import host_model
from igniterd.lab.hosting import HostingTriton
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import free_ports

ROUNDS, EACH = 9, 8
MOST_BYTES = 6 << 20
BATCHES = (1, 4, 8, 16)
NETWORKS = {"mlp": [512], "cnn": [3, 224, 224]}  # 2 KB and 0.6 MB an item

# In the engines' environment: writes the networks, then answers one JSON line for each line asked.
DIRECT = """
import json, sys, time
import numpy as np, onnx, onnxruntime
from onnx import TensorProto as T, helper as h, numpy_helper
folder, random = sys.argv[1], np.random.default_rng(0)

def save(name, nodes, dims, out, **weights):
    kept = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32) / s[-1] ** 0.5, n) for n, s in weights.items()]
    x, y = h.make_tensor_value_info("x", T.FLOAT, ["n", *dims]), h.make_tensor_value_info("y", T.FLOAT, ["n", *out])
    model = h.make_model(h.make_graph(nodes, name, [x], [y], initializer=kept), opset_imports=[h.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, f"{folder}/{name}/1/model.onnx")

n = lambda op, i, o, **k: h.make_node(op, i.split(), [o], **k)
save("mlp", [n("MatMul", "x a", "p"), n("Relu", "p", "q"), n("MatMul", "q b", "r"), n("Relu", "r", "s"), n("MatMul", "s c", "y")],
     [512], [10], a=(512, 1024), b=(1024, 1024), c=(1024, 10))
save("cnn", [n("Conv", "x k", "p", strides=[4, 4]), n("Relu", "p", "q"), n("GlobalAveragePool", "q", "r"), n("Flatten", "r", "s"),
             n("MatMul", "s c", "y")], [3, 224, 224], [10], k=(16, 3, 7, 7), c=(16, 10))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
sessions = {name: onnxruntime.InferenceSession(f"{folder}/{name}/1/model.onnx", options) for name in ("mlp", "cnn")}
print("ready", flush=True)
for line in sys.stdin:
    name, shape, count = json.loads(line)
    x, spent = random.standard_normal(shape).astype(np.float32), []
    sessions[name].run(None, {"x": x})
    for _ in range(count):
        began = time.perf_counter()
        sessions[name].run(None, {"x": x})
        spent.append((time.perf_counter() - began) * 1e3)
    print(json.dumps(spent), flush=True)
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds, medians over rounds. ``compute``: what the model's process took, with the way
    there and back."""

    network: str
    batch: int
    requests: int
    item_bytes: int
    direct: float
    compute: float
    copies: float


class Direct:
    """ONNX Runtime in a process of its own."""

    def __init__(self, folder: Path) -> None:
        python = str(programs.engines_root() / "bin" / "python")
        self._process = subprocess.Popen(
            [python, "-c", DIRECT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def median_ms(self, network: str, shape: Sequence[int]) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([network, list(shape), EACH]) + "\n")
        self._process.stdin.flush()
        return float(statistics.median(json.loads(self._read())))

    def stop(self) -> None:
        self._process.communicate(timeout=10)


async def loaded(
    client: TritonClient, name: str, network: str, folder: Path, batch: int, together: bool
) -> None:
    """The network hosted under ``name``; ``together``: batches wait for ``batch`` requests."""
    config: dict[str, Any] = {
        "name": network,
        "backend": "onnxruntime",
        "max_batch_size": batch,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": NETWORKS[network]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [10]}],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
    }
    if together:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": 200_000}
    override, files = host_model(config, ["1"], str(folder / network))
    await client.load(name, override | {"name": name}, files)


def request(name: str, network: str, rows: int) -> bytes:
    shape = [rows, *NETWORKS[network]]
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    message = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=[values.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=shape)
    return bytes(message.SerializeToString())


async def spent(client: TritonClient, name: str, batch: int) -> tuple[int, float, float]:
    """Executions of this batch so far, and milliseconds of compute and of both copies."""
    count, compute, copies = 0, 0.0, 0.0
    for version in (await client.statistics(name)).model_stats:
        for each in version.batch_stats:
            if each.batch_size == batch:
                count += each.compute_infer.count
                compute += each.compute_infer.ns / 1e6
                copies += (each.compute_input.ns + each.compute_output.ns) / 1e6
    return count, compute, copies


async def measured(
    client: TritonClient, direct: Direct, network: str, folder: Path, batch: int, requests: int
) -> Row:
    name = f"{network}-{batch}-{requests}"
    await loaded(client, name, network, folder, batch, requests > 1)
    sent = request(name, network, batch // requests)
    for _ in range(3):
        await asyncio.gather(*(client.infer(sent, timeout_s=30.0) for _ in range(requests)))
    rows = []
    for _ in range(ROUNDS):
        alone = direct.median_ms(network, [batch, *NETWORKS[network]])
        before = await spent(client, name, batch)
        for _ in range(EACH):
            await asyncio.gather(*(client.infer(sent, timeout_s=30.0) for _ in range(requests)))
        await asyncio.sleep(0.02)  # Triton counts a moment after it has answered
        after = await spent(client, name, batch)
        if after[0] > before[0]:
            rows.append(
                (
                    alone,
                    *(
                        (b - a) / (after[0] - before[0])
                        for a, b in zip(before[1:], after[1:], strict=True)
                    ),
                )
            )
    await client.unload(name)
    item = 4 * int(np.prod(NETWORKS[network]))
    return Row(
        network,
        batch,
        requests,
        item,
        *(statistics.median(column) for column in zip(*rows, strict=True)),
    )


async def run(folder: Path) -> list[Row]:
    for network in NETWORKS:
        (folder / network / "1").mkdir(parents=True)
    direct, rows = Direct(folder), list[Row]()
    host = HostingTriton(folder / "triton", free_ports(3))
    host.folder.mkdir()
    host.prepare()
    try:
        await host.start()
        client = TritonClient("main", host.url, timeout_s=10.0)
        for network, dims in NETWORKS.items():
            for batch in BATCHES:
                if batch * 4 * int(np.prod(dims)) > MOST_BYTES:
                    continue
                for requests in sorted({1, batch}):
                    rows.append(await measured(client, direct, network, folder, batch, requests))
        await client.close()
    finally:
        await asyncio.shield(host.stop())
        direct.stop()
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = [
        "ms a batch: hosted in a process of its own against ONNX Runtime called directly "
        "(bench/engines.py)",
        f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}; "
        "Triton 24.10; one thread each",
        "hosted is compute (the model's process, there and back); Triton's own copies of inputs "
        "and outputs are apart",
        "",
        "network  batch  requests  input MB   direct   hosted  difference  ratio   copies",
    ]
    for r in rows:
        size = r.batch * r.item_bytes / 2**20
        lines.append(
            f"{r.network:7}  {r.batch:5d}  {r.requests:8d}  {size:8.3f}  {r.direct:7.3f}  "
            f"{r.compute:7.3f}  {r.compute - r.direct:10.3f}"
            f"  {r.compute / r.direct:5.2f}  {r.copies:7.3f}"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="also write the table there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="igniterd-engines-") as name:
        text = table(asyncio.run(run(Path(name))))
    print(text, end="")
    if asked.output is not None:
        asked.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
