"""The process table, from folders made like ``/proc`` and from this machine's own."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igniterd.clients.processes import ProcessTable, grpc_port_of
from igniterd.clients.receipt import LONGEST, receipt_of, share_of_receipt
from igniterd.clients.triton.config import instance_names_of
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


def stub(
    proc: Path, pid: int, comm: str = "triton_python_b", instance: str = "m_0_0", **more: object
) -> None:
    words = (STUB, "/models/m/1/model.py", "shm", "1", "1", "44", "/opt", "x", instance, "DEFAULT")
    process(proc, pid, comm, words, **more)  # type: ignore[arg-type]


def server(proc: Path, pid: int, *words: str) -> None:
    process(proc, pid, "tritonserver", ("tritonserver", *words))


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
