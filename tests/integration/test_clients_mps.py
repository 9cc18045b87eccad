"""The client against the real ``nvidia-cuda-mps-control``, which answers on a machine without a GPU
as well."""

from pathlib import Path

import pytest

from igniterd.clients.mps import MpsControl
from igniterd.errors import Unreachable
from igniterd.lab.services import mps_host
from igniterd.records import MpsReading

pytestmark = pytest.mark.integration


async def test_it_reads_what_the_control_daemon_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mps_host(tmp_path) as host:
        for key, value in host.control.environment().items():
            monkeypatch.setenv(key, value)
        client = MpsControl(str(host.control.path), host.pipe_directory, timeout_s=10)
        assert await client.read() == MpsReading(default_share=1.0, client_pids=frozenset())
        await host.ask("set_default_active_thread_percentage 62.5")
        assert (await client.read()).default_share == 0.625
    with pytest.raises(Unreachable, match="no control daemon at"):
        await client.read()
