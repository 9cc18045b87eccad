"""The process table, from folders made like ``/proc`` and from this machine's own."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.processes import ProcessTable
from igniterd.clients.receipt import LONGEST, receipt_of, share_of_receipt
from igniterd.clients.servers import grpc_port_of
from igniterd.clients.triton.config import instance_names_of
from igniterd.devices import ServerFacts
from igniterd.errors import Unreachable

STUB = "/opt/tritonserver/backends/python/triton_python_backend_stub"


def process(
    proc: Path,
    pid: int,
    comm: str,
    words: tuple[str, ...],
    *,
    parent: int = 1,
    started: int = 100,
    nspid: str = "",
    environment: dict[str, str] | None = None,
    state: str = "S",
    network: str = "",
) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comm").write_text(f"{comm}\n")
    (folder / "cmdline").write_text("\0".join(words) + "\0")
    spaces = f"\nNSpid:\t{nspid}" if nspid else ""
    (folder / "status").write_text(f"Name:\t{comm}\nPPid:\t{parent}{spaces}\n")
    fields = " ".join([state, str(parent), *["0"] * 17, str(started), "0"])
    (folder / "stat").write_text(f"{pid} ({comm} ) odd) {fields}\n")
    if environment is not None:
        (folder / "environ").write_text("".join(f"{k}={v}\0" for k, v in environment.items()))
    if network:
        (folder / "ns").mkdir(exist_ok=True)
        (folder / "ns" / "net").unlink(missing_ok=True)
        (folder / "ns" / "net").symlink_to(network)


def stub(
    proc: Path, pid: int, comm: str = "triton_python_b", instance: str = "m_0_0", **more: object
) -> None:
    words = (STUB, "/models/m/1/model.py", "shm", "1", "1", "44", "/opt", "x", instance, "DEFAULT")
    process(proc, pid, comm, words, **more)  # type: ignore[arg-type]


def server(proc: Path, pid: int, *words: str, **more: object) -> None:
    process(proc, pid, "tritonserver", ("tritonserver", *words), **more)  # type: ignore[arg-type]


async def facts(table: ProcessTable) -> dict[int, ServerFacts]:
    await table.read()
    return dict(await table.servers())


def test_a_receipt_is_read_by_anyone(tmp_path: Path) -> None:
    server(tmp_path, 5, "--model-repository=/models", "--grpc-port=9001")
    stub(tmp_path, 10, "tritonpy@12.5%", parent=5, nspid="10\t3")
    process(tmp_path, 11, "sleep", ("sleep", "1"))
    (found,) = ProcessTable(tmp_path).scan()
    assert (found.pid, found.pids, found.server_pid, found.grpc_port) == (10, (10, 3), 5, 9001)
    assert (found.share, found.by, found.instance) == (0.125, "receipt", "m_0_0")
    assert found.path == "/models/m/1/model.py"


def test_an_environment_tells_where_it_can_be_read(tmp_path: Path) -> None:
    server(tmp_path, 5)
    stub(tmp_path, 10, parent=5, environment={"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30"})
    stub(tmp_path, 11, parent=5, environment={"VIRTUAL_ENV": "/shares/30"})
    stub(tmp_path, 12, parent=5)
    shares = [
        (s.share, s.by, s.environment_read, s.virtual_env) for s in ProcessTable(tmp_path).scan()
    ]
    assert shares == [
        (0.3, "environment", True, ""),
        (None, "", True, "/shares/30"),
        (None, "", False, ""),
    ]


def test_a_receipt_that_comes_later_is_seen_and_so_is_a_process_that_becomes_a_stub(
    tmp_path: Path,
) -> None:
    table = ProcessTable(tmp_path)
    process(tmp_path, 10, "bash", ("bash", "-c", "source activate && exec stub"))
    assert table.scan() == ()
    stub(tmp_path, 10)
    assert [s.share for s in table.scan()] == [None]
    stub(tmp_path, 10, "tritonpy@30%")
    assert [s.share for s in table.scan()] == [0.3]


def test_a_pid_used_again_is_another_process(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    stub(tmp_path, 10, "tritonpy@30%", started=100)
    assert [s.share for s in table.scan()] == [0.3]
    stub(tmp_path, 10, "tritonpy@50%", started=900, instance="n_0_0")
    assert [(s.share, s.instance) for s in table.scan()] == [(0.5, "n_0_0")]
    process(tmp_path, 10, "sleep", ("sleep", "1"), started=2000)
    assert table.scan() == ()
    shutil.rmtree(tmp_path / "10")
    assert table.scan() == ()


def test_what_is_not_a_stub_is_none_whatever_it_calls_itself(tmp_path: Path) -> None:
    process(tmp_path, 10, "tritonpy@30%", ("something", "else"))
    process(tmp_path, 11, "triton_python_b", (STUB, "too", "few"))
    (tmp_path / "self").mkdir()
    (tmp_path / "12").mkdir()  # it has just ended
    assert ProcessTable(tmp_path).scan() == ()


def test_a_process_that_died_is_gone_though_triton_has_not_reaped_it(tmp_path: Path) -> None:
    server(tmp_path, 5)
    stub(tmp_path, 10, "tritonpy@30%", parent=5)
    table = ProcessTable(tmp_path)
    assert len(table.scan()) == 1
    stub(tmp_path, 10, "tritonpy@30%", parent=5, state="Z")
    assert table.scan() == ()
    assert ProcessTable(tmp_path).scan() == ()


def test_workers_forked_by_a_model_s_code_are_no_instances(tmp_path: Path) -> None:
    server(tmp_path, 5)
    stub(tmp_path, 10, "tritonpy@30%", parent=5)
    stub(tmp_path, 20, "tritonpy@30%", parent=10, started=200)
    table = ProcessTable(tmp_path)
    assert [found.pid for found in table.scan()] == [10]
    stub(tmp_path, 10, parent=5, state="Z")  # it dies, and its worker is left to init
    stub(tmp_path, 20, "tritonpy@30%", parent=1, started=200)
    assert [table.scan() for _ in range(40)] == [()] * 40
    stub(tmp_path, 20, "tritonpy@30%", parent=5, started=900)  # another process with its pid
    assert any(table.scan() for _ in range(40))


def test_a_stub_that_names_itself_anew_is_a_stub(tmp_path: Path) -> None:
    server(tmp_path, 5)
    stub(tmp_path, 10, "my_model", parent=5)
    (found,) = ProcessTable(tmp_path).scan()
    assert (found.pid, found.share) == (10, None)


async def test_readers_at_the_same_time_both_get_an_answer(tmp_path: Path) -> None:
    stub(tmp_path, 10)
    table = ProcessTable(tmp_path)
    assert [len(found) for found in await asyncio.gather(*(table.read() for _ in range(5)))] == [
        1
    ] * 5


async def test_a_table_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="process table"):
        await ProcessTable(tmp_path / "none").read()


async def test_this_machine_s_own_table_can_be_read() -> None:
    table = ProcessTable()
    assert all(found.pid != os.getpid() for found in await table.read())


async def test_servers_without_stubs_say_which_gpus_they_see(tmp_path: Path) -> None:
    told = {"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "HOME": "/"}
    server(tmp_path, 5, "--grpc-port=9001", environment=told)
    server(tmp_path, 6, environment={"HOME": "/"})
    server(tmp_path, 7, "--grpc-port", "9002")
    server(tmp_path, 8, "--grpc-port=9003", environment={})  # as of one that is just ending
    process(tmp_path, 9, "python3", ("python3", "--grpc-port=9004"), environment=told)
    # without a look before: it looks itself
    assert await ProcessTable(tmp_path).servers() == {
        9001: ServerFacts("1,0", "PCI_BUS_ID", readable=True),
        8001: ServerFacts(readable=True),
        9002: ServerFacts(),
        9003: ServerFacts(),
    }


async def test_an_environment_of_another_user_s_server_is_not_readable(tmp_path: Path) -> None:
    server(tmp_path, 5)
    (tmp_path / "5" / "environ").mkdir()  # root may read any file, and nobody a folder
    assert await facts(ProcessTable(tmp_path)) == {8001: ServerFacts()}


async def test_a_server_that_started_anew_is_read_anew(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    server(tmp_path, 5, environment={"CUDA_VISIBLE_DEVICES": "0"})
    assert (await facts(table))[8001].visible == "0"
    for _ in range(40):
        assert (await facts(table))[8001].visible == "0"
    server(tmp_path, 5, environment={"CUDA_VISIBLE_DEVICES": "1"}, started=900)
    assert (await facts(table))[8001].visible == "1"
    server(tmp_path, 5, started=900, state="Z", environment={})
    assert await facts(table) == {}
    process(tmp_path, 5, "sleep", ("sleep", "1"), started=2000)
    assert await facts(table) == {}


async def test_what_a_server_was_started_with_is_read_once(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    server(tmp_path, 5, environment={"CUDA_VISIBLE_DEVICES": "0"})
    first = await facts(table)
    for name in ("environ", "cmdline", "comm", "status"):
        (tmp_path / "5" / name).unlink()
    assert await facts(table) == first


async def test_a_server_s_child_that_is_about_to_become_a_stub_is_no_server(
    tmp_path: Path,
) -> None:
    table = ProcessTable(tmp_path)
    server(tmp_path, 5, environment={"A": "b"})
    server(tmp_path, 6, environment={"CUDA_VISIBLE_DEVICES": "1"}, parent=5)
    assert await facts(table) == {8001: ServerFacts(readable=True)}
    stub(tmp_path, 6, parent=5)
    assert [found.pid for found in table.scan()] == [6]


@pytest.mark.parametrize(
    "more",
    [
        {"nspid": "5\t1", "environment": {"A": "b"}},
        {"environment": {"NVIDIA_VISIBLE_DEVICES": "2,3"}},
    ],
)
async def test_a_server_in_a_container_may_see_fewer_gpus(
    tmp_path: Path, more: dict[str, object]
) -> None:
    server(tmp_path, 5, **more)
    assert await facts(ProcessTable(tmp_path)) == {8001: ServerFacts(readable=True, confined=True)}


async def test_a_port_that_two_servers_claim_is_that_of_this_network(tmp_path: Path) -> None:
    zero, one = ({"CUDA_VISIBLE_DEVICES": n} for n in "01")
    server(tmp_path, 5, environment=zero, network="net:[1]")
    server(tmp_path, 6, environment=one, network="net:[2]")
    assert await facts(ProcessTable(tmp_path)) == {8001: ServerFacts()}
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "net").symlink_to("net:[2]")
    assert await facts(ProcessTable(tmp_path)) == {8001: ServerFacts("1", readable=True)}
    server(tmp_path, 5, environment=one, network="net:[2]")  # as with --reuse-grpc-port
    assert await facts(ProcessTable(tmp_path)) == {8001: ServerFacts("1", readable=True)}


async def test_an_mps_control_that_renumbers_gpus_is_seen(tmp_path: Path) -> None:
    table, mps = ProcessTable(tmp_path), "nvidia-cuda-mps"
    server(tmp_path, 5, environment={"A": "b"})
    visible = {"CUDA_VISIBLE_DEVICES": "1,0"}
    process(tmp_path, 8, mps, ("nvidia-cuda-mps-control",), environment=visible)
    assert (await facts(table))[8001].remapped is None  # it only asks
    process(tmp_path, 9, mps, ("nvidia-cuda-mps-control", "-d"), environment=visible)
    assert (await facts(table))[8001].remapped == "1,0"
    shutil.rmtree(tmp_path / "9")
    process(tmp_path, 10, mps, ("/usr/bin/nvidia-cuda-mps-server",), environment=visible)
    assert (await facts(table))[8001].remapped == "1,0"
    shutil.rmtree(tmp_path / "10")
    assert (await facts(table))[8001].remapped is None


def test_the_port_of_a_server() -> None:
    assert grpc_port_of(["tritonserver", "--grpc-port", "9001"]) == 9001
    assert grpc_port_of(["tritonserver", "--grpc-port=9002"]) == 9002
    assert grpc_port_of(["tritonserver"]) == 8001
    assert grpc_port_of(["tritonserver", "--grpc-port"]) is None


@given(st.integers(1, 100_000))
def test_a_receipt_says_the_share_that_was_given(thousandths: int) -> None:
    share = thousandths / 100_000
    name = receipt_of(share)
    assert len(name) <= LONGEST
    assert share_of_receipt(name) == pytest.approx(share, abs=1e-9)


@given(st.text(max_size=15))
def test_other_names_say_no_share(name: str) -> None:
    share = share_of_receipt(name)
    assert share is None or (name.startswith("tritonpy@") and 0 < share <= 1)


def test_instances_are_named_as_triton_names_them() -> None:
    groups = [{"name": "m_0", "count": 2, "gpus": [0, 1]}, {"count": 1}]
    config = {"name": "m", "backend": "python", "instance_group": groups}
    assert instance_names_of(config) == {"m_0", "m_0_0", "m_0_1", "m_1", "m_1_0"}
    assert instance_names_of({**config, "backend": "onnxruntime"}) == frozenset()
