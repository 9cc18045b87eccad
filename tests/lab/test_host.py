"""What counts as a program being up."""

from pathlib import Path

import pytest

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
