"""Hosted models on a real tritonserver: every type, batches, and what else the protocol allows."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult, service_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from igniterd.clients.environments import ModelConfig, base_env_of
from igniterd.clients.repository import stub_memory_bytes
from igniterd.clients.shares import prepare_share
from igniterd.clients.triton.config import allocation_of
from igniterd.clients.triton.config_change import with_allocation
from igniterd.engines.compare import values_of
from igniterd.engines.hosting import host_model, hosting_of
from igniterd.errors import Refused
from igniterd.lab.programs import programs
from igniterd.records import Allocation
from tests.integration.conftest import Host
from tests.integration.engine_host import TYPES, XYZ, EngineHost, Engines, FileModel, floats
from tests.waiting import until_answer

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

_TRITON = {"FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BFLOAT16": "BF16"}


async def host_it(
    engines: Engines,
    model: FileModel,
    versions: Sequence[str] = ("1",),
    environment: str | None = None,
) -> ModelConfig:
    """Place a model and load it hosted."""
    engines.triton.place(model)
    folder = str(engines.triton.repository / model.name)
    override, _ = host_model(dict(model.config()), versions, folder, environment=environment)
    await engines.client.load(model.name, override)
    return override


def an_input(name: str, values: np.ndarray[Any, Any], kind: str = "FP32") -> InferInput:
    made = InferInput(name, list(values.shape), kind)
    made.set_data_from_numpy(values)
    return made


async def ask(
    engines: Engines,
    model: str,
    inputs: Sequence[InferInput],
    wanted: Sequence[str] = (),
    version: str = "",
) -> InferResult:
    outputs = [InferRequestedOutput(name) for name in wanted] or None
    async with InferenceServerClient(engines.triton.url) as client:
        return await client.infer(
            model, inputs, outputs=outputs, model_version=version, client_timeout=30.0
        )


def ramp(rows: int, columns: int = 4) -> np.ndarray[Any, Any]:
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)


def datatype(name: str) -> str:
    """Triton's name of an ONNX type."""
    return {"STRING": "BYTES"}.get(name, _TRITON.get(name, name))


def to_bytes(name: str, values: np.ndarray[Any, Any]) -> bytes:
    if name == "STRING":
        return b"".join(len(v).to_bytes(4, "little") + v for v in values.ravel())
    if name == "BFLOAT16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.tobytes()


def of_every_type() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name in TYPES:
        if name == "BOOL":
            found[name] = random.integers(0, 2, (2, 3)).astype(bool)
        elif name == "STRING":
            found[name] = np.array(
                [[b"a", b"", "ä€".encode()], [b"long " * 100, b"b\0c", b"d"]], dtype=object
            )
        elif name in _TRITON:
            kind = {"FLOAT16": np.float16, "DOUBLE": np.float64}.get(name, np.float32)
            found[name] = random.integers(-100, 100, (2, 3)).astype(kind)  # exact in BF16 too
        else:
            limits = np.iinfo(name.lower())
            found[name] = np.array([[limits.min, limits.max, 1], [0, 2, 3]], dtype=name.lower())
    return found


async def types_are_kept(engines: Engines, without: str, environment: str | None = None) -> None:
    types = [t for t in TYPES if t != without]

    def tensors(way: str) -> list[dict[str, object]]:
        return [
            {"name": f"{way}_{t}", "data_type": f"TYPE_{_TRITON.get(t, t)}", "dims": [-1, -1]}
            for t in types
        ]

    settings = {"input": tensors("in"), "output": tensors("out"), "backend": "onnxruntime"}
    file, model = f"without-{without}", f"without-{without}-{'here' if environment else ''}"
    await host_it(
        engines,
        FileModel(model, settings, {"1/model.onnx": engines.onnx[file]}),
        environment=environment,
    )
    given = {name: values for name, values in of_every_type().items() if name != without}
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, values in given.items():
        message.inputs.add(name=f"in_{name}", datatype=datatype(name), shape=values.shape)
        message.raw_input_contents.append(to_bytes(name, values))
    raw = await engines.client.infer(message.SerializeToString(), timeout_s=20.0)
    answer = service_pb2.ModelInferResponse.FromString(raw)
    found = {
        o.name: (o.datatype, values_of(o.datatype, o.shape, content))
        for o, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
    for name, values in given.items():
        kind, came = found[f"out_{name}"]
        assert kind == datatype(name)
        np.testing.assert_array_equal(came, values, err_msg=name)


@pytest.mark.parametrize("without", ["BFLOAT16", "STRING"])  # ONNX Runtime does not mix the two
async def test_every_type_comes_back_as_it_went_in(engines: Engines, without: str) -> None:
    await types_are_kept(engines, without)


@pytest.fixture(scope="session")
def numpy_2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The engines' environment with the numpy of this Python, whose arrays old backends misread."""
    place = tmp_path_factory.mktemp("numpy-2")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=60
    )
    inside = f"lib/python{programs.PYTHON}/site-packages"
    for part in (programs.engines_root() / inside).iterdir():
        if not part.name.startswith("numpy") and not (place / inside / part.name).exists():
            (place / inside / part.name).symlink_to(part)
    package = Path(np.__file__).parent
    for part in (package, package.with_name("numpy.libs")):
        (place / inside / part.name).symlink_to(part)
    return str(place)


async def test_numpy_2_with_a_backend_that_does_not_know_it(engines: Engines, numpy_2: str) -> None:
    assert int(np.__version__.split(".", 1)[0]) >= 2
    await types_are_kept(engines, "STRING", numpy_2)
    with pytest.raises(
        Refused, match=r"is text, which Triton's Python backend up to 24\.10 misreads with numpy 2"
    ):
        await types_are_kept(engines, "BFLOAT16", numpy_2)


async def test_memory_of_answers_is_given_back(engines: Engines) -> None:
    """Those that go by DLPack are kept until Triton has taken them, and no longer."""
    kind = {"data_type": "TYPE_BF16", "dims": [-1, -1]}
    settings = {"input": [{"name": "in", **kind}], "output": [{"name": "out", **kind}]}
    await host_it(engines, FileModel("half", settings, {"1/model.onnx": engines.onnx["half"]}))
    message = service_pb2.ModelInferRequest(model_name="half", raw_input_contents=[bytes(2 << 20)])
    message.inputs.add(name="in", datatype="BF16", shape=[1024, 1024])
    sizes = []
    for _ in range(2):
        for _ in range(30):
            await engines.client.infer(message.SerializeToString(), timeout_s=20.0)
        sizes.append(stub_memory_bytes("half") or 0)
    assert sizes[0] > 0
    assert sizes[1] - sizes[0] < 10 << 20, "30 answers of 2 MiB"


async def test_requests_put_together_are_each_answered_with_their_own_part(
    engines: Engines,
) -> None:
    settings = {**XYZ, "dynamic_batching": {"max_queue_delay_microseconds": 100_000}}
    await host_it(
        engines, FileModel("batched", settings, {"1/model.onnx": engines.onnx["two"]}, 16)
    )
    given = [ramp(rows) + 100 * n for n, rows in enumerate((1, 3, 1, 2, 4))]
    answers = await asyncio.gather(
        *(ask(engines, "batched", [an_input("x", each)]) for each in given)
    )
    for each, answer in zip(given, answers, strict=True):
        np.testing.assert_array_equal(answer.as_numpy("y"), 2 * each)
        np.testing.assert_array_equal(answer.as_numpy("z"), each + 2)

    async def counted() -> dict[int, int]:
        """Executions by batch size. Triton counts one a moment after its answers."""
        (told,) = (await engines.client.statistics("batched")).model_stats
        return {b.batch_size: b.compute_infer.count for b in told.batch_stats}

    rows = sum(map(len, given))
    executions = await until_answer(
        counted, lambda found: sum(size * count for size, count in found.items()) == rows
    )
    assert max(executions) > 4, "they were one batch"


async def test_of_several_requests_in_one_batch_each_gets_the_outputs_it_asked_for(
    engines: Engines,
) -> None:
    settings = {**XYZ, "dynamic_batching": {"max_queue_delay_microseconds": 100_000}}
    await host_it(engines, FileModel("wanted", settings, {"1/model.onnx": engines.onnx["two"]}, 8))
    x = [an_input("x", ramp(1))]
    first, second, both = await asyncio.gather(
        ask(engines, "wanted", x, ["y"]),
        ask(engines, "wanted", x, ["z"]),
        ask(engines, "wanted", x),
    )
    assert [[o.name for o in a.get_response().outputs] for a in (first, second)] == [["y"], ["z"]]
    assert {o.name for o in both.get_response().outputs} == {"y", "z"}


async def test_an_error_of_one_shape_is_no_error_of_another_in_the_same_batch(
    engines: Engines,
) -> None:
    settings = {
        "input": floats(("x", [-1])),
        "output": floats(("y", [1])),
        "dynamic_batching": {"max_queue_delay_microseconds": 100_000},
    }
    settings["output"] = [
        {"name": "y", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}
    ]
    await host_it(engines, FileModel("rows", settings, {"1/model.onnx": engines.onnx["rows"]}, 8))
    given = [ramp(1, 4), ramp(2, 3), ramp(1, 4), ramp(1, 6)]
    asked = (ask(engines, "rows", [an_input("x", each)]) for each in given)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[1], InferenceServerException)
    assert "Reshape" in str(answers[1])
    for n in (0, 2, 3):
        answer = answers[n]
        assert isinstance(answer, InferResult), answer
        assert answer.as_numpy("y").tolist() == [[given[n].sum()]]


async def test_text_that_onnx_runtime_cannot_take_is_an_error_of_its_request(
    engines: Engines,
) -> None:
    kind = {"data_type": "TYPE_STRING", "dims": [-1]}
    settings = {"input": [{"name": "in", **kind}], "output": [{"name": "out", **kind}]}
    await host_it(engines, FileModel("texts", settings, {"1/model.onnx": engines.onnx["words"]}))
    with pytest.raises(InferenceServerException, match="input in: text that is not UTF-8"):
        await ask(engines, "texts", [an_input("in", np.array([b"\xff"], dtype=object), "BYTES")])
    answer = await ask(
        engines, "texts", [an_input("in", np.array([b"yes"], dtype=object), "BYTES")]
    )
    assert answer.as_numpy("out").tolist() == [b"yes"]


async def test_an_optional_input_may_be_left_out(engines: Engines) -> None:
    optional: Mapping[str, object] = {
        "name": "w",
        "data_type": "TYPE_FP32",
        "dims": [2],
        "optional": True,
    }
    settings = {"input": [*floats(("x", [2])), optional], "output": floats(("y", [2]))}
    await host_it(
        engines, FileModel("optional", settings, {"1/model.onnx": engines.onnx["optional"]}, 8)
    )
    x, w = an_input("x", ramp(1, 2)), an_input("w", ramp(1, 2))
    assert (await ask(engines, "optional", [x])).as_numpy("y").tolist() == [[10.0, 21.0]]
    assert (await ask(engines, "optional", [x, w])).as_numpy("y").tolist() == [[0.0, 2.0]]


async def test_reshape_is_done_around_it(engines: Engines) -> None:
    flat = {"data_type": "TYPE_FP32", "dims": [4], "reshape": {"shape": [2, 2]}}
    settings = {"input": [{"name": "x", **flat}], "output": [{"name": "y", **flat}]}
    await host_it(
        engines, FileModel("square", settings, {"1/model.onnx": engines.onnx["square"]}, 4)
    )
    answer = await ask(engines, "square", [an_input("x", ramp(1))])
    assert answer.as_numpy("y").tolist() == [[2.0, 3.0, 6.0, 11.0]]


async def test_versions_instances_warm_up_labels_and_cache_are_the_owner_s(
    engines: Engines,
) -> None:
    warm = {"data_type": "TYPE_FP32", "dims": [4]}
    settings = {
        "input": floats(("x", [4])),
        "output": [{**floats(("y", [4]))[0], "label_filename": "labels.txt"}, *floats(("z", [4]))],
        "version_policy": {"all": {}},
        "instance_group": [{"kind": "KIND_CPU", "count": 2}],
        "response_cache": {"enable": True},
        "model_warmup": [
            {"name": "random", "batch_size": 2, "inputs": {"x": {**warm, "random_data": True}}},
            {
                "name": "file",
                "batch_size": 1,
                "inputs": {"x": {**warm, "input_data_file": "x.bin"}},
            },
        ],
        "optimization": {"graph": {"level": 2}},
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
    }
    files = {
        "1/model.onnx": engines.onnx["two"],
        "2/model.onnx": engines.onnx["three"],
        "labels.txt": b"cat\ndog\nowl\nfox\n",
        "warmup/x.bin": ramp(1).tobytes(),
    }
    await host_it(engines, FileModel("rich", settings, files, 4), ("1", "2"))
    x = [an_input("x", ramp(1))]
    answers = [
        (await ask(engines, "rich", x, version=v)).as_numpy("y") for v in ("1", "2", "2", "2")
    ]
    np.testing.assert_array_equal(answers, [2 * ramp(1), *[3 * ramp(1)] * 3])
    async with InferenceServerClient(engines.triton.url) as client:
        best = InferRequestedOutput("y", class_count=1)
        answer = await client.infer("rich", x, outputs=[best])
    assert answer.as_numpy("y").ravel().tolist() == [b"9.000000:3:fox"]
    told = {s.version: s for s in (await engines.client.statistics("rich")).model_stats}
    assert told["2"].inference_stats.cache_hit.count >= 2


def shares_of(triton: EngineHost, model: str) -> set[str]:
    """What the processes of a model were started with."""
    found = set()
    for entry, words in triton.processes():
        with contextlib.suppress(OSError, IndexError):
            if words[0].endswith("_stub") and words[8].startswith(f"{model}_"):
                variables = (entry / "environ").read_text(errors="replace").split("\0")
                found |= {
                    v.partition("=")[2]
                    for v in variables
                    if v.startswith("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=")
                }
    return found


async def test_a_share_is_one_load_with_the_files(engines: Engines) -> None:
    model = FileModel("shared", XYZ, {"1/model.onnx": engines.onnx["two"]}, 8)
    engines.triton.place(model)
    folder = str(engines.triton.repository / "shared")
    override, _ = host_model(dict(model.config()), ["1"], folder, environment=engines.environment)
    await engines.client.load("shared", override)
    before = await engines.client.config("shared")
    prepare_share(engines.shares, 0.3, base_env_of(before))
    await engines.client.load(
        "shared", with_allocation(before, Allocation(0.3, 8, 0, 1), str(engines.shares))
    )
    after = await engines.client.config("shared")
    assert allocation_of(after).share == 0.3
    assert base_env_of(after) == engines.environment
    assert hosting_of(after) == hosting_of(before)
    assert shares_of(engines.triton, "shared") == {"30"}
    answer = await ask(engines, "shared", [an_input("x", ramp(2))])
    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * ramp(2))


async def test_a_server_that_fills_in_configurations_takes_the_same(
    host: Host, engines: Engines
) -> None:
    """The other tests' server does not, which saves a process at every load."""
    model = FileModel("filled", XYZ, {"1/model.onnx": engines.onnx["two"]}, 8)
    engines.triton.place(model)
    folder = str(engines.triton.repository / "filled")
    override, _ = host_model(dict(model.config()), ["1"], folder, environment=engines.environment)
    await host.client.load("filled", override)
    async with InferenceServerClient(host.triton.url) as client:
        answer = await client.infer("filled", [an_input("x", ramp(2))])
    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * ramp(2))
    read_back = await host.client.config("filled")
    assert hosting_of(read_back) == hosting_of(override)
    await host.client.unload("filled")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": floats(("q", [4]))}, "the model has no input q, it has x"),
        (
            {"default_model_filename": "gone.onnx"},
            r"gone\.onnx is not there as Triton sees the disk",
        ),
    ],
)
async def test_what_is_wrong_is_said_by_the_load(
    engines: Engines, change: dict[str, Any], words: str
) -> None:
    settings = {**XYZ, **change}
    with pytest.raises(Refused, match=words):
        await host_it(
            engines,
            FileModel(f"wrong{len(words)}", settings, {"1/model.onnx": engines.onnx["two"]}, 8),
        )


async def test_an_output_of_another_type_than_configured_is_an_error_of_the_request(
    engines: Engines,
) -> None:
    settings = {"input": floats(("x", [4])), "output": floats(("y", [4]), kind="TYPE_INT32")}
    await host_it(
        engines, FileModel("mistyped", settings, {"1/model.onnx": engines.onnx["two"]}, 8)
    )
    with pytest.raises(
        InferenceServerException,
        match="output y: the model gives float32, its configuration TYPE_INT32",
    ):
        await ask(engines, "mistyped", [an_input("x", ramp(1))])
