"""What counts as a program being up."""

from pathlib import Path
from typing import Any

import pytest

from igniterd.lab.gpu.boards import boards_of
from igniterd.lab.host import HostSpec, emulated_host
from igniterd.lab.programs import programs
from igniterd.lab.services import mps_host

CONTROL = """#!/bin/bash
if [ "$1" = -f ]; then touch "$CUDA_MPS_PIPE_DIRECTORY/control"; exec tail -f /dev/null; fi
read -r command
echo x >> {folder}/asked
if [ "$(wc -l < {folder}/asked)" -lt 4 ]; then echo "Failed to connect to the control daemon"; else echo 100.0; fi
"""  # noqa: E501


async def test_mps_control_is_up_when_it_answers_with_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first words may be an error."""
    path = tmp_path / "nvidia-cuda-mps-control"
    path.write_text(CONTROL.format(folder=tmp_path))
    path.chmod(0o755)
    monkeypatch.setattr(programs, "mps_control", lambda: programs.Program(path))
    async with mps_host(tmp_path / "mps") as host:
        assert await host.ask("get_default_active_thread_percentage") == "100.0"
    assert (tmp_path / "asked").read_text().count("x") == 5


@pytest.mark.parametrize(
    "given", [{"visible_devices": "0"}, {"device_order": "PCI_BUS_ID"}, {"gpu_metrics": "forward"}]
)
def test_devices_are_of_boards(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} is of CUDA devices"):
        HostSpec((), **given)


async def test_servers_of_one_host_are_on_the_same_boards(tmp_path: Path) -> None:
    spec = HostSpec((), boards=boards_of("t4"), slow_factor=2.0)
    for other, said in (
        (HostSpec((), slow_factor=2.0), r"boards \(\) of a server beside another one"),
        (HostSpec((), boards=spec.boards), "slow_factor 1.0 of a server beside another one"),
    ):
        with pytest.raises(ValueError, match=said):
            async with emulated_host(spec, tmp_path / "host", beside=(other,)):
                pass
    assert not (tmp_path / "host").exists()
