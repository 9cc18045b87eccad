"""TorchScript models hosted on a real tritonserver, by igniterd's file and by the server's own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2

from igniterd.adopt import adopt
from igniterd.clients.environments import ModelConfig
from igniterd.clients.triton.client import TritonClient
from igniterd.engines.compare import values_of
from igniterd.engines.hosting import hosting_of
from igniterd.giveback import release
from igniterd.lab.programs import programs
from tests.integration.engine_host import Engines, FileModel, floats
from tests.integration.test_adopt import GENEROUS
from tests.integration.test_engines import an_input, ask, host_it, ramp

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("torch_libraries"),
]


@pytest.fixture(scope="session")
def torch_libraries() -> None:
    """`make assets` fetches them: without them nothing here was tried."""
    assert programs.torch_libraries(), f"no PyTorch of Debian's here: run `{programs.FETCH}`"


INDEXED: dict[str, object] = {
    "backend": "pytorch",
    "input": floats(("INPUT__1", [4]), ("INPUT__0", [4])),  # the number counts, not the order
    "output": floats(("OUTPUT__0", [4]), ("OUTPUT__1", [4])),
    "dynamic_batching": {"max_queue_delay_microseconds": 50_000},
}


@pytest.fixture(scope="session")
def torch_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("torch")
    python, code = (
        programs.engines_root() / "bin" / "python",
        Path(__file__).with_name("torch_files.py"),
    )
    place = {"LD_LIBRARY_PATH": str(programs.engines_root() / "lib")}
    subprocess.run([str(python), str(code), str(folder)], check=True, timeout=120, env=place)
    return {file.stem: file.read_bytes() for file in folder.glob("*.pt")}


async def test_inputs_by_number_and_batches(
    engines: Engines, torch_files: dict[str, bytes]
) -> None:
    await host_it(engines, FileModel("indexed", INDEXED, {"1/model.pt": torch_files["net"]}, 8))
    first, second = ramp(3), ramp(3) + 100
    answer = await ask(
        engines, "indexed", [an_input("INPUT__0", first), an_input("INPUT__1", second)]
    )
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT__0"), 2 * first + second)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT__1"), first - second)


async def test_inputs_by_the_names_of_the_arguments(
    engines: Engines, torch_files: dict[str, bytes]
) -> None:
    settings = {**INDEXED, "input": floats(("second", [4]), ("first", [4]))}
    await host_it(engines, FileModel("arguments", settings, {"1/model.pt": torch_files["net"]}, 8))
    first, second = ramp(1), ramp(1) + 100
    answer = await ask(engines, "arguments", [an_input("second", second), an_input("first", first)])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT__0"), 2 * first + second)


async def test_bf16_comes_out_bit_for_bit(engines: Engines, torch_files: dict[str, bytes]) -> None:
    settings = {
        "backend": "pytorch",
        "input": floats(("x", [4])),
        "output": floats(("y", [4]), kind="TYPE_BF16"),
    }
    await host_it(engines, FileModel("cut", settings, {"1/model.pt": torch_files["cut"]}, 8))
    message = service_pb2.ModelInferRequest(
        model_name="cut", raw_input_contents=[ramp(2).tobytes()]
    )
    message.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    raw = await engines.client.infer(message.SerializeToString(), timeout_s=20.0)
    answer = service_pb2.ModelInferResponse.FromString(raw)
    found = values_of("BF16", answer.outputs[0].shape, answer.raw_output_contents[0])
    np.testing.assert_array_equal(found, ramp(2))


async def test_text_is_a_list_of_words(engines: Engines, torch_files: dict[str, bytes]) -> None:
    settings = {
        "backend": "pytorch",
        "input": floats(("words", [-1]), kind="TYPE_STRING"),
        "output": floats(("OUTPUT__0", [-1]), kind="TYPE_STRING"),
    }
    await host_it(engines, FileModel("words", settings, {"1/model.pt": torch_files["words"]}))
    given = np.array([b"one", "zwei ä".encode()], dtype=object)
    answer = await ask(engines, "words", [an_input("words", given, "BYTES")])
    assert answer.as_numpy("OUTPUT__0").tolist() == [b"one!", "zwei ä!".encode()]


class InProcess(TritonClient):
    """Without the ``runtime`` by which the stand-in for PyTorch's backend shows that it is one."""

    async def config(self, model: str) -> ModelConfig:
        found = await super().config(model)
        if hosting_of(found) is None:
            found.pop("runtime", None)
        return found


@pytest_asyncio.fixture(loop_scope="session")
async def in_process(engines: Engines) -> Any:
    client = InProcess("main", engines.triton.url, timeout_s=10.0)
    yield client
    await client.close()


@pytest.mark.parametrize("by_server", [True, False])
async def test_adopted_by_the_server_s_own_file_where_it_can(
    engines: Engines, in_process: TritonClient, torch_files: dict[str, bytes], by_server: bool
) -> None:
    settings: dict[str, object] = {**INDEXED, "dynamic_batching": {}}
    if not by_server:  # one that the server's own file cannot run
        settings["parameters"] = {"refuse": {"string_value": "hosted"}}
    model = FileModel(f"torch{by_server}", settings, {"1/model.pt": torch_files["net"]}, 8)
    engines.triton.place(model)
    await engines.client.load(model.name, None)
    found = await adopt(in_process, model.name, GENEROUS)
    assert (found.outcome, found.engine) == ("adopted", "pytorch"), found
    assert found.how == ("the server's own model.py" if by_server else "igniterd's hosting file")
    answer = await ask(
        engines, model.name, [an_input("INPUT__0", ramp(2)), an_input("INPUT__1", ramp(2))]
    )
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT__0"), 3 * ramp(2))
    assert (await release(in_process, model.name)).outcome == "released"
    assert (await in_process.config(model.name))["backend"] == "pytorch"
