"""Where a model's files are, from the configuration or a server's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from igniterd.clients.repository import model_folder, own_config, stub_memory_bytes
from igniterd.errors import CannotRun


def a_process(
    proc: Path, pid: int, *words: str, cwd: Path | None = None, root: Path = Path("/")
) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"\0".join(w.encode() for w in words) + b"\0")
    (folder / "cwd").symlink_to(cwd or "/")
    (folder / "root").symlink_to(root)
    (folder / "statm").write_text("9000 100 50 1 0 1 0\n")


def test_the_configuration_says_it(tmp_path: Path) -> None:
    (tmp_path / "b" / "net").mkdir(parents=True)
    assert model_folder("net", "h:8001", ["/nowhere"], tmp_path) == "/nowhere/net"
    assert (
        model_folder("net", "h:8001", [f"{tmp_path}/a", f"{tmp_path}/b"], tmp_path)
        == f"{tmp_path}/b/net"
    )
    with pytest.raises(
        CannotRun,
        match=r"in none of /x, /y as seen from here: give .*repository only the folder that has it",
    ):
        model_folder("net", "h:8001", ["/x", "/y"], tmp_path)


def test_the_command_line_of_the_server_with_that_port_says_it(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "container"
    (root / "srv" / "models" / "net").mkdir(parents=True)
    a_process(
        proc,
        7,
        "/opt/tritonserver/bin/tritonserver",
        "--model-repository=/other",
        "--grpc-port=9001",
    )
    a_process(
        proc,
        8,
        "tritonserver",
        "--model-store",
        "models",
        "--model-repository=/none",
        cwd=Path("/srv"),
        root=root,
    )
    a_process(proc, 9, "python", "--model-repository=/wrong")
    assert model_folder("net", "127.0.0.1:8001", (), proc) == "/srv/models/net"
    assert model_folder("net", "127.0.0.1:9001", (), proc) == "/other/net"
    with pytest.raises(CannotRun, match="its process cannot be seen from here"):
        model_folder("net", "127.0.0.1:9999", (), proc)


def test_a_bucket_is_no_folder(tmp_path: Path) -> None:
    a_process(tmp_path, 7, "tritonserver", "--model-repository=s3://bucket/models")
    with pytest.raises(CannotRun, match="is not a folder of the server's machine"):
        model_folder("net", "127.0.0.1:8001", (), tmp_path)


def test_memory_of_a_model_s_processes(tmp_path: Path) -> None:
    stub = "/opt/tritonserver/backends/python/triton_python_backend_stub"
    rest = ("model.py", "shm", "1", "1", "99", "64", "python")
    a_process(tmp_path, 7, stub, *rest, "net_0_0", "DEFAULT")
    a_process(tmp_path, 8, stub, *rest, "net_0_1", "DEFAULT")
    a_process(tmp_path, 9, stub, *rest, "network_0", "DEFAULT")
    assert stub_memory_bytes("net", tmp_path) == 2 * 100 * 4096
    assert stub_memory_bytes("nets", tmp_path) is None


def test_the_owner_s_own_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, nowhere = tmp_path / "net", tmp_path / "proc"
    folder.mkdir()
    nowhere.mkdir()

    def read() -> object:
        return own_config("net", "127.0.0.1:8001", (str(tmp_path),), nowhere)

    assert read() is None
    (folder / "config.pbtxt").write_text(
        'backend: "python"\nmax_batch_size: 8\ninstance_group [{ count: 3 }]\n'
    )
    assert read() == {
        "name": "net",
        "backend": "python",
        "max_batch_size": 8,
        "instance_group": [{"count": 3}],
    }
    for odd in (b"a field of tomorrow: 3\n", b"\xff\xfe", b"{"):
        (folder / "config.pbtxt").write_bytes(odd)
        assert read() is None
    assert own_config("net", "127.0.0.1:8001", ("s3://bucket/models",), nowhere) is None
