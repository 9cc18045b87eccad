"""What ``adopt`` and ``release`` do with a server that answers oddly, and wrong usage of the
verbs."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from typer.testing import CliRunner

from igniterd.adopt import adopt
from igniterd.adopt_compare import Terms
from igniterd.cli.app import app
from igniterd.clients.triton.info import IndexEntry
from igniterd.engines.hosting import files_of, host_by_server, host_model, hosting_of, shadow_of
from igniterd.errors import CannotRun, NotServed, Refused, Unanswered
from igniterd.giveback import release

pytestmark = pytest.mark.looptime

OWNER: dict[str, Any] = {
    "name": "net",
    "backend": "onnxruntime",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}],
    "dynamic_batching": {},
    "response_cache": {"enable": True},
    "instance_group": [{"name": "net_0", "count": 3, "kind": "KIND_GPU", "gpus": [1, 0]}],
}
TERMS = Terms(repositories=("/models",), max_slowdown=2.0)


class Server:
    """A Triton with one model. ``wrong`` makes it answer oddly from the swap on."""

    url = "127.0.0.1:8001"

    def __init__(self, **wrong: Any) -> None:
        self.serving: dict[str, dict[str, Any]] = {"net": copy.deepcopy(OWNER)}
        self.files: dict[str, Any] = {}
        self.done: list[str] = []
        self.placeholders: list[dict[str, Any]] = []
        self.wrong = wrong

    @property
    def swapped(self) -> bool:
        return hosting_of(self.serving["net"]) is not None

    async def config(self, model: str) -> dict[str, Any]:
        found = copy.deepcopy(self.serving[model])
        if self.wrong.get("other_config") and self.swapped:
            found["parameters"] = {}
        return found

    async def index(self) -> tuple[IndexEntry, ...]:
        return (IndexEntry("net", "1", "READY", ""),)

    async def refuses_loads(self) -> str:
        return str(self.wrong.get("refuses", ""))

    async def load(
        self,
        model: str,
        config: dict[str, Any] | None,
        files: Mapping[str, bytes] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        if config is None:
            self.done.append(f"load_own {model}")
            if not self.wrong.get("no_change"):
                self.serving[model] = copy.deepcopy(OWNER)
            return
        self.done.append(f"load {model.partition('.shadow')[0]}")
        await asyncio.sleep(self.wrong.get("takes_s", 0.0))
        if model != "net" and hosting_of(config) and "takes_s" in self.wrong:
            self.done.append("loaded")
        if model != "net" and self.wrong.get("somebody_else"):
            self.serving["net"]["max_batch_size"] = 2
        if model == "net" and hosting_of(config) and (error := self.wrong.get("load")):
            raise error
        if model != "net" and not hosting_of(config):
            self.placeholders.append(dict(config))
            if self.wrong.get("no_python") and not config.get("parameters"):
                raise Refused("No module named 'numpy'")
        if self.swapped and not hosting_of(config) and (error := self.wrong.get("back")):
            raise error
        self.serving[model] = copy.deepcopy(config)
        self.files[model] = files_of(config) if files is None else files

    async def unload(self, model: str) -> None:
        self.done.append("unload")
        del self.serving[model]

    async def infer(self, request: bytes, *, timeout_s: float) -> bytes:
        asked = service_pb2.ModelInferRequest.FromString(request)
        if asked.model_name not in self.serving:
            raise NotServed("gone")
        if self.swapped and (error := self.wrong.get("silent")):
            raise error
        values = np.frombuffer(asked.raw_input_contents[0], np.float32) * 2
        if self.wrong.get("other_answer") and asked.model_name == "net" and self.swapped:
            values = values + 1
        answer = service_pb2.ModelInferResponse(
            model_name=asked.model_name, raw_output_contents=[values.tobytes()]
        )
        answer.outputs.add(name="y", datatype="FP32", shape=asked.inputs[0].shape)
        return bytes(answer.SerializeToString())

    async def statistics(self, model: str) -> Any:
        if model not in self.serving:
            raise Refused("no such model")
        return service_pb2.ModelStatisticsResponse()


async def test_the_swap_is_one_load_with_the_files_after_the_copy_is_gone() -> None:
    server = Server()
    found = await adopt(server, "net", TERMS)
    assert found.outcome == "adopted", found
    assert server.done == ["load igniterd", "load igniterd", "unload", "load net"]
    assert server.files["net"].keys() == {"1/model.py", "1/engine.py"}
    assert set(server.serving) == {"net"}


async def test_what_is_loaded_first_under_the_copy_s_name_runs_where_a_model_can() -> None:
    server = Server(no_python=True)
    assert (
        await adopt(server, "net", replace(TERMS, environment="/opt/engines"))
    ).outcome == "adopted"
    assert server.done == ["load igniterd", "load igniterd", "load igniterd", "unload", "load net"]
    assert [each.get("parameters") for each in server.placeholders] == [
        None,
        {"EXECUTION_ENV_PATH": {"string_value": "/opt/engines"}},
    ]


async def test_a_name_that_a_shell_would_read_is_refused_before_anything_is_loaded() -> None:
    server = Server()
    server.serving["a b"] = OWNER | {"name": "a b"}
    found = await adopt(server, "a b", TERMS)
    assert found.outcome == "refused"
    assert "characters that mean something to a shell" in found.why
    assert server.done == []


@pytest.mark.parametrize(
    ("wrong", "why", "end"),
    [
        ({"somebody_else": True}, "somebody else changed it meanwhile", "unload"),
        (
            {"load": Refused("no memory")},
            "the copy was loaded, the model itself not: no memory",
            "load net",
        ),
        ({"other_config": True}, "after the swap: Triton serves another configuration", "load net"),
        ({"other_answer": True}, "after the swap: output y differs by 1", "load net"),
        (
            {"silent": Unanswered("no answer in 30 s")},
            "after the swap: no answer in 30 s; the owner's model is back",
            "load net",
        ),
    ],
)
async def test_what_goes_wrong_at_the_swap_leaves_the_owner_s(
    wrong: dict[str, Any], why: str, end: str
) -> None:
    server = Server(**wrong)
    found = await adopt(server, "net", TERMS)
    assert found.outcome == "refused"
    assert why in found.why
    assert server.done[-1] == end
    assert not server.swapped


async def test_a_load_that_is_not_answered_is_not_hidden() -> None:
    server = Server(load=Unanswered("no answer in 60 s"))
    with pytest.raises(Unanswered):
        await adopt(server, "net", TERMS)


async def test_an_owner_s_model_that_cannot_be_put_back_is_not_hidden() -> None:
    server = Server(other_answer=True, back=Unanswered("no answer in 60 s"))
    with pytest.raises(
        Refused, match=r"the owner's model is not back: no answer in 60 s; igniterd release net"
    ):
        await adopt(server, "net", TERMS)


async def test_a_server_that_takes_no_configuration_is_left_alone() -> None:
    server = Server(refuses="model control is not explicit")
    with pytest.raises(
        CannotRun, match=r"Triton at 127\.0\.0\.1:8001: model control is not explicit"
    ):
        await adopt(server, "net", TERMS)
    assert server.done == []


async def test_a_copy_is_not_unloaded_while_it_loads() -> None:
    server = Server(takes_s=5.0)
    trial = asyncio.create_task(adopt(server, "net", TERMS))
    await asyncio.sleep(7.0)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert server.done == ["load igniterd", "load igniterd", "loaded", "unload"]
    assert set(server.serving) == {"net"}


async def test_a_dry_run_loads_nothing_under_the_model_s_name() -> None:
    server = Server()
    assert (await adopt(server, "net", replace(TERMS, dry_run=True))).outcome == "would adopt"
    assert server.done == ["load igniterd", "load igniterd", "unload"]


async def test_release_where_a_plain_load_is_no_change_for_triton() -> None:
    server = Server()
    await adopt(server, "net", TERMS)
    server.wrong["no_change"] = True
    assert (await release(server, "net")).outcome == "released"
    assert server.serving["net"] == OWNER
    assert server.files["net"] == {}


def test_the_copy_is_one_instance_without_queue_and_cache() -> None:
    override, files = host_model(OWNER, ["1"], "/models/net")
    config, sent = shadow_of(override, "copy")
    assert config["name"] == "copy"
    assert not {"dynamic_batching", "response_cache"} & config.keys()
    assert config["instance_group"] == [
        {"name": "copy", "count": 1, "kind": "KIND_GPU", "gpus": [1]}
    ]
    assert sent == files


def test_a_copy_for_the_server_s_own_file_names_the_model_s_file_by_its_place() -> None:
    override = host_by_server(OWNER | {"backend": "pytorch"}, ["3"], "/models/net")
    config, sent = shadow_of(override, "copy")
    assert config["default_model_filename"] == "/models/net/3/model.pt"
    assert sent == {"3/igniterd": b"\n"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adopt"], "name models to adopt"),
        (["adopt", "a", "a"], "a model is named twice"),
        (["adopt", "\udcff"], "should be the name of a model"),
        (["release", ""], "should be the name of a model"),
        (["release", "a", "a"], "a model is named twice"),
        (["adopt", "a", "--url", "nowhere"], "should be host:port"),
        (["adopt", "a", "--environment", "/opt/a b"], "only letters, digits and . _ / + - in it"),
        (["adopt", "a", "--environment", "$(id)"], "should be a path from the root"),
        (["adopt", "a", "--max-slowdown", "0.5"], "should be greater than or equal to 1"),
        (["adopt", "a", "--format", "xml"], "should be table or json"),
        (["release"], "name models to release, or give --all"),
        (["release", "a", "--all"], "name models to release, or give --all"),
    ],
)
def test_wrong_usage(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert said in done.output


def test_a_server_that_is_not_there_is_said() -> None:
    done = CliRunner().invoke(app, ["adopt", "net", "--url", "127.0.0.1:9"])
    assert done.exit_code == 1
    assert "net: Triton 'main' at 127.0.0.1:9" in done.stderr
    assert done.stdout == "net: failed\n"


def test_every_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    servers = "".join(
        f'[[triton]]\nname = "{name}"\nurl = "127.0.0.1:{port}"\n'
        for name, port in (("one", 9), ("two", 11))
    )
    (tmp_path / "igniterd.toml").write_text(
        f'{servers}[gpu]\nsource = "none"\n[[model]]\nname = "net"\ntriton = "one"\nslo_p99_ms = '
        "5\n"
    )
    done = CliRunner().invoke(
        app, ["release", "--all", "--config", str(tmp_path / "igniterd.toml"), "--format", "json"]
    )
    assert done.exit_code == 1
    assert done.stdout == "[]\n"
    assert [line.partition(":9")[0].partition(":11")[0] for line in done.stderr.splitlines()] == [
        "igniterd: Triton 'one' at 127.0.0.1",
        "igniterd: Triton 'two' at 127.0.0.1",
    ]
