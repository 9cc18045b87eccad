"""The ``onnx`` package's own backend node tests through hosted models on a real tritonserver.

    python bench/onnx_nodes.py [TEST...] [-o bench/results/onnx_nodes.txt]

Each test's model is loaded as igniterd hosts it (``max_batch_size`` 0, a configuration made from
the model's graph) and asked once. The answer must be ONNX Runtime's own to the bit: types, shapes
and bytes; it is also compared with what the test expects. Exit 1 when one differs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from igniterd.clients.triton.client import TritonClient
from igniterd.engines.hosting import host_model
from igniterd.errors import IgniterdError
from igniterd.lab.hosting import HostingTriton
from igniterd.lab.programs import programs
from igniterd.lab.programs.process import free_ports

TOGETHER = 3  # loads at once: most of a load is waiting for a process to start


@dataclass(frozen=True, slots=True)
class Result:
    """One test. ``why``: how the answer differs from ONNX Runtime's own; empty: not at all."""

    name: str
    why: str
    as_expected: bool


def prepared(folder: Path, only: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The tests by name, and why others are left out."""
    code = Path(__file__).with_name("onnx_cases.py")
    python = programs.engines_root() / "bin" / "python"
    subprocess.run(
        [str(python), str(code), str(folder), *only], check=True, timeout=300, capture_output=True
    )
    cases = {
        file.parent.name: json.loads(file.read_text())
        for file in sorted(folder.glob("*/case.json"))
    }
    return cases, json.loads((folder / "left_out.json").read_text())


def config_of(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """Triton's configuration; it has no scalars without a batch, so they are one value."""

    def tensors(section: str) -> list[dict[str, Any]]:
        made = []
        for each in case[section]:
            kind = "TYPE_STRING" if each["datatype"] == "BYTES" else f"TYPE_{each['datatype']}"
            made.append({"name": each["name"], "data_type": kind, "dims": each["dims"] or [1]})
        return made

    return {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": tensors("inputs"),
        "output": tensors("outputs"),
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
    }


async def answer_of(client: TritonClient, name: str, case: dict[str, Any], folder: Path) -> str:
    """How a hosted model's answer differs; empty where it does not."""
    override, _ = host_model(config_of(name, case), ["1"], str(folder / name))
    message = service_pb2.ModelInferRequest(model_name=name)
    for each in case["inputs"]:
        message.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"] or [1])
        message.raw_input_contents.append(base64.b64decode(each["raw"]))
    try:
        await client.load(name, override)
        try:
            raw = await client.infer(message.SerializeToString(), timeout_s=30.0)
        finally:
            await client.unload(name)
    except IgniterdError as error:
        return " ".join(str(error).split())
    found = service_pb2.ModelInferResponse.FromString(raw)
    came = {
        o.name: (o.datatype, list(o.shape), c)
        for o, c in zip(found.outputs, found.raw_output_contents, strict=True)
    }
    for each in case["outputs"]:
        wanted = (each["datatype"], each["shape"] or [1], base64.b64decode(each["raw"]))
        if came.get(each["name"]) != wanted:
            return (
                f"output {each['name']} is {str(came.get(each['name']))[:60]} and not "
                f"{str(wanted)[:60]}"
            )
    return ""


async def run(cases: dict[str, Any], folder: Path) -> list[Result]:
    """Every test on one server, some at a time."""
    host = HostingTriton(folder / "triton", free_ports(3), complete=False)
    host.folder.mkdir()
    host.prepare()
    left, results = list(cases.items()), list[Result]()
    try:
        await host.start()
        client = TritonClient("main", host.url, timeout_s=10.0)

        async def some() -> None:
            while left:
                name, case = left.pop()
                results.append(
                    Result(name, await answer_of(client, name, case, folder), case["as_expected"])
                )

        await asyncio.gather(*(some() for _ in range(TOGETHER)))
        await client.close()
    finally:
        await asyncio.shield(host.stop())
    return sorted(results, key=lambda r: r.name)


def table(results: Sequence[Result], left_out: dict[str, str], spent_s: float) -> str:
    different = [r for r in results if r.why]
    unexpected = [r for r in results if not r.as_expected]
    versions = ", ".join(f"{name} {version}" for name, version in programs.ENGINES.items())
    lines = [
        "onnx's backend node tests through hosted models (bench/onnx_nodes.py)",
        f"machine: {platform.machine()}, {os.cpu_count()} cores; Triton 24.10 (pytriton "
        f"{programs.PYTRITON}); {versions}",
        "",
        f"tests of the package                              {len(results) + len(left_out):5d}",
        f"run hosted                                        {len(results):5d}",
        f"  the same as ONNX Runtime called directly        {len(results) - len(different):5d}",
        f"  different from it                               {len(different):5d}",
        f"  within the test's tolerance of what it expects  {len(results) - len(unexpected):5d}",
        f"left out                                          {len(left_out):5d}",
        *(f"  {count:5d}  {why}" for why, count in Counter(left_out.values()).most_common()),
        f"seconds                                           {spent_s:5.0f}",
    ]
    if different:
        lines += ["", "different:", *(f"  {r.name}: {r.why}" for r in different)]
    if unexpected:
        lines += ["", "not as the test expects, by ONNX Runtime alone just the same:"]
        lines += [f"  {r.name}" for r in unexpected]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tests", nargs="*", help="only these")
    parser.add_argument("-o", "--output", type=Path, help="also write the table there")
    asked = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="igniterd-onnx-") as name:
        cases, left_out = prepared(Path(name), asked.tests)
        results = asyncio.run(run(cases, Path(name)))
    text = table(results, left_out, time.monotonic() - began_s)
    print(text, end="")
    if asked.output is not None:
        asked.output.write_text(text)
    return int(any(r.why for r in results))


if __name__ == "__main__":
    sys.exit(main())
