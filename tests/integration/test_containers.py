"""Triton in namespaces of its own, as in a container, and another user's: what the daemon's user
still sees of its processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from igniterd.clients.processes import ProcessTable
from igniterd.clients.shares import prepare_share
from igniterd.clients.triton.client import TritonClient
from igniterd.evidence import by_process, stubs_of
from igniterd.lab.host import EmulatedModel, HostSpec, TritonHost
from igniterd.lab.programs.process import free_ports
from igniterd.records import Effect, ModelReading

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

LOOK = """
import asyncio, concurrent.futures.thread, json, os  # now: another user may not read them
from igniterd.clients.processes import ProcessTable
if os.geteuid() == 0:
    os.setgroups([])
    os.setresuid(65534, 65534, 65534)
table = ProcessTable()
stubs = [(s.pid, s.share, s.by, s.environment_read) for s in table.scan()]
readable = {port: facts.readable for port, facts in asyncio.run(table.servers()).items()}
print(json.dumps([stubs, readable]))
"""


class ContainedHost(TritonHost):
    """tritonserver in a pid namespace and a mount namespace of its own."""

    def _command(self) -> list[str]:
        as_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        alone = ["--pid", "--fork", "--kill-child=TERM", "--mount-proc", "--ipc"]
        return ["unshare", *as_user, *alone, "--", *super()._command()]

    async def stop(self) -> None:
        """unshare does not hand on the signal that ends it."""
        with contextlib.suppress(RuntimeError, OSError, IndexError):
            os.kill(first_child(self.pid), signal.SIGTERM)
        await super().stop()


def first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def seen_by_nobody() -> tuple[list[list[int | float | str | None]], dict[str, bool]]:
    """The stubs of this host as another user reads them, as this one where it is not root, and
    whether the environment of each server can be read, by its port."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60, check=True
    )
    stubs, readable = json.loads(done.stdout)
    return stubs, readable


@pytest.mark.parametrize("launcher", ["24.10", "25.08"])
async def test_a_share_is_proven_through_pid_namespaces_and_for_another_user(
    tmp_path: Path, launcher: str
) -> None:
    shares = tmp_path / "shares"
    share = prepare_share(shares, 0.125)
    parameters = {"EXECUTION_ENV_PATH": str(share)}
    spec = HostSpec((EmulatedModel("alexnet", parameters=parameters),), launcher=launcher)  # type: ignore[arg-type]
    host = ContainedHost(spec, tmp_path / "triton", free_ports(3))
    host.folder.mkdir()
    host.prepare()
    try:
        await host.start()
        client = TritonClient("main", host.url, timeout_s=5.0, shares_dir=str(shares))
        reading = (await client.read_models(["alexnet"]))["alexnet"]
        await client.close()
        assert isinstance(reading, ModelReading)
        table = ProcessTable()
        (stub,) = stubs_of(reading, await table.read(), host.grpc_port)
        assert len(stub.pids) == 2  # the host's pid, and the container's
        assert stub.pids[1] < stub.pid
        finding = by_process(reading, 0.125, [stub], new=False)
        assert (finding.effect, finding.said) == (Effect.PROVEN, f"receipt of process {stub.pid}")
        facts = (await table.servers())[host.grpc_port]
        assert (facts.readable, facts.confined) == (True, True)
        stubs, readable = seen_by_nobody()
        (theirs,) = [row for row in stubs if row[0] == stub.pid]
        assert theirs[1:3] == [0.125, "receipt"]
        assert readable[str(host.grpc_port)] == (os.geteuid() != 0)
    finally:
        await host.stop()
