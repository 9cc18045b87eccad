"""The real MPS control daemon answers what igniterd asks, also without a GPU."""

from __future__ import annotations

import pytest

from igniterd.clients.mps import MpsControl
from igniterd.errors import Unreachable
from igniterd.lab.services import MpsHost

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def test_commands_answer(mps: MpsHost) -> None:
    assert await mps.ask("get_server_list") == ""
    assert float(await mps.ask("get_default_active_thread_percentage")) == 100.0
    assert "not found" in (await mps.ask("get_active_thread_percentage 1")).lower()
    assert "not found" in (await mps.ask("ps")).lower()


async def test_the_default_share_can_be_set_and_read(mps: MpsHost) -> None:
    await mps.ask("set_default_active_thread_percentage 70")
    try:
        assert float(await mps.ask("get_default_active_thread_percentage")) == 70.0
        reading = await MpsControl(str(mps.control.path), mps.pipe_directory).read()
        assert reading.default_share == 0.7
        assert reading.server_pids == ()
    finally:
        await mps.ask("set_default_active_thread_percentage 100")


async def test_no_daemon_is_unreachable(
    mps: MpsHost, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(Unreachable):
        await MpsControl(str(mps.control.path), tmp_path_factory.mktemp("empty")).read()
