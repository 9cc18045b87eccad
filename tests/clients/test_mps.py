"""The program is played by a small script: the answers are those of the control daemon of driver
535."""

import contextlib
import os
from pathlib import Path

import pytest

from igniterd.clients.mps import MpsControl
from igniterd.errors import Refused, Unreachable
from igniterd.records import MpsReading
from tests.waiting import until


def a_control(folder: Path, body: str) -> str:
    path = folder / "control"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


ANSWERING = """
while read -r command argument; do
  case $command in
    get_default_active_thread_percentage) echo "${DEFAULT}" ;;
    get_server_list) for pid in ${SERVERS}; do echo $pid; done ;;
    get_active_thread_percentage) case $argument in 41) echo 60.0 ;; *) echo "Server $argument not found" ;; esac ;;
    *) echo "Unknown command \\"$command\\"" ;;
  esac
done
"""  # noqa: E501


async def test_no_server_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT", "100.0")
    monkeypatch.setenv("SERVERS", "")
    assert await MpsControl(a_control(tmp_path, ANSWERING), tmp_path).read() == MpsReading(
        server_pids=(), default_share=1.0, client_pids=frozenset()
    )


async def test_the_least_cap_counts_and_a_server_that_ended_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT", "80.0")
    monkeypatch.setenv("SERVERS", "41 42")
    assert await MpsControl(a_control(tmp_path, ANSWERING), tmp_path).read() == MpsReading(
        server_pids=(41, 42), default_share=0.6
    )


TELLING = """
while read -r command argument; do
  case $command in
    get_default_active_thread_percentage) echo 100.0 ;;
    get_server_list) echo 41; echo 42; echo 43 ;;
    get_active_thread_percentage) echo 100.0 ;;
    get_server_status) case $argument in 42) echo FAULT ;; *) echo ACTIVE ;; esac ;;
    get_client_list) case $argument in 41) echo 7; echo 8 ;; 42) : ;; *) echo "Server $argument not found" ;; esac ;;
  esac
done
"""  # noqa: E501


async def test_states_and_clients_of_all_servers(tmp_path: Path) -> None:
    read = await MpsControl(a_control(tmp_path, TELLING), tmp_path).read()
    assert read.states == {41: "ACTIVE", 42: "FAULT", 43: "ACTIVE"}
    assert read.client_pids == {7, 8}


async def test_servers_that_end_while_they_are_asked_leave_their_clients_unknown(
    tmp_path: Path,
) -> None:
    ended = TELLING.replace("41) echo 7; echo 8 ;;", "")
    assert (await MpsControl(a_control(tmp_path, ended), tmp_path).read()).client_pids is None


async def test_what_an_older_program_does_not_tell_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT", "100.0")
    monkeypatch.setenv("SERVERS", "41")
    read = await MpsControl(a_control(tmp_path, ANSWERING), tmp_path).read()
    assert (read.states, read.client_pids) == ({}, None)


async def test_it_asks_the_daemon_of_the_pipe_directory(tmp_path: Path) -> None:
    control = a_control(
        tmp_path, 'cat >/dev/null; [ "$CUDA_MPS_PIPE_DIRECTORY" = "/run/mps" ] && echo 50.0'
    )
    assert (await MpsControl(control, Path("/run/mps")).read()).default_share == 0.5


async def test_no_daemon(tmp_path: Path) -> None:
    control = a_control(
        tmp_path, "cat >/dev/null; echo 'Cannot find MPS control daemon process' >&2; exit 1"
    )
    with pytest.raises(Unreachable, match=r"no control daemon at /run/mps: start it with"):
        await MpsControl(control, Path("/run/mps")).read()


async def test_no_program(tmp_path: Path) -> None:
    with pytest.raises(
        Unreachable, match="cannot start /no/such/program: No such file or directory"
    ):
        await MpsControl("/no/such/program", tmp_path).read()


async def test_a_program_that_fails(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="ended with status 3: no libcuda"):
        await MpsControl(
            a_control(tmp_path, "cat >/dev/null; echo no libcuda >&2; exit 3"), tmp_path
        ).read()


async def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    control = MpsControl(
        a_control(tmp_path, f"echo $$ > {tmp_path}/pid; exec tail -f /dev/null"),
        tmp_path,
        timeout_s=0.5,
    )
    with pytest.raises(Unreachable, match=r"no answer from .* in 0.5 s"):
        await control.read()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def started_for(folder: Path) -> list[str]:
    """Processes that were asked about this pipe directory, theirs and their children's, and still
    run."""
    out = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"CUDA_MPS_PIPE_DIRECTORY={folder}".encode() in environ.read_bytes().split(b"\0"):
                out.append(environ.parent.name)
    return out


CHILDREN = {
    "in the background": "cat >/dev/null; echo 100.0; sleep 60 &",
    "and waits for it": "cat >/dev/null; echo 100.0; sleep 60",
    "that speaks on": "cat >/dev/null; echo 100.0; (while :; do echo 1 >&2; sleep 0.01; done) &",
    "before it answers": "sleep 60 & cat >/dev/null; echo 100.0",
}


@pytest.mark.parametrize("kind", CHILDREN)
async def test_a_program_that_leaves_a_child_costs_no_file_and_no_process(
    tmp_path: Path, kind: str
) -> None:
    control = MpsControl(
        a_control(tmp_path, CHILDREN[kind]), tmp_path, timeout_s=0.3 if "waits" in kind else 10.0
    )
    files = open_files()
    for _ in range(5):
        if "waits" in kind:
            with pytest.raises(Unreachable):
                await control.read()
        else:
            assert (await control.read()).default_share == 1.0
    await until(lambda: not started_for(tmp_path))  # the kernel's to end
    assert open_files() <= files + 2  # what asyncio keeps once it has started a process


@pytest.mark.parametrize("answer", ["Unknown command", "-1", ""])
async def test_an_answer_that_is_not_understood(tmp_path: Path, answer: str) -> None:
    with pytest.raises(Refused, match="get_default_active_thread_percentage"):
        await MpsControl(a_control(tmp_path, f"cat >/dev/null; echo '{answer}'"), tmp_path).read()
